"""A bitonic network on vector registers: sorts a row of words in scratch memory, in place.

Every comparison puts the smaller word to the left. To merge two sorted halves, each word is compared with its mirror
image, then at half the distance again and again:

    0 3 5 7 | 1 2 4 6     mirrored: 0-6 3-4 5-2 7-1     0 3 2 1 | 7 5 4 6     distances 2, 1     0 1 2 3 | 4 5 6 7

A chunk of CHUNK registers is sorted without leaving them; above that, runs of chunks are merged by passes over memory.
A word is one unsigned integer, or two that are ordered by the first one and then by the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from mlxir.compiler.lower.builder import _TYPES, INDEX
from mlxir.compiler.lower.index import Var
from mlxir.compiler.lower.own import OwnEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import Dtype, bool_, int64

CHUNK = 4
_BELOW, _EQUAL = (ir.IntegerAttr.get(_TYPES[int64], p) for p in (6, 0))

Word = tuple[ir.Value, ...]  # one vector register per part


class Part(NamedTuple):
    """A buffer that holds one part of each word."""

    buffer: ir.Value
    dtype: Dtype


class Network:
    """Sorts `length` words, a power of 2 and a multiple of `lanes`."""

    def __init__(self, e: OwnEmitter, parts: Sequence[Part], length: int, lanes: int):
        self.e, self.parts, self.lanes = e, parts, lanes
        self.registers = length // lanes
        self.chunk = min(CHUNK, self.registers)

    def sort(self) -> None:
        chunks = self.registers // self.chunk
        self._each_chunk(lambda words: self._sorted(words))
        if chunks > 1:
            self._merge_chunks(chunks)

    # -- in registers -----------------------------------------------------------------------------------------------
    def _sorted(self, words: list[Word]) -> list[Word]:
        lanes = self.lanes
        for size in _powers(2, lanes):
            words = [self._within(w, size - 1) for w in words]
            words = self._cleaned(words, size // 4)
        for size in _powers(2, len(words)):
            for first in range(0, len(words), size):
                for n in range(size // 2):
                    a, b = first + n, first + size - 1 - n
                    words[a], high = self._exchanged(words[a], self._reversed(words[b]))
                    words[b] = self._reversed(high)
            words = self._cleaned(words, lanes * size // 4)
        return words

    def _cleaned(self, words: list[Word], distance: int) -> list[Word]:
        """Comparisons at `distance`, and at half of it until 1."""
        while distance >= self.lanes:
            step = distance // self.lanes
            for a in (n for n in range(len(words)) if not n & step):
                words[a], words[a + step] = self._exchanged(words[a], words[a + step])
            distance //= 2
        while distance:
            words = [self._within(w, distance) for w in words]
            distance //= 2
        return words

    def _within(self, word: Word, mask: int) -> Word:
        """Lane i compared with its partner i ^ mask in the same register."""
        other = self._shuffled(word, [i ^ mask for i in range(self.lanes)])
        low, high = self._exchanged(word, other)
        picked = [i if i < i ^ mask else self.lanes + i for i in range(self.lanes)]
        return tuple(self._shuffle(a, b, picked) for a, b in zip(low, high, strict=True))

    def _exchanged(self, a: Word, b: Word) -> tuple[Word, Word]:
        """(the smaller words, the larger ones), lane by lane."""
        op = self.e.k.op
        if len(a) == 1:
            (x,), (y,) = a, b
            return (op("arith.minui", [x, y], x.type),), (op("arith.maxui", [x, y], x.type),)
        mask = ir.VectorType.get([self.lanes], _TYPES[bool_])
        below = op("arith.cmpi", [a[1], b[1]], mask, predicate=_BELOW)
        equal = op("arith.cmpi", [a[0], b[0]], mask, predicate=_EQUAL)
        first = op("arith.cmpi", [a[0], b[0]], mask, predicate=_BELOW)
        less = op("arith.select", [equal, below, first], mask)
        low = tuple(op("arith.select", [less, x, y], x.type) for x, y in zip(a, b, strict=True))
        high = tuple(op("arith.select", [less, y, x], x.type) for x, y in zip(a, b, strict=True))
        return low, high

    def _reversed(self, word: Word) -> Word:
        return self._shuffled(word, list(reversed(range(self.lanes))))

    def _shuffled(self, word: Word, lanes: Sequence[int]) -> Word:
        return tuple(self._shuffle(v, v, lanes) for v in word)

    def _shuffle(self, a: ir.Value, b: ir.Value, lanes: Sequence[int]) -> ir.Value:
        return self.e.k.op("vector.shuffle", [a, b], a.type, mask=ir.DenseI64ArrayAttr.get(lanes))

    # -- over memory ------------------------------------------------------------------------------------------------
    def _load(self, at: ir.Value) -> Word:
        return tuple(self.e.load_vector(p.buffer, p.dtype, at, self.lanes, p.dtype) for p in self.parts)

    def _store(self, word: Word, at: ir.Value) -> None:
        for part, vector in zip(self.parts, word, strict=True):
            self.e.store_vector(vector, part.buffer, at)

    def _each_chunk(self, body: Callable[[list[Word]], list[Word]]) -> None:
        e, number = self.e, Var("chunk", self.registers // self.chunk)

        def one() -> None:
            start = e.times(e.at(number), self.chunk * self.lanes)
            places = [e.plus(start, n * self.lanes) for n in range(self.chunk)]
            for word, place in zip(body([self._load(p) for p in places]), places, strict=True):
                self._store(word, place)

        e.repeat(number, number.extent, one)

    def _merge_chunks(self, chunks: int) -> None:
        """Runs of 1, 2, 4, ... chunks."""
        e = self.e
        level, step = Var("level", chunks.bit_length() - 1), Var("step", chunks.bit_length() - 1)

        def merge() -> None:
            distance = self._shifted(self.chunk, e.at(level))  # half of a merged run, in registers
            self._pairs(distance, mirrored=True)

            def closer() -> None:
                one_less = e.k.op("arith.subi", [e.at(level), e.at(step)], INDEX)
                self._pairs(self._shifted(self.chunk // 2, one_less), mirrored=False)

            e.repeat(step, e.at(level), closer)
            self._each_chunk(lambda words: self._cleaned(words, self.chunk // 2 * self.lanes))

        e.repeat(level, level.extent, merge)

    def _shifted(self, value: int, by: ir.Value) -> ir.Value:
        return self.e.k.op("arith.shli", [self.e.constant_index(value), by], INDEX)

    def _pairs(self, distance: ir.Value, mirrored: bool) -> None:
        """Registers `distance` apart, or mirror images in runs of twice that."""
        e = self.e
        run, n = Var("run", self.registers), Var("n", self.registers)
        runs = e.k.op("arith.divui", [e.constant_index(self.registers // 2), distance], INDEX)

        def one_run() -> None:
            first = e.k.op("arith.muli", [e.at(run), e.times(distance, 2)], INDEX)
            end = e.plus(first, e.times(distance, 2))

            def pair() -> None:
                a = e.times(e.plus(first, e.at(n)), self.lanes)
                if mirrored:
                    last = e.k.op("arith.subi", [end, e.plus(e.at(n), 1)], INDEX)
                    b = e.times(last, self.lanes)
                    low, high = self._exchanged(self._load(a), self._reversed(self._load(b)))
                    high = self._reversed(high)
                else:
                    b = e.plus(a, e.times(distance, self.lanes))
                    low, high = self._exchanged(self._load(a), self._load(b))
                self._store(low, a)
                self._store(high, b)

            e.repeat(n, distance, pair)

        e.repeat(run, runs, one_run)


def _powers(first: int, last: int) -> list[int]:
    """Powers of 2 from `first` to `last`."""
    return [1 << n for n in range(first.bit_length() - 1, last.bit_length())]
