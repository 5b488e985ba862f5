"""Sorting, scanning and looking up."""

import numpy as np
from suite import normal, workload

COUNT = 10**6
VOCABULARY, WIDTH, TOKENS = 10000, 128, 2048


@workload(flops=COUNT, tolerance=1e-4)
class cumsum:
    """Running sums of 10^6 positive numbers."""

    def inputs(rng):
        return [rng.uniform(0, 1, COUNT).astype(np.float32)]

    def numpy(np, x):
        return np.cumsum(x)

    def mlx(mx, x):
        return mx.cumsum(x)

    def jax(jax, x):
        return jax.numpy.cumsum(x)

    def torch(torch, x):
        return torch.cumsum(x, 0)

    def numba(nb):
        @nb.njit(fastmath=True)
        def cumsum(x):
            out = np.empty_like(x)
            total = np.float32(0)
            for i in range(x.size):
                total += x[i]
                out[i] = total
            return out

        return cumsum


@workload(flops=20 * COUNT)
class sort:
    """10^6 numbers."""

    def inputs(rng):
        return [normal(rng, COUNT)]

    def numpy(np, x):
        return np.sort(x)

    def mlx(mx, x):
        return mx.sort(x)

    def jax(jax, x):
        return jax.numpy.sort(x)

    def torch(torch, x):
        return torch.sort(x).values


@workload(flops=4096 * 1024)
class argmax:
    """Of the rows of (4096, 1024)."""

    def inputs(rng):
        return [normal(rng, 4096, 1024)]

    def numpy(np, x):
        return np.argmax(x, axis=1)

    def mlx(mx, x):
        return mx.argmax(x, axis=1)

    def jax(jax, x):
        return jax.numpy.argmax(x, axis=1)

    def torch(torch, x):
        return torch.argmax(x, dim=1)

    def numba(nb):
        @nb.njit(parallel=True)
        def argmax(x):
            out = np.empty(x.shape[0], np.int32)
            for i in nb.prange(x.shape[0]):
                best = 0
                for j in range(x.shape[1]):
                    if x[i, j] > x[i, best]:
                        best = j
                out[i] = best
            return out

        return argmax


@workload(read=TOKENS * (WIDTH * 4 + 4))
class embedding:
    """2048 rows of a table of (10000, 128)."""

    def inputs(rng):
        return [normal(rng, VOCABULARY, WIDTH), rng.integers(0, VOCABULARY, TOKENS).astype(np.int32)]

    def numpy(np, table, ids):
        return table[ids]

    def mlx(mx, table, ids):
        return table[ids]

    def jax(jax, table, ids):
        return table[ids]

    def torch(torch, table, ids):
        return torch.nn.functional.embedding(ids, table)


@workload(flops=2 * TOKENS * WIDTH, read=TOKENS * (WIDTH * 4 + 4))
class embedding_grad:
    """The gradient for the table of the lookup weighted by c and summed."""

    def inputs(rng):
        return [*embedding.inputs(rng), normal(rng, TOKENS, WIDTH)]

    def numpy(np, table, ids, c):
        grad = np.zeros_like(table)
        np.add.at(grad, ids, c)
        return grad

    def mlx(mx, table, ids, c):
        return mx.grad(lambda table: (table[ids] * c).sum())(table)

    def jax(jax, table, ids, c):
        return jax.grad(lambda table: (table[ids] * c).sum())(table)

    def torch(torch, table, ids, c):
        return torch.func.grad(lambda table: (torch.nn.functional.embedding(ids, table) * c).sum())(table)
