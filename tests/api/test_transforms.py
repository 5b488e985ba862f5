"""grad, value_and_grad, vjp, jvp, vmap and their compositions (BEHAVIOUR sections 0 to 7); values against real MLX."""

import inspect
import threading
from collections import namedtuple

import mlx.core as real
import numpy as np
import pytest

import mlxir as mx
from mlxir.testing import check_grads

Point = namedtuple("Point", "x y")
RNG = np.random.default_rng(0)
V, W, M = (RNG.standard_normal(s).astype(np.float32) for s in ((4,), (4,), (3, 4)))


def same(mine, theirs, tol=2e-5):
    """Two trees are equal in structure, shapes and dtypes, and close in values."""
    if isinstance(theirs, (list, tuple)):
        assert type(mine).__name__ == type(theirs).__name__ and len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            same(a, b, tol)
    elif isinstance(theirs, dict):
        assert list(mine) == list(theirs)
        for k in theirs:
            same(mine[k], theirs[k], tol)
    elif isinstance(theirs, real.array):
        assert mine.shape == theirs.shape and str(mine.dtype) == str(theirs.dtype)
        np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=tol, atol=tol)
    else:
        assert mine == theirs


def value(x):
    return np.array(x).tolist()


# Each entry builds a result with either library.
COMPOSITIONS = {
    "grad": lambda m, a: m.grad(lambda x: m.sum(m.sin(x) * x))(a(V)),
    "grad of two": lambda m, a: m.grad(lambda x, y: m.sum(x * x * y), argnums=(1, 0))(a(V), a(W)),
    "grad of grad": lambda m, a: m.grad(lambda x: m.sum(m.grad(lambda y: m.sum(m.exp(y) * y))(x) * x))(a(V)),
    "third derivative": lambda m, a: m.grad(m.grad(m.grad(lambda x: m.sin(x) * x * x)))(a(1.5)),
    "no confusion": lambda m, a: m.grad(lambda x: x * m.grad(lambda y: x + y)(a(1.0)))(a(1.0)),
    "closure over outer tracer": lambda m, a: m.grad(lambda x: m.grad(lambda y: x * x * y)(x) * x)(a(3.0)),
    "value_and_grad": lambda m, a: m.value_and_grad(lambda x: m.sum(x * x))(a(V)),
    "aux": lambda m, a: m.value_and_grad(lambda x: (m.sum(x), {"y": x * 2, "n": None}, [3, "s", (x,)]))(a(V)),
    "argnames": lambda m, a: m.grad(lambda x, *, k, q: m.sum(x * k * q), argnums=None, argnames=["q", "k"])(
        a(V), k=a(W), q=a(V)),
    "argnums and argnames": lambda m, a: m.value_and_grad(lambda x, y, k: m.sum(x * y * k), argnums=[1], argnames="k")(
        a(V), a(W), k=a(V)),
    "tree": lambda m, a: m.grad(lambda p: m.sum(p["w"] * p["l"][0]) + m.sum(p["l"][1][0]))(
        {"w": a(V), "l": [a(W), (a(M), )], "unused": a(V)}),
    "vjp": lambda m, a: m.vjp(lambda x, y: (x * y, m.sum(y)), [a(V), a(W)], [a(W), a(2.0)]),
    "vjp stop_gradient": lambda m, a: m.vjp(lambda x: (m.stop_gradient(x * 2), x * 3), (a(V),), (a(W),)),
    "vjp unused": lambda m, a: m.vjp(lambda x, y: x, [a(V), a(M)], [a(W)]),
    "jvp": lambda m, a: m.jvp(lambda x, y: [x * y, m.exp(x)], [a(V), a(W)], [a(W), a(V)]),
    "jvp constant": lambda m, a: m.jvp(lambda x: (a(W) * 2, x), [a(V)], [a(V)]),
    "jvp of grad": lambda m, a: m.jvp(m.grad(lambda x: m.sum(m.tanh(x) ** 3)), [a(V)], [a(W)]),
    "grad of jvp": lambda m, a: m.grad(lambda x: m.sum(m.jvp(lambda y: m.sin(y) * y, [x], [a(W)])[1][0]))(a(V)),
    "grad of vjp": lambda m, a: m.grad(lambda x: m.sum(m.vjp(lambda y: m.sin(y) * y, [x], [a(W)])[1][0]))(a(V)),
    "vjp of vjp": lambda m, a: m.vjp(lambda x: m.vjp(lambda y: y * y * y, [x], [x])[1], [a(V)], [a(W)]),
    "vmap": lambda m, a: m.vmap(lambda x: m.sum(x * x))(a(M)),
    "vmap two": lambda m, a: m.vmap(lambda x, y: m.sum(x * y), in_axes=(0, None))(a(M), a(V)),
    "vmap axes": lambda m, a: m.vmap(lambda x, y: x + y, in_axes=(1, 0), out_axes=1)(a(M), a(V)),
    "vmap negative axes": lambda m, a: m.vmap(lambda x: m.stack([x, x]), in_axes=-1, out_axes=-1)(a(M)),
    "vmap one tuple": lambda m, a: m.vmap(lambda x: x * 2, in_axes=(1,))(a(M)),
    "vmap dict": lambda m, a: m.vmap(lambda d: {"s": d["a"] + d["b"]}, in_axes={"a": 0, "b": None})(
        {"a": a(M), "b": a(V)}),
    "vmap tree": lambda m, a: m.vmap(lambda p, x: (p[0] * x, [p[1]["k"]]), in_axes=((0, None), 1), out_axes=(1, [0]))(
        (a(V), {"k": a(W)}), a(M)),
    "vmap constant result": lambda m, a: m.vmap(lambda x: (a(2.0), x))(a(V)),
    "vmap of vmap": lambda m, a: m.vmap(m.vmap(lambda x, y: x * y, (None, 0)), (0, None))(a(V), a(W)),
    "vmap closure": lambda m, a: m.vmap(lambda x: m.vmap(lambda y: x * y)(a(W)))(a(V)),
    "vmap size zero": lambda m, a: m.vmap(lambda x: x * 2)(a(np.zeros((0, 3), np.float32))),
    "vmap of grad": lambda m, a: m.vmap(m.grad(lambda x: m.sum(m.sin(x))))(a(M)),
    "grad of vmap": lambda m, a: m.grad(lambda x: m.sum(m.vmap(lambda r: m.max(r) * r)(x)))(a(M)),
    "per-example gradients": lambda m, a: m.vmap(m.grad(lambda w, x: m.tanh(m.sum(w * x))), (None, 0))(a(V), a(M)),
    "jvp of vmap": lambda m, a: m.jvp(m.vmap(lambda x: m.softmax(x)), [a(M)], [a(M)]),
    "vmap of jvp": lambda m, a: m.vmap(lambda x, t: m.jvp(m.sin, [x], [t]), (0, 0))(a(M), a(M)),
    "grad of vmap of grad": lambda m, a: m.grad(lambda w: m.sum(m.vmap(m.grad(lambda x: m.sum(x * x * x * w)))(a(M))))(
        a(V)),
    "integers": lambda m, a: m.grad(lambda x: m.sum(x.astype(m.float32) * 2.5))(a(np.array([1, 2, 3], np.int32))),
    "integer sin": lambda m, a: m.grad(lambda x: m.sum(m.sin(x)))(a(np.array([1, 2, 3], np.int32))),
    "integer loss": lambda m, a: m.value_and_grad(lambda x: m.sum(x * x))(a(np.array([1, 2], np.int32))),
    "half parameters": lambda m, a: m.value_and_grad(lambda x, y: m.sum(x * y), (0, 1))(a(V.astype(np.float16)), a(W)),
    "half loss": lambda m, a: m.value_and_grad(lambda x: m.sum(x.astype(m.float16)))(a(V)),
    "cotangent cast": lambda m, a: m.vjp(lambda x: x * 2, [a(V.astype(np.float16))], [a(W)]),
    "loss without x": lambda m, a: m.value_and_grad(lambda x: m.sum(a(W)))(a(V)),
    "stop_gradient of the loss": lambda m, a: m.grad(lambda x: m.stop_gradient(m.sum(x)))(a(V)),
    "identity": lambda m, a: m.value_and_grad(lambda x: x)(a(2.0)),
    "complex |z|^2": lambda m, a: m.grad(lambda z: m.sum(m.abs(z) ** 2))(a(np.array([1 + 2j, 3 - 1j], np.complex64))),
    "aux is cut": lambda m, a: m.grad(lambda x: m.sum(m.value_and_grad(lambda y: (m.sum(y), y * y))(x)[0][1]))(a(V)),
    "leak of an inner grad": lambda m, a: _leaky(m, a),
}  # fmt: skip


