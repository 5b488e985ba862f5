"""Idle pages of LLVM and MLIR are given back, nothing that was written to is, and the code still runs."""

from __future__ import annotations

import ctypes
import re
import sys
from pathlib import Path

import numpy as np
import processes
import pytest

import mlxir as mx
from mlxir.compiler.target import codegen
from mlxir.runtime import launch, pages
from mlxir.runtime.knobs import knobs

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
LIBRARY = ("libllvmlite",)
SQUARE = "define float @f(float %x) {\n  %y = fmul float %x, %x\n  ret float %y\n}"


def result(factor: float) -> np.ndarray:
    return np.array(mx.compile(lambda x: mx.exp(x) * factor)(mx.array([0.0, 1.0])))


def mappings(name: str) -> list[tuple[int, int, str, int]]:
    """(start, end, permissions, KiB in memory) of the mappings of a library."""
    found: list[tuple[int, int, str, int]] = []
    ours = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+) ", line):
            ours = name in line.rpartition("/")[2]
            place = int(head[1], 16), int(head[2], 16), head[3]
        elif ours and line.startswith("Rss:"):
            found.append((*place, int(line.split()[1])))
    return found


def test_pages_go_and_compiling_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_dir", None)
    codegen.compiled(SQUARE)
    before = sum(size for *_, size in mappings("libllvmlite"))
    pages.release()
    after = sum(size for *_, size in mappings("libllvmlite"))
    assert before > 10_000 and after < before / 2, (before, after)
    np.testing.assert_allclose(result(3.5), 3.5 * np.exp([0, 1]), rtol=1e-6)


def test_only_what_nobody_can_write_to_is_released() -> None:
    segments = pages._read_only(LIBRARY)
    assert segments
    kept = [(start, end) for start, end, permissions, _ in mappings("libllvmlite") if "w" in permissions]
    assert kept
    for start, end in kept:
        assert not any(start < at + length and at < end for at, length in segments)


def test_libraries_of_other_names_are_left_alone() -> None:
    assert pages._read_only(("libno-such-library",)) == []


def test_a_file_that_is_no_library_has_no_segments(tmp_path: Path) -> None:
    library = Path(next(path for path in Path("/proc/self/maps").read_text().split() if "libllvmlite" in path))
    head = library.read_bytes()[:4096]
    for size in (0, 3, 63, 64, 100):  # a script, or a file cut off within its headers
        (tmp_path / f"cut{size}").write_bytes(head[:size])
        assert pages._segments(str(tmp_path / f"cut{size}")) == ()
    assert len(pages._segments(str(library))) >= 2


WHILE_LIBRARIES_LOAD = """
import _ctypes, faulthandler, importlib.util, threading, llvmlite.binding
from mlxir.runtime import pages
faulthandler.dump_traceback_later(60, exit=True)
done = threading.Event()
def release():
    while not done.is_set():
        pages.release()
thread = threading.Thread(target=release)
thread.start()
library = importlib.util.find_spec("_lsprof").origin  # something that nobody has loaded
for _ in range(5000):
    _ctypes.dlclose(_ctypes.dlopen(library, 0))  # with Python's lock, as an import does
done.set()
thread.join()
"""


def test_pages_go_while_another_thread_loads_libraries() -> None:
    done = processes.run([sys.executable, "-c", WHILE_LIBRARIES_LOAD])
    assert done.returncode == 0, done.stderr


class _MallocInfo(ctypes.Structure):
    _fields_ = [(f"f{n}", ctypes.c_size_t) for n in range(10)]  # glibc's mallinfo2: f7 are the bytes in use


def in_use() -> int:
    """Bytes of C's heap in use."""
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _MallocInfo
    found: int = mallinfo().f7
    return found


counted = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")


@counted
@pytest.mark.parametrize("optimised", [True, False])
def test_llvm_keeps_nothing_of_a_compilation(optimised: bool) -> None:
    for _ in range(3):
        codegen.compiled(SQUARE, optimised=optimised)
    before = in_use()
    for _ in range(20):
        codegen.compiled(SQUARE, optimised=optimised)
    assert in_use() - before < 20 * 2000


@counted
def test_llvm_keeps_nothing_of_code_that_was_unloaded() -> None:
    code = launch.Object("square", ("f",), codegen.compiled(SQUARE))

    def link(times: int) -> None:
        for _ in range(times):
            (linked,) = launch._link([code], {})
            assert ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_float)(linked.addresses["f"])(3.0) == 9.0
            del linked

    link(2 * launch.PER_LINKER)
    before = in_use()
    link(4 * launch.PER_LINKER)
    assert in_use() - before < 4 * launch.PER_LINKER * 1000
