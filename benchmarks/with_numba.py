"""Numba: loops by hand, `@njit(parallel=True, fastmath=True)`, for the workloads whose loops fit on a page."""

import math

import numba
import numpy as np
from numba import njit, prange

VERSION = f"numba {numba.__version__}"
BLOCK = 256  # columns that one thread sums at a time


@njit(parallel=True, fastmath=True)
def softmax(x):
    out = np.empty_like(x)
    for i in prange(x.shape[0]):
        top = x[i, 0]
        for j in range(x.shape[1]):
            top = max(top, x[i, j])
        total = np.float32(0)
        for j in range(x.shape[1]):
            e = math.exp(x[i, j] - top)
            out[i, j] = e
            total += e
        scale = np.float32(1) / total
        for j in range(x.shape[1]):
            out[i, j] *= scale
    return (out,)


@njit(parallel=True, fastmath=True)
def chain(x):
    out = np.empty_like(x)
    for i in prange(x.size):
        t = math.sin(x[i] * np.float32(1.5) + np.float32(0.25)) * x[i]
        out[i] = max(math.exp(-math.sqrt(abs(t) + np.float32(1))), np.float32(0.1))
    return (out,)


@njit(fastmath=True)
def gelu(x):
    return np.float32(0.5) * x * (np.float32(1) + math.erf(x * np.float32(0.5**0.5)))


@njit(parallel=True, fastmath=True)
def gelu_chain(x, w, b):
    out = np.empty_like(x)
    for i in prange(x.shape[0]):
        for j in range(x.shape[1]):
            out[i, j] = gelu(gelu(x[i, j] + b[j]) * w[j])
    return (out,)


@njit(parallel=True, fastmath=True)
def sum_all(x):
    total = np.float64(0)
    for i in prange(x.shape[0]):
        row = np.float32(0)
        for j in range(x.shape[1]):
            row += x[i, j]
        total += row
    return (np.float32(total),)


@njit(parallel=True, fastmath=True)
def sum_rows(x):
    out = np.empty(x.shape[0], np.float32)
    for i in prange(x.shape[0]):
        row = np.float32(0)
        for j in range(x.shape[1]):
            row += x[i, j]
        out[i] = row
    return (out,)


@njit(parallel=True, fastmath=True)
def sum_columns(x):
    out = np.zeros(x.shape[1], np.float32)
    for block in prange((x.shape[1] + BLOCK - 1) // BLOCK):
        start = block * BLOCK
        stop = min(start + BLOCK, x.shape[1])
        for i in range(x.shape[0]):
            for j in range(start, stop):
                out[j] += x[i, j]
    return (out,)


FUNCTIONS = {f.__name__: f for f in (softmax, chain, gelu_chain, sum_all, sum_columns, sum_rows)}


def prepare(name, inputs):
    return lambda: FUNCTIONS[name](*inputs)
