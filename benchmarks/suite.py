"""What a workload is, and the table of all of them. The workloads themselves stand in families/, one class each:

    @workload(flops=5 * 4096 * 1024)
    class softmax:
        '''Rows of (4096, 1024).'''

        def inputs(rng):                what it is given, NumPy arrays
            return [normal(rng, 4096, 1024)]

        def numpy(np, x): ...           each framework's natural function of it, whose first argument is the framework:
        def mlx(mx, x): ...             for mlxir and for real MLX
        def jax(jax, x): ...
        def torch(torch, x): ...
        def numba(nb): ...              returns the compiled function

Adding a workload is adding such a class. Frameworks that it has no function for are left out of it.

`numpy` is also the referee: its results in float64 are what the others' must be within `tolerance`. A class without it
says so, and its referee is agreement: the results of the first of `REFEREES` that runs. `tree(*arrays)`, if there is
one, makes the arguments (trees of arrays) of the flat list of inputs.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

FRAMEWORKS = ("numpy", "mlx", "jax", "torch", "numba")
REFEREES = ("jax", "torch", "mlx")
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Workload:
    """One row of the table.

    `flops` counts the arithmetic that no implementation can avoid, one per element for exp, sin, erf and the like;
    `read` the bytes that must be read, where they are not those of all inputs.
    `tolerance` bounds max |a - b| / max |b| of each output. `compiled` says that each framework compiles its function;
    otherwise it is called as it is.
    """

    name: str
    suite: str
    inputs: Callable[[np.random.Generator], list[np.ndarray]]
    functions: dict[str, Callable] = field(repr=False)
    flops: float = 0
    read: int | None = None
    tolerance: float = 1e-5
    compiled: bool = True
    tree: Callable[..., tuple] = lambda *arrays: arrays


WORKLOADS: dict[str, Workload] = {}


def workload(name: str | None = None, **settings: Any) -> Callable[[type], type]:
    """Enter the decorated class in the table, under its own name if none is given."""

    def register(cls: type) -> type:
        functions = {framework: vars(cls)[framework] for framework in FRAMEWORKS if framework in vars(cls)}
        if "tree" in vars(cls):
            settings["tree"] = vars(cls)["tree"]
        entry = Workload(name or cls.__name__, cls.__module__.split(".")[-1], cls.inputs, functions, **settings)
        if entry.name in WORKLOADS:
            raise ValueError(f"two workloads are called {entry.name}")
        WORKLOADS[entry.name] = entry
        return cls

    return register


def load() -> dict[str, Workload]:
    """The table of all workloads: every file of families/ is imported."""
    for path in sorted((HERE / "families").glob("*.py")):
        importlib.import_module(f"families.{path.stem}")
    return WORKLOADS


# -- what the families share -----------------------------------------------------------------------------------------
def normal(rng: np.random.Generator, *shape: int, scale: float = 1.0) -> np.ndarray:
    """float32 numbers of a normal distribution."""
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def leaves(tree: Any) -> list:
    """The leaves of nested lists, tuples and dicts (in the order of their keys), or of a lone leaf."""
    if isinstance(tree, dict):
        return [leaf for key in sorted(tree) for leaf in leaves(tree[key])]
    if isinstance(tree, (list, tuple)):
        return [leaf for value in tree for leaf in leaves(value)]
    return [tree]


def tree_map(function: Callable, first: Any, *rest: Any) -> Any:
    """The tree of `function` of the corresponding leaves of equal trees."""
    if isinstance(first, dict):
        return {key: tree_map(function, first[key], *[tree[key] for tree in rest]) for key in first}
    if isinstance(first, (list, tuple)):
        return type(first)([tree_map(function, *items) for items in zip(first, *rest, strict=True)])
    return function(first, *rest)
