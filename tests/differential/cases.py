"""Rows of expressions over domains of arguments, and the cases they stand for.

A row is a template such as `m.sum({x}, axis={axis})` and the expressions that each of its fields may be. Its cases are
the cross product, or a sample of it in which every value of every field occurs; a case is a text that can be pasted:
`a("int8", (3, 4), "mixed", "transposed")` in it makes an array of either library (`m`).
"""

from __future__ import annotations

import copy
import io
import itertools
import math
import operator
import pickle
import random
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np

FLOATS = ("float32", "float16", "bfloat16", "float64")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
INEXACT = (*FLOATS, "complex64")
EVERY = (*FLOATS, *INTS, "bool_", "complex64")


# -- data ------------------------------------------------------------------------------------------------------------
def _special(dtype: np.dtype) -> list[Any]:
    """Values at which functions and conversions have edges."""
    kind = dtype.kind
    if kind == "b":
        return [False, True]
    if kind in "iu":
        limits = np.iinfo(dtype)
        return [0, 1, 2, 3, 7, limits.max, limits.min, limits.max - 1, limits.min + 1, limits.max // 2, *([-1, -2, -7] if kind == "i" else [])]
    if kind == "c":
        parts = [0.0, -0.0, 1.0, -2.5, 0.3, 40.0, -1e-3]
        return [complex(x, y) for x in parts for y in parts if x or y]  # Annex G of C or NumPy: who divides by zero?
    limits = ml_dtypes.finfo(dtype)
    return [math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 10.0, -10.0, 100.0, -100.0, 1000.0,
            float(limits.max), float(limits.min), float(limits.tiny), 0.99, -0.99, 1.01]  # fmt: skip


def _numpy_dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name.rstrip("_"))


def data(dtype: str, shape: Sequence[int], domain: str) -> np.ndarray:
    """Numbers of a domain; the same for the same arguments."""
    kind = _numpy_dtype(dtype)
    size = math.prod(shape)
    rng = np.random.default_rng(zlib.crc32(f"{shape} {domain}".encode()))
    if domain == "special":
        values = _special(kind)
        return np.array([values[i % len(values)] for i in range(size)]).astype(kind).reshape(shape)
    if domain == "zeros":
        return np.zeros(shape, kind)
    if domain == "index":
        return rng.integers(0, 3, shape).astype(kind)
    if domain == "negative index":
        return rng.integers(-3, 3, shape).astype(kind)
    if domain == "range":
        return np.arange(size).reshape(shape).astype(kind)
    if domain == "few":
        return rng.integers(0, 4, shape).astype(kind)
    if kind.kind in "iu":
        low, high = {"mixed": (-9, 10), "positive": (1, 10), "unit": (-1, 2), "nonzero": (1, 10)}[domain]
        out = rng.integers(low if kind.kind == "i" else max(low, 0), high, shape)
        return (np.where(rng.random(shape) < 0.5, -out, out) if domain == "nonzero" and kind.kind == "i" else out).astype(kind)
    if kind.kind == "b":
        return np.ones(shape, kind) if domain in ("nonzero", "positive") else rng.random(shape) < 0.5
    low, high = {"mixed": (-4, 4), "positive": (0.1, 4), "unit": (-0.99, 0.99), "nonzero": (0.5, 4)}[domain]
    out = rng.uniform(low, high, shape)
    if kind.kind == "c":
        out = out + 1j * rng.uniform(low, high, shape)
    return out.astype(kind)


def make(m: Any, dtype: str, shape: Sequence[int], domain: str = "mixed", layout: str = "dense") -> Any:
    """The array of `data`, as a view of another one where `layout` says so."""
    values = data(dtype, shape, domain)
    kind = getattr(m, dtype)

    def array(x: np.ndarray) -> Any:
        return m.array(x.astype(np.float32)).astype(kind) if dtype == "bfloat16" else m.array(x, dtype=kind)

    if layout == "transposed":
        return array(np.ascontiguousarray(values.T)).transpose()
    if layout == "strided":
        wide = np.zeros((*shape[:-1], 2 * shape[-1]), values.dtype)
        wide[..., ::2] = values
        return array(wide)[..., ::2]
    if layout == "reversed":
        return array(np.ascontiguousarray(values[::-1]))[::-1]
    if layout == "broadcast":
        return m.broadcast_to(array(np.ascontiguousarray(values[:1])), shape)
    assert layout == "dense"
    return array(values)


WRONG = "!"  # before a value that is wrong whatever the others are: a case has one of them at most


SHARE, LEAST = 5, 12  # cases of a row in the sample: its limit over SHARE, and so many at least


# -- rows ------------------------------------------------------------------------------------------------------------
@dataclass
class Row:
    """Cases of one public function. `limit` is the weight of the row in the sample; `compiled` is whether mx.compile
    takes them too.
    """

    name: str
    template: str
    fields: dict[str, Sequence[str]] = field(default_factory=dict)
    limit: int = 40
    compiled: bool = True

    def cases(self, everything: bool) -> Iterator[str]:
        seen = set()
        for values in self._combinations(everything):
            if sum(v.startswith(WRONG) for v in values) > 1:
                continue
            text = self.template.format(**dict(zip(self.fields, [v.removeprefix(WRONG) for v in values], strict=True)))
            if text not in seen:
                seen.add(text)
                yield text

    def _combinations(self, everything: bool) -> Iterator[Sequence[str]]:
        domains = list(self.fields.values())
        count = max(self.limit // SHARE, LEAST)
        if everything or math.prod(map(len, domains)) <= count:
            yield from itertools.product(*domains)
            return
        rng = random.Random(zlib.crc32(self.template.encode()))
        orders = [rng.sample(list(d), len(d)) for d in domains]  # no value twice before all have been there
        for i in range(count):
            yield [o[i] if i < len(o) else rng.choice(o) for o in orders]


def arrays(dtypes: Sequence[str], forms: Sequence[tuple[tuple[int, ...], str]], *domains: str) -> list[str]:
    """Expressions of arrays: every dtype, form (shape and layout) and domain."""
    return [
        f"a({dtype!r}, {shape}, {domain!r}, {layout!r})" for dtype in dtypes for shape, layout in forms for domain in domains
    ]


def put(x: Any, index: Any, value: Any) -> Any:
    """`x[index] = value`, as an expression."""
    x[index] = value
    return x


def names(m: Any, make_array: Any) -> dict[str, Any]:
    """What a case's text may refer to."""
    return {"m": m, "np": np, "a": make_array, "put": put, "operator": operator, "copy": copy, "pickle": pickle, "io": io,
            "inf": math.inf, "nan": math.nan}  # fmt: skip
