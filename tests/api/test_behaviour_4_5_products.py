"""BEHAVIOUR sections 4 and 5: vjp and jvp, conventions of derivatives; the pullbacks that mlxir adds."""

import mlx.core as real
import numpy as np
import pytest
import snippets

import mlxir as mx
from mlxir.testing import check_grads

PRODUCTS = snippets.table(r"""
m.vjp(3,[a(V)],[a(V)])
---
m.jvp(3,[a(V)],[a(V)])
---
z=a(Z)
m.vjp(lambda z: m.exp(z)*z, [z],[a(np.array([1j,2+1j],np.complex64))])
---
z=a(Z)
m.jvp(lambda z: m.exp(z)*z, [z],[a(np.array([1j,2+1j],np.complex64))])
---
m.vjp(lambda x,y: (x*y, m.sum(y)), [a(V),a(W)],[a(W),a(2.0)])
---
m.vjp(lambda x: x, (a(V),),(a(W),))
---
m.vjp(lambda x: [x], [a(V)],[a(W)])
---
m.vjp(lambda x: x, a(V), [a(1.0)])
---
m.vjp(lambda *xs: m.stack(xs), a(V), [a(W)])
---
m.vjp(lambda *xs: m.stack(xs), a(V), a(M)[:1])
---
m.vjp(lambda *xs: xs[0], a(V)[:2], a(V)[:1])
---
m.vjp(lambda x: x, a(1.0), [a(1.0)])
---
m.vjp(lambda x: x, [1.0], [a(1.0)])
---
m.vjp(lambda x: x, [V], [a(1.0)])
---
m.vjp(lambda x: x, [a(V)], [1.0])
---
m.vjp(lambda x: x, [a(V)], 1.0)
---
m.vjp(lambda x: x, {"a":a(V)}, [a(V)])
---
m.vjp(lambda x: x, [[a(V)]], [a(V)])
---
m.vjp(lambda x: x, [a(V)], [[a(V)]])
---
m.vjp(lambda x: x, [a(V)], [None])
---
m.vjp(lambda x: x, [], [])
---
m.vjp(lambda : a(1.0), [], [])
---
m.vjp(lambda : a(1.0), [], [a(1.0)])
---
m.jvp(lambda : a(1.0), [], [])
---
m.vjp(lambda x: (), [a(V)], [])
---
m.vjp(lambda x: [], [a(V)], [])
---
m.jvp(lambda x: [], [a(V)], [a(V)])
---
m.vjp(lambda x: (x,x), [a(V)], [a(V)])
---
m.vjp(lambda x: x, [a(V)], [a(1.0)])
---
m.vjp(lambda x: x, [a(V)], [a(W)[None]])
---
m.vjp(lambda x: x.astype(m.float16), [a(V)], [a(W)])
---
m.vjp(lambda x: x*2, [a(V).astype(m.float16)], [a(W)])
---
m.vjp(lambda x: x*2, [a(V)], [a(I)])
---
m.vjp(lambda x: x*2, [a(I)], [a(V)])
---
m.vjp(lambda x,y: x, [a(V),a(W)], [a(V)])
---
m.vjp(lambda x: a(W), [a(V)], [a(V)])
---
m.vjp(lambda x: x, primals=[a(V)], cotangents=[a(W)])
---
m.jvp(lambda x,y: (x*y,x), [a(V),a(W)],[a(W),a(V)])
---
m.jvp(lambda x: x, primals=[a(V)], tangents=[a(W)])
---
m.jvp(lambda x: x*x, [a(V)],[a(W),a(W)])
---
m.jvp(lambda x: x*x, [a(V)],[])
---
m.jvp(lambda x: x*x, [a(V)],[a(1.0)])
---
m.jvp(lambda x: x*x, [a(V)],[a(W)[None]])
---
m.jvp(lambda x: x*x, [a(V)],[W])
---
m.jvp(lambda x: x*x, [a(V)],[a(I)])
---
m.jvp(lambda x: x*x, [a(V)],[a(W).astype(m.float16)])
---
m.jvp(lambda x: m.sin(x), [a(V)],[a(W).astype(m.float16)])
---
m.jvp(lambda x: x*2, [a(I)],[a(I)])
---
m.jvp(lambda x: x*2.5, [a(I)],[a(I)])
---
m.jvp(lambda x: (a(W),x), [a(V)],[a(V)])
---
m.jvp(lambda x: m.argmax(x), [a(V)],[a(V)])
---
m.vjp(lambda x: m.argmax(x), [a(V)],[a(1.0)])
---
m.vjp(lambda x: x>0, [a(V)],[a(V)])
---
m.grad(lambda x: m.jvp(lambda y: y*x,[a(2.0)],[a(1.0)])[1][0]*x)(a(3.0))
---
m.jvp(lambda x: x*m.grad(lambda y: x*y*y)(a(2.0)),[a(3.0)],[a(1.0)])
---
m.jvp(lambda x: m.random.uniform(key=x),[m.random.key(0)],[m.random.key(0)])
---
m.vjp(lambda x: m.view(x,m.int32),[a(V)],[a(I)])
""")

