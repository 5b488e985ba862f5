"""compile(shapeless=True): one trace for all sizes, with the results that real MLX computes eagerly (BEHAVIOUR 8.5)."""

import mlx.core as real
import numpy as np
import pytest
from counting import Counter, value

import mlxir as mx
from mlxir.runtime.knobs import knobs

a = mx.array


@pytest.fixture(autouse=True)
def _nothing_is_cached(monkeypatch):
    """Compilations are counted: code that another test made, or left on disk, would not be."""
    monkeypatch.setattr(knobs, "cache_dir", None)
    mx.clear_compile_cache()


MATRICES = [[(4, 6)], [(5, 3)], [(7, 8)]]
PAIRS = [[(4, 6), (4, 6)], [(5, 3), (5, 3)], [(7, 8), (7, 8)]]
PRODUCTS = [[(4, 6), (6, 3)], [(5, 3), (3, 3)], [(7, 8), (8, 2)]]

# name -> (function of the array module and arrays, shapes of the calls)
ONCE = {
    "elementwise": (lambda m, x, y: m.exp(x) * y + 1, PAIRS),
    "broadcast a row": (lambda m, x, y: x + y, [[(4, 6), (6,)], [(5, 3), (3,)], [(7, 8), (8,)]]),
    "broadcast, sizes equal by accident": (lambda m, x, y: x + y, [[(4, 4), (4,)], [(5, 3), (3,)], [(7, 8), (8,)]]),
    "broadcast a column": (lambda m, x, y: x * y, [[(4, 6), (4, 1)], [(5, 3), (5, 1)], [(7, 8), (7, 1)]]),
    "sum": (lambda m, x: m.sum(x, axis=0), MATRICES),
    "statistics": (lambda m, x: [m.mean(x, axis=-1, keepdims=True), m.var(x, axis=0), m.std(x)], MATRICES),
    "softmax": (lambda m, x: m.softmax(x, axis=-1), MATRICES),
    "logsumexp": (lambda m, x: m.logsumexp(x, axis=-1), MATRICES),
    "layer norm": (lambda m, x: m.fast.layer_norm(x, None, None, 1e-5), MATRICES),
    "matmul": (lambda m, x, y: x @ y, PRODUCTS),
    "rows of a matmul": (lambda m, x, y: m.maximum(x @ y, 0), [[(n, 6), (6, 3)] for n in (4, 6, 3)]),
    "concatenate": (lambda m, x, y: m.concatenate([x, y]), [[(4, 6), (3, 6)], [(5, 3), (2, 3)], [(7, 8), (7, 8)]]),
    "stack": (lambda m, x, y: m.stack([x, y]), PAIRS),
    "transpose": (lambda m, x: m.transpose(x), MATRICES),
    "squeeze": (lambda m, x: m.squeeze(m.expand_dims(x, 1), 1), MATRICES),
    "reshape": (lambda m, x: m.reshape(x, (-1,)), MATRICES),
    "reshape by a size": (
        lambda m, x: x.reshape(x.shape[0] * x.shape[1], -1), [[(2, 3, 4)], [(5, 1, 2)], [(3, 3, 3)]]),
    "heads": (
        lambda m, x: x.reshape(x.shape[0], x.shape[1], 4, -1).transpose(0, 2, 1, 3),
        [[(2, 3, 8)], [(5, 4, 12)], [(3, 3, 16)]]),
    "flatten": (lambda m, x: m.flatten(x), MATRICES),
    "cumsum": (lambda m, x: m.cumsum(x, axis=1), MATRICES),
    "sort": (lambda m, x: m.sort(x, axis=1), MATRICES),
    "argmax": (lambda m, x: m.argmax(x, axis=1), MATRICES),
    "take": (lambda m, x: m.take(x, m.array([0, 1]), axis=0), MATRICES),
    "at": (lambda m, x: x.at[:, 0].add(2.0), MATRICES),
    # Refused by MLX.
    "slice": (lambda m, x: x[1:, :-1], MATRICES),
    "slice by steps": (lambda m, x: x[::2, ::-1], MATRICES),
    "last": (lambda m, x: x[-1], MATRICES),
    "middle": (lambda m, x: x[x.shape[0] // 2], MATRICES),
    "split": (lambda m, x: m.split(x, 2), [[(4, 6)], [(6, 3)], [(8, 8)]]),
    "pad": (lambda m, x: m.pad(x, 1), MATRICES),
    "roll": (lambda m, x: m.roll(x, 1, 0), MATRICES),
    "repeat": (lambda m, x: m.repeat(x, 2, axis=0), MATRICES),
    # Sizes as numbers.
    "arange": (lambda m, x: x * m.arange(x.shape[1]), MATRICES),
    "zeros": (lambda m, x: m.zeros(x.shape) + x, MATRICES),
    "mask": (lambda m, x: m.tril(m.ones((x.shape[0], x.shape[0]))) @ x, MATRICES),
    "division": (lambda m, x: m.sum(x) / x.size, MATRICES),
    "root": (lambda m, x: x / x.shape[0] ** 0.5, MATRICES),
    # Transforms.
    "gradient": (lambda m, x: m.grad(lambda v: m.sum(m.softmax(v, axis=-1) ** 2))(x), MATRICES),
    "gradient of a product": (
        lambda m, x, y: m.grad(lambda v, w: m.mean(m.tanh(v @ w)), argnums=(0, 1))(x, y), PRODUCTS),
    "vmap": (lambda m, x: m.vmap(lambda r: m.softmax(r) * r.shape[0])(x), MATRICES),
}  # fmt: skip

RETRACED = {  # for each of them, how many traces the three calls take
    "a loop over rows": (lambda m, x: sum(x[i] for i in range(x.shape[0])), MATRICES, 3),
    "a branch": (lambda m, x: x * 2 if x.shape[0] > 4 else x, [[(4, 6)], [(5, 3)], [(7, 8)]], 2),
    "size 1 broadcasts": (lambda m, x, y: x + y, [[(4, 6), (4, 6)], [(4, 6), (1, 6)], [(9, 2), (9, 2)]], 2),
    "an int": (lambda m, x: x * int(x.shape[1]), [[(4, 6)], [(5, 6)], [(7, 8)]], 2),
}  # fmt: skip


def compilations():
    info = mx.compile_cache_info()
    return info.compilations + info.disk_hits


def check(fun, shapes, compiled=None):
    """Calls on random data of all shapes, compared with eager MLX; the number of times Python ran.

    `compiled` is how often machine code may be made.
    """
    f = Counter(lambda *args: fun(mx, *args))
    g = mx.compile(f, shapeless=True)
    before = compilations()
    rng = np.random.default_rng(0)
    for call in [*shapes, *shapes]:
        data = [rng.standard_normal(s).astype(np.float32) for s in call]
        got, want = g(*map(a, data)), fun(real, *map(real.array, data))
        got, want = (x if isinstance(x, (list, tuple)) else [x] for x in (got, want))
        for x, y in zip(got, want, strict=True):
            assert x.shape == y.shape and all(type(n) is int for n in x.shape)
            np.testing.assert_allclose(np.array(x), np.array(y), rtol=1e-4, atol=1e-5)
    assert g.cache_info().misses == f.runs and g.cache_info().hits == 2 * len(shapes) - f.runs
    if compiled is not None:
        assert compilations() - before == compiled
    return f.runs


# Where one piece of machine code does not serve all three calls: how many are made.
SPECIALISED = {
    "reshape by a size": 2,  # of which one has an axis of length 1
    "sort": 3,  # a network for each length
}


@pytest.mark.parametrize("name", ONCE)
def test_one_trace_and_one_compilation_serve_all_sizes(name):
    assert check(*ONCE[name], SPECIALISED.get(name, 1)) == 1


LARGE = {
    "matmul, rows": (lambda m, x, y: x @ y, [[(n, 96), (96, 80)] for n in (64, 65, 100, 257, 1000)], 1),
    "matmul, columns": (lambda m, x, y: x @ y, [[(96, 70), (70, n)] for n in (65, 66, 100, 257)], 1),
    "matmul, depth": (lambda m, x, y: x @ y, [[(70, n), (n, 80)] for n in (64, 65, 100, 512)], 1),
    "matmul, all, and what follows": (
        lambda m, x, y: m.tanh(x @ y + y[0]), [[(n, n + 3), (n + 3, n + 5)] for n in (64, 77, 101, 130)], 1),
    "matmul, transposed": (lambda m, x, y: x.T @ y.T, [[(n, n + 9), (n + 1, n)] for n in (64, 81, 99)], 1),
    "matmul, batches": (
        lambda m, x, y: x @ y, [[(b, n, 72), (b, 72, n + 5)] for b, n in ((2, 64), (3, 97), (5, 66))], 1),
    "matmul, three classes": (lambda m, x, y: x @ y, [[(n, 96), (96, 80)] for n in (3, 20, 70, 7, 33, 300)], 3),
    "softmax": (lambda m, x: m.softmax(x, axis=-1), [[(n, 3 * n)] for n in (50, 3, 700, 300)], 1),
    "layer norm and its gradient": (
        lambda m, x: m.grad(lambda v: m.sum(m.fast.layer_norm(v, None, None, 1e-5) ** 3))(x),
        [[(n, 2 * n)] for n in (30, 3, 300)], 1),
    "columns": (lambda m, x: m.sum(x * x, axis=0), [[(n, k)] for n, k in ((50, 70), (3, 700), (301, 2), (2, 2))], 1),
    "all": (lambda m, x: m.mean(m.abs(x)), [[(n, n)] for n in (5, 100, 7)], 1),
    "a network": (
        lambda m, x, w: m.softmax(m.maximum(x @ w, 0) @ w.T, axis=-1),
        [[(n, 100), (100, 64)] for n in (64, 91, 300)], 1),
}  # fmt: skip


@pytest.mark.parametrize("name", LARGE)
def test_machine_code_for_large_sizes(name):
    assert check(*LARGE[name]) == 1


def test_a_kernel_that_cannot_be_generic_is_compiled_for_each_size():
    shapes = [[(2, n, 4), (3, 2, 4)] for n in (5, 8, 9)]
    assert check(lambda m, x, w: m.conv1d(x, w), shapes, 3) == 1


def test_new_sizes_after_the_first_compile_nothing():
    g = mx.compile(lambda x, y: mx.exp(x - mx.max(x, axis=1, keepdims=True)) @ y, shapeless=True)
    g(mx.ones((80, 90)), mx.ones((90, 70)))
    before = compilations()
    for n in range(81, 99):
        assert value(g(mx.ones((n, n)), mx.ones((n, n + 1))))[0][0] == n
    assert compilations() == before


@pytest.mark.parametrize("name", RETRACED)
def test_what_depends_on_a_size_is_traced_again(name):
    fun, shapes, traces = RETRACED[name]
    assert check(fun, shapes) == traces


def test_rank_dtype_and_structure_belong_to_the_signature():
    f = Counter(lambda x: mx.sum(x if isinstance(x, mx.array) else x[0]))
    g = mx.compile(f, shapeless=True)
    for x in (a([1.0]), a([[1.0]]), a([1]), [a([1.0])], (a([1.0]),)):
        for _ in range(2):
            assert value(g(x)) == 1
    assert f.runs == 5


def test_sizes_in_the_result_belong_to_the_call():
    g = mx.compile(lambda x: (x * 2, x.shape, {"n": x.shape[0] * 3 + 1, "mean": 1 / x.shape[0]}), shapeless=True)
    for n in (2, 5):
        y, shape, rest = g(mx.zeros((n, 3)))
        assert y.shape == shape == (n, 3) and rest == {"n": 3 * n + 1, "mean": 1 / n}
        assert [type(x) for x in (*shape, *rest.values())] == [int, int, int, float]
    assert g.cache_info().misses == 1


def test_sizes_behave_like_ints():
    seen = []

    def f(x):
        n = x.shape[0]
        seen.append((isinstance(n, int), isinstance(n, float), n + 0.5 > n, n // 1 is n or n // 1 == n, divmod(n, 2)))
        assert n == n and n >= 0 and not n < 0 and n != n + 1 and max(n, 0) == n and -n + n == 0 and abs(n) == n
        assert len(x) == n and {4: "four"}[n] == "four" and [0] * n == [0, 0, 0, 0] and f"{n:03d}" == "004"
        assert n << 1 == 8 and n & 1 == 0 and round(n) == n and (n**2) // n == n
        return x * n

    g = mx.compile(f, shapeless=True)
    assert value(g(a([1.0] * 4))) == [4.0] * 4
    assert seen[0][:4] == (True, False, True, True) and seen[0][4] == (2, 0)


def test_constants_and_evaluation_inside():
    """What is evaluated while tracing needs the numbers, so the trace is valid for them only."""
    f = Counter(lambda x: x * mx.sum(mx.ones(x.shape)).item())
    g = mx.compile(f, shapeless=True)
    for n in (2, 3, 2):
        assert value(g(mx.ones((n,)))) == [float(n)] * n
    assert f.runs == 2
    with pytest.raises(ValueError, match=r"^\[eval\]"):
        mx.compile(lambda x: x * x.item(), shapeless=True)(a(1.0))


def test_captured_state_may_change_its_size():
    state = {"w": a([1.0, 2.0])}

    def step(x):
        state["w"] = mx.concatenate([state["w"], x])
        return mx.sum(state["w"])

    f = Counter(step)
    g = mx.compile(f, inputs=state, outputs=state, shapeless=True)
    for k in range(3):  # a cache that grows
        assert value(g(a([float(k), 1.0]))) == sum(range(k + 1)) + k + 1 + 3.0
    assert f.runs == 1 and state["w"].shape == (8,)


def test_shapeless_inside_other_transforms():
    g = mx.compile(lambda x: mx.sum(x * x) / x.shape[0], shapeless=True)
    for n in (2, 3):
        assert value(mx.grad(g)(mx.ones((n,)))) == pytest.approx([2 / n] * n)
        assert value(mx.compile(lambda x: g(x) * 2, shapeless=True)(mx.ones((n,)))) == 2.0
        assert value(mx.vmap(g)(mx.ones((2, n)))) == [1.0, 1.0]


def test_empty_axes():
    g = mx.compile(lambda x: mx.sum(x, axis=0) + x.shape[0], shapeless=True)
    for n in (3, 0, 2):
        assert value(g(mx.ones((n, 2)))) == [2.0 * n] * 2
