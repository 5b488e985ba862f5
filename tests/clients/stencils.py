"""Steps of stencils in compiled loops: heat by rolled arrays, waves by slices and padding, the game of life."""

import json

import mlx.core as mx


@mx.compile
def heat(u):
    for _ in range(3):
        around = mx.roll(u, 1, 0) + mx.roll(u, -1, 0) + mx.roll(u, 1, 1) + mx.roll(u, -1, 1)
        u = u + 0.1 * (around - 4 * u)
    return u


@mx.compile
def wave(now, before):
    for _ in range(3):
        inner = now[1:-1, 1:-1]
        laplacian = now[2:, 1:-1] + now[:-2, 1:-1] + now[1:-1, 2:] + now[1:-1, :-2] - 4 * inner
        now, before = mx.pad(2 * inner - before[1:-1, 1:-1] + 0.2 * laplacian, 1), now
    return now, before


@mx.compile
def life(grid):
    for _ in range(3):
        neighbours = sum(mx.roll(grid, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0))
        grid = mx.logical_or(neighbours == 3, mx.logical_and(grid == 1, neighbours == 2)).astype(mx.int32)
    return grid


mx.random.seed(2)
u, (now, before) = mx.random.normal((12, 16)), 2 * [mx.zeros((14, 14)).at[6, 7].add(1.0)]
grid = mx.zeros((10, 12), dtype=mx.int32)
grid[mx.array([0, 1, 2, 2, 2]), mx.array([1, 2, 0, 1, 2])] = 1
for _ in range(2):
    u, (now, before), grid = heat(u), wave(now, before), life(grid)
print(json.dumps({"heat": u[::4, ::5].tolist(), "wave": now[4:9, 5:10].tolist(), "life": grid.tolist()}))
