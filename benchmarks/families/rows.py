"""Norms over rows: a reduction of each row and what is computed with it, forward and gradient."""

import math

import numpy as np
from suite import normal, workload

ROWS, COLUMNS = 4096, 1024
EPS = 1e-5


@workload(flops=5 * ROWS * COLUMNS)
class softmax:
    """Rows of (4096, 1024)."""

    def inputs(rng):
        return [normal(rng, ROWS, COLUMNS)]

    def numpy(np, x):
        e = np.exp(x - x.max(axis=-1, keepdims=True))
        return e / e.sum(axis=-1, keepdims=True)

    def mlx(mx, x):
        return mx.softmax(x, axis=-1)

    def jax(jax, x):
        return jax.nn.softmax(x, axis=-1)

    def torch(torch, x):
        return torch.softmax(x, dim=-1)

    def numba(nb):
        @nb.njit(parallel=True, fastmath=True)
        def softmax(x):
            out = np.empty_like(x)
            for i in nb.prange(x.shape[0]):
                top = x[i, 0]
                for j in range(x.shape[1]):
                    top = max(top, x[i, j])
                total = np.float32(0)
                for j in range(x.shape[1]):
                    e = math.exp(x[i, j] - top)
                    out[i, j] = e
                    total += e
                scale = np.float32(1) / total
                for j in range(x.shape[1]):
                    out[i, j] *= scale
            return out

        return softmax


@workload(flops=8 * ROWS * COLUMNS)
class layer_norm:
    """Rows of (4096, 1024), with weight and bias."""

    def inputs(rng):
        return [normal(rng, ROWS, COLUMNS), normal(rng, COLUMNS), normal(rng, COLUMNS)]

    def numpy(np, x, w, b):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + np.asarray(EPS, x.dtype)) * w + b

    def mlx(mx, x, w, b):
        return mx.fast.layer_norm(x, w, b, EPS)

    def jax(jax, x, w, b):
        return jax_layer_norm(jax, x, w, b)

    def torch(torch, x, w, b):
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w, b, EPS)

    def numba(nb):
        @nb.njit(parallel=True, fastmath=True)
        def layer_norm(x, w, b):
            out = np.empty_like(x)
            width = np.float32(x.shape[1])
            for i in nb.prange(x.shape[0]):
                total = np.float32(0)
                for j in range(x.shape[1]):
                    total += x[i, j]
                mean = total / width
                squares = np.float32(0)
                for j in range(x.shape[1]):
                    squares += (x[i, j] - mean) ** 2
                scale = np.float32(1) / np.sqrt(squares / width + np.float32(EPS))
                for j in range(x.shape[1]):
                    out[i, j] = (x[i, j] - mean) * scale * w[j] + b[j]
            return out

        return layer_norm


@workload(flops=20 * ROWS * COLUMNS, tolerance=1e-4)
class layer_norm_grad:
    """Layer norm weighted by c and summed; the value and the gradients for x, w and b."""

    def inputs(rng):
        return [*layer_norm.inputs(rng), normal(rng, ROWS, COLUMNS)]

    def numpy(np, x, w, b, c):
        centred = x - x.mean(axis=-1, keepdims=True)
        rstd = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + np.asarray(EPS, x.dtype))
        xhat = centred * rstd
        g = c * w
        dx = rstd * (g - g.mean(axis=-1, keepdims=True) - xhat * (g * xhat).mean(axis=-1, keepdims=True))
        return ((xhat * w + b) * c).sum(), dx, (c * xhat).sum(axis=0), c.sum(axis=0)

    def mlx(mx, x, w, b, c):
        def loss(x, w, b):
            return (mx.fast.layer_norm(x, w, b, EPS) * c).sum()

        value, grads = mx.value_and_grad(loss, argnums=(0, 1, 2))(x, w, b)
        return value, *grads

    def jax(jax, x, w, b, c):
        def loss(x, w, b):
            return (jax_layer_norm(jax, x, w, b) * c).sum()

        value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(x, w, b)
        return value, *grads

    def torch(torch, x, w, b, c):
        def loss(x, w, b):
            return (torch.nn.functional.layer_norm(x, x.shape[-1:], w, b, EPS) * c).sum()

        grads, value = torch.func.grad_and_value(loss, argnums=(0, 1, 2))(x, w, b)
        return value, *grads


def jax_layer_norm(jax, x, w, b):
    """JAX has no layer norm of its own."""
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + EPS) * w + b