def _leaky(m, a):
    def outer(x):
        box = []

        def inner(y):
            box.append(y * y)
            return m.sum(y)

        m.grad(inner)(x)
        return m.sum(box[0])

    return m.grad(outer)(a(V))


@pytest.mark.parametrize("name", COMPOSITIONS)
def test_compositions_agree_with_mlx(name):
    same(COMPOSITIONS[name](mx, mx.array), COMPOSITIONS[name](real, real.array))


def test_grad_of_abs_by_branching_on_a_value():
    f = mx.grad(lambda x: x * x if x > 0 else -x)
    assert value(f(mx.array(3.0))) == 6.0 and value(f(mx.array(-3.0))) == -1.0


def test_values_can_be_read_while_differentiating():
    seen = []

    def f(x):
        y = x * x
        mx.eval(y)
        seen.append((y.item(), float(np.array(x)), repr(x)))
        z = mx.grad(lambda u: u * y * (u.item()))(x)
        return z * y

    assert (
        value(mx.grad(f)(mx.array(2.0))) == 4 * 2.0**3 * 2
    )  # z = y u|read = 4*2; d(y*y*2)/dx = 2*4x^3 with u.item() constant
    assert seen == [(4.0, 2.0, "array(2, dtype=float32)")]
    loop = mx.grad(lambda x: _double_until(x, 20.0))
    assert value(loop(mx.array(3.0))) == 8.0