CONVENTIONS = snippets.table(r"""
m.grad(lambda x: m.sum(x.astype(m.float32)))(a(np.array([True,False])))
---
m.value_and_grad(lambda x: m.sum(x.astype(m.int32)))(a(V))
---
m.value_and_grad(lambda x: m.argmax(x))(a(V))
---
m.value_and_grad(lambda x: m.sum(x).astype(m.bfloat16))(a(V))
---
m.value_and_grad(lambda x: m.sum(x))(a(V).astype(m.float16))
---
m.value_and_grad(lambda x: m.sum(x*a(W)))(a(V).astype(m.bfloat16))
---
m.grad(lambda x: m.sum(m.abs(x)))(a([0.0,-1.0,2.0]))
---
m.grad(lambda x: m.sum(m.maximum(x,0)))(a([0.0,-1.0,2.0]))
---
m.grad(lambda x,y: m.sum(m.maximum(x,y)),(0,1))(a([0.0,-1.0,2.0]),a([0.0,-1.0,1.0]))
---
m.grad(lambda x,y: m.sum(m.minimum(x,y)),(0,1))(a([0.0,-1.0,2.0]),a([0.0,-1.0,1.0]))
---
m.grad(lambda x: m.max(x))(a([2.0,-1.0,2.0]))
---
m.grad(lambda x: m.min(x))(a([2.0,-1.0,-1.0]))
---
m.grad(lambda x: m.prod(x))(a([0.0,2.0,3.0]))
---
m.grad(lambda x: m.prod(x))(a([0.0,0.0,3.0]))
---
m.grad(lambda x: m.sum(m.sqrt(x)))(a([0.0,1.0]))
---
m.grad(lambda x: m.sum(m.log(x)))(a([0.0,1.0]))
---
m.grad(lambda x: m.sum(m.sign(x)+m.round(x)+m.floor(x)+m.ceil(x)))(a([0.3,-1.0]))
---
m.grad(lambda x: m.sum(m.where(x>0,m.log(x),0)))(a([0.0,1.0]))
---
m.grad(lambda x: m.sum(m.sort(x)*a(V)))(a([1.0,0.0,1.0,0.0]))
---
m.grad(lambda x: m.sum(m.cummax(x)*a(V)))(a([1.0,0.0,1.0,0.0]))
---
m.grad(lambda x: m.sum(m.cummin(x)*a(V)))(a([1.0,0.0,1.0,0.0]))
---
m.grad(lambda x: m.sum(x[m.argmax(x)]))(a(V))
---
m.grad(lambda x: m.sum(x[m.argsort(x)]*a(W)))(a(V))
---
m.grad(lambda x: m.sum(x.astype(m.int32).astype(m.float32)))(a(V))
---
m.grad(lambda x: m.sum(x.astype(m.float16)*2))(a(V))
---
z=a(Z)
m.grad(lambda z: m.sum(m.abs(z)**2))(z)
---
z=a(Z)
m.grad(lambda z: m.sum(m.real(z)))(z)
---
z=a(Z)
m.grad(lambda z: m.sum(m.imag(z)))(z)
---
z=a(Z)
m.grad(lambda z: m.sum(z))(z)
---
z=a(Z)
m.value_and_grad(lambda z: m.real(m.sum(m.conjugate(z)*z)))(z)
""")


@pytest.mark.parametrize("snippet", [*PRODUCTS, *CONVENTIONS])
def test_as_real_mlx(snippet):
    snippets.assert_agree(snippet)


# -- what mlxir adds or does otherwise --------------------------------------------------------------------------------
X, Y = mx.array([0.5, -1.25, 2.0]), mx.array([1.0, 2.0, -3.0])


def test_an_output_given_twice_takes_both_cotangents():
    """MLX drops the second where the outputs are the primal itself."""
    assert mx.vjp(lambda x: (x, x), [X], [X, Y])[1][0].tolist() == (X + Y).tolist()


