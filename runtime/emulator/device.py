"""A Metal device that is not there: it answers the runtime's messages, and the kernels run on the emulator.

What Metal would abort over, or leave to chance, raises MetalMisuseError: messages that an object does not understand,
arguments of a wrong type, released objects, encoders that are not ended, buffers that are not bound, dispatches that
depend on each other with neither barrier nor fence between them. What the checker finds in a kernel becomes the error
of its command buffer, as a fault of a GPU does.
"""

from __future__ import annotations

import ctypes
import itertools
import threading
from collections import Counter, deque
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ..metal.abi import CONSTANTS, MESSAGES, MOST_BUFFERS, PAGE, SIZE
from ..metal.commands import Span
from .errors import MetalError
from .launch import MetalLibrary, Report, element_dtype
from .reflect import Parameter

MEMORY = 4 << 30
_REPORTS = 1024


class MetalMisuseError(MetalError):
    """The program used Metal in a way that Metal does not allow."""


class _Object:
    """An object behind a handle: its class, its owners, and whatever else it holds."""

    handle: int

    def __init__(self, kind: str, **fields: Any):
        self.kind, self.owners = kind, 1
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.kind} has no {name}")

    def __setattr__(self, name: str, value: Any) -> None:  # tells type checkers that objects hold what they are given
        super().__setattr__(name, value)


