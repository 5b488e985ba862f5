"""Faults in shaders and in what emits them: each is seen by the compiler, the checker, or in the results.

The programs are cases of test_emission.py, which pass the same checks without the fault.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mlxir.compiler.pipeline import compile_metal
from mlxir.compiler.target import metal, metal_body, metal_memory
from mlxir.compiler.target.metal_body import Body
from mlxir.runtime.emulator import unavailable_reason

if unavailable_reason() is None:
    from metal.emulation import caught
    from metal.test_emission import GOLDEN_ARGUMENTS, golden_program, program_of

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")

BARRIER = "  threadgroup_barrier(mem_flags::mem_threadgroup);"
MUTATIONS = {
    "row stride": ("layer_norm", "group * 1000", "group * 999"),
    "loop bound": ("layer_norm", "j < 1000; j", "j < 999; j"),
    "tail guard": ("layer_norm", "if (j < 1000)", "if (j < 1001)"),
    "first barrier": ("layer_norm", f"= v;\n{BARRIER}", "= v;"),
    "second barrier": ("layer_norm", f"{BARRIER}\n  return v;", "  return v;"),
    "barrier flags": ("layer_norm", "mem_flags::mem_threadgroup", "mem_flags::mem_none"),
    "divergent reduction": ("softmax", "  sum0 = simd_sum(sum0);", "  if (lid < 7) sum0 = simd_sum(sum0);"),
    "vector position": ("vectors", "(in1 + first)", "(in1 + first + 4)"),
    "misaligned vector": ("vectors", "(out0 + first) =", "(out0 + first + 1) ="),
    "vector guard": ("vectors", "first + 4 <= 65539", "first < 65539"),
    "tail": ("vectors", "i < 65539", "i < 65538"),
    "address space": ("softmax", "device float* out0", "constant float* out0"),
    "wrong neutral element": ("softmax", "float sum0 = 0.0f", "float sum0 = 1.0f"),
    "constant output": ("elementwise", "device float* out0", "device const float* out0"),
    "barrier between updates": ("scatter overlapping multiply", "threadgroup_barrier(mem_flags::mem_device);", ""),
    "barrier before a read": ("complex long rows", "threadgroup_barrier(mem_flags::mem_threadgroup);", ""),
    "barrier between levels of a scan": ("cumsum of rows of 1030", BARRIER, ""),
    "step of a scan": ("cumsum of rows of 1030", "simd_shuffle_up(v9, 2)", "simd_shuffle_up(v9, 3)"),
    "no atomic sum": ("scatter elements add", "atomic_fetch_add_explicit", "atomic_store_explicit"),
    "barriers of attention": ("attention by tiles", f"  {BARRIER}\n", ""),
    "stride of a tile": ("attention by tiles", "b0, kept3 + m * 8, 20", "b0, kept3 + m * 8, 16"),
    "turned fragment": ("attention by tiles", ", ulong2(0, 0), true);", ");"),
    "causal mask": ("attention by tiles", " < 1 ? ", " < 2 ? "),
    "blocks of keys": ("attention by tiles", "k < v0", "k < 1"),
    "every thread stores": ("complex long rows", "if (lid == 0) ", ""),
}  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutations_are_caught(mutation: str) -> None:
    """A fault put into a shader does not get past the checks that the cases above pass."""
    name, old, new = MUTATIONS[mutation]
    program, arguments = golden_program(name) if name in GOLDEN_ARGUMENTS else program_of(name)
    text, schedule = compile_metal(program)
    assert old in text
    (expected,) = program.run_reference(arguments)
    assert caught(text.replace(old, new), schedule, arguments, expected)


def _shifted(self: Body, target: Any, index: Any) -> Any:
    e = PLACE(self, target, index)
    return replace(e, text=e.text.replace("[", "[1 + ", 1)) if self.memory[target].space == "device" else e


def _private(self: Body, operation: Any) -> None:
    ALLOCA(self, operation)
    self.lines[-1] = self.lines[-1].replace("threadgroup ", "")


def _short(*arguments: Any) -> Any:
    mapping = MAP(*arguments)
    return mapping._replace(grid=(mapping.grid[0] - 1, *mapping.grid[1:]))


PLACE, ALLOCA, MAP = Body._place, Body.alloca, metal.map_to_device
EMITTER_FAULTS: dict[str, tuple[Any, str, Any]] = {
    "no barriers": (metal_memory.GroupMemory, "_place", lambda self, block, pending: []),
    "positions shifted by one": (Body, "_place", _shifted),
    "shared memory is each thread's own": (metal_body._RULES, "memref.alloca", _private),
    "a threadgroup too few": (metal, "map_to_device", _short),
}  # fmt: skip


@pytest.mark.parametrize("fault", EMITTER_FAULTS)
@pytest.mark.parametrize("name", ["complex long rows", "cumsum of rows of 1030", "attention by tiles"])
def test_faults_of_the_emitter_are_caught(name: str, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    program, arguments = program_of(name)
    (expected,) = program.run_reference(arguments)
    where, what, wrong = EMITTER_FAULTS[fault]
    (monkeypatch.setitem if isinstance(where, dict) else monkeypatch.setattr)(where, what, wrong)
    assert caught(*compile_metal(program), arguments, expected)
