"""The records as a whole: no unexplained hole in the coverage table, an operation of the mx dialect for each."""

from __future__ import annotations

import sys
from typing import Any

import laws
import numpy as np
import processes
import pytest

from mlxir.compiler.build import build
from mlxir.compiler.graph import apply_transform, constant, cut
from mlxir.dialects.mx import RECORDS, Primitive
from mlxir.dialects.mx.__main__ import COLUMNS, table
from mlxir.dialects.mx.record import Aval
from mlxir.runtime.dtypes import float32

TRANSFORMS = [name for name, record in RECORDS.items() if record.kind == "transform"]
FIRST_ROWS = {row.name: row for row in reversed(laws.TABLE)}


def holes(records: dict[str, Primitive]) -> list[str]:
    return [f"{name}: {cell}" for name, r in records.items() for cell, text in r.coverage().items() if not text.strip()]


def test_no_cell_is_empty_without_a_reason() -> None:
    assert not holes(RECORDS)


def test_a_hole_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bare(Primitive):
        """A primitive of which only the shape is known."""

        no_jvp = "a reason"

        def infer(self, *avals: Aval, **attrs: Any) -> tuple[Aval, ...]:
            return avals

    monkeypatch.setitem(RECORDS, "bare", None)  # taken back after the test
    del RECORDS["bare"]
    bare = Bare("bare")
    assert bare.coverage()["jvp"] == "a reason" and bare.coverage()["shape"] == "yes"
    assert holes({"bare": bare}) == [f"bare: {cell}" for cell in ("vjp", "vmap", "cpu", "metal", "reference")]


def test_every_record_has_every_column() -> None:
    for name, record in RECORDS.items():
        assert tuple(record.coverage()) == COLUMNS, name


def test_the_table_has_one_line_per_primitive() -> None:
    done = processes.run([sys.executable, "-m", "mlxir.dialects.mx"], check=True)
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["primitive", *COLUMNS]
    assert [line.split()[0] for line in lines] == sorted(RECORDS)
    assert done.stdout.strip() == table().strip()


@pytest.mark.parametrize("name", RECORDS)
def test_every_record_is_documented(name: str) -> None:
    """By a docstring of its own class, and by the family file that holds it; its operands and attributes have names."""
    record = RECORDS[name]
    for kind in type(record).__mro__[: type(record).__mro__.index(Primitive) + 1]:
        assert (vars(kind).get("__doc__") or "").strip(), f"{kind.__name__} has no docstring"
        assert (sys.modules[kind.__module__].__doc__ or "").strip(), f"{kind.__module__} has no docstring"
    assert all(part.lstrip("*").isidentifier() for part in (*record.operands, *record.attrs))
    assert len({*record.operands, *record.attrs}) == len(record.operands) + len(record.attrs)


@pytest.mark.parametrize("name", [n for n in RECORDS if n not in TRANSFORMS])
def test_every_primitive_becomes_an_operation_and_is_read_back(name: str) -> None:
    """Built from a traced program, verified by MLIR, printed and parsed again, and read as the same application."""
    row = FIRST_ROWS[name]
    program = laws.traced(row, laws.arrays(row, row.dtypes[0])).program
    module = build(program)
    assert f'"mx.{name}"(' in module.text()
    module.module.operation.verify()
    for copy in (module, module.clone()):
        ops, results = copy.find("main").read()
        (op,) = [o for o in ops if o.record.name == name]
        assert op.attrs == row.attrs
        operands = [t.aval for t in op.operands]
        assert row.before or operands == program.parameters
        assert [t.aval for t in op.results] == list(RECORDS[name].infer(*operands, **row.attrs))
        assert [t.aval for t in results] == program.avals


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_becomes_an_operation_that_names_a_function(name: str) -> None:
    row = FIRST_ROWS["sin"]
    callee = laws.traced(row, laws.arrays(row, "float32")).program
    attrs, operands, results = laws.TRANSFORMS[name]
    batch = (attrs["size"],) if "size" in attrs else ()
    aval = Aval((*batch, *row.operands[0][0]), float32)
    inputs = [constant(np.ones(aval.shape, np.float32)) for _ in range(operands)]
    outs = apply_transform(RECORDS[name], inputs, {"callee": callee, **attrs}, [aval] * results)
    module = build(cut(outs, inputs).program)
    assert f'"mx.{name}"() ' in module.text() and "callee = @" in module.text()
    module.module.operation.verify()
    for copy in (module, module.clone()):
        ops, _ = copy.find("main").read()
        assert [o.record.name for o in ops] == [name]
        assert {k: v for k, v in ops[0].attrs.items() if k != "callee"} == attrs
        assert [o.record.name for o in copy.find(ops[0].attrs["callee"]).read()[0]] == ["sin"]
