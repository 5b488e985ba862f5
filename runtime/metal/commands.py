"""Recording dispatches: command buffers in batches, barriers where one dispatch needs what an earlier one did.

    encode, encode, barrier, encode, ... | fence | encode, ...                        one `|` per batch

Dispatches of an encoder run concurrently, and Metal tracks no hazards of these buffers (METAL.md, fact 9). A barrier
stands before a dispatch that writes what an earlier one since the last barrier accessed, or reads what it wrote. A
fence orders an encoder behind the one before.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from ..buffers import Buffer
from .abi import CONSTANTS
from .device import Device, DeviceError, Pipeline
from .objc import Handle

MOST_DISPATCHES = 40  # of a command buffer
MOST_BYTES = 40 << 20  # that its dispatches may access

Triple = tuple[int, int, int]


class Binding(NamedTuple):
    """A buffer of a dispatch, at index `slot`: `nbytes` from `address` on."""

    slot: int
    address: int
    nbytes: int
    reads: bool
    writes: bool


class Span(NamedTuple):
    """Memory from `begin` to before `end`."""

    begin: int
    end: int

    def meets(self, others: Sequence[Span]) -> bool:
        return any(self.begin < o.end and o.begin < self.end for o in others)


class Commands:
    """What one run of a schedule sends to the device. Used inside `Device.autoreleased`, by one thread at a time.

    `with Commands(device) as commands: ...` waits for the device at the end, unless `hand_over` took what there is to
    wait for. After an exception nothing that was not committed is.
    """

    def __init__(self, device: Device):
        self._device, self._send = device, device.send
        self._encoder: Handle = None
        self._buffer: Handle = None
        self._committed: list[Handle] = []
        self._read: list[Span] = []
        self._written: list[Span] = []
        self._dispatches = self._bytes = 0
        self.barriers = 0

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None:
            self.finish()
            return
        if self._encoder:
            self._send(self._encoder, "endEncoding")  # Metal aborts the process over an encoder that is left open
        wait_for(self._device, self.hand_over(commit=False))

    def dispatch(
        self, pipeline: Pipeline, bindings: Sequence[Binding], grid: Triple, threadgroup: Triple, in_threadgroups: bool
    ) -> None:
        """Record one kernel. `grid` counts threads, or threadgroups if `in_threadgroups`."""
        encoder = self._open()
        reads = [Span(b.address, b.address + b.nbytes) for b in bindings if b.reads and b.nbytes]
        writes = [Span(b.address, b.address + b.nbytes) for b in bindings if b.writes and b.nbytes]
        if any(w.meets(self._read + self._written) for w in writes) or any(r.meets(self._written) for r in reads):
            self._send(encoder, "memoryBarrierWithScope:", CONSTANTS["MTLBarrierScopeBuffers"])
            self._read, self._written = [], []
            self.barriers += 1
        self._read += reads
        self._written += writes
        self._send(encoder, "setComputePipelineState:", pipeline.handle)
        for b in bindings:
            handle, offset = self._device.buffer(b.address)
            if self._device.backend.bound is not None:
                self._device.backend.bound(b.slot, b.nbytes)
            self._send(encoder, "setBuffer:offset:atIndex:", handle, offset, b.slot)
        if in_threadgroups:
            if prod(threadgroup) > pipeline.most_threads:
                raise DeviceError(
                    f"[metal] {pipeline.kernel} needs {prod(threadgroup)} threads per threadgroup, the device runs at"
                    f" most {pipeline.most_threads}."
                )
            self._send(encoder, "dispatchThreadgroups:threadsPerThreadgroup:", grid, threadgroup)
        else:
            fitting = _fitting(threadgroup, pipeline.most_threads)
            self._send(encoder, "dispatchThreads:threadsPerThreadgroup:", grid, fitting)
        self._dispatches += 1
        self._bytes += sum(b.nbytes for b in bindings)
        if self._dispatches >= MOST_DISPATCHES or self._bytes >= MOST_BYTES:
            self._commit()

    def finish(self) -> None:
        """Commit, and wait until all is done. Raises DeviceError for what failed."""
        error = wait_for(self._device, self.hand_over())
        if error is not None:
            raise error

    def hand_over(self, commit: bool = True) -> list[Handle]:
        """Commit, and give the command buffers to the caller, who owns them and waits for them."""
        if commit:
            self._commit()
        committed, self._committed = self._committed, []
        return committed

    def _open(self) -> Handle:
        if self._encoder is None:
            self._buffer = self._send(self._device.queue, "commandBuffer")
            self._encoder = self._send(
                self._buffer, "computeCommandEncoderWithDispatchType:", CONSTANTS["MTLDispatchTypeConcurrent"]
            )
            if self._device.fence_updated:
                self._send(self._encoder, "waitForFence:", self._device.fence)
        return self._encoder

    def _commit(self) -> None:
        if self._encoder is None:
            return
        self._send(self._encoder, "updateFence:", self._device.fence)
        self._device.fence_updated = True
        self._send(self._encoder, "endEncoding")
        self._send(self._buffer, "commit")
        self._send(self._buffer, "retain")  # beyond the autorelease pool of this run
        self._committed.append(self._buffer)
        self._encoder = self._buffer = None
        self._read, self._written = [], []
        self._dispatches = self._bytes = 0


def wait_for(device: Device, committed: Sequence[Handle]) -> DeviceError | None:
    """Wait for command buffers and release them; the first error that they report."""
    error = None
    with device.autoreleased():
        for buffer in committed:
            device.send(buffer, "waitUntilCompleted")
            if error is None and device.send(buffer, "status") != CONSTANTS["MTLCommandBufferStatusCompleted"]:
                error = DeviceError(f"[metal] {device.message(device.send(buffer, 'error'))}")
            device.send(buffer, "release")
    return error


class Submission:
    """A run that was handed to the device, and its results once it is done.

    It holds what the device uses (`kept`) until then. `needed` are earlier runs whose results it takes: their errors
    are its own. `told` says that an error was raised to somebody.
    """

    def __init__(
        self, device: Device, committed: list[Handle], results: list[Buffer], needed: list[Submission], kept: object
    ):
        self.device, self.results = device, results
        self.done = self.told = False
        self.error: DeviceError | None = None
        self._committed, self._needed, self._kept = committed, needed, kept
        self._lock = threading.Lock()

    def wait(self) -> list[Buffer]:
        """The results, when they are there. Raises DeviceError for what failed."""
        self.settle()
        if self.error is not None:
            self.told = True
            raise self.error
        return self.results

    def settle(self) -> None:
        """Wait until the device is done with it; an error is kept for whoever reads the results."""
        with self._lock:
            if self.done:
                return
            for submission in self._needed:
                submission.settle()
            errors = [s.error for s in self._needed] + [wait_for(self.device, self._committed)]
            self.error = next((e for e in errors if e is not None), None)
            self._needed, self._kept, self.done = [], None, True


def _fitting(threadgroup: Triple, most: int) -> Triple:
    """A threadgroup of at most so many threads, for a kernel that takes any."""
    x, y, z = threadgroup
    while x * y * z > most:
        x, y, z = (x, y, z // 2) if z > 1 else (x, y // 2, z) if y > 1 else (x // 2, y, z)
    return x, y, z
