"""Float literals: what LLVM 24 (MLIR's) prints is read by LLVM 22 (llvmlite's) as the same bits.

The text comes from MLIR itself, for any bits of the four types; the values are read from the linked module's memory.
"""

from __future__ import annotations

import ctypes

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlxir.compiler.target.llvm_text import literal, to_llvmlite
from mlxir.dialects.mlir import context, ir, to_llvm

BITS = {"half": 16, "bfloat": 16, "float": 32, "double": 64}
MLIR = {"half": "f16", "bfloat": "bf16", "float": "f32", "double": "f64"}
EXPONENT = {"half": 5, "bfloat": 8, "float": 8, "double": 11}


def special(kind: str) -> list[int]:
    """Zeros, the ends of the subnormals and normals, infinities, quiet and signalling NaNs; both signs."""
    width, exponent = BITS[kind], EXPONENT[kind]
    mantissa = width - exponent - 1
    infinity = ((1 << exponent) - 1) << mantissa
    quiet = infinity | 1 << (mantissa - 1)
    one = ((1 << (exponent - 1)) - 1) << mantissa
    finite = [0, 1, (1 << mantissa) - 1, 1 << mantissa, infinity - 1, one, one | 1]
    positive = [*finite, infinity, infinity + 1, quiet, quiet | 1]
    return [sign << (width - 1) | bits for sign in (0, 1) for bits in positive]


def patterns(kind: str) -> st.SearchStrategy[list[int]]:
    one = st.integers(0, 2 ** BITS[kind] - 1) | st.sampled_from(special(kind))
    return st.lists(one, min_size=1, max_size=24)


def printed(source: str) -> str:
    """What MLIR's LLVM prints for a module of the llvm dialect."""
    with context:
        return to_llvm(ir.Module.parse(source))


def linked(text: str) -> llvm.ExecutionEngine:
    """The module as llvmlite's LLVM reads it, in memory."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    module = llvm.parse_assembly(text)
    module.verify()
    engine = llvm.create_mcjit_compiler(module, llvm.Target.from_default_triple().create_target_machine())
    engine.finalize_object()
    return engine


def in_memory(engine: llvm.ExecutionEngine, name: str, kind: str, count: int) -> list[int]:
    unsigned = np.dtype(f"u{BITS[kind] // 8}")
    raw = ctypes.string_at(engine.get_global_value_address(name), count * unsigned.itemsize)
    return [int(v) for v in np.frombuffer(raw, unsigned)]


def check(kind: str, bits: list[int]) -> None:
    """An array of scalars and a vector: both spellings that a constant can have."""
    values, n, t = ", ".join(f"0x{b:0{BITS[kind] // 4}X}" for b in bits), len(bits), MLIR[kind]
    text = printed(
        f"llvm.mlir.global constant @scalars(dense<[{values}]> : tensor<{n}x{t}>) : !llvm.array<{n} x {t}>\n"
        f"llvm.mlir.global constant @vector(dense<[{values}]> : vector<{n}x{t}>) : vector<{n}x{t}>\n"
    )
    engine = linked(to_llvmlite(text))
    assert in_memory(engine, "scalars", kind, n) == bits, text
    assert in_memory(engine, "vector", kind, n) == bits, text


@pytest.mark.parametrize("kind", BITS)
def test_special_values_keep_their_bits(kind: str) -> None:
    check(kind, special(kind))


@pytest.mark.parametrize("kind", BITS)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_bits_survive(kind: str, data: st.DataObject) -> None:
    check(kind, data.draw(patterns(kind)))


@pytest.mark.parametrize("kind", BITS)
@pytest.mark.parametrize("value", ["+inf", "-inf", "+qnan", "-0.1", "1.0"])
def test_a_literal_alone_on_its_line(kind: str, value: str) -> None:
    """Operands of instructions: no other literal on the line says that it needs a look."""
    bits = {"+inf": "inf", "-inf": "-inf", "+qnan": "nan"}.get(value, value)
    expected = literal(kind, value)
    line = to_llvmlite(f"  %2 = fadd {kind} %0, {value}")
    assert line == f"  %2 = fadd {kind} %0, {expected}"
    text = to_llvmlite(f"define {kind} @f() {{\n  ret {kind} {value}\n}}\n@g = constant {kind} {value}")
    (stored,) = in_memory(linked(text), "g", kind, 1)
    decimal = {"half": np.float16, "float": np.float32, "double": np.float64}.get(kind)
    if decimal is not None:
        assert stored == int(np.array(float(bits), decimal).view(f"u{BITS[kind] // 8}"))


def test_instructions_with_literals_compute_what_they_say() -> None:
    """Scalar and vector operands, splats, phi, select and calls, through the whole path."""
    engine = linked(to_llvmlite(printed("""
        llvm.func @f(%x: f32, %p: !llvm.ptr) -> f64 {
          %inf = llvm.mlir.constant(0x7F800000 : f32) : f32
          %log2e = llvm.mlir.constant(1.44269502 : f32) : f32
          %small = llvm.intr.minnum(%x, %inf) : (f32, f32) -> f32
          %scaled = llvm.fmul %small, %log2e : f32
          %v = llvm.mlir.constant(dense<[1.0, 0.1, -8.73e+01, 0xFF800000]> : vector<4xf32>) : vector<4xf32>
          %tenth = llvm.mlir.constant(dense<0.1> : vector<4xf32>) : vector<4xf32>
          %w = llvm.fmul %v, %tenth : vector<4xf32>
          llvm.store %w, %p : vector<4xf32>, !llvm.ptr
          %c = llvm.fcmp "olt" %scaled, %inf : f32
          %a = llvm.mlir.constant(0.1 : f64) : f64
          %b = llvm.mlir.constant(0xFFF0000000000000 : f64) : f64
          %r = llvm.select %c, %a, %b : i1, f64
          llvm.return %r : f64
        }""")))  # fmt: skip
    out = np.zeros(4 + 4, np.float32)
    aligned = out[(-out.ctypes.data % 16) // 4 :][:4]
    function = ctypes.CFUNCTYPE(ctypes.c_double, ctypes.c_float, ctypes.c_void_p)(engine.get_function_address("f"))
    assert function(2.0, aligned.ctypes.data) == 0.1
    assert function(np.inf, aligned.ctypes.data) == -np.inf
    np.testing.assert_array_equal(aligned, np.float32([1.0, 0.1, -87.3, -np.inf]) * np.float32(0.1))


@pytest.mark.parametrize(
    "line",
    [
        'source_filename = "a 1.5 inf"',
        "; a comment about float 1.5",
        'attributes #0 = { "no-infs-fp-math"="false" }',
        "  %inf = call float @nan(float %inf)",
        "  %0 = fadd nnan ninf float %x, %y",
        "  %0 = getelementptr float, ptr %p, i64 3",
    ],
)
def test_what_is_no_literal_stays(line: str) -> None:
    assert to_llvmlite(line) == line
