"""The language of native code (native/words.py), and eager operators and evaluations in it."""

import collections
import ctypes
import gc
import hashlib
import importlib.util
import json
import os
import sys
import threading

import numpy as np
import processes
import pytest

import mlxir as mx
from mlxir.compiler import evaluate
from mlxir.compiler.graph import Tape, running
from mlxir.compiler.target.codegen import compiled
from mlxir.native import Unsupported, layout, native_functions
from mlxir.native.library import OPERATORS
from mlxir.native.words import Translation
from mlxir.runtime import errors, launch
from mlxir.runtime.knobs import knobs

pytestmark = pytest.mark.skipif(native_functions() is None, reason="native code does not serve this interpreter")


# -- the language -----------------------------------------------------------------------------------------------------
HEAD = "from mlxir.native.words import builtin, env, invoke, py, stack\nTEN = 10\n"
FUNCTIONS = {
    "arithmetic": "return (x + y * 3 - TEN) * 2 + (x << 2) + (y >> 1) + (z & 12) - (x ^ y) - -z",
    "comparisons": "return (x < y) + 2 * (x <= y) + 4 * (x == z) + 8 * (x != z) + 16 * (x > 0) + 32 * (y >= z)",
    "conditions": "return 1 if x and y or not z else 2 if x < 0 and not y == 1 else 3",
    "branches": """if x > 3:
        if y:
            return 1
        x = 5
    elif z:
        x = 7
    else:
        return x
    return x * 2""",
    "loops": """total = 0
    for i in range(x & 15):
        if i == 3:
            continue
        if i == 9:
            break
        total += i * y
    while z > 0:
        total, z = total + z, z - 2
    return total""",
    "calls": "return helper(x, y) - helper(helper(z, 1), 2)",
}
MEMORY = """at = stack(4)
    at[0], at[1] = x, y
    at[2] = at[0] + at[1]
    at[1] += 5
    more = at + 8
    return more[0] * 1000 + more[1] * 10 + at[3]"""


def module(tmp_path, text):
    path = tmp_path / "source_of_words.py"
    path.write_text(HEAD + text)
    spec = importlib.util.spec_from_file_location("source_of_words", path)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def run(tmp_path, body):
    """The function f(x, y, z) with this body as native code, and as Python."""
    helpers = "def helper(x, y):\n    return x * 2 + y\n\n\ndef g(x, y, z, n):\n    return n\n\n\n"
    made = module(tmp_path, f"{helpers}@builtin\ndef f(x, y, z):\n    {body}\n")
    code = compiled(Translation([made], ("g", 2)).text)
    symbols = ("f", "g_0", "g_1")
    (linked,) = launch._link([launch.Object(hashlib.sha256(code).hexdigest(), symbols, code)], {"env": 0})
    functions = [ctypes.CFUNCTYPE(*[ctypes.c_int64] * 4)(linked.addresses[name]) for name in symbols]
    functions[0].linked = linked
    assert [g(0, 0, 0) for g in functions[1:]] == [0, 1]
    return functions[0], made.f


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_do_what_they_do_in_python(tmp_path, name):
    native, python = run(tmp_path, FUNCTIONS[name])
    for x in (0, 1, 4, 7, 14):
        for y in (0, 1, 6):
            for z in (0, 3, 4, 9):
                assert native(x, y, z) == int(python(x, y, z)), (x, y, z)


def test_memory_and_missing_returns(tmp_path):
    native, _ = run(tmp_path, MEMORY)
    assert native(3, 4, 0) == 9 * 1000 + 7 * 10
    native, _ = run(tmp_path, "x = 3")
    assert native(1, 2, 3) == 0


REFUSED = ["return x ** y", "return x // y", "return [x]", "return 1 < x < y", "del x", "return unknown", "return 'a'",
           "for i in [1]:\n        x = i", "x.y = 1", "return py.A(x) + py.A(x, y)", "return len(x)"]  # fmt: skip


@pytest.mark.parametrize("body", REFUSED)
def test_anything_else_is_refused(tmp_path, body):
    with pytest.raises(SyntaxError):
        Translation([module(tmp_path, f"def f(x, y):\n    {body}\n")], ("g", 0))


def test_other_interpreters_are_refused(monkeypatch):
    layout.check_interpreter()
    monkeypatch.setattr(layout.sysconfig, "get_config_var", lambda name: name == "Py_GIL_DISABLED")
    with pytest.raises(Unsupported, match="GIL"):
        layout.check_interpreter()


def test_slots_are_where_they_were_seen():
    class Two:
        __slots__ = ("x", "y")

    places = {layout._slot(Two, "x"), layout._slot(Two, "y")}
    assert places == {2, 3}
    with pytest.raises(AttributeError):
        layout._slot(Two, "z")

    class Computed:
        __slots__ = ("hidden",)
        x = property(lambda self: 1, lambda self, x: None, lambda self: None)

    with pytest.raises(Unsupported):
        layout._slot(Computed, "x")


