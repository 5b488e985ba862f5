"""What a call costs beside its arithmetic: dispatch of compiled functions, trees, and eager operations."""

import functools

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


def halved(tree):
    return tree_map(lambda p: p * 0.5 + 1, tree)


@workload(compiled=False)
class dispatch_step:
    """A compiled training step on 100 parameters of 8 floats: in MLX the state that the step captures and updates in
    place, elsewhere arguments and results.
    """

    def inputs(rng):
        return [normal(rng, 8) for _ in range(100)]

    def tree(*arrays):
        return ({"layers": [{"w": w, "b": b} for w, b in zip(arrays[::2], arrays[1::2], strict=True)]},)

    def numpy(np, params):
        return halved(params)

    def mlx(mx, params):
        if "step" not in params:  # the first call
            state = {"layers": params["layers"]}
            params["step"] = mx.compile(lambda: state.update(halved(state)), inputs=state, outputs=state), state
        step, state = params["step"]
        step()
        return state

    def jax(jax, params):
        return jax_step(jax)(params)


@functools.cache
def jax_step(jax):
    return jax.jit(halved)


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
