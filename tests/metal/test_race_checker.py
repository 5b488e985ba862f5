"""The run-time checker against a model: random programs of memory accesses and barriers, all pairs compared."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mlxir.runtime.emulator import MetalLibrary, unavailable_reason

_REASON = unavailable_reason()
pytestmark = pytest.mark.skipif(_REASON is not None, reason=str(_REASON))

GROUP, TOTAL, CELLS = 96, 192, 2  # two threadgroups of three SIMD-groups
READ, WRITE, ATOMIC, GROUP_BARRIER, SIMD_BARRIER, OTHER_BARRIER = range(1, 7)

# Every thread interprets program[step][thread] = operation * CELLS + cell.
SOURCE = """#include <metal_stdlib>
using namespace metal;
"""
INTERPRETER = """
kernel void in_{space}(device const uint* program [[buffer(0)]], constant uint& steps [[buffer(1)]],
    device uint* sink [[buffer(2)]], device uint* memory [[buffer(3)]], uint gid [[thread_position_in_grid]],
    uint lid [[thread_position_in_threadgroup]], uint total [[threads_per_grid]]) {{
  {begin}
  for (uint s = 0; s < steps; ++s) {{
    uint operation = program[s * total + gid] / 2, at = program[s * total + gid] % 2;
    if (operation == 1) sink[gid] = cells[at];
    if (operation == 2) cells[at] = gid;
    if (operation == 3) atomic_fetch_add_explicit(({space} atomic_uint*)(cells + at), 1u, memory_order_relaxed);
    if (operation == 4) threadgroup_barrier(mem_flags::mem_{space});
    if (operation == 5) simdgroup_barrier(mem_flags::mem_{space});
    if (operation == 6) threadgroup_barrier(mem_flags::mem_{other});
  }}
}}
"""
IN_DEVICE = INTERPRETER.format(space="device", other="threadgroup", begin="device uint* cells = memory;")
IN_THREADGROUP = INTERPRETER.format(
    space="threadgroup",
    other="device",
    begin="threadgroup uint cells[2]; if (lid < 2) cells[lid] = 0; threadgroup_barrier(mem_flags::mem_threadgroup);",
)


@pytest.fixture(scope="module")
def library() -> MetalLibrary:
    return MetalLibrary(SOURCE + IN_DEVICE + IN_THREADGROUP)


def random_program(rng: np.random.Generator) -> np.ndarray:
    """(steps, TOTAL) operations: a step is a barrier of all threads, or an access by each of a few."""
    program = np.zeros((rng.integers(2, 9), TOTAL), np.uint32)
    for step in program:
        if rng.random() < 0.45:
            step[:] = CELLS * rng.choice([GROUP_BARRIER, GROUP_BARRIER, SIMD_BARRIER, SIMD_BARRIER, OTHER_BARRIER])
        else:
            for thread in rng.choice([0, 1, 2, 33, 64, 97], size=rng.integers(1, 4)):
                step[thread] = CELLS * rng.choice([READ, READ, WRITE, ATOMIC]) + (rng.random() < 0.2)
    return program


def has_race(program: np.ndarray, in_device: bool) -> bool:
    """Metal's rule, for every two accesses of different threads to one cell of which one writes."""
    operations = program // CELLS
    barriers = operations[:, 0]
    accesses = [(s, t) for s, t in np.argwhere((operations >= READ) & (operations <= ATOMIC))]
    for (s, t), (s2, t2) in itertools.combinations(accesses, 2):
        kinds = {operations[s, t], operations[s2, t2]}
        same_group = t // GROUP == t2 // GROUP
        if t == t2 or program[s, t] % CELLS != program[s2, t2] % CELLS or kinds in ({READ}, {ATOMIC}):
            continue
        if not same_group:
            if in_device:
                return True
            continue
        between = barriers[s + 1 : s2]
        same_simdgroup = t % GROUP // 32 == t2 % GROUP // 32
        if GROUP_BARRIER not in between and not (same_simdgroup and SIMD_BARRIER in between):
            return True
    return False


@pytest.mark.parametrize("in_device", [False, True], ids=["threadgroup", "device"])
def test_reports_a_race_exactly_when_there_is_one(library, in_device):
    rng = np.random.default_rng(11)
    found = {False: 0, True: 0}
    for _ in range(120):
        program = random_program(rng)
        expected = has_race(program, in_device)
        found[expected] += 1
        for order in (0, 1, 2):
            buffers = [program, len(program), np.zeros(TOTAL, np.uint32), np.zeros(CELLS, np.uint32)]
            name = "in_device" if in_device else "in_threadgroup"
            report = library.run(name, buffers, grid=TOTAL, threadgroup=GROUP, order=order, strict=False)
            assert bool(report.errors) == expected, (order, program // CELLS, report.errors)
            assert all("data race" in e for e in report.errors)
    assert min(found.values()) > 20  # both answers were tried