def _double_until(x, limit):
    while x < limit:
        x = x * 2
    return x


def test_the_function_runs_once_per_call_and_not_at_wrap_time():
    runs = []

    def f(x):
        runs.append(x)
        return mx.sum(x)

    g, v = mx.grad(f), mx.vmap(f)
    assert not runs
    g(mx.array(V)), g(mx.array(V)), v(mx.array(M)), mx.vjp(f, [mx.array(V)], [mx.array(1.0)])
    assert len(runs) == 4


def test_wrappers_keep_name_doc_and_signature():
    def loss(w, x, *, scale=1.0):
        """Doc."""

    for wrapped in (mx.grad(loss), mx.value_and_grad(loss), mx.vmap(loss), mx.compile(loss)):
        assert (wrapped.__name__, wrapped.__doc__) == ("loss", "Doc.") and wrapped.__qualname__ == loss.__qualname__
        assert inspect.signature(wrapped) == inspect.signature(loss)


def test_selection_accepts_what_indexes():
    f = lambda *a: mx.sum(a[0] * a[1] * a[2])  # noqa: E731
    args = [mx.array(1.0), mx.array(2.0), mx.array(3.0)]
    for argnums in (range(2), (1, 0), [np.int64(0), 1]):
        assert list(map(value, mx.grad(f, argnums=argnums)(*args))) == [6.0, 3.0]
    assert value(mx.grad(f, argnums=True)(*args)) == 3.0
    assert value(mx.grad(f, argnums=np.int32(2))(*args)) == 2.0
    assert value(mx.grad(f, argnums=[2])(*args)) == 2.0


def test_gradients_by_name_come_in_call_order():
    f = lambda x, a, b: mx.sum(x * a * b)  # noqa: E731
    positional, named = mx.grad(f, argnames={"a", "b"})(mx.array(2.0), b=mx.array(3.0), a=mx.array(5.0))
    assert positional is None and list(named) == ["b", "a"] and (value(named["b"]), value(named["a"])) == (10.0, 6.0)
    pair, _ = mx.grad(f, argnums=[0], argnames="a")(mx.array(2.0), b=mx.array(3.0), a=mx.array(5.0))
    assert value(pair) == 15.0


# -- containers (3.5) ------------------------------------------------------------------------------------------------
def test_unassigned_leaves_are_put_back_as_the_same_objects():
    w, b, k = mx.array(V), mx.array(W), mx.array(1.0)
    inner = {"b": b}
    params, other, point = {"w": w, "in": [inner]}, [k], Point(w, b)
    mx.grad(lambda p, o, q, s: mx.sum(p["w"]) * o[0] + mx.sum(q.x))(params, other, point, "text")
    assert params["w"] is w and params["in"][0] is inner and inner["b"] is b and other[0] is k


