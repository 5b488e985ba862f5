"""Derivatives of many outputs or examples at once, and the pairs of an n-body simulation."""

import math

import numpy as np
from suite import normal, workload

SIDE = 32
BATCH, INPUTS, HIDDEN = 64, 16, 32
BODIES = 1024
SOFTENING = 1e-2


@workload(flops=6 * BATCH * INPUTS * HIDDEN, tolerance=1e-4)
class per_example_grads:
    """vmap(grad) of a small network's squared error, for each of 64 examples: the gradients of both layers."""

    def inputs(rng):
        layers = normal(rng, INPUTS, HIDDEN, scale=INPUTS**-0.5), normal(rng, HIDDEN, scale=HIDDEN**-0.5)
        return [*layers, normal(rng, BATCH, INPUTS), normal(rng, BATCH)]

    def tree(w1, w2, x, y):
        return {"w1": w1, "w2": w2}, x, y

    def numpy(np, p, x, y):
        h = np.tanh(x @ p["w1"])
        error = 2 * (h @ p["w2"] - y)[:, None]
        back = error * p["w2"] * (1 - h * h)
        return {"w1": x[:, :, None] * back[:, None, :], "w2": error * h}

    def mlx(mx, p, x, y):
        def loss(p, x, y):
            return mx.square(mx.tanh(x @ p["w1"]) @ p["w2"] - y)

        return mx.vmap(mx.grad(loss), in_axes=(None, 0, 0))(p, x, y)

    def jax(jax, p, x, y):
        def loss(p, x, y):
            return jax.numpy.square(jax.numpy.tanh(x @ p["w1"]) @ p["w2"] - y)

        return jax.vmap(jax.grad(loss), in_axes=(None, 0, 0))(p, x, y)

    def torch(torch, p, x, y):
        def loss(p, x, y):
            return torch.square(torch.tanh(x @ p["w1"]) @ p["w2"] - y)

        return torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(p, x, y)


@workload(flops=2 * SIDE**3, tolerance=1e-4)
class jacobian:
    """Of tanh(w tanh(w x)), 32 by 32, by reverse mode."""

    def inputs(rng):
        return [normal(rng, SIDE, SIDE, scale=SIDE**-0.5), normal(rng, SIDE)]

    def numpy(np, w, x):
        h = np.tanh(w @ x)
        y = np.tanh(w @ h)
        return ((1 - y * y)[:, None] * w) @ ((1 - h * h)[:, None] * w)

    def mlx(mx, w, x):
        def function(x):
            return mx.tanh(w @ mx.tanh(w @ x))

        return mx.vmap(lambda row: mx.vjp(function, [x], [row])[1][0])(mx.eye(SIDE))

    def jax(jax, w, x):
        return jax.jacrev(lambda x: jax.numpy.tanh(w @ jax.numpy.tanh(w @ x)))(x)

    def torch(torch, w, x):
        return torch.func.jacrev(lambda x: torch.tanh(w @ torch.tanh(w @ x)))(x)


@workload(flops=2 * SIDE**3, tolerance=1e-4)
class hessian:
    """Of the sum of tanh(w x) squared, 32 by 32, forward over reverse."""

    def inputs(rng):
        return jacobian.inputs(rng)

    def numpy(np, w, x):
        h = np.tanh(w @ x)
        slope = 1 - h * h
        return (w.T * (2 * slope * (slope - 2 * h * h))) @ w

    def mlx(mx, w, x):
        grad = mx.grad(lambda x: mx.square(mx.tanh(w @ x)).sum())
        return mx.vmap(lambda row: mx.jvp(grad, [x], [row])[1][0])(mx.eye(SIDE))

    def jax(jax, w, x):
        return jax.hessian(lambda x: jax.numpy.square(jax.numpy.tanh(w @ x)).sum())(x)

    def torch(torch, w, x):
        return torch.func.hessian(lambda x: torch.square(torch.tanh(w @ x)).sum())(x)


def forces(module, x, m, axis):
    """Accelerations: the sum over j of m[j] (x[j] - x[i]) / (|x[j] - x[i]|^2 + softening)^(3/2)."""
    d = x[None, :, :] - x[:, None, :]
    squared = (d * d).sum(**{axis: -1}) + SOFTENING
    weight = m[None, :] / (squared * module.sqrt(squared))
    return (d * weight[:, :, None]).sum(**{axis: 1})


@workload(flops=18 * BODIES**2, tolerance=1e-4)
class nbody:
    """The accelerations of 1024 bodies, all pairs."""

    def inputs(rng):
        return [normal(rng, BODIES, 3), rng.uniform(0.5, 1, BODIES).astype(np.float32)]

    def numpy(np, x, m):
        return forces(np, x, m, "axis")

    def mlx(mx, x, m):
        return forces(mx, x, m, "axis")

    def jax(jax, x, m):
        return forces(jax.numpy, x, m, "axis")

    def torch(torch, x, m):
        return forces(torch, x, m, "dim")

    def numba(nb):
        f = np.float32

        @nb.njit(parallel=True, fastmath=True)
        def nbody(x, m):
            out = np.empty_like(x)
            for i in nb.prange(x.shape[0]):
                ax, ay, az = f(0), f(0), f(0)
                for j in range(x.shape[0]):
                    dx, dy, dz = x[j, 0] - x[i, 0], x[j, 1] - x[i, 1], x[j, 2] - x[i, 2]
                    squared = dx * dx + dy * dy + dz * dz + f(SOFTENING)
                    weight = m[j] / (squared * math.sqrt(squared))
                    ax += dx * weight
                    ay += dy * weight
                    az += dz * weight
                out[i, 0], out[i, 1], out[i, 2] = ax, ay, az
            return out

        return nbody
