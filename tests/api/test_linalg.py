"""Linear algebra: values and error types as real MLX gives them, gradients by finite differences, all tiers equal."""

from __future__ import annotations

import mlx.core as real
import numpy as np
import oracle
import pytest
from counting import Counter

import mlxir as mx


def matrices(*shape: int, seed: int = 0) -> np.ndarray:
    """Regular, positive definite once made symmetric, with separate eigenvalues."""
    rng = np.random.default_rng([seed, *shape])
    return np.asarray(0.4 * rng.standard_normal(shape) + np.eye(*shape[-2:]) * np.arange(3, 3 + 2 * shape[-1], 2), np.float32)


def names(m: object) -> dict:
    a = matrices(4, 4)
    data = {
        "a": a, "batch": matrices(2, 3, 3), "tall": matrices(5, 3), "wide": matrices(3, 5), "spd": (a + a.T) / 2,
        "v": np.float32([1, 2, 3, 4]), "b": matrices(4, 2), "i": np.int32([[1, 2], [3, 4]]), "rank1": np.float32([1, 2]),
        "half": a.astype(np.float16), "c": (a + 1j * matrices(4, 4, seed=1)).astype(np.complex64), "zero": np.zeros((2, 2), np.float32),
    }  # fmt: skip
    arrays = {name: m.array(x) for name, x in data.items()}  # type: ignore[attr-defined]
    return {**arrays, "L": m.linalg, "herm": (arrays["c"] + m.conj(arrays["c"].T)) / 2}  # type: ignore[attr-defined]


