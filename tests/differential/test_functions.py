"""Every public callable of MLX against real MLX, in eager code and under mx.compile.

The cases come from the coverage table (`rows*.py`): a sample of the product of arguments, dtypes, shapes and layouts,
or with MLXIR_DIFFERENTIAL=all the whole of it. What may differ, and why, is listed in `deliberate.py`.
"""

from __future__ import annotations

import itertools
import os
import warnings
import zlib
from collections import Counter, defaultdict
from typing import Any

import mlx.core as real
import pytest
from differential import deliberate, rows, rows_more, rows_rest
from differential.cases import Row
from differential.compare import difference, outcome, short

import mlxir
from mlxir.runtime.knobs import knobs

EVERYTHING = os.environ.get("MLXIR_DIFFERENTIAL") == "all"
SUBMODULES = ("linalg", "fft", "random", "fast", "metal", "cuda", "distributed")
COMPILED = 4  # cases of a function that are compiled, where not everything is
PARTS, BATCH = 12, 48  # tests of compiled cases, cases in one compiled function
GROUPS = (
    rows.elementwise, rows.reductions, rows.shapes, rows.creation, rows_more.indexing, rows_more.products,
    rows_more.convolutions, rows_more.quantised, rows_more.linalg, rows_more.fft, rows_more.random, rows_more.fast,
    rows_rest.dtypes, rows_rest.conversions, rows_rest.system,
)  # fmt: skip
# Names of the compiled module that are no part of the documented interface.
UNDOCUMENTED = {"matrix_norm"}

TABLE: dict[str, list[Row]] = defaultdict(list)
for _row in itertools.chain.from_iterable(group() for group in GROUPS):
    TABLE[_row.name].append(_row)
compared: Counter[str] = Counter()  # cases by function
compiled: Counter[str] = Counter()
excused: Counter[deliberate.Deliberate] = Counter()


@pytest.fixture(autouse=True)
def _eager_is_the_reference_tier(monkeypatch):
    monkeypatch.setattr(knobs, "tier", "reference")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _check(text: str, theirs: Any, mine: Any, wrong: list[str]) -> None:
    found = difference(theirs, mine)
    if found is None:
        return
    excuse = deliberate.excuse(text, theirs, mine)
    if excuse is None:
        wrong.append(f"{text}: {found}")
    else:
        excused[excuse] += 1


@pytest.mark.parametrize("name", sorted(TABLE))
def test_function(name, tmp_path):
    wrong: list[str] = []
    for row in TABLE[name]:
        for case in row.cases(EVERYTHING):
            text = case.replace("FOLDER", str(tmp_path))
            theirs = outcome(text, real)
            _check(text, theirs, outcome(text, mlxir), wrong)
            compared[name] += 1
    assert not wrong, f"{len(wrong)} of {compared[name]} cases differ:\n" + "\n".join(wrong[:20])


@pytest.mark.parametrize("part", range(PARTS))
def test_compiled(part):
    """Cases of every function again, under mx.compile: many results of one compiled function."""
    wrong: list[str] = []
    batch: list[tuple[str, Any]] = []
    for name in sorted(TABLE)[part::PARTS]:
        cases = [case for row in TABLE[name] if row.compiled for case in row.cases(EVERYTHING)]
        cases.sort(key=lambda text: zlib.crc32(text.encode()))
        kept = 0
        for text in cases:
            theirs = outcome(text, real)
            if isinstance(theirs, Exception) or isinstance(outcome(text, mlxir), Exception):
                continue
            batch.append((text, theirs))
            kept += 1
            if kept == COMPILED and not EVERYTHING:
                break
        compiled[name] += kept
    for start in range(0, len(batch), BATCH):
        for (text, theirs), mine in zip(batch[start : start + BATCH], _compiled(batch[start : start + BATCH]), strict=True):
            _check(text, theirs, mine, wrong)
    assert not wrong, f"{len(wrong)} compiled cases differ:\n" + "\n".join(wrong[:20])


def _compiled(batch: list[tuple[str, Any]]) -> list[Any]:
    """The results of cases in one compiled function of their arrays."""
    made: dict[tuple, Any] = {}
    for text, _ in batch:
        outcome(text, mlxir, made, evaluated=False)
    specs = list(made)

    def function(arrays):
        known = dict(zip(specs, arrays, strict=True))
        return [outcome(text, mlxir, known, evaluated=False) for text, _ in batch]

    return mlxir.compile(function)([made[s] for s in specs])


def test_every_public_callable_of_mlx_has_a_row():
    public = set()
    for module in ("", *SUBMODULES):
        library = getattr(real, module) if module else real
        prefix = f"{module}." if module else ""
        public |= {prefix + n for n in dir(library) if not n.startswith("_") and callable(getattr(library, n))}
    assert public - set(TABLE) - UNDOCUMENTED == set()


def test_every_method_of_the_array_has_a_row():
    methods = {n for n in dir(real.array) if n not in dir(object)} - {"__module__"}
    plain = {"getstate", "setstate", "copy", "deepcopy", "array_namespace", "dlpack_device"}  # rows "array.conversions"
    rows_of = {n.removeprefix("array.").strip("_") for n in TABLE if n.startswith("array.")}
    assert {n for n in methods if n.strip("_") not in rows_of | plain} == set()


def test_counts(capsys):
    """Prints what was compared; in the full product every listed excuse is needed."""
    with capsys.disabled():
        print(f"\n{sum(compared.values())} cases of {len(compared)} functions; {sum(compiled.values())} compiled too")
        print(f"{sum(excused.values())} differ deliberately:")
        for entry, count in excused.most_common():
            print(f"  {count:5} {entry.reason}")
        if os.environ.get("MLXIR_DIFFERENTIAL") in ("all", "counts"):
            print(", ".join(f"{name} {count}" for name, count in sorted(compared.items())))
    if EVERYTHING and len(compared) == len(TABLE):
        assert [entry for entry in deliberate.LIST if entry not in excused] == []


def test_the_comparison_sees_differences():
    """One unit more, another dtype, shape, type or error than MLX's is a difference."""
    x = real.array([1, 2])
    assert difference(x, mlxir.array([1, 2])) is None
    for other in (
        mlxir.array([1, 3]), mlxir.array([1.0, 2.0]), mlxir.array([[1, 2]]), [1, 2], mlxir.array([1, 2], mlxir.int64), ValueError("no"),
    ):  # fmt: skip
        assert difference(x, other) is not None, short(other)
    assert difference(real.array(1.0), mlxir.array(1.0001)) and difference(real.array(1.0), mlxir.array(float("nan")))
    assert difference(ValueError("[a] x"), TypeError("[a] x")) and difference(ValueError("[a] x"), ValueError("[b] x"))
    assert difference(ValueError("[a] x"), ValueError("[a] y")) is None
    assert difference((1, 2), [1, 2]) and difference(1, True) and difference("a", "b") and difference(ValueError(), 1)
