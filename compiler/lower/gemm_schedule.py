"""Chooses how a matrix product is computed on a CPU: the register tile, the blocks, what is packed. No MLIR here.

The rules are those that measured best on a Zen 4 with AVX-512; a product is right whatever they say.
"""

from __future__ import annotations

from typing import NamedTuple

PANEL = 512  # of K: a panel of b (PANEL x tile columns) streams from L2 while a's rows of the tile stay in L1
SCRATCH_BYTES = 1 << 17  # sums of a block between the panels of K, on the stack
L2_SHARE = 1 << 18  # a matrix of so many bytes stays in L2 beside the rest
LARGE = 1 << 20  # one of so many does not
LOCAL_ROWS = 512  # so many rows of C may be one block of a single panel
LAST_CACHE = 1 << 23  # one of so many comes from main memory
UNUSUAL = 1.2  # so much better must a tile be that is compiled for a few products only
ROW_TILES = 6  # so many rows of tiles pay for packing b
FEW_ROWS = 8  # for so many, a matrix that is computed from less is computed anew for each tile


class Side(NamedTuple):
    """An operand in memory: lane l at depth k lies at l * lane_stride + k * depth_stride, in elements of `size` bytes.

    The lanes of `a` are its rows, those of `b` its columns. Without `plain` it has no strides and is packed, unless it
    can be computed in chunks of `computed` elements along K (lanes.py).
    """

    plain: bool
    lane_stride: int
    depth_stride: int
    size: int
    computed: int = 0


class Tile(NamedTuple):
    """A register tile: `rows` x `columns` elements of C in rows * vectors registers of `lanes` each.

    `along_k`: each register holds partial sums of one element, and vectors == columns.
    """

    rows: int
    vectors: int
    lanes: int
    along_k: bool = False

    @property
    def columns(self) -> int:
        return self.vectors if self.along_k else self.vectors * self.lanes


class Schedule(NamedTuple):
    """`panels` panels of `panel` steps along K; blocks of block_rows x block_columns tiles.

    `local`: no step packs b, but each block what it reads of it.
    """

    tile: Tile
    pack_a: bool
    pack_b: bool
    panel: int
    panels: int
    block_rows: int
    block_columns: int
    local: bool = False


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def should_swap(m: int, n: int, a: Side, lanes: int) -> bool:
    """Whether to compute the transpose: a narrow C would leave lanes empty, and `a` can be read along its rows."""
    return a.plain and a.lane_stride == 1 and (n == 1 or 4 * n <= 3 * lanes) and m >= 2 * lanes