def test_leaves_are_put_back_when_the_function_raises():
    w = mx.array(V)
    params = {"w": w}

    def f(p):
        raise KeyError("boo")

    with pytest.raises(KeyError):
        mx.grad(f)(params)
    assert params["w"] is w


def test_reassigned_leaves_stay_reassigned_with_ordinary_values():
    w, v = mx.array(V), mx.array(W)
    params, other = {"w": w, "v": v}, [mx.array(1.0)]

    def f(p, o):
        p["w"] = p["w"] * 2
        o[0] = o[0] + mx.sum(p["v"])
        return mx.sum(p["w"] * p["w"]) + mx.sum(p["v"])

    grads = mx.grad(f)(params, other)
    np.testing.assert_allclose(np.array(grads["w"]), 8 * V, rtol=1e-5)
    assert params["v"] is v and params["w"] is not w
    np.testing.assert_allclose(np.array(params["w"]), 2 * V)
    np.testing.assert_allclose(np.array(other[0]), 1 + W.sum(), rtol=1e-5)


def test_in_place_changes_show_in_containers_but_not_in_plain_arguments():
    x, y, d = mx.array([1.0, 2.0]), mx.array([1.0, 2.0]), {"w": mx.array([1.0, 2.0])}

    def f(x, y, d):
        x[0] = 7.0
        y[0] = 8.0
        d["w"][0] = 9.0
        return mx.sum(x * d["w"] * y)

    gx, gd = mx.grad(f, argnums=(0, 2))(x, y, d)
    assert value(x) == [1, 2] and value(y) == [1, 2] and value(d["w"]) == [9, 2]
    assert value(gx) == [0, 4] and value(gd["w"]) == [0, 4]


def test_gradient_tree_follows_the_container_after_the_call():
    def popped(d):
        y = mx.sum(d.pop("a") * 3)
        return y + mx.sum(d["b"] * 2)

    grads = mx.grad(popped)({"a": mx.array(V), "b": mx.array(1.0)})
    assert list(grads) == ["b"] and value(grads["b"]) == 2.0

    def cleared(d):
        y = mx.sum(d["a"])
        d["a"] = None
        return y

    assert mx.grad(cleared)({"a": mx.array(V)}) == {"a": None}

    def appended(items):
        items.append(mx.array(1.0))
        return mx.sum(items[0])

    with pytest.raises(ValueError, match="structure of argument 0 changed inside the function"):
        mx.grad(appended)([mx.array(V)])


def test_each_place_of_one_object_gets_its_own_gradient():
    x = mx.array(3.0)
    a, b = mx.grad(lambda x, y: x * x * y, argnums=(0, 1))(x, x)
    assert (value(a), value(b)) == (18.0, 9.0)
    grads = mx.grad(lambda p: p[0] * p[0] * p[1])([x, x])
    assert list(map(value, grads)) == [18.0, 9.0]


def test_containers_and_types_of_results():
    grads = mx.grad(lambda p: mx.sum(p.x * p.y))(Point(mx.array(2.0), mx.array(5.0)))
    assert type(grads) is Point and (value(grads.x), value(grads.y)) == (5.0, 2.0)
    (loss,), _ = mx.value_and_grad(lambda x: (x * x,))(mx.array(3.0))
    assert value(loss) == 9.0
    (_, aux), _ = mx.value_and_grad(lambda x: (x, Point(x, 3)))(mx.array(3.0))
    assert type(aux) is Point and aux.y == 3 and value(aux.x) == 3.0


def test_arrays_kept_by_the_function_are_ordinary_afterwards():
    box = []
    mx.grad(lambda x: (box.extend([x, x * x]), mx.sum(x))[1])(mx.array(V))
    np.testing.assert_allclose(np.array(box[0] + box[1]), V + V * V, rtol=1e-6)


# -- vmap ------------------------------------------------------------------------------------------------------------
def test_vmap_sees_examples():
    shapes = []
    mx.vmap(lambda x, y: (shapes.append((x.shape, y.shape)), x)[1], in_axes=(1, None))(mx.array(M), mx.array(V))
    assert shapes == [((3,), (4,))]


def test_unmapped_leaves_may_be_read_and_need_not_be_arrays():
    f = mx.vmap(lambda x, y, s: x * y.item() if s == "go" else x, in_axes=(0, None, None))
    np.testing.assert_allclose(np.array(f(mx.array(V), mx.array(2.0), "go")), 2 * V)


