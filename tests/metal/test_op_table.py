"""Every primitive with every dtype that it takes, executed from Metal source.

The cells follow from the records: a dtype that a record's shape rule accepts is a cell, whatever rows the table of laws
has. Each cell is compiled by clang and executed in emulation in two orders of its threads. Its results are those of the
reference and of the compiled CPU target, and the checker has nothing to report. What is on the host anyway (library
steps) is left out; float64 is refused. golden/op_table.md is the table.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from laws import EVERY, INEXACT, TABLE, Row, applied, arrays, assert_close, traced
from metal.emulation import Shaders

from mlxir.compiler.cache import executable
from mlxir.compiler.graph import GraphBuilder, constant, cut
from mlxir.compiler.pipeline import compile_metal, transformed_program
from mlxir.compiler.program import Program
from mlxir.dialects.mx import RECORDS
from mlxir.runtime import dtypes
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.emulator import unavailable_reason
from mlxir.runtime.errors import CompileError

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")
GOLDEN = Path(__file__).with_name("golden") / "op_table.md"
FACTOR = 8
"""Of the laws' tolerance: other transcendental functions and other orders of sums than the reference's."""
NAMES = sorted(n for n, r in RECORDS.items() if r.kind != "transform" and r.lowering != "library")
CAST_BEFORE = {
    "all": ("bool",), "any": ("bool",), "logcumsumexp": INEXACT, "logsumexp": INEXACT, "softmax": INEXACT,
}  # fmt: skip
"""Primitives that the public functions give these dtypes only, though their shape rules would take others."""


class Cell(NamedTuple):
    """A row of the table with one dtype, and its program."""

    row: Row
    dtype: str
    operands: list[np.ndarray]
    program: Program

    @property
    def float64(self) -> bool:
        avals = [*self.program.parameters, *[a for i in self.program.instructions for a in i.avals]]
        return any(a.dtype.name == "float64" for a in avals)


def _cell(row: Row, dtype: str) -> Cell | None:
    """A row with one dtype; None if the record's shape rule refuses it."""
    if not row.operands and "dtype" in row.attrs:
        row = replace(row, attrs={**row.attrs, "dtype": dtypes.from_name(dtype)})
    operands = arrays(row, dtype)
    try:
        program = traced(row, operands).program
    except ValueError:
        return None
    if all(d is not None for _, d, _ in row.operands):  # the dtype is that of the result
        dtype = program.instructions[-1].avals[0].dtype.name
    return Cell(row, dtype, operands, program)


def cells_of(name: str) -> list[Cell]:
    """The rows of a primitive with their dtypes, and the first row that takes it with any further one."""
    rows = [r for r in TABLE if r.name == name]
    cells = [cell for r in rows for d in r.dtypes if (cell := _cell(r, d)) is not None]
    known = {c.dtype for c in cells}
    for dtype in CAST_BEFORE.get(name, EVERY):
        found = next((c for r in rows if dtype not in known and (c := _cell(r, dtype)) is not None), None)
        if found is not None and found.dtype == dtype:
            cells.append(found)
    return cells


class Table:
    """All cells, with the programs that Metal takes compiled into a few libraries."""

    def __init__(self) -> None:
        self.cells = {name: cells_of(name) for name in NAMES}
        taken = [c for cells in self.cells.values() for c in cells if not c.float64]
        self.numbers = {id(c): n for n, c in enumerate(taken)}
        self.shaders = Shaders.compile([c.program for c in taken], batch=60)


    def text(self) -> str:
        """The table as Markdown."""
        lines = [
            "# Primitives by dtype, executed from Metal source in emulation", "",
            "`x` executed, `-` no operand of the primitive, `.` refused: Metal has no float64", "",
            f"| primitive | {' | '.join(EVERY)} |", "|---|" + "---|" * len(EVERY),
        ]  # fmt: skip
        total: Counter[str] = Counter()
        for name, cells in self.cells.items():
            marks = {c.dtype: "." if c.float64 else "x" for c in cells}
            row = [marks.get(d, "-") for d in EVERY]
            total.update(row)
            lines.append(f"| {name} | {' | '.join(row)} |")
        counts = f"{len(self.cells)} primitives: {total['x']} cells executed, {total['.']} refused, {total['-']} empty."
        return "\n".join([*lines, "", counts, ""])


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


def test_no_compiler_warnings(table: Table) -> None:
    assert {library.warnings for library in table.shaders.libraries if library is not None} == {""}


@pytest.mark.parametrize("name", NAMES)
def test_primitive(table: Table, name: str) -> None:
    cells = [c for c in table.cells[name] if not c.float64]
    assert cells, f"tests/laws.py has no row for {name}"
    on_cpu = _compiled(cells)
    for cell, compiled in zip(cells, on_cpu, strict=True):
        number = table.numbers[id(cell)]
        expected = transformed_program(cell.program).run_reference(cell.operands)
        for order in (0, 1):
            found, reports = table.shaders.run(number, cell.operands, order)
            what = f"{cell.row} {cell.dtype} {cell.row.attrs}"
            for report in reports:
                assert report.clean, (what, report.errors, report.warnings, report.divergences)
            for a, b, c in zip(found, expected, compiled, strict=True):
                try:
                    assert_close(a, b, FACTOR)
                    assert_close(a, c, FACTOR)
                except AssertionError as error:
                    raise AssertionError(f"{what}: {error}") from error


def _compiled(cells: list[Cell]) -> list[list[np.ndarray]]:
    """What the CPU target computes for each cell; they are one program, which is compiled in a fraction of the time."""
    builder = GraphBuilder()
    handles = [[builder.handle(constant(a)) for a in c.operands] for c in cells]
    outs = [applied(c.row, builder, h) for h, c in zip(handles, cells, strict=True)]
    program = cut([o.value for out in outs for o in out], [h.value for hs in handles for h in hs]).program
    buffers = [Buffer.from_numpy(np.array(a)) for c in cells for a in c.operands]
    values = [b.numpy() for b in executable(program).run(buffers)]
    return [[values.pop(0) for _ in out] for out in outs]


def test_the_table_is_the_reviewed_one(table: Table, update_golden: bool) -> None:
    """A primitive or dtype that comes or goes shows; `pytest --update-golden` writes the table anew."""
    if update_golden:
        GOLDEN.write_text(table.text())
    assert table.text() == GOLDEN.read_text()


def test_float64_is_refused_by_name(table: Table) -> None:
    """The error says which operation, in which line of whose program. What needs no kernel passes."""
    errors = []
    for program in [c.program for cells in table.cells.values() for c in cells if c.float64]:
        try:
            assert compile_metal(program)[1]["steps"] == []
        except CompileError as error:
            errors.append(str(error))
    assert len(errors) > 60
    for text in errors:
        assert re.match(r"\[\w+\] float64 does not exist in Metal( \(\w+\.py:\d+\))?: cast to", text)
