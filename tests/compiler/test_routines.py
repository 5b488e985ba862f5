"""Routines: shared by kernels, compiled once, kept; and invalid IR, which raises before a pass or LLVM reads it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mlxir as mx
from mlxir.compiler import cache, kernels, pipeline
from mlxir.compiler.lower.gemm_pack import gemm_pack_rows
from mlxir.compiler.lower.loops import Step, loop_function
from mlxir.compiler.target import cpu
from mlxir.dialects.mlir import context, ir
from mlxir.dialects.mx import Aval
from mlxir.runtime.dtypes import float32
from mlxir.runtime.errors import CompileError
from mlxir.runtime.knobs import knobs


@pytest.fixture(autouse=True)
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A disk cache of its own, and none in memory."""
    monkeypatch.setattr(knobs, "cache_dir", tmp_path)
    cache.clear()


def product(m: int, k: int, n: int) -> np.ndarray:
    rng = np.random.default_rng(m)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (k, n)))
    out = np.array(mx.compile(lambda x, y: x @ y)(mx.array(a), mx.array(b)))
    np.testing.assert_allclose(out, a @ b, rtol=1e-4, atol=1e-4)
    return out


def compiled_routines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The symbols of the routines that are compiled from now on."""
    made: list[str] = []
    keep = kernels.keep_routine

    def spy(routine: kernels.Routine, code: bytes) -> kernels.Object:
        made.append(routine.symbol)
        return keep(routine, code)

    monkeypatch.setattr(kernels, "keep_routine", spy)
    return made


def test_products_share_their_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    made = compiled_routines(monkeypatch)
    product(96, 70, 128)
    assert [s for s in made if "gemm_block" in s]
    first = list(made)
    product(192, 64, 64)
    assert made == first
    cache.clear()  # they are on disk, too
    product(288, 33, 192)
    assert made == first


def test_a_program_on_disk_finds_its_routines(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = product(96, 70, 128)
    cache.clear()
    made = compiled_routines(monkeypatch)
    hits = cache.info().disk_hits
    np.testing.assert_array_equal(product(96, 70, 128), expected)
    assert cache.info().disk_hits == hits + 1 and made == []


def test_a_lost_routine_is_compiled_again(monkeypatch: pytest.MonkeyPatch) -> None:
    product(96, 70, 128)
    cache.clear()
    for path in (knobs.cache_dir or Path()).glob("??/*.mlxir"):
        if b"mlxir_gemm_block" in path.read_bytes():
            path.unlink()
    made = compiled_routines(monkeypatch)
    product(96, 70, 128)
    assert [s for s in made if "gemm_block" in s]


def test_symbols_tell_forms_apart() -> None:
    forms = [gemm_pack_rows(w, stored, "float32") for w in (6, 64) for stored in ("float32", "float16")]
    assert len({r.symbol for r in forms}) == len(forms)
    assert pipeline.routine_code(forms[0]) is pipeline.routine_code(forms[0])


def test_invalid_ir_raises() -> None:
    """An addition of numbers of two types, which a translation without a look at it would crash on."""
    with context, ir.Location.unknown():
        loops = ir.Module.create()
        _, block = loop_function(loops.body, "mx_wrong", [Aval((4,), float32)])
        at = ir.InsertionPoint(block)
        i32, index = ir.IntegerType.get_signless(32), ir.IndexType.get()
        bounds = [
            ir.Operation.create(
                "arith.constant", [index], attributes={"value": ir.IntegerAttr.get(index, n)}, ip=at
            ).result
            for n in (0, 4, 1)
        ]
        small = ir.Operation.create("arith.constant", [i32], attributes={"value": ir.IntegerAttr.get(i32, 1)}, ip=at)
        ir.Operation.create("arith.addi", [index], [bounds[0], small.result], ip=at)
        segments = {"operandSegmentSizes": ir.DenseI32ArrayAttr.get([1, 1, 1, 0])}
        loop = ir.Operation.create("scf.parallel", [], bounds, segments, regions=1, ip=at)
        body = loop.regions[0].blocks.append(index)
        ir.Operation.create("scf.reduce", [], ip=ir.InsertionPoint(body))
        ir.Operation.create("func.return", [], ip=at)
    with pytest.raises(CompileError, match="mx_wrong"):
        cpu.llvm_text(loops, [Step("mx_wrong", 4, 1.0, (0,), (0,), "thunk")])
