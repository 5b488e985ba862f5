"""Messages through ctypes arrive with their arguments in place: against a C library that stands in for libobjc.

It is x86-64's calling convention that is seen here; on a Mac libffi follows another one.
"""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mlxir.runtime.emulator import unavailable_reason
from mlxir.runtime.metal.objc import ObjectiveC, macos

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    source, target = Path(__file__).with_name("objc_stand_in.c"), tmp_path_factory.mktemp("objc") / "libobjc.so"
    subprocess.run(
        [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", "-O1", str(source), "-o", str(target)],
        check=True, timeout=120,
    )  # fmt: skip
    return ctypes.CDLL(str(target))


@pytest.fixture
def objc(library: Any) -> ObjectiveC:
    return ObjectiveC(library, library)


def noted(library: Any) -> str:
    return (ctypes.c_char * 256).in_dll(library, "noted").value.decode()


def test_functions_return_whole_addresses(objc: ObjectiveC) -> None:
    assert objc.system_device() == 0x123456789ABCDEF0
    assert objc.class_named("NSString") == 0x77 and objc.class_named("NSNothing") is None


def test_structs_go_by_value(objc: ObjectiveC, library: Any) -> None:
    sent = objc.send(0x10, "dispatchThreads:threadsPerThreadgroup:", (1 << 33, 2, 3), (4, 5, 6))
    assert sent is None
    assert noted(library) == "0x10 dispatchThreads:threadsPerThreadgroup: 8589934592 2 3, 4 5 6"


def test_an_error_comes_back_through_its_pointer(objc: ObjectiveC, library: Any) -> None:
    error = ctypes.c_void_p()
    assert objc.send(0x10, "newLibraryWithSource:options:error:", 0xFF00FF00FF, None, error) is None
    assert error.value == 0x99
    assert noted(library) == "0x10 newLibraryWithSource:options:error: 0xff00ff00ff (nil)"


def test_pointers_numbers_and_nil(objc: ObjectiveC, library: Any) -> None:
    made = objc.send(0x20, "newBufferWithBytesNoCopy:length:options:deallocator:", 1 << 46, 1 << 34, 256, None)
    assert made == 0xFEDCBA9876543210
    assert noted(library).endswith("deallocator: 0x400000000000 17179869184 256 0")


def test_texts_booleans_and_selectors(objc: ObjectiveC, library: Any) -> None:
    assert objc.send(0x77, "stringWithUTF8String:", "naïve".encode()) == 0x55
    assert noted(library) == "0x77 stringWithUTF8String: naïve"
    assert objc.send(0x55, "UTF8String") == b"a text"
    objc.send(0x10, "setFastMathEnabled:", False)
    assert noted(library) == "setFastMathEnabled: 0"
    objc.send(0x10, "setMathMode:", -2)
    assert noted(library) == "setMathMode: -2"
    assert objc.send(0x10, "respondsToSelector:", "setMathMode:") is True
    assert objc.send(0x10, "respondsToSelector:", "setColour:") is False


def test_a_wrong_number_of_arguments_is_refused(objc: ObjectiveC) -> None:
    with pytest.raises(ValueError):
        objc.send(0x10, "setMathMode:")
    with pytest.raises(KeyError):
        objc.send(0x10, "notInTheTable")


@pytest.mark.skipif(sys.platform == "darwin", reason="a Mac has the frameworks")
def test_elsewhere_there_are_no_frameworks() -> None:
    assert macos() is None