EXPRESSIONS = [
    *[f"L.{f}({x})" for f in ("inv", "det", "slogdet", "tri_inv", "lu_factor") for x in ("a", "batch", "i", "rank1", "c", "wide")],
    "L.inv(half)", "L.qr(half)", "L.det(half[:2, :2])",
    *[f"L.{f}(a.astype(m.float64))" for f in ("inv", "det", "slogdet", "cholesky", "pinv")],
    *[f"L.{f}({x}, {u})" for f in ("cholesky", "cholesky_inv") for x in ("spd", "a", "rank1", "wide", "i") for u in (True, False)],
    *[f"L.pinv({x})" for x in ("a", "tall", "wide", "batch", "zero", "i", "rank1")],
    *[f"L.lu({x})" for x in ("a", "tall", "wide", "batch", "zero", "i", "rank1")],
    *[f"L.solve({x})" for x in ("a, v", "a, b", "batch, batch", "a, v.astype(m.int32)", "i, i", "a, rank1", "wide, v")],
    *[f"L.solve_triangular(a, {x}, upper={u})" for x in ("v", "b", "rank1") for u in (True, False)],
    *[f"L.svd({x}, compute_uv=False)" for x in ("a", "tall", "wide", "batch", "c", "i", "rank1", "half")],
    *[f"L.eigvalsh({x}, {u!r})" for x in ("a", "spd", "herm", "batch", "wide", "i") for u in "LU"],
    *[f"L.norm({x})" for x in ("a, 'nuc'", "a, 2", "a, -2", "batch, 2, (0, 2)", "batch, 'nuc', (1, 2), True", "a, 7", "a, 'no'")],
    "L.det(zero)", "L.slogdet(zero)", "L.inv(zero)", "L.tri_inv(zero)", "L.cholesky(zero)", "L.solve(zero, rank1)",
    "[x.shape for x in L.svd(tall)]", "[x.dtype for x in L.svd(c)]", "[x.shape for x in L.qr(wide)]", "[x.dtype for x in L.eig(a)]",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_agrees_with_mlx(text: str) -> None:
    oracle.assert_agree(oracle.expression(text, names))


@pytest.mark.parametrize("shape", [(4, 4), (5, 3), (3, 5), (2, 4, 3)])
def test_factors_multiply_to_the_matrix(shape: tuple[int, ...]) -> None:
    a = mx.array(matrices(*shape))
    q, r = mx.linalg.qr(a)
    u, s, vt = mx.linalg.svd(a)
    p, low, up = mx.linalg.lu(a)
    k = min(shape[-2:])
    for product in (
        q @ r,
        (u[..., :k] * s[..., None, :]) @ vt[..., :k, :],
        mx.take_along_axis(low, p[..., None], -2) @ up,
    ):
        np.testing.assert_allclose(np.array(product), np.array(a), atol=2e-5)
    np.testing.assert_allclose(np.array(mx.swapaxes(q, -1, -2) @ q), np.broadcast_to(np.eye(k), (*shape[:-2], k, k)), atol=1e-5)


def test_eigenvectors_satisfy_their_equation() -> None:
    for a in (mx.array(matrices(4, 4)), mx.array(matrices(2, 3, 3)), names(mx)["c"]):
        w, v = mx.linalg.eig(a)
        np.testing.assert_allclose(np.array(a.astype(mx.complex64) @ v), np.array(v * w[..., None, :]), atol=2e-5)
    spd = names(mx)["herm"]
    for side in "LU":
        w, v = mx.linalg.eigh(spd, side)
        np.testing.assert_allclose(np.array(spd @ v), np.array(v * w[..., None, :]), atol=2e-5)


def _lower(a: mx.array) -> mx.array:
    return mx.linalg.cholesky((a + mx.swapaxes(a, -1, -2)) / 2)


GRADIENTS = {
    "inv": mx.linalg.inv, "det": mx.linalg.det, "slogdet": mx.linalg.slogdet, "pinv": mx.linalg.pinv,
    "tri_inv": mx.linalg.tri_inv, "cholesky": _lower, "cholesky_inv": lambda a: mx.linalg.cholesky_inv(_lower(a)),
    "qr": mx.linalg.qr, "lu": lambda a: mx.linalg.lu(a)[1:], "singular values": lambda a: mx.linalg.svd(a, compute_uv=False),
    "low rank": lambda a: mx.linalg.svd(a)[0][:, :2] @ mx.linalg.svd(a)[2][:2],
    "eigvalsh": lambda a: mx.linalg.eigvalsh(a + a.T), "eigh": lambda a: mx.linalg.eigh(a + a.T)[1] ** 2,
    "eigvals": lambda a: mx.abs(mx.linalg.eigvals(a)), "eig": lambda a: mx.abs(mx.linalg.eig(a)[1]),
    "nuclear": lambda a: mx.linalg.norm(a, "nuc"), "spectral": lambda a: mx.linalg.norm(a, 2),
    "solve": lambda a: mx.linalg.solve(a, a[:, 0]), "triangular": lambda a: mx.linalg.solve_triangular(a, a.T, upper=True),
}  # fmt: skip


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients_of_both_modes_and_second_order(name: str) -> None:
    """float64 where the results have it; eig gives complex64 always."""
    single = name in ("eig", "eigvals")
    a = mx.array(matrices(3, 3), mx.float32 if single else mx.float64)
    mx.testing.check_grads(GRADIENTS[name], [a], order=1 if single else 2, atol=1e-2 if single else 1e-5, rtol=1e-2 if single else 1e-5)


@pytest.mark.parametrize("name", GRADIENTS)
def test_vmap_and_compile_change_nothing(name: str) -> None:
    f, a = GRADIENTS[name], mx.array(matrices(2, 3, 3))
    rows = [f(x) for x in a]
    loop = [mx.stack(parts) for parts in zip(*rows, strict=True)] if isinstance(rows[0], tuple) else mx.stack(rows)
    counted = Counter(mx.vmap(f))
    compiled = mx.compile(counted)
    for found in (compiled(a), compiled(a)):
        pairs = zip(found, loop, strict=True) if isinstance(loop, list) else [(found, loop)]
        for x, y in pairs:
            np.testing.assert_allclose(np.array(x), np.array(y), rtol=2e-4, atol=2e-5)
    assert counted.runs == 1


def test_the_gradient_of_the_log_determinant_is_the_inverse() -> None:
    a = names(mx)["spd"]
    by_factor = mx.grad(lambda a: 2 * mx.log(mx.diag(mx.linalg.cholesky(a))).sum())(a)
    np.testing.assert_allclose(np.array(by_factor), np.linalg.inv(np.array(a)), atol=1e-5)
    np.testing.assert_allclose(np.array(mx.grad(lambda a: mx.linalg.slogdet(a)[1])(a)), np.linalg.inv(np.array(a)).T, atol=1e-5)


@pytest.mark.parametrize("call", ["inv(x)", "qr(x)", "svd(x)", "eigh(x)", "eig(x)", "det(x)", "lu(x)", "cholesky(x)", "pinv(x)"])
@pytest.mark.parametrize("shape", [(0, 0), (0, 3, 3)])
def test_empty_matrices(call: str, shape: tuple[int, ...]) -> None:
    """Real MLX dies of a division by zero on these."""
    found = eval(f"mx.linalg.{call}", {"mx": mx, "x": mx.zeros(shape)})
    for part in found if isinstance(found, tuple) else (found,):
        assert part.size in (0, 1) and np.array(part).shape == part.shape


def test_a_singular_matrix_raises_when_it_is_inverted() -> None:
    inverse = mx.linalg.inv(mx.zeros((2, 2)))
    with pytest.raises(RuntimeError, match=r"\[linalg::inv\].*\(2, 2\)"):
        mx.eval(inverse)
    with pytest.raises(ValueError, match="UPLO"):
        mx.linalg.eigh(mx.zeros((2, 2)), "X")
    assert issubclass(type(oracle.outcome(lambda m: m.linalg.inv(m.zeros((2, 2))), real)), RuntimeError)
