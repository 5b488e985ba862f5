"""Functions in files: the forms of real MLX, shapeless ones, transforms of imported functions, damaged files."""

import io
import json
import sys

import mlx.core as real
import numpy as np
import processes
import pytest
from counting import Counter, value

import mlxir as mx
from mlxir.export import MAGIC

a = mx.array


@pytest.fixture
def file(tmp_path):
    return str(tmp_path / "function.mlxfn")


def roundtrip(file, fun, *args, **options):
    mx.export_function(file, fun, *args, **options)
    return mx.import_function(file)


X, Y = a([1.0, 2.0]), a([3.0, 5.0])


# -- forms -------------------------------------------------------------------------------------------------------------
def add(x, y):
    return x + 10 * y


FORMS = [
    ("positional", add, (X, Y), {}, (Y, X), {}),
    ("tuple", add, ((X, Y),), {}, ([Y, X],), {}),
    ("keywords", add, (X,), {"y": Y}, (Y,), {"y": X}),
    ("only keywords", add, (), {"y": Y, "x": X}, (), {"x": Y, "y": X}),
    ("dictionary", add, ({"x": X, "y": Y},), {}, (), {"y": X, "x": Y}),
    ("tuple and dictionary", add, ((X,), {"y": Y}), {}, ((Y,), {"y": X}), {}),
]


@pytest.mark.parametrize("form", FORMS, ids=[f[0] for f in FORMS])
def test_forms_of_inputs(form, file):
    _, fun, args, kwargs, args2, kwargs2 = form
    found = roundtrip(file, fun, *args, **kwargs)(*args2, **kwargs2)
    assert type(found) is tuple and [value(x) for x in found] == [[13.0, 25.0]]


def test_no_inputs_and_several_outputs(file):
    assert value(roundtrip(file, lambda: a(3.0))()[0]) == 3.0
    for fun in (lambda x: (x, x + 1, X), lambda x: [x, x + 1, X]):
        assert [value(v) for v in roundtrip(file, fun, X)(Y)] == [[3.0, 5.0], [4.0, 6.0], [1.0, 2.0]]


@pytest.mark.parametrize("bad", [{"k": X}, (X, [X]), None, 3, "s"], ids=str)
def test_outputs_of_other_types(bad, file):
    with pytest.raises(ValueError, match=r"^\[export_function\] Outputs can be either"):
        mx.export_function(file, lambda x: bad, X)


def test_inputs_of_other_types(file):
    for args in ((X, 2), ([X, 2],), (X, np.zeros(2)), ({1: X},)):
        with pytest.raises(ValueError, match=r"^\[export_function\] Inputs can either be"):
            mx.export_function(file, lambda *x, **k: X, *args)
    with pytest.raises(ValueError, match=r"^\[import_function::call\] Inputs can either be"):
        roundtrip(file, add, X, Y)(X, 2.0)
    with pytest.raises(TypeError):
        mx.export_function(file, 3, X)
    with pytest.raises(TypeError):
        mx.export_function(3, add, X, Y)


MISMATCHES = [((X,), {}), ((X, Y[:1]), {}), ((X, Y.astype(mx.int32)), {}), ((), {}), ((X,), {"z": Y}),
              ((X, Y), {"z": Y})]  # fmt: skip


@pytest.mark.parametrize("call", MISMATCHES, ids=range(len(MISMATCHES)))
def test_inputs_that_fit_no_trace(call, file):
    args, kwargs = call
    message = r"^\[import_function::call\] No imported function found(.|\n)*1: \(2\) float32"
    with pytest.raises(ValueError, match=message):
        roundtrip(file, add, X, Y)(*args, **kwargs)


