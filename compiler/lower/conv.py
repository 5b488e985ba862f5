"""Lowers convolution kernels for a CPU: implicit GEMM, without an array of patches in memory.

A tile of rows x vectors registers sums over a nest of loops, taps and channels, with addresses that are affine in all
of them. Its scalars and vectors come from windows: the part of an operand that a block needs, copied to scratch once
with its padding, so that no tile tests for borders, and any layout, dtype or computed operand will do.

    scf.parallel (%block)                                     along the output: image x group x rows of the output
      window of x -> scratch
      scf.for (%tile of channels) scf.for (%row)
        scf.for (%tile of columns)                            register tiles
          scf.for (%tap) scf.for (%channel) { load w; broadcast x; vector.fma ... }
        scf.for (%column) scf.parallel (%channel)             bias, activation, casts -> results

    scf.parallel (%block)                                     along the kernel: parts of the taps
      scf.for (%panel) { windows of x and w -> scratch; tiles for all outputs add to the sums in memory }
    scf.parallel (%row) { adds the sums of all parts; bias, ... -> results }

The second is the gradient of the weights, whose taps are the outputs of the forward convolution (conv_schedule.py).
"""

from __future__ import annotations

import itertools

from mlxir.compiler.lower.conv_kernel import AlongKernel
from mlxir.compiler.lower.conv_output import AlongOutput
from mlxir.compiler.lower.conv_product import Convolution, lower_plain
from mlxir.compiler.lower.conv_schedule import Extents, along_kernel, kernel_schedule, output_schedule, phases
from mlxir.compiler.lower.conv_tile import Part
from mlxir.compiler.lower.gemm import SMALL, host_vector_bytes
from mlxir.compiler.lower.gemm_product import StepBuilder
from mlxir.compiler.lower.loops import Lowered
from mlxir.dialects.mlir import Function, context, ir

MOST_PHASES = 36  # each is code of its own


def lower_conv(function: Function, body: ir.Block, vector_bytes: int | None = None) -> Lowered:
    """Lower a kernel with one convolution into the module whose body block is given, for a CPU.

    `vector_bytes` is the width of its vector registers, by default that of this machine. Raises CompileError where the
    product has no elements but a result has some.
    """
    with context, ir.Location.unknown():
        product = Convolution(function)
        if product.empty or product.tensor.aval.size * product.terms <= SMALL:
            return lower_plain(product, body)
        parts = _parts(product, vector_bytes or host_vector_bytes())
        if parts is None:
            return lower_plain(product, body)
        builder = StepBuilder(product, body)
        for part in parts:
            part.add(builder)
        return builder.finish()


def _parts(product: Convolution, vector_bytes: int) -> list[Part] | None:
    """One part per phase of the output; None where blocks do not pay or do not fit."""
    size = product.sum_dtype.size
    parts: list[Part] = []
    every = list(itertools.product(*[phases(a) for a in product.axes]))
    if len(every) > MOST_PHASES:
        return None
    for number, axes in enumerate(every):
        extents = Extents(product.n.extent, product.groups, product.outs, product.depth, axes)
        suffix = f"_phase{number}" if number else ""
        if along_kernel(extents):
            by_kernel = kernel_schedule(extents, size, vector_bytes)
            if by_kernel is None:
                return None
            parts.append(AlongKernel(product, extents, suffix, by_kernel))
        else:
            by_output = output_schedule(extents, size, vector_bytes)
            if by_output is None:
                return None
            parts.append(AlongOutput(product, extents, suffix, by_output))
    return parts
