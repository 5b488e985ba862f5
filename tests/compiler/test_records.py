"""Law: the compiled result of every primitive equals the reference evaluator's."""

from __future__ import annotations

import laws
import pytest

from mlxir.compiler import evaluate
from mlxir.dialects.mx import RECORDS
from mlxir.runtime.buffers import Buffer

INEXACT = ("power", "erfinv", "prod", "cumprod", "conv")  # many roundings on the way, in another order
CASES = [pytest.param(row, dtype, id=f"{row}-{dtype}") for row in laws.TABLE for dtype in row.dtypes]


def test_every_primitive_has_a_row() -> None:
    missing = {n for n, r in RECORDS.items() if r.kind != "transform"} - {row.name for row in laws.TABLE}
    assert not missing, f"tests/laws.py has no row for {sorted(missing)}"


@pytest.mark.parametrize(("row", "dtype"), CASES)
def test_compiled_equals_reference(row: laws.Row, dtype: str) -> None:
    operands = laws.arrays(row, dtype)
    program = laws.traced(row, operands).program
    expected = program.run_reference(operands)
    actual = evaluate.executable(program).run([Buffer.from_numpy(a) for a in operands])
    for a, e in zip(actual, expected, strict=True):
        laws.assert_close(a.numpy(), e, factor=4 if row.name in INEXACT else 1)