def test_python_runs_once_and_captured_arrays_are_kept(file):
    weights = mx.random.normal((3, 2))
    f = Counter(lambda x: mx.tanh(x @ weights) + 1)
    g = roundtrip(file, f, mx.ones((4, 3)))
    x = mx.random.normal((4, 3))
    np.testing.assert_allclose(np.array(g(x)[0]), np.tanh(np.array(x) @ np.array(weights)) + 1, rtol=1e-5, atol=1e-6)
    assert f.runs == 1
    with pytest.raises(ValueError, match=r"^\[eval\] not allowed during export: .*test_export.py:\d+"):
        mx.export_function(file, lambda x: x if x > 0 else -x, a(1.0))


def test_every_dtype_and_special_values(file):
    for dtype in ("bool_", "int8", "uint64", "int32", "float16", "bfloat16", "float32", "complex64"):
        c = mx.array([0, 1, 3]).astype(getattr(mx, dtype))
        (got,) = roundtrip(file, lambda x: mx.where(x == x, x, x) if x.dtype == mx.bool_ else x * c, c)(c)  # noqa: B023
        want = c if dtype == "bool_" else c * c
        assert got.dtype == want.dtype and value(got) == value(want)
    (got,) = roundtrip(file, lambda x: mx.maximum(x, -mx.inf) * mx.nan + (x + 1j) * 0 + 2**40, X)(X)
    assert np.isnan(np.array(got).real).all()


# -- several traces ----------------------------------------------------------------------------------------------------
def test_several_traces(file):
    big = a(np.arange(1000, dtype=np.float32))
    with mx.exporter(file, lambda *xs: sum(xs) + big[0], metadata="about") as export:
        assert isinstance(export, mx.FunctionExporter)
        export(X)
        export(X, Y)
        export(a(1))
        with pytest.raises(RuntimeError, match="twice with the same signature"):
            export(Y)
    with pytest.raises(RuntimeError, match="after exporting is closed"):
        export(X, Y, X)
    g, metadata = mx.import_function(file, return_metadata=True)
    assert metadata == "about" and value(g(X)[0]) == [1.0, 2.0] and value(g(Y, X)[0]) == [4.0, 7.0]
    assert value(g(a(5))[0]) == 5.0
    with pytest.raises(ValueError, match="3. Function with 1 positional"):
        g(X, Y, X)
    with open(file, "rb") as opened:
        assert len(opened.read()) < 2 * 4000  # the constant is kept once


def test_metadata(file):
    mx.export_function(file, add, X, Y)
    assert mx.import_function(file, return_metadata=True)[1] == ""
    mx.export_function(file, add, X, Y, metadata='{"é": 1}')
    assert mx.import_function(file, True)[1] == '{"é": 1}'
    with pytest.raises(ValueError, match="only supported when exporting to a file"):
        mx.export_function(lambda d: None, add, X, Y, metadata="x")


# -- shapeless ---------------------------------------------------------------------------------------------------------
def test_shapeless(file):
    def f(x, w):
        y = mx.softmax(x @ w, axis=-1)
        return mx.mean(y, axis=0), y.reshape(x.shape[0] * y.shape[1]), x[1:, :-1], y / x.shape[0] ** 0.5

    g = roundtrip(file, f, mx.ones((2, 3)), mx.ones((3, 2)), shapeless=True)
    for n, k, m in ((2, 3, 2), (5, 4, 7), (2, 2, 2)):
        x, w = mx.random.normal((n, k)), mx.random.normal((k, m))
        for got, want in zip(g(x, w), f(x, w), strict=True):
            np.testing.assert_allclose(np.array(got), np.array(want), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="No imported function found"):
        g(mx.ones((2, 3)), mx.ones((4, 2)))  # the trace assumed that they fit
    with pytest.raises(ValueError, match="No imported function found"):
        g(mx.ones((3,)), mx.ones((4, 2)))


def test_a_shapeless_function_whose_trace_needed_a_size(file):
    g = roundtrip(file, lambda x: sum(x[i] for i in range(x.shape[0])) * x.shape[1], mx.ones((2, 3)), shapeless=True)
    assert value(g(mx.ones((2, 5)))[0]) == [10.0] * 5
    with pytest.raises(ValueError, match="No imported function found"):
        g(mx.ones((3, 5)))


