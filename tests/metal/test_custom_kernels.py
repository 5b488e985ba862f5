"""`mx.fast.metal_kernel`: a user's Metal source, compiled and executed in emulation."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import mlxir as mx
from mlxir.runtime import devices
from mlxir.runtime.emulator import unavailable_reason
from mlxir.runtime.emulator.device import EmulatedMetal
from mlxir.runtime.metal.device import Device, DeviceError

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device(EmulatedMetal())
    monkeypatch.setattr(devices, "gpu", lambda: made)
    yield made
    made.synchronize()


def normal(*shape: int) -> mx.array:
    return mx.array(np.random.default_rng(5).standard_normal(shape).astype(np.float32))


def test_a_kernel_with_a_template_argument() -> None:
    kernel = mx.fast.metal_kernel(
        name="exponential", input_names=["x"], output_names=["y"],
        source="uint i = thread_position_in_grid.x;\nT v = x[i];\ny[i] = metal::exp(v) * SCALE;",
    )  # fmt: skip
    x = normal(3, 40)
    (y,) = kernel(
        inputs=[x], template=[("T", mx.float32), ("SCALE", 3)], grid=(x.size, 1, 1), threadgroup=(64, 1, 1),
        output_shapes=[x.shape], output_dtypes=[mx.float32],
    )  # fmt: skip
    np.testing.assert_allclose(np.array(y), 3 * np.exp(np.array(x)), rtol=1e-6)


def test_a_flag_is_no_number() -> None:
    kernel = mx.fast.metal_kernel(
        name="flag", input_names=["x"], output_names=["y"], source="y[0] = x[0] + sizeof(decltype(F));"
    )
    found = [
        kernel(
            inputs=[mx.zeros(8)], template=[("F", flag)], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)],
            output_dtypes=[mx.float32],
        )[0].item()
        for flag in (True, 1)
    ]  # fmt: skip
    assert found == [1, 4]


def test_shapes_and_strides_are_at_hand(capsys: pytest.CaptureFixture) -> None:
    """A number is passed by reference; MLX's elem_to_loc is there."""
    kernel = mx.fast.metal_kernel(
        name="scaled", input_names=["x", "s"], output_names=["y"],
        source="uint i = thread_position_in_grid.x;\nuint at = elem_to_loc(i, x_shape, x_strides, x_ndim);\n"
        "y[i] = x[at] * s + x_shape[1];",
    )  # fmt: skip
    x = normal(5, 12)
    (y,) = kernel(
        inputs=[x, 2.0], grid=(60, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(5, 12)], output_dtypes=[mx.float32],
        verbose=True,
    )  # fmt: skip
    np.testing.assert_allclose(np.array(y), np.array(x) * 2 + 12, rtol=1e-6)
    assert "const constant float& s [[buffer(1)]]" in capsys.readouterr().out


def test_atomic_outputs_with_a_first_value() -> None:
    kernel = mx.fast.metal_kernel(
        name="counts", input_names=["x"], output_names=["y"], atomic_outputs=True,
        source="uint i = thread_position_in_grid.x;\natomic_fetch_add_explicit(&y[x[i]], 1, memory_order_relaxed);",
    )  # fmt: skip
    x = np.random.default_rng(0).integers(0, 5, 70).astype(np.int32)
    (y,) = kernel(
        inputs=[mx.array(x)], grid=(70, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(5,)], output_dtypes=[mx.int32],
        init_value=10,
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(y), np.bincount(x, minlength=5) + 10)


def test_half_precision_and_a_header() -> None:
    kernel = mx.fast.metal_kernel(
        name="halved", input_names=["x"], output_names=["y", "z"],
        header="inline float half_of(float v) {\n  return v * 0.5f;\n}",
        source="uint i = thread_position_in_grid.x;\nfloat v = half_of(float(x[i]));\ny[i] = bfloat16_t(v);\nz[i] = v;",
    )  # fmt: skip
    x = mx.array(np.arange(33, dtype=np.float16))
    y, z = kernel(
        inputs=[x], grid=(33, 1, 1), threadgroup=(32, 1, 1), output_shapes=[(33,)] * 2,
        output_dtypes=[mx.bfloat16, mx.float32],
    )  # fmt: skip
    np.testing.assert_array_equal(np.array(z), np.arange(33) / 2)
    np.testing.assert_array_equal(np.array(y.astype(mx.float32)), np.arange(33) / 2)


def test_what_is_wrong_is_told() -> None:
    """Faults of the source by line, sizes that do not fit, and arrays without data."""

    def run(source: str, x: mx.array, grid: int = 8) -> mx.array:
        kernel = mx.fast.metal_kernel(name="k", input_names=["x"], output_names=["y"], source=source)
        sizes = {"grid": (grid, 1, 1), "threadgroup": (8, 1, 1), "output_shapes": [(8,)]}
        return kernel(inputs=[x], output_dtypes=[mx.float32], **sizes)[0]

    copy = "y[thread_position_in_grid.x] = x[thread_position_in_grid.x];"
    with pytest.raises(DeviceError, match="undeclared identifier 'z'"):
        run("y[0] = z;", normal(8))
    late = run(copy, normal(8), grid=9)
    with pytest.raises(DeviceError, match=r"out-of-bounds read .* of x"):
        mx.eval(late)
    with pytest.raises(ValueError, match="no type for complex64"):
        run(copy, normal(8).astype(mx.complex64))
    with pytest.raises(ValueError, match="not allowed during compile"):
        mx.compile(lambda x: run(copy, x))(normal(8))
