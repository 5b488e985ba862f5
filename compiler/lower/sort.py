"""Sorting: stable and ascending along one axis, NaN last; values, or the permutation that sorts them.

A CPU sorts the rows that fit its caches in parallel, each by a bitonic network on vector registers (sort_network.py).
Its words are the keys of the values (sort_keys.py); the permutation takes the index of each value along as the lower
bits, which also makes the order of equal keys that of their indices. A GPU sorts short rows by rank, a thread per
element:

    rank[i] = #{j: key[j] < key[i], or key[j] == key[i] and j < i}          out[rank[i]] = x[i]

Longer rows are sorted by their digits, the least significant first (radix sort), in steps over (row, block):

    keys                  key[i] = ...; index[i] = i
    count   per digit     counts[block, digit(key[i])] += 1
    offset                counts = where each block puts its first key with each digit
    move                  to[counts[block, digit(key[i])]++] = key[i]
    values                out[i] = value of key[i]

A digit that all keys share moves nothing: its step is skipped at run time. Keys know one zero. Where a row holds -0
among its values, a last loop writes its zeros again in the order they had.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.gemm import host_vector_bytes
from mlxir.compiler.lower.index import Index, Var
from mlxir.compiler.lower.loops import Lowered, over
from mlxir.compiler.lower.own import OwnEmitter, OwnKernel, Rows
from mlxir.compiler.lower.sort_keys import key_dtype, key_of, value_of, zero_key
from mlxir.compiler.lower.sort_network import Network, Part
from mlxir.dialects.mlir import Function, context, ir
from mlxir.dialects.mx.scan_sort import Sort
from mlxir.runtime.dtypes import Dtype, complex64, uint16, uint32, uint64

ROW_BYTES = 1 << 17  # of the words of a row on the stack
RANK_LENGTH = 1024  # rows that a GPU sorts by rank
BLOCKS = 8
GPU_BLOCK = 1024  # elements that one thread of a GPU moves


def lower_sort(function: Function, body: ir.Block, vectors: bool) -> Lowered:
    """Lower `sort` or `argsort`; without `vectors`, to loops that a GPU's threads can share."""
    with context, ir.Location.unknown():
        job = _Job(OwnKernel(function, body))
        if not job.x.aval.size:
            return Lowered([], [])
        if vectors and _NetworkRows.bytes(job) <= ROW_BYTES:
            _NetworkRows(job).add()
        elif not vectors and job.n <= RANK_LENGTH:
            _by_rank(job)
        else:
            _Radix(job, vectors).add()
        return job.kernel.finish()


class _Job:
    """What is sorted."""

    def __init__(self, kernel: OwnKernel):
        self.kernel, op = kernel, kernel.op
        (self.x,), (self.result,) = op.operands, op.results
        self.rows = Rows(self.x.shape, op.attrs["axis"])
        self.n, self.key = self.rows.n, key_dtype(self.x.dtype)
        assert isinstance(op.record, Sort)
        self.indices = op.record.gives_indices
        # A complex value is not read back from its key but from where it was.
        self.carries = self.indices or self.x.dtype is complex64
        self.signed_zeros = self.x.dtype.is_float and not self.indices
        self.out = kernel.out

    def value(self, e: OwnEmitter, i: Any) -> Reg:
        """Element i of the current row: an integer, a Var or an Index."""
        return self.kernel.value(e, self.x, self.rows.element(i))

    def store(self, e: OwnEmitter, value: Reg, i: ir.Value) -> None:
        """Result i of the current row."""
        e.write(value, e.buffers[self.out], self.rows.position(0), e.times(i, self.rows.stride))

    def result_of(self, e: OwnEmitter, key: Reg | None, index: Reg | None, at: Var) -> Reg:
        """What is stored for a sorted key, or for the index that came with it."""
        if index is None:
            assert key is not None
            return value_of(e.k, key, self.x.dtype)
        if self.indices:
            return index
        e.variables[at] = e.at(index)
        return self.value(e, at)

    def tally(self, e: OwnEmitter, value: Reg, carried: list[Reg]) -> list[Reg]:
        """[negative numbers, negative zeros] with one more value."""
        k = e.k
        minus = k.bitcast(value, self.key) == k.const(zero_key(self.x.dtype), self.key)
        return [carried[0] + k.cast(value < 0, uint32), carried[1] + k.cast(minus, uint32)]

    def zeros_again(self, e: OwnEmitter, negatives: Reg) -> None:
        """The zeros of the row in their order, behind its negative numbers."""
        i = Var("z", self.n)

        def one(carried: list[Reg]) -> list[Reg]:
            value = self.value(e, i)
            zero = value == 0
            with e.when(zero):
                self.store(e, value, e.at(carried[0]))
            return [carried[0] + e.k.cast(zero, uint32)]

        e.serial(i, e.constant_index(self.n), [negatives], one)