# -- operators --------------------------------------------------------------------------------------------------------
def arrays():
    numbers = np.arange(1, 7).reshape(2, 3)
    kinds = (mx.float32, mx.float16, mx.int32, mx.uint8, mx.bool_)
    made = {kind.name: mx.array(numbers, kind) for kind in kinds}
    made |= {"other": mx.array(numbers[::-1] * 2, mx.float32), "row": mx.array([1.0, 2.0, 3.0])}
    made |= {"scalar": mx.array(2.0), "empty": mx.zeros((0, 3)), "wide": mx.ones((2, 2))}
    mx.eval(made)
    return made


OTHERS = [2, 3.5, -1, 0, 0.0, True, 1 << 40, 1j, None, "text", [1], np.float32(3), np.ones(3, np.float32)]


def outcome(f, *operands):
    """What an operator recorded, or its error."""
    try:
        out = f(*operands)
    except Exception as error:
        return type(error), str(error).split(" (")[0]
    if not isinstance(out, mx.array):
        return out
    node = out._value.node
    assert node.attrs == {} and [a.shape for a in node.avals] == [out.shape] and node.avals[0].dtype is out.dtype
    inputs = [(v.shape, v.dtype, repr(v.node.attrs) if v.node else v.buffer.numpy().tobytes())
              for v in node.inputs]  # fmt: skip
    return node.primitive.name, out.shape, out.dtype, inputs


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_those_of_python(name):
    assert type(vars(mx.array)[name]).__name__ == "method_descriptor"
    made = arrays()
    for key, x in made.items():
        for other in [*made.values(), *OTHERS]:
            slow = outcome(OPERATORS[name], x, other)
            for _ in range(2):  # constants are known from the second time on
                assert outcome(getattr(x, name), other) == slow, (key, other)


def test_operators_take_one_operand_of_an_array():
    x = mx.array([1.0])
    for wrong in ((), (x, x)):
        with pytest.raises(TypeError):
            x.__add__(*wrong)
    with pytest.raises(TypeError):
        mx.array.__add__(1, x)

    class Sub(mx.array):
        pass

    assert type(Sub([1.0]) + x) is mx.array and (Sub([1.0]) + x).item() == (x + Sub([1.0])).item() == 2


def test_in_place_operators():
    x = alias = mx.array([1.0, 2.0])
    x += 1
    x *= x
    assert alias is x and x.tolist() == [4.0, 9.0]
    n = mx.array([1])
    with pytest.raises(ValueError, match="integer arrays"):
        n /= 2


def test_operations_know_the_line_that_they_stand_on():
    x = mx.array([1.0])
    mx.eval(x)
    lines = []
    for _ in range(3):
        a = x + 1
        b = a * \
            x
        lines.append([errors.location(v._value.node.where) for v in (a, b)])
    here = test_operations_know_the_line_that_they_stand_on.__code__.co_firstlineno
    assert lines[0] == lines[1] == lines[2]
    assert [(file, line - here) for file, line in lines[0]] == [(__file__, 5), (__file__, 6)]


def test_operations_of_the_library_know_the_line_of_its_user():
    x = mx.array([1.0])
    values = [mx.stack([x, x]).sum() * 1.5, mx.var(x), sum([x, x])]
    assert all(errors.location(v._value.node.where)[0] == __file__ for v in values)


def test_references_do_not_drift():
    x, y = mx.array([1.0, 2.0]), mx.array([3.0, 4.0])
    mx.eval(x, y)

    def step():
        z = x
        for _ in range(5):
            z = (z * 1.5 + y) < (x if _ % 2 else y)
            z = z * y - 0.25
        w = z / 3
        mx.eval(z, [w, {"a": x}])

    for _ in range(20):
        step()
    common = (None, x._value, y._value, running, mx.float32, x.shape, mx.array, (), 0)
    gc.collect()
    before, objects = [sys.getrefcount(c) for c in common], len(gc.get_objects())
    for _ in range(2000):
        step()
    gc.collect()
    after = [sys.getrefcount(c) for c in common]
    assert all(b - a < 50 for a, b in zip(before, after, strict=True)), (before, after)
    assert len(gc.get_objects()) - objects < 50


def test_collections_in_the_middle_of_an_operation():
    x, y = mx.array([1.0, 2.0]), mx.array([3.0, 4.0])

    class Meddler:
        def __init__(self):
            self.me = self

        def __del__(self):
            global meddled
            meddled = mx.array([5.0]) * 3 + 1  # records on the same tape
            mx.eval(meddled)

    before = gc.get_threshold()
    try:
        for threshold in (1, 2, 3, 5, 7):
            gc.set_threshold(threshold, 1, 1)
            for _ in range(40):
                Meddler()
                z = (x * y + 2.0) - x
                assert z.tolist() == [4.0, 8.0]
    finally:
        gc.set_threshold(*before)


