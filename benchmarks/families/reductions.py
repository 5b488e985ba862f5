"""sum, mean and var over (4096, 4096): down the columns (axis 0), along the rows (axis 1), and of everything."""

import numpy as np
from suite import workload

SIDE = 4096
BLOCK = 256  # columns that one thread of numba's sums at a time
AXES = {"columns": 0, "rows": 1, "all": None}


def reduction(op, name, axis):
    """Enter `op`_`name`. A variance of 2^24 numbers by one float32 accumulator per lane loses digits: 2e-4."""

    @workload(f"{op}_{name}", flops=(4 if op == "var" else 1) * SIDE**2, tolerance=2e-4)
    class reduce:
        def inputs(rng):
            return [rng.uniform(0, 1, (SIDE, SIDE)).astype(np.float32)]  # positive: well conditioned

        def numpy(np, x):
            return getattr(np, op)(x, axis=axis)

        def mlx(mx, x):
            return getattr(mx, op)(x, axis=axis)

        def jax(jax, x):
            return getattr(jax.numpy, op)(x, axis=axis)

        def torch(torch, x):
            options = {"correction": 0} if op == "var" else {}
            return getattr(torch, op)(x, **({} if axis is None else {"dim": axis}), **options)

        def numba(nb):
            return {0: numba_columns, 1: numba_rows, None: numba_all}[axis](nb, op)


def numba_columns(nb, op):
    mean, var = op != "sum", op == "var"

    @nb.njit(parallel=True, fastmath=True)
    def columns(x):
        rows, width = x.shape
        out = np.zeros(width, np.float32)
        for block in nb.prange((width + BLOCK - 1) // BLOCK):
            start, stop = block * BLOCK, min(block * BLOCK + BLOCK, width)
            for i in range(rows):
                for j in range(start, stop):
                    out[j] += x[i, j]
            if mean:
                for j in range(start, stop):
                    out[j] /= np.float32(rows)
            if var:
                squares = np.zeros(stop - start, np.float32)
                for i in range(rows):
                    for j in range(start, stop):
                        squares[j - start] += (x[i, j] - out[j]) ** 2
                for j in range(start, stop):
                    out[j] = squares[j - start] / np.float32(rows)
        return out

    return columns


def numba_rows(nb, op):
    mean, var = op != "sum", op == "var"

    @nb.njit(parallel=True, fastmath=True)
    def along_rows(x):
        rows, width = x.shape
        out = np.empty(rows, np.float32)
        for i in nb.prange(rows):
            total = np.float32(0)
            for j in range(width):
                total += x[i, j]
            if mean:
                total /= np.float32(width)
            if var:
                squares = np.float32(0)
                for j in range(width):
                    squares += (x[i, j] - total) ** 2
                total = squares / np.float32(width)
            out[i] = total
        return out

    return along_rows


def numba_all(nb, op):
    mean, var = op != "sum", op == "var"

    @nb.njit(parallel=True, fastmath=True)
    def everything(x):
        rows, width = x.shape
        total = np.float64(0)
        for i in nb.prange(rows):
            row = np.float32(0)
            for j in range(width):
                row += x[i, j]
            total += row
        if mean:
            total /= x.size
        if not var:
            return np.float32(total)
        centre = np.float32(total)
        squares = np.float64(0)
        for i in nb.prange(rows):
            row = np.float32(0)
            for j in range(width):
                row += (x[i, j] - centre) ** 2
            squares += row
        return np.float32(squares / x.size)

    return everything


for each_op in ("sum", "mean", "var"):
    for each_name, each_axis in AXES.items():
        reduction(each_op, each_name, each_axis)
