"""Index expressions by chance: reads, writes and `.at` updates against real MLX, in eager code and under mx.compile.

An index is a tuple of ints, slices, None, an ellipsis and integer arrays that fits the shape. NumPy says what a read
gives where all parts are basic; MLX's writes and reads by arrays are compared with MLX alone.
"""

from __future__ import annotations

import random
import re
from typing import Any

import mlx.core as real
import numpy as np
import pytest
from differential.compare import difference, outcome

import mlxir

SHAPES = [(5,), (3, 4), (2, 3, 4), (4, 1, 3), (2, 2, 3, 2)]
DTYPES = ["float32", "int8", "complex64", "bfloat16", "bool_"]
CASES = 60  # of each kind


def slice_text(rng: random.Random, n: int) -> str:
    bound = lambda: "" if rng.random() < 0.4 else str(rng.randint(-n - 2, n + 2))  # noqa: E731
    step = rng.choice(["", "", ":", ":2", ":-1", ":-2", ":3"])
    return f"{bound()}:{bound()}{step}"


def array_text(rng: random.Random, n: int, shape: tuple[int, ...]) -> str:
    size = int(np.prod(shape))
    numbers = [rng.randint(-n, n - 1) for _ in range(size)]
    if rng.random() < 0.3 and len(shape) == 1:
        return str(numbers)  # a list
    dtype = rng.choice(["int32", "int64", "int8"])
    return f"m.array({np.reshape(numbers, shape).tolist()}, m.{dtype})"


def index_text(rng: random.Random, shape: tuple[int, ...], arrays: bool) -> str:
    """An index expression for an array of `shape`."""
    used = rng.randint(0, len(shape))
    with_dots = used < len(shape) and rng.random() < 0.5
    at = rng.randint(0, used) if with_dots else used
    axes = [*range(at), *range(len(shape) - (used - at), len(shape))] if with_dots else list(range(used))
    common = rng.choice([(2,), (3,), (2, 2), ()]) if arrays else ()
    parts = []
    for i, axis in enumerate(axes):
        if with_dots and i == at:
            parts.append("...")
        n = shape[axis]
        kind = rng.random()
        if arrays and kind < 0.4:
            parts.append(array_text(rng, n, rng.choice([common, common[1:], (1,) * len(common)])))
        elif kind < 0.65:
            parts.append(str(rng.randint(-n, n - 1)))
        else:
            parts.append(slice_text(rng, n))
    if with_dots and at == len(axes):
        parts.append("...")
    for _ in range(rng.choice([0, 0, 0, 1, 2])):
        parts.insert(rng.randint(0, len(parts)), "None")
    if not parts:
        return rng.choice(["...", "()", "None", ":"])
    return ", ".join(parts) + ("," if len(parts) == 1 and rng.random() < 0.2 else "")


def operand(rng: random.Random, shape: tuple[int, ...]) -> str:
    layout = rng.choice(["dense", "transposed", "strided", "reversed"])
    return f"a({rng.choice(DTYPES)!r}, {shape}, 'mixed', {layout!r})"


def agrees(text: str) -> str | None:
    """The difference from MLX, if any. It casts the value to the dtype of the array where the index is not `...`, and
    drops leading axes of size 1 of the value except beside some indices: here they are always dropped.
    """
    theirs = outcome(text, real)
    if any(everything in text for everything in ("s_[...]", ".at[...]", ".at[()]", ".at[None]", ".at[:]")):
        return None
    if isinstance(theirs, Exception) and re.search(r"squeeze|annot broadcast array of shape \(1,|Shapes \(1,", str(theirs)):
        return None
    found = difference(theirs, outcome(text, mlxir))
    return found and f"{text}: {found}"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("arrays", [False, True])
def test_reads(seed, arrays):
    rng = random.Random(seed)
    wrong = [d for _ in range(CASES) for s in [rng.choice(SHAPES)] if (d := agrees(f"{operand(rng, s)}[{index_text(rng, s, arrays)}]"))]
    assert wrong == []


@pytest.mark.parametrize("seed", range(4))
def test_basic_reads_equal_numpy(seed):
    rng = random.Random(seed + 100)
    for _ in range(CASES):
        shape = rng.choice(SHAPES)
        index = index_text(rng, shape, False)
        x = np.arange(np.prod(shape), dtype=np.int32).reshape(shape)
        want, have = eval(f"x[{index}]", {"x": x}), eval(f"x[{index}]", {"x": mlxir.array(x)})
        assert np.array_equal(want, np.array(have)), index


def value_text(rng: random.Random, got: Any) -> str:
    """Something that an assignment to a region of the shape of `got` takes."""
    shape = tuple(got.shape)
    choice = rng.random()
    if choice < 0.3:
        return rng.choice(["1", "2.5", "True", "m.array(3)", "np.float32(1.5)"])
    if choice < 0.5 and shape:
        return f"a('float32', {tuple(1 if rng.random() < 0.5 else n for n in shape)}, 'mixed', 'dense')"
    return f"a({rng.choice(DTYPES[:2])!r}, {shape if choice < 0.9 else (1, *shape)}, 'mixed', 'dense')"


