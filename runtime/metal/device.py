"""A Metal device: its queue, compiled shaders, and Metal's buffers over memory that NumPy sees, too."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING

from .abi import CONSTANTS
from .memory import Region, pages
from .objc import Backend, Handle

if TYPE_CHECKING:
    from .commands import Submission


MOST_UNDER_WAY = 8
"""Runs that nothing waited for: each holds its arguments, results and scratch memory."""


class DeviceError(RuntimeError):
    """Metal refused a shader or reported an error; the message holds Metal's own."""


class Device:
    """The device of a backend. Raises DeviceError where the backend has none."""

    def __init__(self, backend: Backend):
        self.backend, self.send = backend, backend.send
        self.handle = backend.system_device()
        if not self.handle:
            raise DeviceError("[metal] This system has no Metal device.")
        self.queue = self.send(self.handle, "newCommandQueue")
        self.fence, self.fence_updated = self.send(self.handle, "newFence"), False
        self.recording = threading.RLock()  # one run at a time encodes: encoders follow each other by one fence
        self._lock = threading.Lock()
        self._under_way: deque[Submission] = deque()
        self._buffers: dict[Region, int] = {}
        self._libraries: weakref.WeakValueDictionary[str, Shaders] = weakref.WeakValueDictionary()
        pages.ended.append(self._release_buffer)

    # -- properties ----------------------------------------------------------------------------------------------------
    @property
    def name(self) -> str:
        """What the system calls the device."""
        with self.autoreleased():
            return self.text(self.send(self.handle, "name"))

    @property
    def unified(self) -> bool:
        """Whether CPU and GPU share their memory, on which this runtime relies."""
        return bool(self.send(self.handle, "hasUnifiedMemory"))

    def info(self) -> dict[str, str | int]:
        """Properties under the names that MLX gives them."""
        working_set = self.send(self.handle, "recommendedMaxWorkingSetSize")
        return {
            "device_name": self.name, "architecture": self.name,
            "max_buffer_length": self.send(self.handle, "maxBufferLength"),
            "max_recommended_working_set_size": working_set,
        }  # fmt: skip

    # -- Foundation ----------------------------------------------------------------------------------------------------
    @contextlib.contextmanager
    def autoreleased(self) -> Iterator[None]:
        """What Metal returns without ownership lives until the end of the block."""
        pool = self.send(self.backend.class_named("NSAutoreleasePool"), "new")
        try:
            yield
        finally:
            self.send(pool, "drain")

    def text(self, string: Handle) -> str:
        """The characters of an NSString."""
        return self.send(string, "UTF8String").decode() if string else ""

    def string(self, text: str) -> Handle:
        """An autoreleased NSString."""
        return self.send(self.backend.class_named("NSString"), "stringWithUTF8String:", text.encode())

    def message(self, error: Handle) -> str:
        """What an NSError says; for a shader that is the compiler's log."""
        return self.text(self.send(error, "localizedDescription")) if error else "unknown error"

    # -- shaders -------------------------------------------------------------------------------------------------------
    def shaders(self, source: str) -> Shaders:
        """The compiled source; equal ones are compiled once. Raises DeviceError with the compiler's log."""
        key = hashlib.sha256(source.encode()).hexdigest()
        with self._lock:
            found = self._libraries.get(key)
            if found is None:
                found = self._libraries[key] = Shaders(self, source)
        return found

    # -- runs ----------------------------------------------------------------------------------------------------------
    def submitted(self, submission: Submission) -> None:
        """Count a run as under way. The oldest one is waited for where there are too many."""
        self._under_way.append(submission)
        while self._under_way and (self._under_way[0].done or len(self._under_way) > MOST_UNDER_WAY):
            self._under_way.popleft().settle()

    def synchronize(self) -> None:
        """Wait for all runs. Raises the first error of those under way that nobody was told."""
        error = None
        while self._under_way:
            submission = self._under_way.popleft()
            submission.settle()
            if not submission.told:
                error = error or submission.error
        if error is not None:
            raise error

    # -- memory --------------------------------------------------------------------------------------------------------
    def buffer(self, address: int) -> tuple[int, int]:
        """(MTLBuffer, offset) for an address in `memory.pages`."""
        region = pages.region_of(address)
        if region is None:
            raise ValueError("[metal] the GPU cannot see this address")
        with self._lock:
            handle = self._buffers.get(region)
            if handle is None:
                options = (
                    CONSTANTS["MTLResourceStorageModeShared"] | CONSTANTS["MTLResourceHazardTrackingModeUntracked"]
                )
                handle = self.send(
                    self.handle, "newBufferWithBytesNoCopy:length:options:deallocator:", region.start, region.nbytes,
                    options, None,
                )  # fmt: skip
                if not handle:
                    raise DeviceError(f"[metal] no buffer over {region.nbytes} bytes of memory")
                self._buffers[region] = handle
        return handle, address - region.start

    def _release_buffer(self, region: Region) -> None:
        # Called while memory is freed, which may happen in any line, `buffer` included: no lock.
        handle = self._buffers.pop(region, None)
        if handle:
            self.send(handle, "release")


class Shaders:
    """A compiled source and the pipelines of its kernels."""

    def __init__(self, device: Device, source: str):
        self._device, self._lock = device, threading.Lock()
        self._pipelines: dict[str, Pipeline] = {}
        with device.autoreleased():
            self._library = self._compiled(source)
        weakref.finalize(self, device.send, self._library, "release").atexit = False

    def _compiled(self, source: str) -> int:
        device, error = self._device, ctypes.c_void_p()
        options = device.send(device.backend.class_named("MTLCompileOptions"), "new")
        try:
            device.send(options, "setLanguageVersion:", CONSTANTS["MTLLanguageVersion3_1"])
            # Metal's default is fast math.
            if device.send(options, "respondsToSelector:", "setMathMode:"):  # macOS 15
                device.send(options, "setMathMode:", CONSTANTS["MTLMathModeSafe"])
            else:
                device.send(options, "setFastMathEnabled:", False)
            library = device.send(
                device.handle, "newLibraryWithSource:options:error:", device.string(source), options, error
            )
        finally:
            device.send(options, "release")
        if not library:
            raise DeviceError(f"[metal] The shader does not compile:\n{device.message(error.value)}")
        return library

    def pipeline(self, kernel: str) -> Pipeline:
        """What runs a kernel. Raises DeviceError where the source has none of this name or Metal cannot make it."""
        with self._lock:
            if kernel not in self._pipelines:
                with self._device.autoreleased():
                    self._pipelines[kernel] = self._made(kernel)
            return self._pipelines[kernel]

    def _made(self, kernel: str) -> Pipeline:
        device, error = self._device, ctypes.c_void_p()
        function = device.send(self._library, "newFunctionWithName:", device.string(kernel))
        if not function:
            raise DeviceError(f"[metal] The source has no kernel {kernel!r}.")
        handle = device.send(device.handle, "newComputePipelineStateWithFunction:error:", function, error)
        device.send(function, "release")
        if not handle:
            raise DeviceError(f"[metal] No pipeline for {kernel}: {device.message(error.value)}")
        return Pipeline(device, kernel, handle)


class Pipeline:
    """A kernel that is ready to run, and the limits that the device gives it."""

    def __init__(self, device: Device, kernel: str, handle: int):
        self.kernel, self.handle = kernel, handle
        self.most_threads: int = device.send(handle, "maxTotalThreadsPerThreadgroup")
        self.simd_width: int = device.send(handle, "threadExecutionWidth")
        weakref.finalize(self, device.send, handle, "release").atexit = False
