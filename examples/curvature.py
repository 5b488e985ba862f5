"""Hessians and per-example gradients: transforms nested in transforms, each one line.

Logistic regression tells apart two kinds of wine (scikit-learn's, 13 measurements each). Newton's method uses the whole
Hessian, forward over reverse; afterwards the gradient of every single example, `vmap(grad(...))`, shows which wines the
model finds hardest, and the inverse Hessian how far each of them pulls the weights (Cook, 1977).

    python examples/curvature.py          a few seconds
"""

import numpy as np
from sklearn.datasets import load_wine

import mlxir as mx

RIDGE = 1e-2


def load():
    """Measurements (n, 14), normalised and with a constant 1, and labels (n,) in {0, 1}, of the first two kinds."""
    x, y = load_wine(return_X_y=True)
    x, y = x[y < 2], y[y < 2]
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return mx.array(np.c_[x, np.ones(len(x))], mx.float32), mx.array(y, mx.float32)


def example_loss(w, x, y):
    """-log of the probability of one label: x (14,), y ()."""
    return mx.logaddexp(mx.array(0.0), x @ w) - y * (x @ w)


def loss(w, x, y):
    return mx.mean(mx.vmap(example_loss, in_axes=(None, 0, 0))(w, x, y)) + RIDGE / 2 * mx.sum(w * w)


@mx.compile
def newton_step(w, x, y):
    """One step, the loss before it, and the length of the gradient there."""
    value, gradient = mx.value_and_grad(loss)(w, x, y)
    hessian = mx.hessian(loss)(w, x, y)
    return w - mx.linalg.solve(hessian, gradient), value, mx.linalg.norm(gradient)


@mx.compile
def influence(w, x, y):
    """How far leaving out each example would move the weights, to first order: |H^-1 g_i| / n."""
    gradients = mx.vmap(mx.grad(example_loss), in_axes=(None, 0, 0))(w, x, y)
    moved = mx.linalg.solve(mx.hessian(loss)(w, x, y), gradients.T)
    return mx.linalg.norm(moved, axis=0) / len(y)


def main():
    x, y = load()
    w = mx.zeros(x.shape[1])
    for i in range(8):
        w, value, slope = newton_step(w, x, y)
        print(f"step {i}   loss {value.item():.6f}   |gradient| {slope.item():.1e}")
    pull = influence(w, x, y)
    hardest = mx.argsort(-pull)[:5]
    print("wines that pull hardest:", hardest.tolist(), "by", [round(p, 4) for p in pull[hardest].tolist()])
    right = mx.mean((x @ w > 0) == (y > 0.5)).item()
    print(f"{right:.1%} of {len(y)} wines told apart")


if __name__ == "__main__":
    main()