# -- evaluations ------------------------------------------------------------------------------------------------------
@pytest.fixture
def compiled_tier(monkeypatch):
    monkeypatch.setattr(knobs, "tier", "compiled")
    evaluate.forget()
    running.tape = Tape()


def test_a_repeated_evaluation_is_native(compiled_tier, monkeypatch):
    x, y = mx.array([1.0, 2.0]), mx.array([3.0, 4.0])
    first = (x * y + 1).tolist()
    for name in ("_replayed", "cut"):
        monkeypatch.setattr(evaluate, name, None)  # to call it would be an error
    assert (y * x + 1).tolist() == first == [4.0, 9.0]
    z = x * y + 1
    mx.eval([{"z": z}, (x,)], y, 3, None, "text")
    assert z._value.node is None and z.tolist() == first


class Layer(dict):
    """As a Module: a dict with attributes."""


class Named(list):
    pass


class Backwards(dict):
    def values(self):
        return reversed(list(super().values()))


class Hidden(list):
    def __iter__(self):
        return iter(())


Pair = collections.namedtuple("Pair", "x y")


def test_subclasses_of_containers_are_taken_apart_natively(compiled_tier, monkeypatch):
    x = mx.array([1.0, 2.0])
    made = []
    for i in range(2):
        y = x * 3
        tree = Layer(w=y, b=Named([y + 1, Pair(y + 2, True)]), s=mx.random.state)
        with monkeypatch.context() as patch:
            if i:
                patch.setattr(evaluate, "evaluate", None)
            native = native_functions().function("evaluated")
            assert native(tree) is (i == 1)
        mx.eval(tree)
        made.append([tree["w"].tolist(), tree["b"][0].tolist(), tree["b"][1].x.tolist()])
    assert made[0] == made[1] == [[3, 6], [4, 7], [5, 8]]
    assert native(Backwards(x=x)) is False and native(Hidden([x])) is False
    unseen = x * 5
    mx.eval(Hidden([unseen]))
    assert unseen._value.node is not None


def test_a_gradient_is_found_again(compiled_tier, monkeypatch):
    x, y = mx.array([1.0, 2.0]), mx.array([3.0, 4.0])
    scale = [2.0]
    f = mx.value_and_grad(lambda x: (x * y * scale[0]).sum())

    def step():
        loss, gradient = f(x)
        new = x - gradient * 0.5
        mx.eval(loss, new)
        return loss.item(), new.tolist()

    first = step()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "_evaluate", None)
        assert step() == first == (22.0, [-2.0, -2.0])
    scale[0] = 4.0
    assert step() == (44.0, [-5.0, -6.0])


def test_trees_that_hold_themselves_and_odd_things():
    x = mx.array([1.0]) + 1
    loop = [x]
    loop.append(loop)
    native = native_functions().function("evaluated")
    assert native(loop) is False and native(object()) is False and native([{1, 2}]) is False
    assert native() is True and native(1, 2.0, None, "a", [], {}, ()) is True
    deep = x
    for _ in range(5000):
        deep = [deep]
    assert native(deep) is False
    del loop[1]


def test_threads_that_evaluate_the_same_values(compiled_tier):
    x = mx.array(np.ones(70_000, np.float32))
    mx.eval(x * 2 + 1)
    wrong = []
    for _ in range(30):
        shared = x * 2 + 1
        late = shared + 1

        def work(shared=shared, late=late):
            if late.sum().item() != 4 * 70_000 or shared[0].item() != 3:
                wrong.append(1)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


PROGRAM = """
import json, sys
import mlxir as mx
from mlxir.compilation import _caches
out = []
x = mx.array([1.0, 2.0, 3.0])
state = {"w": mx.array([1.0])}
def step(x, r):
    state["w"] = state["w"] + x.sum() * r
    return {"y": x * r, "n": None}
f = mx.compile(step, inputs=state, outputs=state)
for i in range(12):
    out.append([f(x, 0.5)["y"].tolist(), state["w"].tolist()])
    y = ((x * 2 + i) / 3 > x) * x
    mx.eval(y)
    loss, g = mx.value_and_grad(lambda x: (x * x).sum())(y)
    out.append([y.tolist(), loss.item(), g.tolist()])
print(json.dumps([_caches[f].served.value, type(vars(mx.array)["__add__"]).__name__, out]))
"""


def test_switched_off_python_does_the_same():
    found = []
    for native in ("1", "0"):
        environment = os.environ | {"MLXIR_NATIVE": native}
        done = processes.run([sys.executable, "-c", PROGRAM], env=environment)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout))
    (served, kind, values), (unserved, plain, same) = found
    assert served == 8 and unserved == 0 and kind == "method_descriptor" and plain == "function" and values == same
