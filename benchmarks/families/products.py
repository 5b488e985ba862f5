"""Products of matrices: large, many small ones, and one with a vector."""

from suite import normal, workload


def product(name, a, b, flops):
    """Enter the product of arrays of shapes `a` and `b`; every framework spells it `@`."""

    def times(module, x, y):
        return x @ y

    @workload(name, flops=flops)
    class matmul:
        def inputs(rng):
            return [normal(rng, *a), normal(rng, *b)]

        numpy = mlx = jax = torch = times


product("matmul_1024", (1024, 1024), (1024, 1024), 2 * 1024**3)
product("matmul_2048", (2048, 2048), (2048, 2048), 2 * 2048**3)
product("batched_matmul", (64, 64, 64), (64, 64, 64), 2 * 64**4)
product("gemv", (4096, 4096), (4096,), 2 * 4096**2)