def test_tangents_take_the_dtype_of_their_primal():
    (out,), (tangent,) = mx.jvp(lambda x: x + 1, [X], [Y.astype(mx.float16)])
    assert out.dtype == tangent.dtype == mx.float32 and tangent.tolist() == Y.tolist()


def test_what_is_no_sequence_of_arrays():
    for result, text in (({}, "dict"), (None, "NoneType"), (1.0, "float"), ((X, (X,)), "tuple holding tuple")):
        for product in (mx.vjp, mx.jvp):
            with pytest.raises(ValueError, match=f"must return an array or a sequence of arrays; but {text} was"):
                product(lambda x, result=result: result, [X], [X])


def test_remainder_of_divmod_has_a_derivative():
    assert mx.grad(lambda x: mx.sum(mx.divmod(x, mx.array(2.0))[1]))(X).tolist() == [1, 1, 1]


# Rules that MLX lacks (BEHAVIOUR 5).
LACKING = {
    "jvp of cumprod": lambda x: mx.cumprod(x),
    "jvp of cummax": lambda x: mx.cummax(x),
    "jvp of x[i] = v": lambda x: written(x, mx.array([0, 2]), x[:2] * x[1]),
    "jvp of at.add": lambda x: x.at[mx.array([0, 0, 2])].add(x * x),
    "products at equal indices": lambda x: x.at[mx.array([0, 0, 2])].multiply(x * x),
    "zeros among products": lambda x: (x * 1).at[mx.array([1, 1, 1])].multiply(x - 0.5),
    "slice update that multiplies": lambda x: x.at[0:2].multiply(x[1:] * 2),
    "slice update with the maximum": lambda x: x.at[0:2].maximum(x[1:] * 2),
    "mask that depends on x": lambda x: written(x, x > 0, mx.sum(x * x)),
}


def written(x, index, value):
    """x with `x[index] = value`."""
    y = x * 1
    y[index] = value
    return y


@pytest.mark.parametrize("name", LACKING)
def test_rules_that_mlx_lacks(name):
    check_grads(LACKING[name], (mx.array(np.array([0.5, -1.25, 2.0]), mx.float64),), order=2)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("inclusive", [False, True])
@pytest.mark.parametrize("name", ["cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"])
def test_gradients_of_scans(name, inclusive, reverse):
    """As in MLX, with ties and zeros, and in memory proportional to the operand.

    For 20000 elements a table of all pairs would be 1.6 GB.
    """
    data = np.array([[0.5, -1.25, 0, 0.75, 2.0], [1, 0.0, 0.0, 0.3, 1]], np.float32)
    seeds = np.arange(10, dtype=np.float32).reshape(2, 5) + 1
    for axis in (0, 1):
        options = {"axis": axis, "reverse": reverse, "inclusive": inclusive}
        mine = mx.vjp(lambda x, o=options: getattr(mx, name)(x, **o), [mx.array(data)], [mx.array(seeds)])
        theirs = real.vjp(lambda x, o=options: getattr(real, name)(x, **o), [real.array(data)], [real.array(seeds)])
        np.testing.assert_allclose(np.array(mine[1][0]), np.array(theirs[1][0]), rtol=1e-4, atol=1e-5)
    long = mx.array(np.ones(20_000, np.float32))
    options = {"axis": 0, "reverse": reverse, "inclusive": inclusive}
    finite = lambda y: mx.where(mx.isinf(y), 0, y)  # noqa: E731
    assert mx.grad(lambda x: mx.mean(finite(getattr(mx, name)(x, **options))))(long).size == 20_000


def test_a_running_sum_of_exponentials_may_begin_with_minus_infinity():
    x = mx.array([-np.inf, -np.inf, 0.0, 1.0])
    grads = np.array(mx.grad(lambda x: mx.logcumsumexp(x)[3])(x))
    np.testing.assert_allclose(grads, [0, 0, 1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-6)


# -- pullbacks --------------------------------------------------------------------------------------------------------
def f(x, y):
    return mx.sin(x) * y, mx.sum(x * y * y)


def test_vjp_without_cotangents_gives_a_pullback():
    (a, b), pullback = mx.vjp(f, [X, Y])
    outs, _ = mx.vjp(f, [X, Y], [Y, mx.array(2.0)])
    assert a.tolist() == outs[0].tolist() and b.item() == outs[1].item()
    for seeds in ([Y, mx.array(2.0)], [X, mx.array(0.0)]):
        for mine, expected in zip(pullback(seeds), mx.vjp(f, [X, Y], seeds)[1], strict=True):
            np.testing.assert_allclose(np.array(mine), np.array(expected), rtol=1e-6)
    with pytest.raises(ValueError, match=r"Number of outputs .* \(2\) does not match number of cotangents \(1\)"):
        pullback([Y])
    with pytest.raises(ValueError, match="does not match cotangent shape"):
        pullback([Y, Y])
    with pytest.raises(TypeError, match=r"^\[vjp\]"):
        pullback([1.0, 2.0])


def test_the_function_runs_once_for_all_pullbacks():
    runs = []

    def g(x):
        runs.append(x)
        return mx.exp(x)

    _, pullback = mx.vjp(g, [X])
    _, pushforward = mx.linearize(g, [X])
    for _ in range(3):
        pullback([Y]), pushforward([Y])
    assert len(runs) == 2


def test_linearize():
    outs, pushforward = mx.linearize(f, [X, Y])
    for tangents in ([Y, X], [X, X]):
        expected, slopes = mx.jvp(f, [X, Y], tangents)
        for mine, theirs in zip([*outs, *pushforward(tangents)], [*expected, *slopes], strict=True):
            np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-6)
    with pytest.raises(ValueError, match="Number of inputs"):
        pushforward([X])


