"""The product's Metal runtime on an emulated device: what it sends, in which order, and what it leaves behind."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from metal.emulation import traced

import mlxir as mx
from mlxir.compiler.cache import library_step
from mlxir.compiler.pipeline import compile_metal
from mlxir.dump import trace
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.dtypes import float32
from mlxir.runtime.emulator import unavailable_reason
from mlxir.runtime.emulator.device import EmulatedMetal, MetalMisuseError
from mlxir.runtime.metal import commands, memory
from mlxir.runtime.metal.abi import CONSTANTS, PAGE
from mlxir.runtime.metal.commands import Binding, Commands
from mlxir.runtime.metal.device import MOST_UNDER_WAY, Device, DeviceError
from mlxir.runtime.metal.executable import Executable
from mlxir.runtime.stream import LateBuffer

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")

NO_COPY = "newBufferWithBytesNoCopy:length:options:deallocator:"
ADD = """\
#include <metal_stdlib>
using namespace metal;
kernel void add(device const float* x [[buffer(0)]], device float* y [[buffer(1)]],
                uint i [[thread_position_in_grid]]) {
  y[i] = x[i] + 1.0f;
}
"""


class Recorded(EmulatedMetal):
    """An emulated device that notes the selectors it is sent."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        self.sent: list[tuple[str, tuple]] = []

    def send(self, receiver: int | None, selector: str, *arguments: Any) -> Any:
        self.sent.append((selector, arguments))
        return super().send(receiver, selector, *arguments)

    def count(self, selector: str) -> int:
        return sum(s == selector for s, _ in self.sent)


@pytest.fixture
def backend() -> Recorded:
    return Recorded()


@pytest.fixture
def device(backend: Recorded) -> Device:
    return Device(backend)


def floats(*shape: int) -> Buffer:
    return memory.share(Buffer.from_numpy(np.arange(np.prod(shape), dtype=np.float32).reshape(shape)))


def executable(device: Device, fn: Callable, *arrays: np.ndarray) -> tuple[Executable, list[Buffer]]:
    program, arguments = traced(fn, *arrays)
    return Executable(device, *compile_metal(program), library_step), [Buffer.from_numpy(a) for a in arguments]


def chain(x: Buffer, *ys: Buffer) -> Callable[[Commands, Device], None]:
    """x + 1 -> ys[0], + 1 -> ys[1], ... as dispatches."""

    def record(commands: Commands, device: Device) -> None:
        pipeline = device.shaders(ADD).pipeline("add")
        for source, target in zip((x, *ys), ys, strict=False):
            bindings = [
                Binding(0, source.pointer, source.nbytes, True, False),
                Binding(1, target.pointer, target.nbytes, False, True),
            ]
            commands.dispatch(pipeline, bindings, (x.shape[0], 1, 1), (32, 1, 1), False)

    return record


# -- memory ------------------------------------------------------------------------------------------------------------
def test_results_are_shared_with_numpy_without_a_copy(device: Device, backend: Recorded) -> None:
    x, y = floats(50), floats(50)
    with device.autoreleased(), Commands(device) as recorder:
        chain(x, y)(recorder, device)
    np.testing.assert_array_equal(y.numpy(), np.arange(50) + 1)
    regions = [a for s, a in backend.sent if s.startswith("newBufferWithBytesNoCopy")]
    assert regions and all(address % PAGE == 0 == nbytes % PAGE for address, nbytes, *_ in regions)
    assert any(a <= y.pointer < a + n for a, n, *_ in regions)


def test_memory_of_others_moves_once() -> None:
    buffer = Buffer.from_numpy(np.arange(1000, dtype=np.float32))
    before = buffer.pointer
    moved = memory.share(buffer)
    assert moved is buffer and buffer.pointer != before
    assert memory.pages.region_of(buffer.pointer) is not None
    np.testing.assert_array_equal(buffer.numpy(), np.arange(1000))
    at = buffer.pointer
    assert memory.share(buffer).pointer == at


def test_a_mapping_that_ends_takes_its_metal_buffer_along(device: Device, backend: Recorded) -> None:
    block = memory.pages.block(memory.SLAB)
    device.buffer(block[0])
    assert backend.living()["MTLBuffer"] == 1
    region = memory.pages.region_of(block[0])
    del block
    gc.collect()
    assert backend.living()["MTLBuffer"] == 0
    assert region is not None and memory.pages.region_of(region.start) is None


# -- commands ----------------------------------------------------------------------------------------------------------
def test_barriers_stand_where_dispatches_depend(device: Device, backend: Recorded) -> None:
    x, *ys = (floats(40) for _ in range(4))
    with device.autoreleased(), Commands(device) as recorder:
        chain(x, *ys)(recorder, device)  # each needs the one before
        chain(x, floats(40))(recorder, device)  # nothing
        assert recorder.barriers == 2
    assert backend.count("memoryBarrierWithScope:") == 2
    np.testing.assert_array_equal(ys[2].numpy(), np.arange(40) + 3)


