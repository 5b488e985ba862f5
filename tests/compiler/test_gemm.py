"""Matmul kernels: lowered, compiled and run on guarded memory, against NumPy in float64."""

import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
from guarded import Kernel, run

from mlxir.compiler.lower.gemm import host_vector_bytes, lower_matmul, lower_matmul_simple
from mlxir.compiler.lower.gemm_schedule import Side, ceil_div, choose
from mlxir.compiler.target import cpu
from mlxir.dialects.mlir import Module, context, ir
from mlxir.dialects.mx import RECORDS, Aval
from mlxir.runtime.dtypes import bfloat16, complex64, float16, float32, float64, uint32
from mlxir.runtime.errors import CompileError

EPS = {float16: 2.0**-11, bfloat16: 2.0**-8, float32: 2.0**-24, float64: 2.0**-53, complex64: 2.0**-24}
FLAGS = list(itertools.product((False, True), repeat=2))


def random(seed, shape, dtype):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape)
    return (x + 1j * rng.standard_normal(shape) if dtype is complex64 else x).astype(dtype.numpy)


def wide(x):
    return x.astype(np.complex128 if x.dtype.kind == "c" else np.float64)


def product(a, b, ta=False, tb=False):
    """(a @ b, |a| @ |b|) in float64; K * eps times the second bounds the rounding of the first."""
    a, b = (np.swapaxes(wide(x), -1, -2) if t else wide(x) for x, t in ((a, ta), (b, tb)))
    return a @ b, np.abs(a) @ np.abs(b)


def check(got, expected, magnitude, depth, dtype):
    """`magnitude` bounds the terms; sums are float32 for 2-byte floats, and results are rounded to their own dtype."""
    assert got.shape == expected.shape
    sums = EPS[float32] if dtype.size == 2 else EPS[dtype]
    terms = (depth + 8) * (2 if dtype is complex64 else 1)
    bound = terms * sums * magnitude + 2 * EPS[dtype] * np.abs(expected)
    error = np.abs(wide(got) - expected)
    assert np.all(error <= bound + 1e-30), f"{np.nanmax(error / (bound + 1e-30))} times the bound"


def matmul_case(m, n, k, ta, tb, dtype=float32, batch_a=(), batch_b=(), **options):
    a = random(1, (*batch_a, *((k, m) if ta else (m, k))), dtype)
    b = random(2, (*batch_b, *((n, k) if tb else (k, n))), dtype)
    kernel = Kernel(
        lambda e, x, y: e.matmul(x, y, ta=ta, tb=tb), [Aval(a.shape, dtype), Aval(b.shape, dtype)], **options
    )
    (got,) = run(kernel, (a, b))
    check(got, *product(a, b, ta, tb), k, dtype)
    return kernel


# ---- shapes and layouts ---------------------------------------------------------------------------------------------

SHAPES = [
    (3, 4, 5), (1, 70, 130), (70, 1, 130), (1, 1, 3000), (2, 33, 64), (37, 45, 19), (40, 10, 64), (129, 47, 100),
    (20, 530, 140),
]  # fmt: skip


@pytest.mark.parametrize("ta, tb", FLAGS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape, ta, tb):
    matmul_case(*shape, ta, tb)


@pytest.mark.parametrize("ta, tb", FLAGS)
def test_panels_of_k(ta, tb):
    """Three panels, rows and columns that fit neither tile nor block, both operands packed where they are large."""
    kernel = matmul_case(401, 275, 1500, ta, tb)
    assert len(kernel.steps) >= 2
    assert len(matmul_case(101, 275, 1500, ta, tb).steps) == 1, "blocks with all rows pack the columns that they read"


@pytest.mark.parametrize("n", [256, 300])
def test_streamed_matrix(n):
    """Few rows by a matrix larger than L2: read in place, a few of its rows at a time."""
    kernel = matmul_case(3, n, 1100, False, False)
    assert len(kernel.steps) == 1 and not kernel.temporaries