PULLBACKS = {
    "in vmap": lambda m, pulled: m.vmap(lambda r: pulled(m.sin, r, r))(m.stack([X, Y])),
    "vmapped": lambda m, pulled: m.vmap(lambda ct: pulled(lambda x: m.sin(x) * m.sum(x), X, ct))(m.eye(3)),
    "differentiated": lambda m, pulled: m.grad(lambda x: m.sum(pulled(lambda y: m.sin(y) * x, x, x)))(X),
    "nested": lambda m, pulled: pulled(lambda x: pulled(lambda y: y * y * x, x, x), X, Y),
    "compiled": lambda m, pulled: m.compile(lambda x: pulled(m.sin, x, x))(X),
    "shapeless": lambda m, pulled: m.compile(lambda x: pulled(m.sin, x, x), shapeless=True)(X),
    "of vmap": lambda m, pulled: pulled(m.vmap(lambda x: x * m.exp(x)), X, Y),
    "of checkpoint": lambda m, pulled: pulled(m.checkpoint(lambda x: x * m.exp(x)), X, Y),
}


@pytest.mark.parametrize("name", PULLBACKS)
def test_pullbacks_compose(name):
    at_once = lambda fun, x, ct: mx.vjp(fun, [x], [ct])[1][0]  # noqa: E731
    in_halves = lambda fun, x, ct: mx.vjp(fun, [x])[1]([ct])[0]  # noqa: E731
    expected, mine = PULLBACKS[name](mx, at_once), PULLBACKS[name](mx, in_halves)
    np.testing.assert_allclose(np.array(mine), np.array(expected), rtol=1e-6)
    forward_at_once = lambda fun, x, t: mx.jvp(fun, [x], [t])[1][0]  # noqa: E731
    forward_in_halves = lambda fun, x, t: mx.linearize(fun, [x])[1]([t])[0]  # noqa: E731
    expected, mine = PULLBACKS[name](mx, forward_at_once), PULLBACKS[name](mx, forward_in_halves)
    np.testing.assert_allclose(np.array(mine), np.array(expected), rtol=1e-6)


def test_a_pullback_outlives_the_trace_it_was_made_in():
    """Made while an outer gradient is traced, it is a function of that trace's values."""

    def loss(x):
        (y,), pullback = mx.vjp(lambda z: z * z * z, [x])
        return mx.sum(pullback([y])[0])  # 3 x^2 * x^3

    np.testing.assert_allclose(np.array(mx.grad(loss)(X)), 15 * np.array(X) ** 4, rtol=1e-5)


def test_has_aux_of_products():
    g = lambda x: (mx.sin(x), {"k": x * 2, "n": 3, "c": Y})  # noqa: E731
    for outs, aux in (
        (lambda r: (r[0], r[2]))(mx.vjp(g, [X], [Y], has_aux=True)),
        (lambda r: (r[0], r[2]))(mx.jvp(g, [X], [Y], has_aux=True)),
        (lambda r: (r[0], r[2]))(mx.vjp(g, [X], has_aux=True)),
        (lambda r: (r[0], r[2]))(mx.linearize(g, [X], has_aux=True)),
    ):
        assert len(outs) == 1 and aux["k"].tolist() == (X * 2).tolist() and aux["n"] == 3
        assert aux["c"].tolist() == Y.tolist()
    for bad in (lambda x: x, lambda x: (x, x, x), lambda x: [x, x]):
        with pytest.raises(ValueError, match="With has_aux .* must return a pair"):
            mx.vjp(bad, [X], [X], has_aux=True)
