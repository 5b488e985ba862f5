"""The register tiles of a matrix product, as routines: C = A @ B or C += A @ B for rows x columns elements of C.

    gemm_tile       vectors along the columns of C: each step of k loads a row of B, and spreads an element of A over
                    the lanes for every row of C
    gemm_tile_k     vectors along K, for few rows by a transposed matrix: each register holds partial sums of one element

    %c:26 = scf.for %k { %b:2 = load B[k]; for each of 13 rows { %a = broadcast A[r, k]; fma(%a, %b#0), fma(%a, %b#1) } }

`A` is a panel that was packed ([k][row], as tall as the tile), or a matrix where it lies: strides are arguments, which
costs a few additions beside the multiply-adds of a step.
"""

from __future__ import annotations

from mlxir.compiler.lower.builder import Reg
from mlxir.compiler.lower.index import Var
from mlxir.compiler.lower.routines import Definition, routine
from mlxir.compiler.lower.vectors import VectorEmitter
from mlxir.dialects.mlir import ir
from mlxir.runtime.dtypes import from_name


@routine
def gemm_tile(rows: int, vectors: int, lanes: int, a_dtype: str, b_dtype: str, dtype: str) -> Definition:
    """(a, b, c; a_at, a_lane, a_depth, b_at, b_depth, count, c_at, c_stride, add): `count` steps along K.

    The sums are stored, or added to what is there where `add` is not 0.
    """
    a_type, b_type, kept = from_name(a_dtype), from_name(b_dtype), from_name(dtype)

    def emit(e: VectorEmitter, numbers: list[ir.Value]) -> None:
        a, b, c = e.buffers
        a_at, a_lane, a_depth, b_at, b_depth, count, c_at, c_stride, add = numbers
        k, zero = Var("k", 1), e.zeros(lanes, kept)
        row_starts = [e.plus(a_at, e.times(a_lane, r)) for r in range(rows)]

        def step(sums: list[Reg]) -> list[Reg]:
            a_step, b_from = e.product(e.variables[k], a_depth), e.plus(b_at, e.product(e.variables[k], b_depth))
            row_of_b = [e.load_vector(b, b_type, e.plus(b_from, v * lanes), lanes, kept) for v in range(vectors)]
            out = []
            for r in range(rows):
                scalar = e.k.load(a, e.plus(row_starts[r], a_step), a_type).value
                spread = e.spread(scalar, lanes, kept)
                sums_of_row = sums[r * vectors : (r + 1) * vectors]
                out += [e.multiply_add(spread, x, s.value) for x, s in zip(row_of_b, sums_of_row, strict=True)]
            return [Reg(v, kept, e.k) for v in out]

        sums = e.rolled(k, count, [Reg(zero, kept, e.k)] * (rows * vectors), step)
        corners = [(r, v) for r in range(rows) for v in range(vectors)]
        places = [e.plus(e.plus(c_at, e.times(c_stride, r)), v * lanes) for r, v in corners]

        def first() -> None:
            for total, place in zip(sums, places, strict=True):
                e.store_vector(total.value, c, place)

        def again() -> None:
            for total, place in zip(sums, places, strict=True):
                before = e.load_vector(c, kept, place, lanes, kept)
                e.store_vector(e.add(before, total.value), c, place)

        e.when_equal(add, 0, first, again)

    return Definition((a_type, b_type, kept), 9, emit)


@routine
def gemm_tile_k(
    rows: int, columns: int, lanes: int, a_dtype: str, b_dtype: str, dtype: str, rest: int
) -> Definition:
    """(a, b, c; a_at, a_lane, b_at, b_lane, count, c_at, c_stride): C[r, c] = sum over k of a[r, k] * b[c, k].

    K is `count` vectors and `rest` more elements: these come in a last vector that moves back to stay inside, and counts
    what it repeats as zeros.
    """
    a_type, b_type, kept = from_name(a_dtype), from_name(b_dtype), from_name(dtype)

    def emit(e: VectorEmitter, numbers: list[ir.Value]) -> None:
        a, b, c = e.buffers
        a_at, a_lane, b_at, b_lane, count, c_at, c_stride = numbers
        k, zero = Var("k", 1), e.zeros(lanes, kept)
        a_starts = [e.plus(a_at, e.times(a_lane, r)) for r in range(rows)]
        b_starts = [e.plus(b_at, e.times(b_lane, v)) for v in range(columns)]

        def add(sums: list[Reg], at: ir.Value, skip: int) -> list[Reg]:
            def read(buffer: ir.Value, stored: object, starts: list[ir.Value]) -> list[ir.Value]:
                values = [e.load_vector(buffer, stored, e.plus(s, at), lanes, kept) for s in starts]
                return [e.without(v, skip, zero) for v in values] if skip else values

            right = read(b, b_type, b_starts)
            pairs = [(x, y) for x in read(a, a_type, a_starts) for y in right]
            totals = [e.multiply_add(x, y, s.value) for (x, y), s in zip(pairs, sums, strict=True)]
            return [Reg(t, kept, e.k) for t in totals]

        starts = [Reg(zero, kept, e.k)] * (rows * columns)
        sums = e.rolled(k, count, starts, lambda sums: add(sums, e.times(e.variables[k], lanes), 0))
        if rest:
            sums = add(sums, e.plus(e.times(count, lanes), rest - lanes), lanes - rest)
        for n, total in enumerate(sums):
            r, v = divmod(n, columns)
            place = e.plus(e.plus(c_at, e.times(c_stride, r)), v)
            e.k.store(Reg(e.sum_of_lanes(total.value, kept), kept, e.k), c, place)

    return Definition((a_type, b_type, kept), 7, emit)