def choose(
    batch: int, m: int, n: int, depth: int, a: Side, b: Side, size: int, vector_bytes: int, whole: bool = True,
    local: bool = True,
) -> Schedule:  # fmt: skip
    """For `batch` products m x depth by depth x n, with sums of `size` bytes, on vectors of `vector_bytes`.

    Without `whole`, the depth is not known and vectors do not lie along it. `local`: blocks may pack b.
    """
    lanes, registers = vector_bytes // size, 16 if vector_bytes == 32 else 32
    deep = b.depth_stride == 1 if b.plain else b.computed > 0 and m <= FEW_ROWS
    along_k = whole and a.plain and a.depth_stride == 1 and deep and depth >= lanes
    # A sum across a register costs about as much as `lanes` steps along K.
    if along_k and (n == 1 or m <= min(64, depth // lanes)):
        rows = min(m, 4 if registers == 32 else 2)
        tile, pack_a, pack_b = Tile(rows, min(n, 8 if rows == 1 else 4), lanes, along_k=True), False, False
    else:
        while lanes > 4 and lanes // 2 >= n:
            lanes //= 2
        pack_a = _pack_a(m, n, depth, a, lanes)
        tile = choose_tile(m, n, lanes, registers, 8 if not pack_a and _crowded(a) else 24)
        in_place = b.plain and b.lane_stride == 1 and n >= tile.columns
        pack_b = not in_place or (ceil_div(m, tile.rows) > ROW_TILES and depth * n * b.size > L2_SHARE)
    in_runs = b.computed > 0 or (b.plain and (b.lane_stride == 1 or (b.depth_stride == 1 and depth >= lanes)))
    local = local and pack_b and in_runs and n >= tile.columns
    return _blocks(batch, m, n, depth, size, tile, pack_a, pack_b, b, local)


def _crowded(a: Side) -> bool:
    """Rows whose distance is a multiple of 4 KB compete for a few lines of L1: more than 8 of them do not fit."""
    return a.depth_stride == 1 and a.lane_stride * a.size % 4096 == 0


def _pack_a(m: int, n: int, depth: int, a: Side, lanes: int) -> bool:
    if not a.plain:
        return True
    if a.size == 2 and n >= 4 * lanes:
        return True  # converts each element once instead of once per tile
    if a.depth_stride == 1:
        return False  # the rows of a tile are runs of memory, read in order, which stay in L1
    # The rows of k of a tile lie far apart; where their distance is such, they compete for a few lines of L1.
    return m > 8 and n >= 16 * lanes and m * depth * a.size >= LARGE and a.depth_stride * a.size % 2048 == 0


def choose_tile(m: int, n: int, lanes: int, registers: int, most_rows: int = 24) -> Tile:
    """The tile whose estimated cycles for the whole product are fewest: two multiply-adds or two loads per cycle.

    Of similar ones the one that most products share: 6 x 4 registers of 32, 6 x 2 of 16.
    """
    usual = ((6, 4), (12, 2), (8, 1)) if registers == 32 else ((6, 2), (8, 1))
    best, least = Tile(1, 1, lanes), float("inf")

    def cycles(rows: int, vectors: int) -> float:
        return max(rows * vectors / 2, (rows + vectors) / 2, 4.0) + 0.5

    for vectors in (4, 2, 1, 3, 6, 8) if registers == 32 else (2, 1, 3, 4, 6, 8):
        if vectors > 1 and vectors * lanes > n:
            continue
        for rows in range(1, min(m, most_rows, 16 if vectors > 1 else 24) + 1):
            if rows * vectors + vectors + 1 > registers:
                break
            whole, rest = max(n // (vectors * lanes), 1), max(n - vectors * lanes, 0) % (vectors * lanes)
            edge = cycles(rows, ceil_div(rest, lanes)) if rest else 0.0
            total = ceil_div(m, rows) * (whole * cycles(rows, vectors) + edge)
            if (rows, vectors) not in usual:
                total *= UNUSUAL
            if total < least * 0.999:
                best, least = Tile(rows, vectors, lanes), total
    return best


def _blocks(
    batch: int, m: int, n: int, depth: int, size: int, tile: Tile, pack_a: bool, pack_b: bool, b: Side, local: bool
) -> Schedule:
    # A large matrix that is read in place is read a few whole rows at a time, the order in which it lies in memory.
    streamed = not tile.along_k and not pack_b and depth * n * b.size > L2_SHARE
    most = depth if tile.along_k else (8 if m <= 4 else 16) if streamed else PANEL
    panel = ceil_div(depth, ceil_div(depth, most))
    panels = ceil_div(depth, panel)
    row_tiles, column_tiles = ceil_div(m, tile.rows), ceil_div(n, tile.columns)
    # Long runs of each row of it, which the processor fetches ahead; few rows of C leave room for their sums.
    outside = depth * n * b.size > LAST_CACHE
    run = ((4096 if outside else 2048) if m <= 16 else 512) if streamed else 256
    columns = min(column_tiles, max(1, run // tile.columns))
    rows = 256 // tile.rows if panels == 1 else SCRATCH_BYTES // ((columns + 1) * tile.columns * size) // tile.rows
    # Where all rows are one block, its columns need not be packed before: they stay in L2 until all rows are done.
    most_rows = (LOCAL_ROWS if panels == 1 else SCRATCH_BYTES // (2 * tile.columns * size)) // tile.rows
    local = local and row_tiles <= most_rows and panel % max(b.computed, 1) == 0
    rows = row_tiles if local else min(row_tiles, max(1, rows))
    if local and panels > 1:
        columns = min(columns, max(1, SCRATCH_BYTES // (row_tiles * tile.rows * tile.columns * size) - 1))
    # Two threads get halves; more threads get shorter runs where these come from a cache.
    half = max(ceil_div(column_tiles, 2), 256 // tile.columns)
    fewest = min(columns, half, run // (2 if outside else 4) // tile.columns) if streamed else 1
    least = (rows if local else 1), max(1, fewest)
    rows, columns = _even_blocks(batch, row_tiles, column_tiles, least, (rows, columns))
    return Schedule(tile, pack_a, pack_b, panel, panels, rows, columns, local)


def _even_blocks(
    batch: int, row_tiles: int, column_tiles: int, least: tuple[int, int], most: tuple[int, int]
) -> tuple[int, int]:
    """(rows, columns) of a block in tiles: even shares for 2, 4, 8 and 16 threads, and few blocks."""
    best, block = float("-inf"), (1, 1)
    tiles = batch * row_tiles * column_tiles
    for columns in range(least[1], most[1] + 1):
        for rows in range(least[0], most[0] + 1):
            count = batch * ceil_div(row_tiles, rows) * ceil_div(column_tiles, columns)
            share = sum(tiles / (t * ceil_div(count, t) * rows * columns) for t in (2, 4, 8, 16))
            score = share - 0.08 * count.bit_length()
            if score > best:
                best, block = score, (rows, columns)
    return block
