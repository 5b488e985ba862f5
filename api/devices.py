"""Devices and streams. Evaluation happens in program order, on the default device of the thread that asks for it: the
GPU where Metal is there, else the CPU. Streams exist for programs that name them.
"""

from __future__ import annotations

import enum
import itertools
import operator
import os
import threading
from typing import Any

from mlxir.runtime import devices
from mlxir.runtime.stream import worker

__all__ = [
    "Device", "DeviceType", "Stream", "StreamContext", "StreamOrDevice", "ThreadLocalStream", "clear_streams", "cpu",
    "default_device", "default_stream", "device_count", "device_info", "gpu", "is_available", "new_stream",
    "new_thread_local_stream", "new_thread_unsafe_stream", "set_default_device", "set_default_stream", "stream",
    "synchronize",
]  # fmt: skip


class DeviceType(enum.Enum):
    """Kinds of devices. Compares equal to a `Device` of its type with index 0."""

    cpu = 0
    gpu = 1

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Device):
            return other == self
        return self is other

    __hash__ = enum.Enum.__hash__

    def __repr__(self) -> str:
        return f"DeviceType.{self.name}"


class Device:
    """A device: its type and its number among those of that type."""

    def __init__(self, type: DeviceType, index: int = 0):
        if not isinstance(type, DeviceType):
            raise TypeError(f"[Device] expected a DeviceType, got {type!r}")
        self._type, self._index = type, operator.index(index)

    @property
    def type(self) -> DeviceType:
        return self._type

    @property
    def index(self) -> int:
        return self._index

    def __repr__(self) -> str:
        return f"Device({self._type.name}, {self._index})"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, DeviceType):
            return self._type is other and self._index == 0
        return isinstance(other, Device) and (self._type, self._index) == (other._type, other._index)

    def __hash__(self) -> int:
        return hash((self._type, self._index))


cpu, gpu = DeviceType.cpu, DeviceType.gpu


class _Queue:
    """What streams of both kinds have: a device and a number."""

    def __init__(self, device: Device, index: int):
        self._device, self._index = device, index

    @property
    def device(self) -> Device:
        return self._device

    @property
    def index(self) -> int:
        return self._index

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._device!r}, {self._index})"

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and (self._device, self._index) == (other._device, other._index)

    def __hash__(self) -> int:
        return hash((self._device, self._index))


class Stream(_Queue):
    """A queue of work on a device. There is one worker, so all streams are in order with each other."""


class ThreadLocalStream(_Queue):
    """A stream that stands for one of its own in every thread; with one worker they are the same."""


StreamOrDevice = Stream | ThreadLocalStream | Device | DeviceType | None


class _Defaults(threading.local):
    """The default stream of each device, per thread."""

    def __init__(self) -> None:
        self.streams: dict[Device, Stream | ThreadLocalStream] = _first_streams()


def _first_streams() -> dict[Device, Stream | ThreadLocalStream]:
    return {Device(type): Stream(Device(type), number) for number, type in enumerate((cpu, gpu))}


_numbers = itertools.count(len(_first_streams()))
_defaults = _Defaults()


def _device(x: Any, name: str) -> Device:
    """The device that `x` names. Raises TypeError where it names none, ValueError where there is no GPU, and IndexError
    where the CPU has no such number.
    """
    device = Device(x) if isinstance(x, DeviceType) else x
    if not isinstance(device, Device):
        raise TypeError(f"[{name}] expected a Device or a DeviceType, got {x!r}")
    if not is_available(device):
        if device.type is gpu:
            raise ValueError(f"[{name}] Cannot get gpu stream without gpu backend: there is no {device!r}.")
        raise IndexError(f"[{name}] there is no {device!r}")
    return device


def _device_of(s: Any, name: str) -> Device:
    """The device of a stream, or that `s` names."""
    if not isinstance(s, (_Queue, Device, DeviceType)):
        raise TypeError(f"[{name}] stream must be a Stream, a Device or a DeviceType, got {s!r}")
    return _device(s.device if isinstance(s, _Queue) else s, "default_stream")


def check_stream(name: str, stream: Any) -> None:
    """What functions do with `stream=`: one worker evaluates everything, so it must be there, and that is all.

    Raises TypeError where it is none, ValueError or IndexError where its device does not exist.
    """
    if stream is not None:
        _device_of(stream, name)


