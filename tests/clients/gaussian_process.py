"""Gaussian-process regression: kernels, Cholesky solves, posterior, the marginal likelihood by another formula."""

import json
import math

import mlx.core as mx


def rbf(a, b, scale, length):
    squared = mx.square(a[:, None] - b[None]).sum(-1)
    return scale * mx.exp(-0.5 * squared / length**2)


mx.random.seed(16)
x = mx.sort(mx.random.uniform(-3, 3, (12, 1)), axis=0)
y = mx.sin(x[:, 0]) + 0.1 * mx.random.normal((12,))
grid = mx.linspace(-3, 3, 7)[:, None]

with mx.stream(mx.cpu):
    K = rbf(x, x, 1.0, 1.0) + 0.01 * mx.eye(12)
    L = mx.linalg.cholesky(K)
    alpha = mx.linalg.solve_triangular(L.T, mx.linalg.solve_triangular(L, y[:, None], upper=False), upper=True)
    assert mx.allclose(K @ alpha, y[:, None], atol=1e-3)
    cross = rbf(grid, x, 1.0, 1.0)
    mean = (cross @ alpha)[:, 0]
    v = mx.linalg.solve_triangular(L, cross.T, upper=False)
    covariance = rbf(grid, grid, 1.0, 1.0) - v.T @ v
    log_marginal = -0.5 * (y @ alpha[:, 0]) - mx.log(mx.diag(L)).sum() - 6 * math.log(2 * math.pi)
    values, vectors = mx.linalg.eigh(K)
    other = -0.5 * ((vectors.T @ y).square() / values).sum() - 0.5 * mx.log(values).sum() - 6 * math.log(2 * math.pi)
    assert abs(log_marginal.item() - other.item()) < 1e-2
    inverse = mx.linalg.inv(K)
    q, r = mx.linalg.qr(cross)
    u, s, vt = mx.linalg.svd(cross)
    pinv = mx.linalg.pinv(cross)
    lu = mx.linalg.solve(K, y)
assert mx.allclose(q @ r, cross, atol=1e-5) and mx.allclose(cross @ pinv @ cross, cross, atol=1e-2)
lengths = [(rbf(x, x, 1.0, length) @ y).square().sum().item() for length in (0.5, 1.0, 2.0)]
slope = mx.grad(lambda length: (rbf(x, x, 1.0, length) @ y).square().sum())(mx.array(1.0))
print(json.dumps({
    "mean": mean.tolist(), "variance": mx.diag(covariance).tolist(), "log_marginal": log_marginal.item(),
    "singular": s[:3].tolist(), "trace": mx.trace(inverse).item() / 1e3, "solve": lu.tolist(), "lengths": lengths,
    "slope": slope.item(), "norm": mx.linalg.norm(K, ord="fro").item(), "rows": mx.linalg.norm(K, axis=1).tolist(),
}))  # fmt: skip
