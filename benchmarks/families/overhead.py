"""What a call costs beside its arithmetic: dispatch of compiled functions, trees, and eager operations."""

import numpy as np
from suite import normal, tree_map, workload


def affine(module, x):
    return x * 2 + 1


@workload()
class dispatch:
    """A compiled x * 2 + 1 on 8 floats."""

    def inputs(rng):
        return [normal(rng, 8)]

    numpy = mlx = jax = torch = affine

    def numba(nb):
        @nb.njit
        def function(x):
            return x * np.float32(2) + np.float32(1)

        return function


@workload()
class dispatch_tree:
    """The same, compiled, on each of 50 arrays in a tree of dicts and lists, in and out."""

    def inputs(rng):
        return [normal(rng, 8) for _ in range(50)]

    def tree(*arrays):
        return ([{"w": w, "b": b} for w, b in zip(arrays[::2], arrays[1::2], strict=True)],)

    def each(module, tree):
        return tree_map(lambda x: x * 2 + 1, tree)

    numpy = mlx = jax = torch = each


def eager(name, count):
    """Enter twenty operations, none compiled, with their evaluation."""

    def twenty(module, x):
        for _ in range(10):
            x = x * 1.01
            x = x + 0.5
        return x

    @workload(name, flops=20 * count, compiled=False)
    class operations:
        def inputs(rng):
            return [normal(rng, count)]

        numpy = mlx = jax = torch = twenty


eager("eager_small", 8)
eager("eager_large", 10**6)