def _write(rng: random.Random, template: str, arrays: bool) -> str:
    while True:
        shape = rng.choice(SHAPES)
        x, index = operand(rng, shape).replace("'bool_'", "'int32'"), index_text(rng, shape, arrays)
        got = outcome(f"{x}[{index}]", real)
        if not isinstance(got, Exception):
            return template.format(x=x, i=index, v=value_text(rng, got))


@pytest.mark.parametrize("seed", range(4))
def test_writes(seed):
    """Without arrays of indices: of an element that is named twice the last value stays, in some order."""
    rng = random.Random(seed + 200)
    wrong = [d for _ in range(CASES) if (d := agrees(_write(rng, "put({x}, np.s_[{i}], {v})", False)))]
    assert wrong == []


UPDATES = {"add": np.add, "subtract": np.subtract, "maximum": np.maximum, "minimum": np.minimum, "multiply": np.multiply}


@pytest.mark.parametrize("method", UPDATES)
def test_updates_by_arrays_equal_numpy(method):
    """Not MLX, whose process dies of SIGFPE in some of them."""
    rng = random.Random(method)
    for _ in range(CASES):
        shape = rng.choice(SHAPES)
        index = index_text(rng, shape, True)
        x = np.arange(1, np.prod(shape) + 1, dtype=np.int32).reshape(shape)
        want, numpy_index = x.copy(), eval(f"np.s_[{index}]", {"np": np, "m": NumpyNames})
        value = rng.randint(-3, 9) + np.arange(want[numpy_index].size).reshape(want[numpy_index].shape).astype(np.int32) % 5
        UPDATES[method].at(want, numpy_index, value)
        have = eval(f"x.at[{index}].{method}(v)", {"x": mlxir.array(x), "m": mlxir, "v": mlxir.array(value)})
        assert np.array_equal(want, np.array(have)), index


class NumpyNames:
    """What index expressions call `m`, for NumPy."""

    int32, int64, int8 = np.int32, np.int64, np.int8
    array = staticmethod(np.array)


@pytest.mark.parametrize("method", UPDATES)
def test_updates(method):
    rng = random.Random(method)
    texts = [_write(rng, f"{{x}}.at[{{i}}].{method}({{v}})", False) for _ in range(CASES)]
    assert [d for t in texts if (d := agrees(t))] == []


@pytest.mark.parametrize("seed", range(2))
def test_compiled(seed):
    """Reads, writes and updates of one array in a compiled function."""
    rng = random.Random(seed + 300)
    x = mlxir.arange(24).reshape(2, 3, 4).astype(mlxir.float32)
    theirs = real.arange(24).reshape(2, 3, 4).astype(real.float32)
    indices = [index_text(rng, (2, 3, 4), i % 2 == 0) for i in range(24)]

    def results(m: Any, t: Any) -> list[Any]:
        reads = [eval(f"t[{i}]", {"m": m, "t": t}) for i in indices]
        updates = [eval(f"t.at[{i}].add(1.5)", {"m": m, "t": t}) for i in indices]
        writes = [_assigned(m, m.array(t), i) for i in indices]
        return [*reads, *updates, *writes]

    for i, (want, have) in enumerate(zip(results(real, theirs), mlxir.compile(lambda t: results(mlxir, t))(x), strict=True)):
        assert difference(want, have) is None, indices[i % len(indices)]


def _assigned(m: Any, t: Any, index: str) -> Any:
    exec(f"t[{index}] = -1.0", {"m": m, "t": t})
    return t


MASKS = ["m.array([True, False, True])", "m.array([[True, False, True, True]] * 3)", "np.array([False, True, True])", "[True, False, False]", "True", "False", "m.zeros((3, 4)) > 1"]


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("value", ["0", "2.5", "m.arange(12)", "m.arange(12).reshape(3, 4)", "m.arange(4)"])
def test_masks_write(mask, value):
    theirs, mine = (outcome(f"put(m.ones((3, 4)), {mask}, {value})", m) for m in (real, mlxir))
    if not isinstance(theirs, Exception):
        assert difference(theirs, mine) is None
    else:
        assert isinstance(mine, Exception)


BAD = ["(0, 0, 0)", "(..., ...)", "1.5", "'a'", "np.array([0.5])", "m.array([0.5])", "slice(0.5, 1)", "(0, 'a')", "[0.5]", "[[0, 1], [0]]", "slice(m.array(0), 2)"]


@pytest.mark.parametrize("index", BAD)
def test_errors(index):
    theirs, mine = (outcome(f"a('float32', (3, 4), 'mixed', 'dense')[{index}]", m) for m in (real, mlxir))
    assert isinstance(mine, Exception), (theirs, mine)
    if isinstance(theirs, Exception):
        assert isinstance(mine, (type(theirs), IndexError))
