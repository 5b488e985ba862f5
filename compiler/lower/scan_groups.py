"""A scan by threadgroups: one for each row, which takes it block by block.

    each thread       the running values of 4 neighbours
    SIMD-group        of its threads' last values: five steps of gpu.shuffle, no barrier
    threadgroup       of its SIMD-groups' last values, which lie in shared memory: one barrier
    row               what the blocks before sum up to is carried along

    scf.for (%block) iter_args(%carried) {
      scf.parallel (%thread) { load 4; combine; gpu.shuffle up 1, 2, 4, 8, 16; store to scratch, last ones to %totals }
      scf.parallel (%thread) { combine %carried, %totals before, own values; store }
    }
"""

from __future__ import annotations

from functools import partial, reduce
from typing import TYPE_CHECKING

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.emit import from_raw, raw_values
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import over
from mlxir.compiler.lower.own import OwnEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import bool_, int32, int64, uint32

if TYPE_CHECKING:
    from mlxir.compiler.lower.scan import Job

SIMD, MOST_THREADS = 32, 256
EACH = 4  # neighbours to a thread
LONG = 64  # elements of a row from which on a threadgroup takes it ...
MANY = 1024  # ... unless so many rows lie side by side: then neighbouring threads read neighbouring rows


def fits(job: Job) -> bool:
    """Whether rows are worth a threadgroup each."""
    return job.n >= LONG and (job.rows.stride == 1 or job.rows.count < MANY)


def by_groups(job: Job, e: OwnEmitter) -> tuple[int, float]:
    """The step: parallel over rows."""
    threads = min(MOST_THREADS, -(-job.n // (EACH * SIMD)) * SIMD)
    size, groups = threads * EACH, threads // SIMD
    block, thread = Var("block", -(-job.n // size)), Var("thread", threads)
    (own, kept), (totals, _) = e.scratch(size, job.dtype), e.scratch(groups, job.dtype)
    places = [Index.of(thread) * EACH + n for n in range(EACH)]

    def combine(a: Reg, b: Reg) -> Reg:
        return job.record.combine(e.k, a, b)

    def total(group: int) -> Reg:
        return e.recall(totals, kept, job.dtype, e.constant_index(group))

    def inside(n: int) -> Reg:
        return e.number(Index.of(block) * size + places[n], int64) < job.n

    def scan_neighbours() -> None:
        neutral = e.neutral(job.record, job.dtype)
        values: list[Reg] = []
        for n in range(EACH):
            read = partial(job.value, e, Index.of(block) * size + places[n])
            x = e.if_else(inside(n), job.dtype, read, lambda: neutral)
            values.append(combine(values[-1], x) if values else x)
        lane = e.number(thread, uint32) & (SIMD - 1)
        last = values[-1]
        for distance in (1, 2, 4, 8, 16):
            last = e.k.select(lane < distance, last, combine(_from_below(e, last, distance), last))
        before = e.k.select(lane < 1, neutral, _from_below(e, last, 1))
        kept_values = [combine(before, v) for v in (values if job.inclusive else values[:-1])]
        for place, value in zip(places, kept_values if job.inclusive else [before, *kept_values], strict=True):
            e.keep(value, own, kept, e.index(place))
        with e.when(lane == SIMD - 1):
            e.keep(last, totals, kept, e.divided(e.at(thread), SIMD))

    def store_neighbours(carried: Reg) -> None:
        group, before = e.number(thread, uint32) >> (SIMD.bit_length() - 1), carried
        for g in range(groups - 1):
            before = e.k.select(group > g, combine(before, total(g)), before)
        for n, place in enumerate(places):
            with e.when(inside(n)):
                value = e.recall(own, kept, job.dtype, e.index(place))
                job.store(e, combine(before, value), Index.of(block) * size + place)

    def next_block(carried: list[Reg]) -> list[Reg]:
        e.parallel(thread, e.constant_index(threads), scan_neighbours)
        e.parallel(thread, e.constant_index(threads), lambda: store_neighbours(carried[0]))
        return [reduce(combine, [total(g) for g in range(groups)], carried[0])]

    def row() -> None:
        e.serial(block, e.constant_index(block.extent), [e.neutral(job.record, job.dtype)], next_block)

    return over(e, job.rows.variables, row), 4.0 * job.n


def _from_below(e: OwnEmitter, value: Reg, distance: int) -> Reg:
    """The value of the thread `distance` below in the SIMD-group; anything where there is none."""
    found = []
    for part in raw_values(value):
        operands = [part, e.k.const(distance, int32).value, e.k.const(SIMD, int32).value]
        created = ir.Operation.create(
            "gpu.shuffle", results=[part.type, e.k.const(True, bool_).value.type], operands=operands,
            attributes={"mode": ir.Attribute.parse("#gpu<shuffle_mode up>")}, loc=e.k.loc, ip=e.k.ip,
        )  # fmt: skip
        found.append(created.results[0])
    return from_raw(found, value.dtype, e.k)
