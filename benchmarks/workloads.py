"""What is timed: for each workload its inputs, the answer by NumPy, and the least work that any implementation must do.

Every implementation (with_*.py) has a function of the workload's name over the same arrays. The NumPy functions here
are the referee: run in float64 for the right answer, and in float32 as the implementation "numpy".
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf

LEARNING_RATE, BETA1, BETA2, EPS = 2e-3, 0.9, 0.999, 1e-8
LAYER_NORM_EPS = 1e-5


@dataclass(frozen=True)
class Workload:
    """`inputs(rng)` are the arrays, `reference` the function of them by NumPy (returning a tuple of arrays).

    `flops` counts the arithmetic that no implementation can avoid, one per element for exp, sin, erf and the like.
    `tolerance` bounds max |a - b| / max |b| of each output against the reference in float64.
    """

    inputs: Callable[[np.random.Generator], list[np.ndarray]]
    reference: Callable[..., tuple[np.ndarray, ...]]
    flops: float
    tolerance: float = 1e-5


def normal(rng, *shape, scale=1.0):
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def softmax(x):
    """Rows of (4096, 1024)."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return (e / e.sum(axis=-1, keepdims=True),)


def chain(x):
    """Ten elementwise operations on 10^6 numbers."""
    t = np.sin(x * 1.5 + 0.25) * x
    return (np.maximum(np.exp(-np.sqrt(np.abs(t) + 1.0)), 0.1),)


def gelu(x):
    return 0.5 * x * (1 + erf(x * np.asarray(0.5**0.5, x.dtype)))


def gelu_chain(x, w, b):
    """Bias, GELU, scale, GELU on (2048, 1024)."""
    return (gelu(gelu(x + b) * w),)


def matmul(a, b):
    return (a @ b,)


def sum_all(x):
    return (x.sum(),)


def sum_columns(x):
    return (x.sum(axis=0),)


def sum_rows(x):
    return (x.sum(axis=1),)


def layer_norm_grad(x, w, b, c):
    """Layer norm of (4096, 1024), weighted by c and summed; the value and the gradients for x, w and b."""
    centred = x - x.mean(axis=-1, keepdims=True)
    rstd = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS)
    xhat = centred * rstd
    g = c * w
    dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
    return ((xhat * w + b) * c).sum(), dx, (c * xhat).sum(axis=0), c.sum(axis=0)


def mlp(x, w1, b1, w2, b2, w3, b3):
    """784-1024-1024-10 with GELU, forward, batch 256."""
    return (gelu(gelu(x @ w1 + b1) @ w2 + b2) @ w3 + b3,)


def train_step(*arrays):
    """One step of the demo (examples/digits.py): 64-128-64-10, batch 128, cross-entropy, gradients, Adam.

    Arguments: w1 b1 w2 b2 w3 b3, Adam's m and v of each, t, x, y; results: loss, the new parameters, m, v, t.
    """
    params, ms, vs, (t, x, y) = arrays[:6], arrays[6:12], arrays[12:18], arrays[18:]
    w1, b1, w2, b2, w3, b3 = params
    h1 = x @ w1 + b1
    a1 = gelu(h1)
    h2 = a1 @ w2 + b2
    a2 = gelu(h2)
    logits = a2 @ w3 + b3
    top = logits.max(axis=1, keepdims=True)
    lse = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top
    rows = np.arange(len(y))
    loss = (lse[:, 0] - logits[rows, y]).mean()

    d3 = np.exp(logits - lse)
    d3[rows, y] -= 1
    d3 /= np.asarray(len(y), x.dtype)
    d2 = (d3 @ w3.T) * gelu_slope(h2)
    d1 = (d2 @ w2.T) * gelu_slope(h1)
    grads = (x.T @ d1, d1.sum(axis=0), a1.T @ d2, d2.sum(axis=0), a2.T @ d3, d3.sum(axis=0))

    t = t + 1
    ms = [BETA1 * m + (1 - BETA1) * g for m, g in zip(ms, grads, strict=True)]
    vs = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(vs, grads, strict=True)]
    rate = LEARNING_RATE * np.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    params = [p - rate * m / (np.sqrt(v) + EPS) for p, m, v in zip(params, ms, vs, strict=True)]
    return loss, *params, *ms, *vs, t


def gelu_slope(x):
    root_half = np.asarray(0.5**0.5, x.dtype)
    return 0.5 * (1 + erf(x * root_half)) + x * np.exp(-0.5 * x * x) * np.asarray((2 * np.pi) ** -0.5, x.dtype)


def dense_inputs(rng, sizes):
    """w and b of each layer, alternating."""
    pairs = zip(sizes, sizes[1:], strict=False)
    return [a for n, m in pairs for a in (normal(rng, n, m, scale=(2 / n) ** 0.5), normal(rng, m, scale=0.1))]


def train_step_inputs(rng):
    params = dense_inputs(rng, (64, 128, 64, 10))
    ms = [normal(rng, *p.shape, scale=1e-2) for p in params]
    vs = [rng.uniform(1e-4, 1e-3, p.shape).astype(np.float32) for p in params]
    x = rng.uniform(0, 1, (128, 64)).astype(np.float32)
    return [*params, *ms, *vs, np.float32(10).reshape(()), x, rng.integers(0, 10, 128).astype(np.int32)]


def square(rng):
    """Positive, so that the sum of 2^24 of them is well conditioned."""
    return [rng.uniform(0, 1, (4096, 4096)).astype(np.float32)]


def layer_norm_inputs(rng):
    return [normal(rng, 4096, 1024), normal(rng, 1024), normal(rng, 1024), normal(rng, 4096, 1024)]


WORKLOADS = {
    "softmax": Workload(lambda rng: [normal(rng, 4096, 1024)], softmax, flops=5 * 4096 * 1024),
    "chain": Workload(lambda rng: [normal(rng, 10**6)], chain, flops=10 * 10**6),
    "gelu_chain": Workload(
        lambda rng: [normal(rng, 2048, 1024), normal(rng, 1024), normal(rng, 1024)], gelu_chain, flops=12 * 2048 * 1024
    ),
    "matmul": Workload(lambda rng: [normal(rng, 1024, 1024), normal(rng, 1024, 1024)], matmul, flops=2 * 1024**3),
    # One float32 accumulator per vector lane loses this much over 2^24 numbers; pairwise sums are far below it.
    "sum_all": Workload(square, sum_all, flops=4096**2, tolerance=2e-4),
    "sum_columns": Workload(square, sum_columns, flops=4096**2),
    "sum_rows": Workload(square, sum_rows, flops=4096**2),
    "layer_norm_grad": Workload(layer_norm_inputs, layer_norm_grad, flops=20 * 4096 * 1024, tolerance=1e-4),
    "mlp": Workload(
        lambda rng: [normal(rng, 256, 784), *dense_inputs(rng, (784, 1024, 1024, 10))],
        mlp,
        flops=2 * 256 * (784 * 1024 + 1024 * 1024 + 1024 * 10),
    ),
    # Three products per layer, less the first layer's gradient for x; the elementwise rest is small.
    "train_step": Workload(
        train_step_inputs, train_step, flops=2 * 128 * (2 * 64 * 128 + 3 * 128 * 64 + 3 * 64 * 10), tolerance=1e-4
    ),
}
