"""The table of primitives (tests/laws.py), executed from Metal source: every row, every dtype that Metal has.

Each program is compiled by clang and executed in emulation in two orders of its threads; its results are those of the
reference, and the checker has nothing to report. Rows with library steps are left out: Metal has no part in them.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from laws import TABLE, arrays, assert_close, traced
from metal.emulation import Shaders

from mlxir.compiler.pipeline import compile_metal, transformed_program
from mlxir.compiler.program import Program
from mlxir.dialects.mx import RECORDS
from mlxir.runtime.emulator import unavailable_reason
from mlxir.runtime.errors import CompileError

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")
FACTOR = 8
"""Of the laws' tolerance: other transcendental functions and other orders of sums than the reference's."""


def _has_float64(program: Program) -> bool:
    avals = [*program.parameters, *[a for i in program.instructions for a in i.avals]]
    return any(a.dtype.name == "float64" for a in avals)


class Table:
    """Programs by primitive, compiled into a few libraries; and those that Metal has to refuse."""

    def __init__(self) -> None:
        programs: list[Program] = []
        self.cases: dict[str, list[tuple[str, int, list[np.ndarray]]]] = {}
        self.refused: list[Program] = []
        for row in TABLE:
            if row.before is not None or row.after is not None or RECORDS[row.name].lowering == "library":
                continue
            for dtype in row.dtypes:
                operands = arrays(row, dtype)
                program = traced(row, operands).program
                if _has_float64(program):
                    self.refused.append(program)
                    continue
                self.cases.setdefault(row.name, []).append((f"{row} {dtype} {row.attrs}", len(programs), operands))
                programs.append(program)
        self.programs = programs
        self.shaders = Shaders.compile(programs, batch=60)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


def test_no_compiler_warnings(table: Table) -> None:
    assert {library.warnings for library in table.shaders.libraries if library is not None} == {""}


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("name", sorted({r.name for r in TABLE if RECORDS[r.name].lowering != "library"}))
def test_primitive(table: Table, name: str, order: int) -> None:
    for what, number, operands in table.cases.get(name, []):
        found, reports = table.shaders.run(number, operands, order)
        for report in reports:
            assert report.clean, (what, report.errors, report.warnings, report.divergences)
        expected = transformed_program(table.programs[number]).run_reference(operands)
        for a, b in zip(found, expected, strict=True):
            try:
                assert_close(a, b, FACTOR)
            except AssertionError as error:
                raise AssertionError(f"{what}: {error}") from error


def test_float64_is_refused_by_name(table: Table) -> None:
    """The error says which operation, in which line of whose program. What needs no kernel passes."""
    errors = []
    for program in table.refused:
        try:
            assert compile_metal(program)[1]["steps"] == []
        except CompileError as error:
            errors.append(str(error))
    assert len(errors) > 60
    for text in errors:
        assert re.match(r"\[\w+\] float64 does not exist in Metal( \(\w+\.py:\d+\))?: cast to", text)