# -- by a network ----------------------------------------------------------------------------------------------------
class _NetworkRows:
    """Rows in parallel, on the stack. Behind the last key come the largest possible words."""

    def __init__(self, job: _Job):
        self.job, self.types = job, self._types(job)
        self.length = 1 << max(1, (job.n - 1).bit_length())
        self.lanes = min(self.length, host_vector_bytes() // self.types[0].size)

    @staticmethod
    def _types(job: _Job) -> list[Dtype]:
        """The parts of a word."""
        if not job.carries:
            return [job.key]
        if job.key.size <= 2 and job.n <= 1 << 16:
            return [uint32]
        return [uint64] if job.key.size <= 4 else [uint64, uint32]

    @staticmethod
    def bytes(job: _Job) -> int:
        return (1 << job.n.bit_length()) * sum(t.size for t in _NetworkRows._types(job))

    def add(self) -> None:
        self.job.kernel.add("", [self.job.out], self._emit)

    def _emit(self, e: OwnEmitter) -> tuple[int, float]:
        parts = [Part(e.scratch(self.length, t)[0], t) for t in self.types]
        levels = self.length.bit_length()
        work = self.length * levels * (levels + 1) / 2 * 2 / self.lanes + 8.0 * self.job.n
        return over(e, self.job.rows.variables, lambda: self._row(e, parts)), work

    def _row(self, e: OwnEmitter, parts: Sequence[Part]) -> None:
        job, k = self.job, e.k
        i, rest = Var("i", job.n), Var("rest", self.length - job.n)
        negatives = minus = None

        def put() -> Reg:
            value = job.value(e, i)
            for part, word in zip(parts, self._word(e, key_of(k, value), i), strict=True):
                e.write(word, part.buffer, i)
            return value

        def put_alone() -> None:
            put()

        if job.signed_zeros:
            zeros = [k.const(0, uint32)] * 2
            extent = e.constant_index(job.n)
            negatives, minus = e.serial(i, extent, zeros, lambda carried: job.tally(e, put(), carried))
        else:
            e.lanes(i, job.n, put_alone)
        for part in parts if rest.extent else ():
            e.lanes(rest, rest.extent, partial(self._pad, e, part, rest))
        Network(e, parts, self.length, self.lanes).sort()
        e.lanes(i, job.n, lambda: self._store(e, parts, i))
        if negatives is not None and minus is not None:
            with e.when(minus != 0):
                job.zeros_again(e, negatives)

    def _pad(self, e: OwnEmitter, part: Part, i: Var) -> None:
        e.write(e.k.const(-1, part.dtype), part.buffer, Index.of(i) + self.job.n)

    def _word(self, e: OwnEmitter, key: Reg, i: Var) -> list[Reg]:
        if not self.job.carries:
            return [key]
        if len(self.types) == 2:
            return [key, e.number(i, uint32)]
        (word,) = self.types
        return [(e.k.cast(key, word) << (4 * word.size)) | e.number(i, word)]

    def _store(self, e: OwnEmitter, parts: Sequence[Part], i: Var) -> None:
        job, place = self.job, e.at(i)
        word = e.read(parts[-1].buffer, parts[-1].dtype, i)
        key = index = None
        if not job.carries:
            key = word
        else:
            half = {uint64: uint32, uint32: uint16}[word.dtype] if len(parts) == 1 else word.dtype
            index = e.k.cast(e.k.cast(word, half), uint32)
        job.store(e, job.result_of(e, key, index, Var("from", job.n)), place)


# -- by rank ---------------------------------------------------------------------------------------------------------
def _by_rank(job: _Job) -> None:
    """An element at a time, with the keys in memory."""
    i, j = Var("i", job.n), Var("j", job.n)
    keys = job.kernel.temporary(job.x.aval.size, job.key)

    def make_keys(e: OwnEmitter) -> tuple[int, float]:
        def one() -> None:
            e.write(key_of(e.k, job.value(e, i)), e.buffers[keys], job.rows.number * job.n, i)

        return over(e, [*job.rows.variables, i], one), 8.0

    def rank(e: OwnEmitter) -> tuple[int, float]:
        def one() -> None:
            first = e.at(job.rows.number * job.n)
            mine, number = e.read(e.buffers[keys], job.key, first, i), e.number(i, uint32)

            def count(carried: list[Reg]) -> list[Reg]:
                other = e.read(e.buffers[keys], job.key, first, j)
                before = (other < mine) | ((other == mine) & (e.number(j, uint32) < number))
                return [carried[0] + e.k.cast(before, uint32)]

            (total,) = e.serial(j, e.constant_index(job.n), [e.k.const(0, uint32)], count)
            job.store(e, number if job.indices else job.value(e, i), e.at(total))

        return over(e, [*job.rows.variables, i], one), 4.0 * job.n

    job.kernel.add("_keys", [keys], make_keys)
    job.kernel.add("", [job.out], rank)


# -- by digits -------------------------------------------------------------------------------------------------------
class _Moved(NamedTuple):
    """What a pass moves: two halves of n elements, in turn the source and the target."""

    keys: ir.Value
    indices: ir.Value | None


class _Radix:
    """Long rows: each block is counted and moved by itself. `state[row, d]` is where digit d's pass begins: 0 or n."""

    def __init__(self, job: _Job, vectors: bool):
        self.job, self.bits = job, 11 if job.key.size >= 4 and vectors else 8
        self.radix, self.passes = 1 << self.bits, -(-8 * job.key.size // self.bits)
        self.count = BLOCKS if vectors else -(-job.n // GPU_BLOCK)
        self.block = Var("block", self.count)
        self.size = -(-job.n // self.count)
        self.i = Var("i", self.size)

    def add(self) -> None:
        job, kernel, rows = self.job, self.job.kernel, self.job.rows.count
        self.keys = kernel.temporary(rows * 2 * job.n, job.key)
        self.index = kernel.temporary(rows * 2 * job.n, uint32) if job.carries else None
        self.counts = kernel.temporary(rows * self.count * self.radix, uint32)
        self.state = kernel.temporary(rows * (self.passes + 1), uint32)
        self.zeros = kernel.temporary(rows * self.count * 2, uint32) if job.signed_zeros else None
        moved = [b for b in (self.keys, self.index) if b is not None]
        kernel.add("_keys", [*moved, *([self.zeros] if self.zeros is not None else [])], self._make_keys)
        for d in range(self.passes):
            kernel.add(f"_count_{d}", [self.counts], partial(self._count, d=d))
            kernel.add(f"_offset_{d}", [self.counts, self.state], partial(self._offset, d=d))
            kernel.add(f"_move_{d}", [*moved, self.counts], partial(self._move, d=d))
        kernel.add("_values", [job.out], self._values)
        if self.zeros is not None:
            kernel.add("_zeros", [job.out], self._zeros)

    # -- where things lie -------------------------------------------------------------------------------------------
    def _over(self, e: OwnEmitter, work: float, body: Any) -> tuple[int, float]:
        """A step over (row, block); `body` gets the number of elements of the block."""

        def one() -> None:
            start = Index.of(self.block) * self.size
            body(e.rest(self.job.n, e.index(start), self.size))

        return over(e, [*self.job.rows.variables, self.block], one), work * self.size

    @cached_property
    def _element(self) -> Index:
        return Index.of(self.block) * self.size + self.i

    @property
    def _origin(self) -> Index:
        return self.job.rows.number * (2 * self.job.n)

    def _counter(self, block: Any) -> Index:
        return (self.job.rows.number * self.count + block) * self.radix

    def _begin(self, d: int) -> Index:
        return self.job.rows.number * (self.passes + 1) + d

    def _moved(self, e: OwnEmitter) -> _Moved:
        return _Moved(e.buffers[self.keys], e.buffers[self.index] if self.index is not None else None)

    # -- single elements --------------------------------------------------------------------------------------------
    def digit(self, e: OwnEmitter, key: Reg, shift: Reg) -> Reg:
        return e.k.cast((key >> shift) & (self.radix - 1), uint32)

    def shift(self, e: OwnEmitter, number: Any) -> Reg:
        """The lowest bit of a digit."""
        return e.number(Index.of(number) * self.bits, self.job.key)

    def put_key(self, e: OwnEmitter, moved: _Moved, i: Any, origin: Any) -> Reg:
        """Keys (and indices) as they are at first; the value is returned."""
        value = self.job.value(e, i)
        e.write(key_of(e.k, value), moved.keys, origin, i)
        if moved.indices is not None:
            e.write(e.number(i, uint32), moved.indices, origin, i)
        return value

    def increment(self, e: OwnEmitter, counts: ir.Value, at: ir.Value) -> Reg:
        """The old count."""
        old = e.read(counts, uint32, at)
        e.write(old + 1, counts, at)
        return old

    def move(
        self, e: OwnEmitter, moved: _Moved, source: Any, origin: Any, counts: ir.Value, at: Any, shift: Reg
    ) -> None:
        """One element to where the counter of its digit says, from `origin` on."""
        key = e.read(moved.keys, self.job.key, source)
        target = self.increment(e, counts, e.at(at, self.digit(e, key, shift)))
        e.write(key, moved.keys, origin, target)
        if moved.indices is not None:
            e.write(e.read(moved.indices, uint32, source), moved.indices, origin, target)

    def put_result(self, e: OwnEmitter, moved: _Moved, i: Var, source: Any) -> None:
        key = e.read(moved.keys, self.job.key, source) if moved.indices is None else None
        index = e.read(moved.indices, uint32, source) if moved.indices is not None else None
        place = e.at(i)
        self.job.store(e, self.job.result_of(e, key, index, Var("from", self.job.n)), place)

    # -- steps ------------------------------------------------------------------------------------------------------
    def _make_keys(self, e: OwnEmitter) -> tuple[int, float]:
        def block(size: ir.Value) -> None:
            zero = e.k.const(0, uint32)

            def put(carried: list[Reg]) -> list[Reg]:
                value = self.put_key(e, self._moved(e), self._element, self._origin)
                return self.job.tally(e, value, carried) if carried else []

            totals = e.serial(self.i, size, [zero, zero] if self.zeros is not None else [], put)
            if self.zeros is not None:
                for n, total in enumerate(totals):
                    e.write(total, e.buffers[self.zeros], (self.job.rows.number * self.count + self.block) * 2 + n)

        return self._over(e, 8.0, block)

    def _count(self, e: OwnEmitter, d: int) -> tuple[int, float]:
        counts, slot = e.buffers[self.counts], Var("slot", self.radix)

        def block(size: ir.Value) -> None:
            start = e.read(e.buffers[self.state], uint32, self._begin(d)) if d else 0
            mine = e.at(self._counter(self.block))
            e.repeat(slot, self.radix, lambda: e.write(e.k.const(0, uint32), counts, mine, slot))
            first = e.at(start, self._origin)

            def one() -> None:
                key = e.read(e.buffers[self.keys], self.job.key, first, self._element)
                self.increment(e, counts, e.at(mine, self.digit(e, key, self.shift(e, d))))

            e.repeat(self.i, size, one)

        return self._over(e, 3.0, block)

    def _offset(self, e: OwnEmitter, d: int) -> tuple[int, float]:
        counts, state = e.buffers[self.counts], e.buffers[self.state]
        bucket, block = Var("bucket", self.radix), Var("b", self.count)

        def row() -> None:
            start = e.read(state, uint32, self._begin(d)) if d else e.k.const(0, uint32)
            first = e.read(e.buffers[self.keys], self.job.key, self._origin, start)
            place = e.at(self.digit(e, first, self.shift(e, d)))

            def add(carried: list[Reg]) -> list[Reg]:
                return [carried[0] + e.read(counts, uint32, self._counter(block), place)]

            (same,) = e.rolled(block, self.count, [e.k.const(0, uint32)], add)
            alone = same == self.job.n
            target = e.k.const(self.job.n, uint32) - start

            def offset(carried: list[Reg]) -> list[Reg]:
                at = e.at(self._counter(block), bucket)
                size = e.read(counts, uint32, at)
                e.write(carried[0], counts, at)
                return [carried[0] + size]

            e.rolled(bucket, self.radix, [target], lambda carried: e.rolled(block, self.count, carried, offset))
            e.write(e.k.select(alone, start, target), state, self._begin(d + 1))

        return over(e, self.job.rows.variables, row), 2.0 * self.radix * self.count

    def _move(self, e: OwnEmitter, d: int) -> tuple[int, float]:
        def block(size: ir.Value) -> None:
            state = e.buffers[self.state]
            start = e.read(state, uint32, self._begin(d)) if d else e.k.const(0, uint32)
            moved, counts, mine = self._moved(e), e.buffers[self.counts], e.at(self._counter(self.block))
            with e.when(e.read(state, uint32, self._begin(d + 1)) != start):
                first, shift = e.at(self._origin, start), self.shift(e, d)

                def one() -> None:
                    self.move(e, moved, e.at(first, self._element), self._origin, counts, mine, shift)

                e.repeat(self.i, size, one)

        return self._over(e, 6.0, block)

    def _values(self, e: OwnEmitter) -> tuple[int, float]:
        def block(size: ir.Value) -> None:
            first = e.at(self._origin, e.read(e.buffers[self.state], uint32, self._begin(self.passes)))
            at = Var("at", self.job.n)

            def one() -> None:
                e.variables[at] = e.index(self._element)
                self.put_result(e, self._moved(e), at, e.at(first, self._element))

            e.repeat(self.i, size, one)

        return self._over(e, 3.0, block)

    def _zeros(self, e: OwnEmitter) -> tuple[int, float]:
        block = Var("b", self.count)
        assert self.zeros is not None
        zeros = e.buffers[self.zeros]

        def row() -> None:
            def add(carried: list[Reg]) -> list[Reg]:
                at = (self.job.rows.number * self.count + block) * 2
                return [t + e.read(zeros, uint32, at + n) for n, t in enumerate(carried)]

            negatives, minus = e.rolled(block, self.count, [e.k.const(0, uint32)] * 2, add)
            with e.when(minus != 0):
                self.job.zeros_again(e, negatives)

        return over(e, self.job.rows.variables, row), 2.0 * self.count