def test_out_axes_none():
    y, z = mx.vmap(lambda x: (x * 2, mx.array([1.0, 2.0])), out_axes=(0, None))(mx.array(V))
    assert y.shape == (4,) and z.shape == (2,)
    with pytest.raises(ValueError, match="depends on a mapped argument"):
        mx.vmap(lambda x: (x,), out_axes=(None,))(mx.array(V))


def test_mapped_values_cannot_be_read():
    for read in (lambda x: x if x > 0 else -x, lambda x: mx.array(x.item()), lambda x: (mx.eval(x * 2), x)[1],
                 lambda x: (repr(x), x)[1], lambda x: (np.array(x), x)[1]):  # fmt: skip
        with pytest.raises(ValueError, match=r"^\[eval\].*not allowed.*test_transforms.py"):
            mx.vmap(read)(mx.array(V))


def test_a_leaked_placeholder_names_the_function():
    box = []

    def leaky(x):
        box.append(x * 2)
        return x

    mx.vmap(leaky)(mx.array(V))
    with pytest.raises(RuntimeError, match=r"^\[eval\].*leaky \(test_transforms.py:\d+\)"):
        mx.eval(box[0])


def test_keyed_and_unkeyed_randomness_under_vmap():
    mx.random.seed(1)
    real.random.seed(1)
    rows = np.array(mx.vmap(lambda x: x + mx.random.uniform(shape=(3,)))(mx.zeros((2, 3))))
    np.testing.assert_array_equal(
        rows, np.array(real.vmap(lambda x: x + real.random.uniform(shape=(3,)))(real.zeros((2, 3))))
    )
    assert (rows[0] == rows[1]).all()
    assert value(mx.random.uniform()) == real.random.uniform().item()
    keys = mx.random.split(mx.random.key(3), 4)
    lanes = np.array(mx.vmap(lambda k: mx.random.normal((2,), key=k))(keys))
    for lane, k in zip(lanes, np.array(keys), strict=True):
        np.testing.assert_allclose(lane, np.array(mx.random.normal((2,), key=mx.array(k))), rtol=1e-6)


# -- eval ------------------------------------------------------------------------------------------------------------
def test_eval_takes_any_tree():
    x = mx.array(V) * 2
    assert mx.eval() is None and mx.eval(1, "a", None, object(), {"k": [x, (3,)]}) is None
    np.testing.assert_allclose(np.array(x), 2 * V)
    y = x + 1
    mx.async_eval(y, [y])
    mx.async_eval(y)
    np.testing.assert_allclose(np.array(y * 2), (2 * V + 1) * 2, rtol=1e-6)
    with pytest.raises(TypeError):
        mx.eval(x=y)


def test_async_eval_inside_a_transform():
    for transform in (lambda f: mx.grad(f)(mx.array(1.0)), lambda f: mx.jvp(f, [mx.array(1.0)], [mx.array(1.0)]),
                      lambda f: mx.vmap(f)(mx.array(V)), lambda f: mx.compile(f)(mx.array(1.0))):  # fmt: skip
        with pytest.raises(ValueError, match=r"^\[async_eval\] Not allowed"):
            transform(lambda x: (mx.async_eval(x * 2), x)[1])


def test_threads_trace_independently():
    found, errors = {}, []

    def work(i):
        try:
            for _ in range(5):
                found[i] = value(
                    mx.grad(lambda x: mx.sum(mx.vmap(lambda y: y * x**i)(mx.array([1.0, 2.0]))))(mx.array(2.0))
                )
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2, 6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors and found == {i: 3 * i * 2.0 ** (i - 1) for i in range(2, 6)}


