"""Convolution kernels: lowered, compiled and run on guarded memory, against the record's reference in float64."""

from math import prod

import numpy as np
import pytest
from guarded import Kernel, run

from mlxir.compiler.lower.conv import lower_conv
from mlxir.compiler.lower.conv_product import lower_conv_simple
from mlxir.compiler.lower.conv_schedule import Extents, along_kernel, kernel_schedule, output_schedule, phases
from mlxir.dialects.mx import Aval
from mlxir.dialects.mx.conv import Axis, axes_of, conv
from mlxir.runtime.dtypes import bfloat16, float16, float32, float64
from mlxir.runtime.errors import CompileError

EPS = {float16: 2.0**-11, bfloat16: 2.0**-8, float32: 2.0**-24, float64: 2.0**-53}


def attributes(rank, groups=1, flip=False, **sizes):
    names = (("stride", 1), ("low", 0), ("high", 0), ("dilation", 1), ("input_dilation", 1))
    return {**{n: sizes.get(n, (d,) * rank) for n, d in names}, "groups": groups, "flip": flip}


def check(x, w, attrs, dtype=float32, build=None, expect=None, lower=lower_conv, **options):
    """A kernel of one convolution, and what follows it, gives what NumPy gives in float64."""
    rng = np.random.default_rng([prod(x), prod(w)])
    operands = [rng.standard_normal(s).astype(dtype.numpy) for s in (x, w)]
    build = build or (lambda m, x, w: m.conv(x, w, **attrs))
    kernel = Kernel(build, [Aval(s, dtype) for s in (x, w)], lower, **options)
    wide = [a.astype(np.float64) for a in operands]
    (expected,), (bound,) = conv.reference(*wide, **attrs), conv.reference(*map(np.abs, wide), **attrs)
    expect = expect or (lambda y: [y])
    limits = [prod(w[1:]) * EPS[float32 if dtype.size == 2 else dtype] * b for b in expect(bound)]
    for got, y, limit in zip(run(kernel, operands), expect(expected), limits, strict=True):
        got = got.astype(np.float64)
        assert got.shape == y.shape
        assert (np.abs(got - y) <= limit + 2 * EPS[dtype] * np.abs(y) + 1e-30).all()
    return kernel