def test_a_missing_barrier_is_caught(device: Device, backend: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_memoryBarrierWithScope", lambda target, scope: None)
    x, *ys = (floats(40) for _ in range(3))
    refused = pytest.raises(MetalMisuseError, match="neither a barrier nor a fence")
    with refused, device.autoreleased(), Commands(device) as recorder:
        chain(x, *ys)(recorder, device)


def test_batches_are_ordered_by_fences(
    device: Device, backend: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "MOST_DISPATCHES", 2)
    x, *ys = (floats(40) for _ in range(6))
    with device.autoreleased(), Commands(device) as recorder:
        chain(x, *ys)(recorder, device)
    assert backend.count("commit") == 3 and backend.count("waitForFence:") == 2
    np.testing.assert_array_equal(ys[-1].numpy(), np.arange(40) + 5)


def test_a_missing_fence_is_caught(device: Device, backend: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MOST_DISPATCHES", 1)
    monkeypatch.setattr(backend, "_waitForFence", lambda target, fence: None)
    x, *ys = (floats(40) for _ in range(3))
    refused = pytest.raises(MetalMisuseError, match="neither a barrier nor a fence")
    with refused, device.autoreleased(), Commands(device) as recorder:
        chain(x, *ys)(recorder, device)


def test_an_error_ends_the_encoder_and_commits_nothing(device: Device, backend: Recorded) -> None:
    x, y = floats(40), floats(40)
    with pytest.raises(KeyError), device.autoreleased(), Commands(device) as recorder:
        chain(x, y)(recorder, device)
        raise KeyError
    assert backend.count("endEncoding") == 1 and backend.count("commit") == 0
    np.testing.assert_array_equal(y.numpy(), np.arange(40))


def test_a_fault_of_a_kernel_is_an_exception(device: Device) -> None:
    x, y = floats(40), floats(40)
    with pytest.raises(DeviceError, match="(?s)add.*y.i. = x.i. "), device.autoreleased(), Commands(device) as recorder:
        bindings = [Binding(0, x.pointer, 160, True, False), Binding(1, y.pointer, 80, False, True)]
        recorder.dispatch(device.shaders(ADD).pipeline("add"), bindings, (40, 1, 1), (32, 1, 1), False)


def test_threadgroups_shrink_to_what_the_device_runs() -> None:
    assert commands._fitting((256, 4, 1), 1024) == (256, 4, 1)
    assert commands._fitting((256, 4, 1), 448) == (256, 1, 1)
    assert commands._fitting((64, 1, 1), 48) == (32, 1, 1)


# -- shaders -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("math_modes", [True, False])
def test_fast_math_is_off(math_modes: bool) -> None:
    backend = Recorded(math_modes=math_modes)
    Device(backend).shaders(ADD)
    if math_modes:
        assert ("setMathMode:", (CONSTANTS["MTLMathModeSafe"],)) in backend.sent
    else:
        assert ("setFastMathEnabled:", (False,)) in backend.sent and not backend.count("setMathMode:")
    assert ("setLanguageVersion:", (CONSTANTS["MTLLanguageVersion3_1"],)) in backend.sent


def test_shaders_and_pipelines_are_cached(device: Device, backend: Recorded) -> None:
    shaders = device.shaders(ADD)
    assert device.shaders(ADD) is shaders and shaders.pipeline("add") is shaders.pipeline("add")
    assert backend.count("newLibraryWithSource:options:error:") == 1
    assert backend.count("newComputePipelineStateWithFunction:error:") == 1


def test_the_log_of_the_compiler_is_told(device: Device) -> None:
    with pytest.raises(DeviceError, match="does not compile(?s:.*)kernel.metal:5:.*undeclared identifier 'z'"):
        device.shaders(ADD.replace("x[i] +", "z[i] +"))
    with pytest.raises(DeviceError, match="no kernel 'sub'"):
        device.shaders(ADD).pipeline("sub")


def test_no_device_is_said(backend: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "system_device", lambda: None)
    with pytest.raises(DeviceError, match="no Metal device"):
        Device(backend)


# -- executables -------------------------------------------------------------------------------------------------------
def test_a_program_leaves_no_object_behind(backend: Recorded, device: Device) -> None:
    x = np.random.default_rng(0).standard_normal((6, 50)).astype(np.float32)
    program, arguments = executable(device, lambda m, x: [m.softmax(x, axes=(1,)), m.sum(x * x, axes=(0,))], x)
    first = [b.numpy().copy() for b in program.run(arguments)]
    kept = backend.living()
    for _ in range(3):
        for found, expected in zip(program.run(arguments), first, strict=True):
            np.testing.assert_array_equal(found.numpy(), expected)
    assert backend.living() == kept
    assert set(kept) <= {"MTLBuffer", "MTLLibrary", "MTLComputePipelineState", "MTLCommandQueue", "MTLFence"}
    del program
    gc.collect()
    assert set(backend.living()) <= {"MTLBuffer", "MTLCommandQueue", "MTLFence"}
    assert backend.findings == []


def test_host_steps_see_what_kernels_wrote_and_the_other_way_round(device: Device, backend: Recorded) -> None:
    a = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float32)
    traced_program = trace(lambda x: mx.real(mx.fft.fft(mx.exp(x), axis=1)), ("f32[5,8]",), {})
    program = Executable(device, *compile_metal(traced_program), library_step)
    assert [s for s in program.schedule["steps"] if "library" in s]
    (found,) = program.run([Buffer.from_numpy(a)])
    np.testing.assert_allclose(found.numpy(), np.fft.fft(np.exp(a), axis=1).real, rtol=1e-4, atol=1e-5)
    assert backend.count("commit") == 2


def test_shaders_for_another_simd_width_are_refused(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device.backend, "_threadExecutionWidth", lambda target: 16)
    with pytest.raises(DeviceError, match="SIMD-groups of 32"):
        executable(device, lambda m, x: m.exp(x), np.ones(4, np.float32))


# -- the emulated device itself ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("misuse", "told"),
    [
        (lambda d: d.send(d.handle, "newTexture"), "not in the table"),
        (lambda d: d.send(d.queue, "newFence"), "MTLCommandQueue does not understand newFence"),
        (lambda d: d.send(None, "commit"), "sent to nil"),
        (lambda d: d.send(d.queue, "commandBuffer"), "autorelease pool"),
        (lambda d: [d.send(d.queue, "release") for _ in range(2)], "released object"),
        (lambda d: d.send(d.backend.class_named("NSString"), "stringWithUTF8String:", "text"), "of type \\*"),
        (lambda d: d.send(d.handle, NO_COPY, 4096, PAGE, 0, None), "whole pages"),
        (lambda d: d.shaders("kernel void f() {}" * 2), "defined twice|does not compile"),
    ],
)  # fmt: skip
def test_misuse_is_refused(device: Device, misuse: Callable[[Device], Any], told: str) -> None:
    with pytest.raises((MetalMisuseError, DeviceError), match=told):
        misuse(device)


