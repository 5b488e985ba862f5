"""How each framework takes arrays, compiles a function and waits for its results: what its users write around it.

An adapter is made in the worker's process, and its framework is imported there. `prepare(workload, inputs)` returns a
call without arguments that ends when the results are ready.
"""

import importlib
import os
from importlib.metadata import version

import numpy as np
from suite import tree_map


class Numpy:
    """The arrays as they are, no compiler."""

    package = modules = "numpy"
    functions = "numpy"  # the functions of a workload that it runs

    def __init__(self):
        self.module = importlib.import_module(self.modules)

    @property
    def version(self):
        return f"{self.package} {version(self.package)}"

    def array(self, a):
        return a

    def compile(self, function):
        return function

    def ready(self, results):
        return results

    def to_numpy(self, x):
        return np.asarray(x)

    def bound(self, workload):
        """The workload's function of arrays alone."""
        function = workload.functions[self.functions]
        return lambda *arguments: function(self.module, *arguments)

    def prepare(self, workload, inputs):
        function = self.bound(workload)
        if workload.compiled:
            function = self.compile(function)
        arguments = tree_map(self.array, tuple(workload.tree(*inputs)))
        ready = self.ready
        ready(arguments)
        return lambda: ready(function(*arguments))


class Mlx(Numpy):
    """Real MLX; `mx.compile`, and `mx.eval` of the results."""

    package, modules, functions = "mlx", "mlx.core", "mlx"

    def array(self, a):
        return self.module.array(a)

    def compile(self, function):
        return self.module.compile(function)

    def ready(self, results):
        self.module.eval(results)
        return results


class Mlxir(Mlx):
    """The same functions on mlxir."""

    package, modules = "mlxir", "mlxir"


class Jax(Numpy):
    """`jax.jit`, and `block_until_ready` of the results."""

    package = modules = functions = "jax"

    def array(self, a):
        return self.module.numpy.asarray(a)

    def compile(self, function):
        return self.module.jit(function)

    def ready(self, results):
        return self.module.block_until_ready(results)


class Torch(Numpy):
    """`torch.compile` by inductor: the whole graph, static shapes. Integers are int64, as its indices must be."""

    package = modules = functions = "torch"

    def __init__(self):
        super().__init__()
        self.module.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

    def array(self, a):
        tensor = self.module.from_numpy(np.array(a))
        return tensor.long() if a.dtype.kind == "i" else tensor

    def compile(self, function):
        self.module.compiler.reset()  # its limit on recompilations counts all functions that `bound` makes as one
        return self.module.compile(function, fullgraph=True, dynamic=False)

    def to_numpy(self, x):
        return x.detach().numpy()


class Numba(Numpy):
    """Loops by hand under `@njit(parallel=True, fastmath=True)`, for the workloads whose loops fit on a page."""

    package = modules = functions = "numba"

    def bound(self, workload):
        return workload.functions[self.functions](self.module)


ADAPTERS = {"mlxir": Mlxir, "mlx": Mlx, "jax": Jax, "torch": Torch, "numba": Numba, "numpy": Numpy}