def default_device() -> Device:
    """The device that evaluation runs on."""
    return Device(gpu if devices.on_gpu() else cpu)


def set_default_device(device: Device | DeviceType) -> None:
    """Change the default device. Raises ValueError where the device is not available."""
    devices.use_gpu(_device(device, "set_default_device").type is gpu)


def is_available(device: Device | DeviceType) -> bool:
    """Whether a device can be used. Raises TypeError for what is none."""
    if not isinstance(device, (Device, DeviceType)):
        raise TypeError(f"[is_available] expected a Device or a DeviceType, got {device!r}")
    device = Device(device) if isinstance(device, DeviceType) else device
    return device.index == 0 and (device.type is cpu or devices.gpu() is not None)


def device_count(device_type: DeviceType) -> int:
    """How many devices of a type can be used."""
    if not isinstance(device_type, DeviceType):
        raise TypeError(f"[device_count] expected a DeviceType, got {device_type!r}")
    return int(is_available(device_type))


def device_info(d: Device | DeviceType | None = None) -> dict[str, str | int]:
    """Properties of a device; none for one that is not available."""
    d = default_device() if d is None else Device(d) if isinstance(d, DeviceType) else d
    if not is_available(d):
        return {}
    found = devices.gpu()
    if d.type is gpu and found is not None:
        return found.info()
    machine = os.uname().machine
    return {"architecture": machine, "device_name": f"{machine} CPU", "cores": os.cpu_count() or 1}


def default_stream(device: Device | DeviceType) -> Stream | ThreadLocalStream:
    """The default stream of a device."""
    return _defaults.streams[_device(device, "default_stream")]


def set_default_stream(stream: Stream | ThreadLocalStream) -> None:
    """Make `stream` the default stream of its device."""
    if not isinstance(stream, _Queue):
        raise TypeError(f"[set_default_stream] expected a Stream, got {stream!r}")
    _defaults.streams[_device(stream.device, "set_default_stream")] = stream


def new_stream(device: Device | DeviceType) -> Stream:
    """A new stream on a device."""
    return Stream(_device(device, "new_stream"), next(_numbers))


def new_thread_unsafe_stream(device: Device | DeviceType) -> Stream:
    """A new stream meant for one thread only."""
    return Stream(_device(device, "new_thread_unsafe_stream"), next(_numbers))


def new_thread_local_stream(device: Device | DeviceType) -> ThreadLocalStream:
    """A new stream that every thread resolves for itself."""
    return ThreadLocalStream(_device(device, "new_thread_local_stream"), next(_numbers))


def clear_streams() -> None:
    """Forget this thread's own default streams."""
    _defaults.streams = _first_streams()


class StreamContext:
    """`with stream(s):` makes a device or stream the default inside the block.

    Raises TypeError for anything else, and ValueError on entry where the device does not exist.
    """

    def __init__(self, s: StreamOrDevice):
        if not isinstance(s, (_Queue, Device, DeviceType)):
            raise TypeError(f"[stream] expected a Device, a DeviceType or a Stream, got {s!r}")
        self._given = s
        self._before: list[tuple[Device, Device, Any]] = []  # of each entry: the default, the device, its stream

    def __enter__(self) -> StreamContext:
        device = _device_of(self._given, "stream")
        self._before.append((default_device(), device, default_stream(device)))
        devices.use_gpu(device.type is gpu)
        if isinstance(self._given, _Queue):
            _defaults.streams[device] = self._given
        return self

    def __exit__(self, *exc: object) -> None:
        default, device, _defaults.streams[device] = self._before.pop()
        devices.use_gpu(default.type is gpu)


def stream(s: StreamOrDevice) -> StreamContext:
    """A context manager that makes a device or stream the default."""
    return StreamContext(s)


def synchronize(stream: StreamOrDevice = None) -> None:
    """Wait for all work: what `async_eval` started, and what runs on the GPU.

    Raises the first error of it that was not raised here before.
    """
    check_stream("synchronize", stream)
    worker.synchronize()
    found = devices.gpu()
    if found is not None:
        found.synchronize()