def test_nothing_runs_before_it_is_waited_for(device: Device) -> None:
    x, y = floats(40), floats(40)
    with device.autoreleased(), Commands(device) as recorder:
        chain(x, y)(recorder, device)
        recorder._commit()
        np.testing.assert_array_equal(y.numpy(), np.arange(40))
    np.testing.assert_array_equal(y.numpy(), np.arange(40) + 1)


# -- runs that nothing waited for --------------------------------------------------------------------------------------
def test_a_run_does_not_wait(device: Device, backend: Recorded) -> None:
    """Runs follow each other on the device; the first result that is read is waited for, with what it needs."""
    program, (x,) = executable(device, lambda m, x: m.exp(x) + 1.0, np.linspace(-1, 0, 40, dtype=np.float32))
    first = program.run([x])
    second = program.run(first)
    assert backend.count("commit") == 2 and backend.count("waitUntilCompleted") == 0
    assert backend.count("waitForFence:") == 1 and not backend.dispatched
    expected = np.exp(np.exp(x.numpy()) + 1) + 1
    np.testing.assert_allclose(second[0].numpy(), expected, rtol=1e-6)
    assert backend.count("waitUntilCompleted") == 2


def test_a_program_that_returns_its_argument_returns_the_late_one(device: Device) -> None:
    program, (x,) = executable(device, lambda m, x: m.exp(x), np.zeros(40, np.float32))
    same, _ = executable(device, lambda m, x: m.stop_gradient(x), np.zeros(40, np.float32))
    assert same.schedule["steps"] == []
    (late,) = program.run([x])
    np.testing.assert_array_equal(same.run([late])[0].numpy(), np.ones(40))


def test_few_runs_are_under_way(device: Device, backend: Recorded) -> None:
    """They hold memory: the oldest one is waited for, whose results nobody reads any more."""
    program, (x,) = executable(device, lambda m, x: m.exp(x), np.zeros(40, np.float32))
    for _ in range(MOST_UNDER_WAY + 3):
        program.run([x])
    assert backend.count("waitUntilCompleted") == 3
    device.synchronize()
    assert backend.count("waitUntilCompleted") == MOST_UNDER_WAY + 3
    assert backend.living()["MTLCommandBuffer"] == 0


def test_memory_that_the_device_uses_is_not_given_away(device: Device, backend: Recorded) -> None:
    program, (x,) = executable(device, lambda m, x: m.exp(x), np.ones(40, np.float32))
    (late,) = program.run([x])
    assert isinstance(late, LateBuffer) and isinstance(late.source, commands.Submission)
    pointer = late.source.results[late.number].pointer
    del late
    gc.collect()
    assert memory.result((40,), float32).pointer != pointer
    device.synchronize()


def test_an_error_is_raised_where_results_are_read(
    device: Device, backend: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So is it by what took the results; `synchronize` raises one that nobody was told."""
    program, (x,) = executable(device, lambda m, x: m.exp(x), np.ones(40, np.float32))
    monkeypatch.setattr(backend, "_execute", lambda buffer: setattr(buffer, "message", "out of order"))
    first = program.run([x])
    (second,) = program.run(first)
    for late in (second, *first, *first):
        with pytest.raises(DeviceError, match="out of order"):
            late.numpy()
    device.synchronize()
    program.run([x])
    with pytest.raises(DeviceError, match="out of order"):
        device.synchronize()
    device.synchronize()