class EmulatedMetal:
    """A backend (runtime/metal/objc.py) with one device.

    Args:
        order: the order in which the threads of a kernel run: 0 forward, 1 reverse, 2 and above pseudo-random.
        strict: a kernel that the checker finds an error in fails its command buffer; otherwise it is only reported.
        math_modes: whether MTLCompileOptions has `setMathMode:`, as from macOS 15 on.

    Attributes:
        dispatched: how often each kernel ran.
        reports: what the checker found in the last dispatches.
        findings: what is no error and still not as it should be: compiler warnings, arithmetic that overflows,
            SIMD-group functions that a part of a SIMD-group runs.
    """

    def __init__(self, order: int = 0, strict: bool = True, math_modes: bool = True):
        self.order, self.strict, self.math_modes = order, strict, math_modes
        self.dispatched: Counter[str] = Counter()
        self.reports: deque[Report] = deque(maxlen=_REPORTS)
        self.findings: list[str] = []
        self._numbers = itertools.count(0x1000, 16)
        self._objects: dict[int, _Object] = {}
        self._classes: dict[str, int] = {}
        self._local = threading.local()  # per thread: autorelease pools, and the sizes that `bound` told
        self._lock = threading.RLock()
        self._committed: list[_Object] = []  # command buffers that were not waited for
        self._device: int | None = None

    # -- the backend ---------------------------------------------------------------------------------------------------
    def system_device(self) -> int:
        """The device."""
        if self._device is None:
            self._device = self._add(_Object("MTLDevice"))
        return self._device

    def class_named(self, name: str) -> int:
        """A class as a receiver."""
        if name not in self._classes:
            self._classes[name] = self._add(_Object("Class", name=name))
        return self._classes[name]

    def bound(self, index: int, nbytes: int) -> None:
        """The dispatch that is being encoded may use so many bytes of the buffer bound at `index` next."""
        self._local.bound = {**getattr(self._local, "bound", {}), index: nbytes}

    def send(self, receiver: int | None, selector: str, *arguments: Any) -> Any:
        """Answer a message."""
        message = MESSAGES.get(selector)
        if message is None:
            raise MetalMisuseError(f"the message {selector} is not in the table of runtime/metal/abi.py")
        target = self._object(receiver, selector)
        name = target.name if target.kind == "Class" else target.kind
        if message.owner not in (name, "NSObject"):
            raise MetalMisuseError(f"{name} does not understand {selector}")
        if len(arguments) != len(message.arguments):
            raise MetalMisuseError(f"{selector} takes {len(message.arguments)} arguments, given are {len(arguments)}")
        values = [self._argument(selector, c, a) for c, a in zip(message.arguments, arguments, strict=True)]
        answer = getattr(self, "_" + selector.replace(":", "_").rstrip("_"))(target, *values)
        if isinstance(answer, _Object):
            handle = self._add(answer)
            if not message.owned:
                self._autorelease(handle, selector)
            return handle
        return answer

    def living(self) -> Counter[str]:
        """Objects that were not released, by class; classes, the device and its like not counted."""
        return Counter(o.kind for o in self._objects.values() if o.kind not in ("Class", "MTLDevice"))

    # -- objects -------------------------------------------------------------------------------------------------------
    def _add(self, made: _Object) -> int:
        handle = next(self._numbers)
        self._objects[handle], made.handle = made, handle
        return handle

    def _object(self, handle: int | None, selector: str) -> _Object:
        if handle not in self._objects:
            raise MetalMisuseError(f"{selector} is sent to {'nil' if not handle else 'a released object'}")
        return self._objects[handle]

    def _autorelease(self, handle: int, selector: str) -> None:
        pools = getattr(self._local, "pools", [])
        if not pools:
            raise MetalMisuseError(f"what {selector} returns is autoreleased: without an autorelease pool it leaks")
        pools[-1].held.append(handle)

    def _argument(self, selector: str, code: str, value: Any) -> Any:
        """The argument as an object of Python's; raises if it does not have the declared type."""
        if code == "@":
            return None if value is None else self._object(value, f"an argument of {selector}")
        fits = {
            "Q": lambda: type(value) is int and 0 <= value < 1 << 64,
            "q": lambda: type(value) is int and -(1 << 63) <= value < 1 << 63,
            "Z": lambda: type(value) is bool, "*": lambda: type(value) is bytes, ":": lambda: type(value) is str,
            "^v": lambda: type(value) is int and value > 0, "@?": lambda: value is None,
            "^@": lambda: isinstance(value, ctypes.c_void_p),
            SIZE: lambda: len(value) == 3 and all(type(v) is int and v > 0 for v in value),
        }[code]  # fmt: skip
        if not fits():
            raise MetalMisuseError(f"{selector}: {value!r} is no argument of type {code}")
        return value

    # -- Foundation ----------------------------------------------------------------------------------------------------
    def _new(self, target: _Object) -> _Object:
        made = _Object(target.name)
        if target.name == "NSAutoreleasePool":
            made.held = []
            self._local.pools = [*getattr(self._local, "pools", []), made]
        return made

    def _retain(self, target: _Object) -> int:
        target.owners += 1
        return target.handle

    def _release(self, target: _Object) -> None:
        target.owners -= 1
        if not target.owners:
            del self._objects[target.handle]

    def _drain(self, target: _Object) -> None:
        if self._local.pools[-1] is not target:
            raise MetalMisuseError("an autorelease pool is drained that is not the innermost of its thread")
        self._local.pools = self._local.pools[:-1]
        for handle in target.held:
            held = self._object(handle, "the release of an autoreleased object")
            if held.kind == "MTLComputeCommandEncoder" and held.open:
                raise MetalMisuseError("an encoder is deallocated without endEncoding")
            self._release(held)
        self._release(target)

    def _respondsToSelector(self, target: _Object, selector: str) -> bool:
        return selector in MESSAGES and (self.math_modes or selector != "setMathMode:")

    def _stringWithUTF8String(self, target: _Object, text: bytes) -> _Object:
        return _Object("NSString", text=text)

    def _UTF8String(self, target: _Object) -> bytes:
        return target.text

    def _localizedDescription(self, target: _Object) -> _Object:
        return _Object("NSString", text=target.message.encode())

    # -- the device ----------------------------------------------------------------------------------------------------
    def _name(self, target: _Object) -> _Object:
        return _Object("NSString", text=b"emulated Metal device")

    def _hasUnifiedMemory(self, target: _Object) -> bool:
        return True

    def _maxBufferLength(self, target: _Object) -> int:
        return MEMORY

    _recommendedMaxWorkingSetSize = _maxBufferLength

    def _newCommandQueue(self, target: _Object) -> _Object:
        return _Object("MTLCommandQueue")

    def _newFence(self, target: _Object) -> _Object:
        return _Object("MTLFence", updated=None)

    def _newBufferWithBytesNoCopy_length_options_deallocator(
        self, target: _Object, address: int, nbytes: int, options: int, deallocator: None
    ) -> _Object:
        if address % PAGE or nbytes % PAGE or not nbytes:
            raise MetalMisuseError(f"memory without copies comes in whole pages: {address:#x}, {nbytes} bytes")
        if options & 0xF0 != CONSTANTS["MTLResourceStorageModeShared"]:
            raise MetalMisuseError("memory of the program is shared, not private or managed")
        return _Object("MTLBuffer", address=address, nbytes=nbytes)

    # -- shaders -------------------------------------------------------------------------------------------------------
    def _setLanguageVersion(self, target: _Object, version: int) -> None:
        target.language = version

    def _setMathMode(self, target: _Object, mode: int) -> None:
        target.exact = mode == CONSTANTS["MTLMathModeSafe"]

    def _setFastMathEnabled(self, target: _Object, enabled: bool) -> None:
        target.exact = not enabled

    def _newLibraryWithSource_options_error(
        self, target: _Object, source: _Object, options: _Object | None, error: ctypes.c_void_p
    ) -> _Object | None:
        fields = vars(options) if options is not None else {}
        if not fields.get("exact"):
            raise MetalMisuseError("fast math is on, which is Metal's default: the emulator has none")
        if fields.get("language") != CONSTANTS["MTLLanguageVersion3_1"]:
            raise MetalMisuseError("the shaders need Metal 3.1 (bfloat)")
        try:
            library = MetalLibrary(source.text.decode())
        except MetalError as refused:
            self._fail(error, str(refused))
            return None
        if library.warnings:
            self.findings.append(library.warnings)
        return _Object("MTLLibrary", library=library)

    def _fail(self, error: ctypes.c_void_p, message: str) -> None:
        error.value = self._add(_Object("NSError", message=message))
        self._autorelease(error.value, "an error")

    def _newFunctionWithName(self, target: _Object, name: _Object) -> _Object | None:
        kernel = target.library.kernels.get(name.text.decode())
        return None if kernel is None else _Object("MTLFunction", library=target.library, kernel=kernel)

    def _newComputePipelineStateWithFunction_error(
        self, target: _Object, function: _Object | None, error: ctypes.c_void_p
    ) -> _Object:
        if function is None or function.kind != "MTLFunction":
            raise MetalMisuseError("a pipeline is made of nil")
        return _Object("MTLComputePipelineState", library=function.library, kernel=function.kernel)

    def _maxTotalThreadsPerThreadgroup(self, target: _Object) -> int:
        return target.kernel.max_threads

    def _threadExecutionWidth(self, target: _Object) -> int:
        return 32

    # -- commands ------------------------------------------------------------------------------------------------------
    def _commandBuffer(self, target: _Object) -> _Object:
        return _Object("MTLCommandBuffer", state="recording", encoders=[], message="")

    def _computeCommandEncoderWithDispatchType(self, target: _Object, type_: int) -> _Object:
        if target.state != "recording" or any(e.open for e in target.encoders):
            raise MetalMisuseError("an encoder is asked of a command buffer that is committed or has an open one")
        made = _Object(
            "MTLComputeCommandEncoder", open=True, concurrent=type_ == CONSTANTS["MTLDispatchTypeConcurrent"],
            pipeline=None, buffers={}, work=[], since=[], accesses=[], after=set(),
        )  # fmt: skip
        target.encoders.append(made)
        return made

    @staticmethod
    def _recording(encoder: _Object) -> None:
        if not encoder.open:
            raise MetalMisuseError("an encoder is used after endEncoding")

    def _setComputePipelineState(self, target: _Object, pipeline: _Object) -> None:
        self._recording(target)
        if pipeline is None or pipeline.kind != "MTLComputePipelineState":
            raise MetalMisuseError("setComputePipelineState: takes a pipeline")
        target.pipeline = pipeline

    def _setBuffer_offset_atIndex(self, target: _Object, buffer: _Object, offset: int, index: int) -> None:
        self._recording(target)
        told = self._local.__dict__.setdefault("bound", {}).pop(index, None)
        if buffer is None or buffer.kind != "MTLBuffer" or index >= MOST_BUFFERS:
            raise MetalMisuseError(f"setBuffer: takes a buffer and an index below {MOST_BUFFERS}, not {index}")
        nbytes = buffer.nbytes - offset if told is None else told
        if offset % 4 or offset >= buffer.nbytes or offset + nbytes > buffer.nbytes:
            raise MetalMisuseError(f"buffer {index}: {nbytes} bytes from {offset} on, of {buffer.nbytes}")
        target.buffers[index] = buffer.address + offset, nbytes

    def _memoryBarrierWithScope(self, target: _Object, scope: int) -> None:
        self._recording(target)
        if scope & CONSTANTS["MTLBarrierScopeBuffers"]:
            target.since.clear()

    def _updateFence(self, target: _Object, fence: _Object) -> None:
        self._recording(target)
        fence.updated = target

    def _waitForFence(self, target: _Object, fence: _Object) -> None:
        self._recording(target)
        if fence.updated is None:
            raise MetalMisuseError("an encoder waits for a fence that nothing updates")
        with self._lock:  # what has run needs no order any more
            waiting = {e for c in self._committed for e in c.encoders}
        target.after |= {fence.updated, *(fence.updated.after & waiting)}

    def _dispatchThreads_threadsPerThreadgroup(
        self, target: _Object, grid: Sequence[int], group: Sequence[int], in_threadgroups: bool = False
    ) -> None:
        self._recording(target)
        if target.pipeline is None:
            raise MetalMisuseError("a dispatch without a pipeline")
        kernel = target.pipeline.kernel
        if prod(group) > kernel.max_threads:
            raise MetalMisuseError(f"{kernel.name}: {prod(group)} threads in a group of at most {kernel.max_threads}")
        missing = [p.name for i, p in kernel.buffers.items() if i not in target.buffers]
        if missing:
            raise MetalMisuseError(f"{kernel.name}: no buffer is bound for {', '.join(missing)}")
        accesses = [
            (Span(address, address + nbytes), not p.read_only)
            for i, p in kernel.buffers.items()
            for address, nbytes in [target.buffers[i]]
            if nbytes
        ]
        earlier = list(target.since) if target.concurrent else []
        with self._lock:
            others = [e for c in self._committed for e in c.encoders if e not in target.after]
        for access in earlier + [a for e in others for a in e.accesses]:
            for span, writes in accesses:
                if (writes or access[1]) and span.meets([access[0]]):
                    raise MetalMisuseError(
                        f"{kernel.name} depends on an earlier dispatch with neither a barrier nor a fence between them"
                    )
        target.since += accesses
        target.accesses += accesses
        target.work.append((target.pipeline, dict(target.buffers), grid, group, in_threadgroups))

    def _dispatchThreadgroups_threadsPerThreadgroup(
        self, target: _Object, grid: Sequence[int], group: Sequence[int]
    ) -> None:
        self._dispatchThreads_threadsPerThreadgroup(target, grid, group, True)

    def _endEncoding(self, target: _Object) -> None:
        self._recording(target)
        target.open = False

    def _commit(self, target: _Object) -> None:
        if target.state != "recording" or any(e.open for e in target.encoders):
            raise MetalMisuseError("a command buffer is committed twice, or with an open encoder")
        target.state = "committed"
        with self._lock:
            self._committed.append(target)

    def _waitUntilCompleted(self, target: _Object) -> None:
        """Run what was committed up to this command buffer. Nothing runs earlier: whoever does not wait sees it."""
        if target.state == "recording":
            raise MetalMisuseError("waiting for a command buffer that is not committed")
        while target.state == "committed":
            with self._lock:
                if target.state == "committed":
                    first = self._committed[0]
                    self._execute(first)
                    self._committed.remove(first)
                    first.state = "done"

    def _execute(self, buffer: _Object) -> None:
        for encoder in buffer.encoders:
            for pipeline, bound, grid, group, in_threadgroups in encoder.work:
                kernel = pipeline.kernel
                arrays = {i: _array(p, *bound[i]) for i, p in kernel.buffers.items()}
                try:
                    report = pipeline.library.run(
                        kernel.name, arrays, grid, group, order=self.order, in_threadgroups=in_threadgroups,
                        strict=self.strict,
                    )  # fmt: skip
                except MetalError as error:
                    buffer.message = str(error)
                    return
                self.dispatched[kernel.name] += 1
                self.reports.append(report)
                self.findings += [f"{kernel.name}: {text}" for text in (*report.warnings, *report.divergences)]

    def _status(self, target: _Object) -> int:
        if target.state != "done":
            return 0
        return CONSTANTS["MTLCommandBufferStatusError" if target.message else "MTLCommandBufferStatusCompleted"]

    def _error(self, target: _Object) -> _Object | None:
        return _Object("NSError", message=target.message) if target.message else None


def _array(p: Parameter, address: int, nbytes: int) -> np.ndarray:
    """The memory of a buffer as the kernel declares it."""
    raw = (ctypes.c_uint8 * max(nbytes, 1)).from_address(address)
    return np.frombuffer(memoryview(raw), np.uint8, nbytes).view(element_dtype(p))