# ---- shapes ---------------------------------------------------------------------------------------------------------
SHAPES = {
    "one channel": ((4, 28, 28, 1), (16, 3, 3, 1), attributes(2, low=(1, 1), high=(1, 1))),
    "uneven channels": ((2, 13, 11, 5), (37, 3, 3, 5), attributes(2, low=(1, 1), high=(1, 1))),
    "narrow output": ((3, 9, 9, 8), (2, 3, 3, 8), attributes(2)),
    "one output channel": ((2, 10, 11, 16), (1, 3, 3, 16), attributes(2, low=(1, 1), high=(1, 1))),
    "three output channels": ((2, 14, 9, 24), (3, 4, 4, 24),
                              attributes(2, input_dilation=(2, 2), low=(2, 2), high=(2, 2))),
    "few channels in groups": ((2, 9, 10, 32), (4, 3, 3, 16), attributes(2, groups=2, stride=(1, 2))),
    "wide image": ((1, 300, 16), (24, 5, 16), attributes(1, low=(2,), high=(2,))),
    "window larger than L2": ((1, 20, 130, 300), (20, 3, 3, 300), attributes(2, low=(1, 1), high=(1, 1))),
    "strides and gaps": ((2, 17, 14, 6), (9, 3, 2, 6),
                         attributes(2, stride=(2, 3), dilation=(1, 2), low=(1, 0), high=(3, 4), flip=True)),
    "crops": ((2, 16, 15, 4), (8, 3, 3, 4), attributes(2, low=(-2, -1), high=(-1, 0))),
    "three axes": ((2, 6, 7, 9, 5), (12, 2, 3, 3, 5), attributes(3, low=(1, 0, 1), high=(0, 1, 1), stride=(2, 1, 1))),
    "input gaps": ((2, 9, 8, 6), (10, 3, 3, 6), attributes(2, input_dilation=(2, 3), low=(2, 1), high=(1, 2))),
    "gaps without taps": ((2, 9, 6), (18, 1, 6), attributes(1, input_dilation=(3,))),
    "gaps and strides": ((1, 30, 4), (20, 5, 4), attributes(1, input_dilation=(4,), stride=(6,), dilation=(2,))),
    "groups": ((2, 9, 10, 12), (20, 3, 3, 3), attributes(2, groups=4, low=(1, 1), high=(1, 1))),
    "depthwise": ((2, 12, 13, 21), (21, 3, 3, 1), attributes(2, groups=21, low=(1, 1), high=(1, 1))),
    "depthwise strided": ((1, 15, 15, 32), (32, 5, 5, 1), attributes(2, groups=32, stride=(2, 2), low=(2, 2))),
    "depthwise times two": ((1, 10, 10, 8), (16, 3, 3, 1), attributes(2, groups=8)),
    # along the kernel: the gradients of weights
    "many taps": ((24, 30, 28, 7), (40, 28, 26, 7), attributes(2)),
    "few images": ((3, 16, 15, 9), (33, 14, 13, 9), attributes(2, low=(0, 1), high=(1, 0))),
    "many taps, dilated": ((20, 19, 4), (12, 8, 4), attributes(1, stride=(2,), dilation=(2,), high=(2,))),
    "one output": ((19, 6, 7, 10), (21, 6, 7, 10), attributes(2)),
    "many taps in groups": ((17, 11, 12, 30), (18, 9, 10, 10), attributes(2, groups=3)),
    "many taps, depthwise": ((1, 14, 13, 40 * 5), (40, 12, 11, 5), attributes(2, groups=40)),
    "many taps of three axes": ((9, 6, 8, 8, 3), (20, 5, 6, 7, 3), attributes(3)),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name):
    x, w, attrs = SHAPES[name]
    kernel = check(x, w, attrs)
    assert len(kernel.steps) > 1, "the plain form was taken"
    phase = [phases(a)[0] for a in axes_of(x, w, attrs)]
    phase = (*[phases(Axis(1, 1, 1, 0, 0, 1, 1))[0]] * (3 - len(phase)), *phase)
    extents = Extents(x[0], attrs["groups"], w[0] // attrs["groups"], w[-1], phase)
    assert along_kernel(extents) == (name.startswith("many taps") or name in ("few images", "one output"))


@pytest.mark.parametrize("vector_bytes", [16, 32])
@pytest.mark.parametrize("name", ["uneven channels", "depthwise", "many taps", "few images", "input gaps"])
def test_vector_widths(name, vector_bytes):
    check(*SHAPES[name], vector_bytes=vector_bytes)


@pytest.mark.parametrize("dtype", [float16, bfloat16, float64], ids=lambda d: d.name)
@pytest.mark.parametrize("name", ["uneven channels", "depthwise", "few images"])
def test_dtypes(name, dtype):
    check(*SHAPES[name], dtype=dtype)


@pytest.mark.parametrize("name", ["strides and gaps", "gaps and strides", "groups"])
def test_plain_form(name):
    assert len(check(*SHAPES[name], lower=lower_conv_simple).steps) == 1


# ---- what is fused --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["uneven channels", "few images", "input gaps"])
def test_what_follows_is_computed_in_the_kernel(name):
    x, w, attrs = SHAPES[name]
    steps = len(check(x, w, attrs).steps)
    relu = check(x, w, attrs, build=lambda m, x, w: m.maximum(m.conv(x, w, **attrs) * 2.0, m.scalar(0, x.dtype)),
                 expect=lambda y: [np.maximum(y * 2, 0)])  # fmt: skip
    both = check(x, w, attrs, build=lambda m, x, w: [y := m.conv(x, w, **attrs), y * y], expect=lambda y: [y, y * y])
    assert len(relu.steps) == len(both.steps) == steps


@pytest.mark.parametrize("name", ["uneven channels", "many taps"])
def test_results_are_written_transposed(name):
    x, w, attrs = SHAPES[name]
    turned = check(x, w, attrs, build=lambda m, x, w: m.transpose(m.conv(x, w, **attrs), axes=(3, 1, 2, 0)),
                   expect=lambda y: [y.transpose(3, 1, 2, 0)])  # fmt: skip
    assert len(turned.steps) == len(check(x, w, attrs).steps)


def test_operands_are_computed_while_they_are_copied():
    x, w, attrs = (2, 16, 10, 6), (12, 3, 3, 6), attributes(2)
    operands = [np.random.default_rng(0).standard_normal(s).astype(np.float32) for s in (x, w)]
    build = lambda m, x, w: m.conv(m.exp(m.transpose(x, axes=(0, 2, 1, 3))), -w, **attrs)  # noqa: E731
    (got,) = run(Kernel(build, [Aval(s, float32) for s in (x, w)], lower_conv), operands)
    wide = [a.astype(np.float64) for a in operands]
    (expected,) = conv.reference(np.exp(wide[0].transpose(0, 2, 1, 3)), -wide[1], **attrs)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_no_elements():
    attrs = attributes(1)
    avals = [Aval((0, 9, 2), float32), Aval((3, 2, 2), float32)]
    assert Kernel(lambda m, x, w: m.conv(x, w, **attrs), avals, lower_conv).steps == []
    with pytest.raises(CompileError):
        Kernel(lambda m, x, w: m.sum(m.conv(x, w, **attrs), axes=(0, 1, 2)), avals, lower_conv)


# ---- schedules ------------------------------------------------------------------------------------------------------
def test_phases_cover_each_output_once_and_only_places_that_exist():
    for stride in (1, 2, 3, 4):
        for gap in (1, 2, 3, 4):
            for dilation in (1, 2, 3):
                axis = Axis(7, 4, stride, 2, 3, dilation, gap)
                pairs = {
                    (p.first + i * p.step, p.tap + j * p.tap_step): i * p.stride + j * p.dilation - p.low
                    for p in phases(axis) for i in range(p.outputs) for j in range(p.taps)
                }  # fmt: skip
                wanted = {
                    (o, k): place // gap
                    for o in range(axis.outputs) for k in range(axis.taps)
                    if (place := o * stride + k * dilation - axis.low) % gap == 0
                }  # fmt: skip
                assert pairs == wanted
                firsts = [p.first + i * p.step for p in phases(axis) for i in range(p.outputs)]
                assert sorted(firsts) == list(range(axis.outputs))


def test_scratch_memory_is_bounded():
    unit = phases(Axis(1, 1, 1, 0, 0, 1, 1))[0]
    for size, taps, depth, outs in ((56, 3, 64, 64), (224, 7, 3, 64), (7, 3, 512, 512), (2000, 3, 512, 16)):
        axis = phases(Axis(size, taps, 1, taps // 2, taps // 2, 1, 1))[0]
        extents = Extents(8, 1, outs, depth, (unit, axis, axis))
        found = output_schedule(extents, 4, 64)
        places = axis.window(found.rows, taps) * axis.window(found.columns, taps)
        assert places * depth * 4 <= 1 << 19
    huge = phases(Axis(4000, 3999, 1, 0, 0, 1, 1))[0]
    assert output_schedule(Extents(1, 1, 1, 4096, (unit, unit, huge)), 4, 64) is None
    assert kernel_schedule(Extents(100000, 1, 4, 1, (unit, unit, huge)), 4, 64).images < 100000