@pytest.mark.parametrize("vector_bytes", [16, 32, 64])
@pytest.mark.parametrize("shape", [(37, 45, 70), (90, 7, 600)], ids=str)
@pytest.mark.parametrize("ta, tb", [(False, False), (True, True)])
def test_vector_widths(vector_bytes, shape, ta, tb):
    matmul_case(*shape, ta, tb, vector_bytes=vector_bytes)


@pytest.mark.parametrize("dtype", [float64, float16, bfloat16, complex64], ids=lambda d: d.name)
@pytest.mark.parametrize("ta, tb", [(False, False), (True, True)])
def test_dtypes(dtype, ta, tb):
    matmul_case(35, 70, 61, ta, tb, dtype)


@pytest.mark.parametrize("dtype", [float64, float16], ids=lambda d: d.name)
def test_rows_of_other_dtypes(dtype):
    matmul_case(1, 50, 100, False, True, dtype)
    matmul_case(1, 300, 700, False, False, dtype)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shape", [(1, 37, 128), (6, 9, 192), (30, 70, 1536), (300, 70, 128)], ids=str)
def test_computed_matrices(shape, bits):
    """Quantised weights: multiplied as they are computed for few rows, packed by their block for more, or by a step."""
    (m, n, k), rng = shape, np.random.default_rng(bits)
    words = rng.integers(0, 1 << 32, (n, k * bits // 32), np.uint32)
    x, scales = random(1, (m, k), float32), random(2, (n, k // 64, 1), float32)

    def build(e, x, words, scales):
        (codes,) = e.emit(RECORDS["unpack_bits"], [words], {"bits": bits})
        (values,) = e.emit(RECORDS["astype"], [e.reshape(codes, shape=(n, k // 64, 64))], {"dtype": float32})
        return e.matmul(x, e.reshape(values * scales, shape=(n, k)), ta=False, tb=True)

    kernel = Kernel(build, [Aval(x.shape, float32), Aval(words.shape, uint32), Aval(scales.shape, float32)])
    (codes,) = RECORDS["unpack_bits"].reference(words, bits=bits)
    weights = (codes.reshape(n, k // 64, 64) * wide(scales)).reshape(n, k)
    (got,) = run(kernel, (x, words, scales))
    check(got, *product(x, weights, tb=True), k, float32)
    assert sum(t.size for t in kernel.temporaries) < n * k or m == 300, "the matrix is not stored"


BATCHES = [((3,), (3,)), ((2, 3), (2, 3)), ((4,), (1,)), ((1,), (3,)), ((2, 1), (3,)), ((5,), ())]


@pytest.mark.parametrize("batch_a, batch_b", BATCHES, ids=str)
@pytest.mark.parametrize("ta, tb", [(False, False), (True, True)])
def test_batches(batch_a, batch_b, ta, tb):
    matmul_case(17, 20, 33, ta, tb, batch_a=batch_a, batch_b=batch_b)


def test_shared_matrix_is_one_product():
    """(B, T, K) @ (K, N) is (B * T, K) @ (K, N): blocks do not end where a batch does."""
    kernel = matmul_case(3, 64, 64, False, False, batch_a=(40,))
    assert kernel.steps[-1].extent < 40


@pytest.mark.parametrize("lower", [lower_matmul, lower_matmul_simple])
def test_nothing_to_add(lower):
    """K = 0 gives zeros, through what follows."""
    avals = [Aval((5, 0), float32), Aval((0, 7), float32)]
    kernel = Kernel(lambda e, x, y: e.matmul(x, y, ta=False, tb=False) + 2.0, avals, lower)
    (got,) = run(kernel, (np.zeros((5, 0), np.float32), np.zeros((0, 7), np.float32)))
    assert np.array_equal(got, np.full((5, 7), 2.0))


def test_no_elements():
    avals = [Aval((3, 0, 4), float32), Aval((3, 4, 5), float32)]
    kernel = Kernel(lambda e, x, y: e.matmul(x, y, ta=False, tb=False), avals)
    assert kernel.steps == [] and kernel.temporaries == []
    with pytest.raises(CompileError, match="without elements"):
        Kernel(
            lambda e, x, y: e.sum(e.matmul(x, y, ta=False, tb=False), axes=(0, 1)),
            [Aval((0, 4), float32), Aval((4, 5), float32)],
        )


@pytest.mark.parametrize("shape", [(9, 40, 21), (1, 40, 37), (40, 1, 37)], ids=str)
@pytest.mark.parametrize("ta, tb", [(False, False), (False, True), (True, False)])
def test_infinities_stay_where_they_are(shape, ta, tb):
    """Lanes beside the matrix and beyond K contribute nothing, not even 0 * inf."""
    m, n, k = shape
    a, b = np.ones((k, m) if ta else (m, k), np.float32), np.ones((n, k) if tb else (k, n), np.float32)
    a.flat[0], b.flat[-1] = np.inf, 2.0
    avals = [Aval(a.shape, float32), Aval(b.shape, float32)]
    for lower in (lower_matmul, lower_matmul_simple):
        (got,) = run(Kernel(lambda e, x, y: e.matmul(x, y, ta=ta, tb=tb), avals, lower), (a, b))
        assert np.array_equal(got, product(a, b, ta, tb)[0])


# ---- operands that are views ----------------------------------------------------------------------------------------

VIEWS = {
    "permuted": ((20, 3, 34), lambda e, x: e.transpose(x, axes=(1, 2, 0)), lambda x: x.transpose(1, 2, 0)),
    "heads": (
        (34, 60), lambda e, x: e.transpose(e.reshape(x, shape=(34, 3, 20)), axes=(1, 0, 2)),
        lambda x: x.reshape(34, 3, 20).transpose(1, 0, 2),
    ),
    "broadcast": (
        (34, 1), lambda e, x: e.broadcast_to(x, shape=(3, 34, 20)), lambda x: np.broadcast_to(x, (3, 34, 20)),
    ),
    "reversed": (
        (3, 34, 20), lambda e, x: e.slice(x, start=(0, 33, 19), stop=(3, -1, -1), strides=(1, -1, -1)),
        lambda x: x[:, ::-1, ::-1],
    ),
    "strided": (
        (3, 68, 40), lambda e, x: e.slice(x, start=(0, 0, 1), stop=(3, 68, 40), strides=(1, 2, 2)),
        lambda x: x[:, ::2, 1::2],
    ),
    "computed": ((3, 34, 20), lambda e, x: e.exp(x) + 1.0, lambda x: np.exp(x) + 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", VIEWS)
def test_views(name):
    """(3, 34, 20), as the left and as the right operand."""
    shape, view, reference = VIEWS[name]
    x, left, right = random(3, shape, float32), random(4, (3, 25, 34), float32), random(5, (3, 20, 50), float32)

    def multiply(e, a, b):
        return e.matmul(a, b, ta=False, tb=False)

    expected = reference(wide(x))
    avals = [Aval(a.shape, float32) for a in (x, left, right)]
    (got,) = run(Kernel(lambda e, x, left: multiply(e, left, view(e, x)), avals[:2]), (x, left))
    check(got, *product(left, expected), 34 + 8, float32)
    (got,) = run(Kernel(lambda e, x, right: multiply(e, view(e, x), right), [avals[0], avals[2]]), (x, right))
    check(got, *product(expected, right), 20 + 8, float32)


# ---- what follows the product ---------------------------------------------------------------------------------------


class Epilogue(NamedTuple):
    build: object  # (m, product, row, full) -> results
    reference: object  # the same in NumPy


def _gelu(z, erf):
    return z * 0.5 * (1.0 + erf(z * math.sqrt(0.5)))


_erf = np.vectorize(math.erf)
EPILOGUES = {
    "bias": Epilogue(lambda e, z, row, full: z + row, lambda z, row, full: [z + row]),
    "relu": Epilogue(
        lambda e, z, row, full: e.maximum(z + row, e.scalar(0.0, float32)),
        lambda z, row, full: [np.maximum(z + row, 0)],
    ),
    "gelu": Epilogue(lambda e, z, row, full: _gelu(z + row, e.erf), lambda z, row, full: [_gelu(z + row, _erf)]),
    "residual": Epilogue(lambda e, z, row, full: full + z * 0.5, lambda z, row, full: [full + z * 0.5]),
    "several": Epilogue(lambda e, z, row, full: (z, z + row, z * full), lambda z, row, full: [z, z + row, z * full]),
    "cast": Epilogue(lambda e, z, row, full: e.astype(z + row, dtype=float64), lambda z, row, full: [z + row]),
    "flat": Epilogue(
        lambda e, z, row, full: e.reshape(z + row, shape=(math.prod(z.shape),)),
        lambda z, row, full: [(z + row).reshape(-1)],
    ),
    "rows first": Epilogue(
        lambda e, z, row, full: e.reshape(
            e.transpose(z + row, axes=(1, 0, 2)), shape=(z.shape[1], z.shape[0] * z.shape[2])
        ),
        lambda z, row, full: [(z + row).transpose(1, 0, 2).reshape(z.shape[1], -1)],
    ),
    "columns first": Epilogue(
        lambda e, z, row, full: e.transpose(z * full, axes=(2, 0, 1)),
        lambda z, row, full: [(z * full).transpose(2, 0, 1)],
    ),
    "row sums": Epilogue(
        lambda e, z, row, full: (e.sum(z, axes=(2,)), z + row), lambda z, row, full: [z.sum(2), z + row]
    ),
}
ELSEWHERE = {"row sums"}  # needs the product at other indices, so the product lies in a temporary


@pytest.mark.parametrize("name", EPILOGUES)
@pytest.mark.parametrize("shape", [(2, 30, 45, 40), (1, 40, 50, 1100)], ids=str)
def test_epilogues(name, shape):
    """In one panel of K, and in three."""
    batch, m, n, k = shape
    build, reference = EPILOGUES[name]
    arrays = a, b, row, full = [
        random(i, s, float32) for i, s in enumerate([(batch, m, k), (batch, k, n), (n,), (batch, m, n)])
    ]
    kernel = Kernel(
        lambda e, a, b, row, full: build(e, e.matmul(a, b, ta=False, tb=False), row, full),
        [Aval(x.shape, float32) for x in arrays],
    )
    assert len(kernel.steps) == 1 + (name in ELSEWHERE) + sum("pack" in s.name for s in kernel.steps)
    exact, magnitude = product(a, b)
    scale = (1 + np.abs(row)) * (1 + np.abs(full)) * (1 + magnitude)
    for got, expected in zip(run(kernel, arrays), reference(exact, wide(row), wide(full)), strict=True):
        limit = scale.sum(2) if expected.shape != exact.shape and expected.size != exact.size else scale.max()
        check(got, expected, limit, k + n * (name in ELSEWHERE), float32)


@pytest.mark.parametrize("shape, asked", [
    ((400, 1000, 120), True), ((531, 700, 1030), True), ((60, 1000, 120), False), ((400, 1000, 20), False),
], ids=str)  # fmt: skip
def test_large_epilogues_are_prefetched(shape, asked):
    """Three matrices of 4 MB in all, if K is long; lines are asked for beyond the last row and column, too, which no
    guard page minds.
    """
    m, n, k = shape
    shapes = (m, k), (k, n), (m, n), (n,), (n, m)
    arrays = a, b, full, row, turned = [random(i, s, float32) for i, s in enumerate(shapes)]

    def build(e, a, b, full, row, turned):
        z = e.matmul(a, b, ta=False, tb=False)
        return z * full + row, z + e.transpose(turned, axes=(1, 0))

    kernel = Kernel(build, [Aval(x.shape, float32) for x in arrays])
    blocks = [cpu.routine_text(r) for r in kernel.routines if r.name == "gemm_block"]
    assert any("@llvm.prefetch" in text for text in blocks) == asked
    exact, magnitude = product(a, b)
    for got, expected in zip(run(kernel, arrays), (exact * full + row, exact + turned.T), strict=True):
        check(got, expected, (1 + magnitude) * (1 + np.abs(full)) + np.abs(row) + np.abs(turned.T), k, float32)


def test_epilogue_of_narrow_types():
    """float16 operands and bias: sums and what follows in float32, rounded once at the end."""
    a, b, row = random(1, (30, 64), float16), random(2, (64, 80), float16), random(3, (80,), float16)
    avals = [Aval(x.shape, float16) for x in (a, b, row)]
    kernel = Kernel(lambda e, x, y, r: e.matmul(x, y, ta=False, tb=False) + r, avals)
    (got,) = run(kernel, (a, b, row))
    exact, magnitude = product(a, b)
    check(got, exact + wide(row), magnitude + 1, 64, float16)


@pytest.mark.parametrize("dtype", [float32, complex64, bfloat16], ids=lambda d: d.name)
def test_simple_form(dtype):
    matmul_case(7, 9, 12, False, True, dtype, batch_a=(2,), lower=lower_matmul_simple)


def test_simple_form_with_results_elsewhere():
    a, b = random(1, (4, 6), float32), random(2, (6, 5), float32)
    kernel = Kernel(
        lambda e, x, y: (e.sum(e.matmul(x, y, ta=False, tb=False), axes=(0,)),),
        [Aval(a.shape, float32), Aval(b.shape, float32)],
        lower_matmul_simple,
    )
    exact, magnitude = product(a, b)
    check(run(kernel, (a, b))[0], exact.sum(0), magnitude.sum(0), 10, float32)


# ---- cost and choices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ta, tb", FLAGS)
def test_kernels_are_small_programs(ta, tb):
    avals = [Aval((1024, 1024), float32)] * 2
    module = Module()
    function = module.add_function("mx_matmul", avals)
    m = function.builder_at_end()
    function.returns([m.matmul(*function.arguments, ta=ta, tb=tb)])
    with context, ir.Location.unknown():
        loops = ir.Module.create()
    lower_matmul(function, loops.body)
    loops.operation.verify()
    assert Kernel._count(loops) < 700


def test_host_vector_bytes():
    assert host_vector_bytes() in (16, 32, 64)


def _schedules():
    sizes = (1, 5, 16, 33, 256, 1000, 4097)
    for m, n, k, vector_bytes, size in itertools.product(sizes, sizes, (1, 100, 3000), (16, 32, 64), (4, 8)):
        for ta, tb in FLAGS:
            a = Side(True, *((1, m) if ta else (k, 1)), size)
            b = Side(True, *((k, 1) if tb else (1, n)), size)
            yield (m, n, k, size, vector_bytes, a, b), choose(1, m, n, k, a, b, size, vector_bytes)


def test_schedules_fit():
    """Registers, scratch memory, K and every access in place."""
    for (m, n, k, size, vector_bytes, a, b), s in _schedules():
        tile, registers = s.tile, 16 if vector_bytes == 32 else 32
        assert tile.rows <= m and tile.lanes * size <= vector_bytes
        assert tile.rows * tile.vectors + min(tile.vectors, 4) + 1 <= registers or tile.rows == 1
        assert (s.panels - 1) * s.panel < k <= s.panels * s.panel
        held = s.block_rows if s.panels > 1 else 1
        assert held * tile.rows * (s.block_columns + 1) * tile.columns * size <= 1 << 18
        if tile.along_k:
            assert k >= tile.lanes and n >= tile.columns and a.depth_stride == b.depth_stride == 1
        elif not s.pack_b:
            assert n >= tile.columns and b.lane_stride == 1


def test_large_products_share_evenly():
    """Two and four threads each get within 7% of their part."""
    for n in (512, 1000, 1024, 2048):
        s = choose(1, n, n, n, Side(True, n, 1, 4), Side(True, 1, n, 4), 4, 64)
        tiles = ceil_div(n, s.tile.rows), ceil_div(n, s.tile.columns)
        blocks = ceil_div(tiles[0], s.block_rows) * ceil_div(tiles[1], s.block_columns)
        for threads in (2, 4):
            most = ceil_div(blocks, threads) * s.block_rows * s.block_columns
            assert tiles[0] * tiles[1] / (threads * most) > 0.93