# -- Jacobians -------------------------------------------------------------------------------------------------------
def test_jacobians_and_hessian():
    f = lambda x, y: mx.sin(x) * mx.sum(y * x)  # noqa: E731
    x, y = mx.array(V), mx.array(W)
    expected = np.diag(np.cos(V) * (V @ W)) + np.outer(np.sin(V), W)
    np.testing.assert_allclose(np.array(mx.jacrev(f)(x, y)), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.array(mx.jacfwd(f)(x, y)), expected, rtol=1e-4, atol=1e-5)
    for jacobian in (mx.jacrev, mx.jacfwd):
        a, b = jacobian(f, argnums=(0, 1))(x, y)
        np.testing.assert_allclose(np.array(a), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(np.array(b), np.outer(np.sin(V), V), rtol=1e-4, atol=1e-5)
    h = np.array(mx.hessian(lambda x: mx.sum(x * x * x))(x))
    np.testing.assert_allclose(h, np.diag(6 * V), rtol=1e-5, atol=1e-6)
    assert mx.jacrev(lambda m: mx.sum(m, 0))(mx.array(M)).shape == (4, 3, 4)


# -- errors ----------------------------------------------------------------------------------------------------------
def loss_of_wrong_shape(x):
    return x * 2


X, Y = mx.array([1.0, 2.0]), mx.array([1.0, 2.0, 3.0])
ERRORS = [
    ("grad argnums []", ValueError, r"^\[grad\].*no argument requested", lambda: mx.grad(mx.sum, argnums=[])),
    ("grad negative", ValueError, r"^\[grad\].*negative", lambda: mx.grad(mx.sum, argnums=-1)),
    ("grad duplicate", ValueError, r"^\[grad\] Duplicate", lambda: mx.grad(mx.sum, argnums=(0, 0))),
    ("grad (None, None)", TypeError, "argnums", lambda: mx.grad(mx.sum, argnums=(None, None))),
    ("grad float", TypeError, "argnums", lambda: mx.grad(mx.sum, argnums=1.0)),
    ("grad argnames", TypeError, "argnames", lambda: mx.grad(mx.sum, argnames=3)),
    ("grad not callable", TypeError, "function", lambda: mx.grad(3)),
    ("grad few", ValueError, r"^\[grad\].*argument index 1.*only 1", lambda: mx.grad(mx.sum, argnums=1)(X)),
    ("grad keyword", ValueError, "'q'.*r", lambda: mx.grad(lambda x, r: x, argnames="q")(X, r=X)),
    ("grad by keyword only", ValueError, "only 0", lambda: mx.grad(lambda x: x)(x=X)),
    ("grad of number", ValueError, r"^\[tree_flatten\].*only arrays", lambda: mx.grad(mx.sum)(1.0)),
    ("grad of numpy", ValueError, r"^\[tree_flatten\].*ndarray", lambda: mx.grad(mx.sum)(V)),
    ("grad of nothing", ValueError, r"^\[grad\].*at least one argument", lambda: mx.grad(mx.sum)({})),
    ("grad float result", ValueError, r"^\[grad\].*scalar array; but float was returned",
     lambda: mx.grad(lambda x: 1.0)(X)),
    ("grad tuple result", ValueError, r"^\[grad\].*tuple", lambda: mx.grad(lambda x: (mx.sum(x), x))(X)),
    ("grad shape", ValueError,
     r"^\[vjp\] Output shape \(2,\) does not match cotangent shape \(\).*must return a scalar.*"
     r"loss_of_wrong_shape \(test_transforms.py:\d+\), use .sum\(\) or vjp",
     lambda: mx.grad(loss_of_wrong_shape)(X)),
    ("grad (1,)", ValueError, "must return a scalar", lambda: mx.grad(lambda x: mx.reshape(mx.sum(x), (1,)))(X)),
    ("value_and_grad list", ValueError, r"^\[value_and_grad\].*list",
     lambda: mx.value_and_grad(lambda x: [mx.sum(x)])(X)),
    ("value_and_grad dict", ValueError, r"^\[value_and_grad\].*dict", lambda: mx.value_and_grad(lambda x: {"a": x})(X)),
    ("value_and_grad ()", ValueError, r"^\[value_and_grad\].*empty tuple", lambda: mx.value_and_grad(lambda x: ())(X)),
    ("value_and_grad (1, x)", ValueError, r"^\[value_and_grad\].*type int",
     lambda: mx.value_and_grad(lambda x: (1, x))(X)),
    ("vjp bare", TypeError, r"^\[vjp\]", lambda: mx.vjp(lambda x: x, mx.array(1.0), [mx.array(1.0)])),
    ("vjp tree", TypeError, r"^\[vjp\].*dict", lambda: mx.vjp(lambda x: x, [{"a": X}], [X])),
    ("vjp numpy", TypeError, r"^\[vjp\].*ndarray", lambda: mx.vjp(lambda x: x, [V], [X])),
    ("vjp few", ValueError, r"^\[vjp\] Number of outputs.*\(2\).*\(1\)", lambda: mx.vjp(lambda x: (x, x), [X], [X])),
    ("vjp many", ValueError, r"^\[vjp\] Number of outputs", lambda: mx.vjp(lambda x: x, [X], [X, X])),
    ("vjp shape", ValueError, r"^\[vjp\] Output shape \(2,\).*\(\)", lambda: mx.vjp(lambda x: x, [X], [mx.array(1.0)])),
    ("vjp dict result", ValueError, r"^\[vjp\].*dict", lambda: mx.vjp(lambda x: {"a": x}, [X], [X])),
    ("vjp None result", ValueError, r"^\[vjp\].*NoneType", lambda: mx.vjp(lambda x: None, [X], [X])),
    ("jvp numbers", TypeError, r"^\[jvp\].*float", lambda: mx.jvp(lambda x: x, [1.0], [1.0])),
    ("jvp count", ValueError, r"^\[jvp\] Number of inputs", lambda: mx.jvp(lambda x: x, [X], [])),
    ("jvp shape", ValueError, r"^\[jvp\] Input shape", lambda: mx.jvp(lambda x: x, [X], [Y])),
    ("jvp float result", ValueError, r"^\[jvp\].*float", lambda: mx.jvp(lambda x: 1.0, [X], [X])),
    ("vmap keyword", TypeError, r"^\[vmap\] Keyword.*'k'", lambda: mx.vmap(lambda k: k)(k=X)),
    ("vmap in_axes None", TypeError, "in_axes", lambda: mx.vmap(mx.sum, in_axes=None)),
    ("vmap out_axes None", TypeError, "out_axes", lambda: mx.vmap(mx.sum, out_axes=None)),
    ("vmap not callable", TypeError, "function", lambda: mx.vmap(3)),
    ("vmap number", ValueError, r"^\[tree_flatten\].*float", lambda: mx.vmap(lambda x: x)(1.0)),
    ("vmap str axis", ValueError, r"^\[vmap\] axis must be int or None", lambda: mx.vmap(lambda x: x, in_axes="a")(X)),
    ("vmap float axis", ValueError, r"^\[vmap\] axis must be int or None",
     lambda: mx.vmap(lambda x: x, in_axes=(0.0,))(X)),
    ("vmap range", IndexError, r"^\[vmap\] Invalid vectorization axis 3", lambda: mx.vmap(lambda x: x, in_axes=3)(X)),
    ("vmap range, too", ValueError, r"^\[vmap\] Invalid vectorization axis -2", lambda: mx.vmap(lambda x: x, -2)(X)),
    ("vmap of a scalar", IndexError, r"^\[vmap\]", lambda: mx.vmap(lambda x: x)(mx.array(1.0))),
    ("vmap out range", IndexError, r"^\[vmap\] Invalid output", lambda: mx.vmap(lambda x: x, out_axes=5)(X)),
    ("vmap out range, too", ValueError, r"^\[vmap\] Invalid output", lambda: mx.vmap(lambda x: x, out_axes=1)(X)),
    ("vmap sizes", ValueError, r"^\[vmap\] Inconsistent axis sizes: 2 and 3", lambda: mx.vmap(lambda x, y: x)(X, Y)),
    ("vmap nothing mapped", ValueError, "At least one", lambda: mx.vmap(lambda x: x, in_axes=(None,))(X)),
    ("vmap no arguments", ValueError, "At least one", lambda: mx.vmap(lambda: X)()),
    ("vmap float result", ValueError, r"^\[tree_flatten\].*float", lambda: mx.vmap(lambda x: 1.0)(X)),
    ("vmap list in_axes", ValueError, "not a valid prefix", lambda: mx.vmap(lambda x, y: x, in_axes=[0, 0])(X, X)),
    ("vmap short in_axes", ValueError, "not a valid prefix", lambda: mx.vmap(lambda x, y: x, in_axes=(0,))(X, X)),
    ("vmap wrapped dict", ValueError, "not a valid prefix",
     lambda: mx.vmap(lambda d: d["a"], in_axes=({"a": 0},))({"a": X})),
    ("vmap dict keys", ValueError, "not a valid prefix", lambda: mx.vmap(lambda d: d, in_axes={"b": 0})({"a": X})),
    ("vmap out kind", ValueError, "not a valid prefix", lambda: mx.vmap(lambda x: [x, x], out_axes=(0, 0))(X)),
    ("vmap out array", ValueError, "not a valid prefix", lambda: mx.vmap(lambda x: x, out_axes=(0, 0))(X)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "call"), [e[1:] for e in ERRORS], ids=[e[0] for e in ERRORS])
def test_errors(kind, text, call):
    with pytest.raises(kind, match=text):
        call()


TAKES = {
    "read": lambda m, x: m.sum(m.take(x, m.argmax(x))),
    "read sorted": lambda m, x: m.sum(m.take_along_axis(x, m.argsort(x), 0)),
    "compared": lambda m, x: m.sum(m.take(x, (x > 0).astype(m.int32))),
    "mapped": lambda m, x: m.sum(m.vmap(lambda r: m.take(x, m.argmax(r)))(m.stack([x, x]))),
}


@pytest.mark.parametrize("name", TAKES)
def test_indices_computed_from_the_argument_have_no_gradient(name):
    f = TAKES[name]
    for call in (
        lambda: mx.grad(lambda x: f(mx, x))(mx.array(V)),
        lambda: mx.jvp(lambda x: f(mx, x), [mx.array(V)], [mx.array(V)]),
    ):
        with pytest.raises(ValueError, match=r"indices.*test_transforms.py:\d+.*stop_gradient"):
            call()


def test_what_stop_gradient_and_unused_paths_allow():
    x = mx.array(V)
    stopped = mx.grad(lambda x: mx.sum(mx.take(x, mx.stop_gradient(mx.argmax(x)))))
    assert value(stopped(x)) == [float(i == V.argmax()) for i in range(4)]
    inside = mx.grad(lambda x: mx.sum(mx.take(x, mx.vmap(lambda r: mx.stop_gradient(mx.argmax(r)))(mx.stack([x, x])))))
    assert value(inside(x)) == [2.0 * (i == V.argmax()) for i in range(4)]
    (_, aux), g = mx.value_and_grad(lambda x: (mx.sum(x), mx.take(x, mx.argmax(x))))(x)
    assert value(aux) == V.max() and value(g) == [1.0] * 4
    # An index used as a number is flat.
    same(mx.grad(lambda x: mx.sum(x * mx.argmax(x).astype(mx.float32)))(x),
         real.grad(lambda x: real.sum(x * real.argmax(x).astype(real.float32)))(real.array(V)))  # fmt: skip


def test_missing_rules_are_told_at_the_call():
    with pytest.raises(
        ValueError, match=r"\[Primitive::vjp\] Not implemented for random_bits \(test_transforms.py:\d+\)"
    ):
        mx.grad(lambda k: mx.random.uniform(key=k))(mx.random.key(0))


# -- check_grads -----------------------------------------------------------------------------------------------------
def test_check_grads_accepts_right_derivatives():
    x = mx.array(np.abs(M) + 0.5)
    for f in (lambda x: mx.sin(x) * mx.exp(x), lambda x: mx.softmax(x, -1), lambda x: mx.logsumexp(x, axis=0),
              lambda x: mx.cumprod(x, axis=1), lambda x: mx.power(x, x)):  # fmt: skip
        check_grads(f, (x,), order=2)
    z = mx.array(np.array([1 + 2j, 0.5 - 1j], np.complex64))
    check_grads(lambda z: mx.abs(z) * mx.abs(z), (z,))
    check_grads(lambda z: z * z * mx.exp(z), (z,), order=2)
    check_grads(lambda d, n: {"y": d["x"] * n, "s": 3}, ({"x": x}, 2), modes="rev")


@pytest.mark.parametrize("mode", ["fwd", "rev"])
def test_check_grads_rejects_wrong_derivatives(mode):
    with pytest.raises(AssertionError, match="forward mode" if mode == "fwd" else "reverse mode"):
        check_grads(lambda x: mx.stop_gradient(x) * x, (mx.array(M),), modes=mode)
    with pytest.raises(AssertionError, match=f"of {mode}"):
        # The value and slope of x * x, but no second derivative.
        check_grads(lambda x: mx.stop_gradient(x) * x * 2 - mx.stop_gradient(x * x), (mx.array(M),), 2, mode)
    for bad in (lambda: check_grads(mx.sin, (mx.array(M),), modes="back"), lambda: check_grads(mx.sin, (1.0,))):
        with pytest.raises(ValueError, match="check_grads"):
            bad()