# -- transforms --------------------------------------------------------------------------------------------------------
def test_transforms_of_imported_functions(file):
    g = roundtrip(file, lambda x: mx.sum(mx.sin(x) * x), X)
    want = np.sin([3, 5]) + [3, 5] * np.cos([3, 5])
    np.testing.assert_allclose(value(mx.grad(lambda x: g(x)[0])(Y)), want, rtol=1e-5)
    rows = mx.vmap(lambda x: g(x)[0])(mx.stack([X, Y]))
    np.testing.assert_allclose(value(rows), [value(g(X)[0]), value(g(Y)[0])], rtol=1e-6)
    counted = Counter(lambda x: g(x)[0] * 2)
    compiled = mx.compile(counted)
    for x in (X, Y, X):
        np.testing.assert_allclose(value(compiled(x)), 2 * value(g(x)[0]), rtol=1e-6)
    assert counted.runs == 1


def test_shapeless_imported_functions_in_shapeless_compiled_ones(file):
    g = roundtrip(file, lambda x: mx.mean(x) * x.shape[0], mx.ones((2,)), shapeless=True)
    f = Counter(lambda x: g(x * 2)[0] + 1)
    compiled = mx.compile(f, shapeless=True)
    for n in (2, 3, 7):
        assert value(compiled(mx.ones((n,)))) == pytest.approx(2 * n + 1)
    assert f.runs == 1


@pytest.mark.parametrize("shapeless", [False, True])
def test_transforms_inside_exported_functions(file, shapeless):
    @mx.custom_function
    def thrice(x):
        return 3 * x

    @thrice.vjp
    def _(x, ct, out):
        return 100 * ct

    def f(x):
        return mx.value_and_grad(lambda v: mx.sum(mx.vmap(lambda r: r * r)(v)))(x)[1] + mx.grad(
            lambda v: mx.sum(thrice(v))
        )(x)

    g = roundtrip(file, f, X, shapeless=shapeless)
    assert value(g(Y)[0]) == [106.0, 110.0]
    h = roundtrip(file, lambda x: mx.sum(thrice(x)), X, shapeless=shapeless)
    assert value(h(Y)[0]) == 24.0 and value(mx.grad(lambda x: h(x)[0])(Y)) == [100.0, 100.0]


# -- callback, DOT -----------------------------------------------------------------------------------------------------
def test_the_callback_sees_what_mlx_shows():
    def described(m):
        calls = []
        m.export_function(calls.append, lambda x, y=None: m.exp(x) + y + 2, m.array(1.0), y=m.array(2.0))
        return [{k: [*map(str, v)] if isinstance(v, list) else v for k, v in sorted(c.items())} for c in calls]

    assert described(mx) == described(real)


def test_dot(tmp_path):
    x, y = a(1.0), a(2.0)
    text = io.StringIO()
    mx.export_to_dot(text, mx.exp(x + y), x=x, y=y)
    lines = text.getvalue().splitlines()
    assert lines[0] == "digraph {" and lines[-1] == "}"
    assert '{ rank=source; "x"; }' in lines and '{ 1 [label ="Exp", shape=rectangle]; }' in lines
    assert '"C" -> 1' in lines and '{ rank=sink; "D"; }' in lines
    mx.export_to_dot(str(tmp_path / "g.dot"), [mx.exp(x), {"k": y * x}], name=y)
    written = (tmp_path / "g.dot").read_text()
    assert written.count("rank=sink") == 2 and '"name" -> ' in written


# -- damage ------------------------------------------------------------------------------------------------------------
def exported(file):
    def f(x, w):
        return mx.softmax(x @ w + a(np.arange(2, dtype=np.float32)), axis=-1)[1:, ::-1], mx.take(x, a([1, 0]), axis=1)

    mx.export_function(file, f, mx.ones((4, 3)), mx.ones((3, 2)), shapeless=True)
    with open(file, "rb") as opened:
        return opened.read()


