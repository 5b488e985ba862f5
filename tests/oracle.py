"""Differential tests: an expression gives the same values, dtypes, shapes and error types with mlxir and real MLX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as real
import numpy as np

import mlxir
from mlxir.compiler.graph import Value

# MLX computes some functions of float64 in float32.
TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-5, "complex64": 2e-5, "float64": 1e-6}


def numpy_of(x: Any) -> np.ndarray:
    """The data of an array of either library; half precision widened, which NumPy's comparisons need."""
    wide = {"bfloat16": "float32", "float16": "float32"}.get(str(x.dtype).rpartition(".")[2])
    library = mlxir if isinstance(x, mlxir.array) else real
    return np.array(x.astype(getattr(library, wide)) if wide else x)


def assert_same(mine: Any, theirs: Any) -> None:
    """Equal types, shapes, dtypes and (within the dtype's tolerance) values; works through lists and tuples."""
    if isinstance(theirs, real.array):
        assert isinstance(mine, mlxir.array), f"{mine!r} is no array; expected {theirs!r}"
        check_graph(mine)
        dtype = str(theirs.dtype).rpartition(".")[2]
        assert (mine.shape, str(mine.dtype).rpartition(".")[2]) == (theirs.shape, dtype)
        tolerance = TOLERANCE.get(dtype, 0)
        np.testing.assert_allclose(numpy_of(mine), numpy_of(theirs), rtol=tolerance, atol=tolerance)
    elif isinstance(theirs, (list, tuple)):
        assert type(mine) is type(theirs) and len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert_same(a, b)
    elif isinstance(theirs, np.ndarray):
        assert isinstance(mine, np.ndarray) and mine.dtype == theirs.dtype
        np.testing.assert_array_equal(mine, theirs)
    elif isinstance(theirs, real.Dtype):
        assert str(mine) == str(theirs)
    else:
        assert mine == theirs or (mine != mine and theirs != theirs)
        assert type(mine).__name__ == type(theirs).__name__


def check_graph(x: mlxir.array) -> None:
    """Every recorded node has the result types that its record infers: the public functions may skip that check."""
    seen: set[int] = set()
    stack: list[Value] = [x._value]
    while stack:
        value = stack.pop()
        node = value.node
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if node.primitive.kind != "transform":
            inferred = node.primitive.infer(*[v.aval for v in node.inputs], **node.attrs)
            assert tuple(inferred) == tuple(node.avals), f"{node.primitive.name}: {inferred} != {node.avals}"
        assert node.avals[value.index] == value.aval
        stack.extend(node.inputs)


def outcome(build: Callable[[Any], Any], library: Any) -> Any:
    """The result of `build(library)`, evaluated; or the exception it raises."""
    try:
        result = build(library)
        library.eval(result)
        return result
    except Exception as error:  # the tests compare exceptions of any type
        return error


def assert_agree(build: Callable[[Any], Any]) -> None:
    """`build(library)` has the same outcome with both libraries; an error's type must fit that of MLX."""
    theirs, mine = outcome(build, real), outcome(build, mlxir)
    if isinstance(theirs, Exception):
        assert isinstance(mine, type(theirs)), f"{mine!r} is no {type(theirs).__name__} ({theirs})"
    else:
        if isinstance(mine, Exception):
            raise mine
        assert_same(mine, theirs)


def expression(text: str, names: Callable[[Any], dict[str, Any]]) -> Callable[[Any], Any]:
    """`build` for an expression in `m` (the library), `np` and the names that `names(m)` makes."""
    code = compile(text, text, "eval")
    return lambda m: eval(code, {"m": m, "np": np, **names(m)})