def test_missing_and_foreign_files(file, tmp_path):
    with pytest.raises(RuntimeError, match=r"\[import_function\] Failed to open"):
        mx.import_function(file)
    for junk in (b"", b"abc", MAGIC, MAGIC + b"\xff" * 8, MAGIC + (2).to_bytes(8, "little") + b"{}", b"PK\x03\x04" * 9):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(ValueError, match=r"^\[import_function\]"):
            mx.import_function(str(tmp_path / "junk"))


def test_a_truncated_file(file):
    data = exported(file)
    for size in [*range(0, len(data), 97), len(data) - 1]:
        with open(file, "wb") as opened:
            opened.write(data[:size])
        with pytest.raises(ValueError, match=r"^\[import_function\]"):
            mx.import_function(file)
    with open(file, "wb") as opened:
        opened.write(data + b"x")
    with pytest.raises(ValueError, match="its length"):
        mx.import_function(file)


def places(tree, path=()):
    """Every place in JSON data."""
    yield path
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def split(data):
    start = len(MAGIC) + 8
    end = start + int.from_bytes(data[len(MAGIC) : start], "little")
    return json.loads(data[start:end]), data[end:]


def joined(header, rest):
    text = json.dumps(header).encode()
    return MAGIC + len(text).to_bytes(8, "little") + text + rest


HOSTILE = [None, True, -1, 7, 10**30, 1.5, "", "x", "__import__('os').abort()", "9**9**9", "s0 if s0 else 1", [], {},
           [[]], {"tuple": [9]}, {"size": "s9"}, {"program": {}}, {"dtype": "object"}, {"float": "1e9"}]  # fmt: skip

FUZZ = """
import json, sys, mlxir as mx
sys.path.insert(0, sys.argv[2])
import importlib.util
spec = importlib.util.spec_from_file_location("t", sys.argv[3]); t = importlib.util.module_from_spec(spec)
spec.loader.exec_module(t)
data = open(sys.argv[1], "rb").read()
header, rest = t.split(data)
refused = accepted = 0
for n, path in enumerate(list(t.places(header))[1:]):
    for bad in t.HOSTILE[n % 3 :: 3]:
        changed, _ = t.split(data)
        spot = changed
        for key in path[:-1]:
            spot = spot[key]
        if type(spot[path[-1]]) is type(bad) and spot[path[-1]] == bad:
            continue
        spot[path[-1]] = bad
        open(sys.argv[1], "wb").write(t.joined(changed, rest))
        try:
            f = mx.import_function(sys.argv[1])
        except ValueError as error:
            assert str(error).startswith("["), error
            refused += 1
            continue
        accepted += 1
        for run in (f, mx.compile(f)):  # what passes may compute something else, or not: no access leaves a buffer
            try:
                mx.eval(run(mx.ones((4, 3)), mx.ones((3, 2))))
            except (ValueError, TypeError, RuntimeError, ArithmeticError, MemoryError):
                pass
print(refused, accepted)
"""


def test_a_hostile_file_raises_and_executes_nothing(file):
    """Every place of the JSON part replaced by every hostile value, in a process of its own."""
    exported(file)
    tests = __file__.rpartition("/")[0].rpartition("/")[0]
    done = processes.run([sys.executable, "-c", FUZZ, file, tests, __file__])
    assert done.returncode == 0, done.stderr[-2000:]
    refused, accepted = map(int, done.stdout.split())
    assert refused > 10 * accepted and refused > 500


def test_flipped_bytes(file):
    data = exported(file)
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 200):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        with open(file, "wb") as opened:
            opened.write(changed)
        try:
            mx.import_function(file)
        except ValueError as error:
            assert str(error).startswith("[")
