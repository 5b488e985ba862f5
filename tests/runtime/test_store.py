"""The disk cache's store: what it gives back is complete and its owner's own, or nothing; and it never raises."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxir.compiler import cache
from mlxir.compiler.graph import GraphBuilder, constant, cut
from mlxir.compiler.program import Program
from mlxir.runtime import store
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.knobs import knobs

KEY = "ab" * 32
TEXT, CODE = '{"name": "käse"}', bytes(range(256))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(knobs, "cache_dir", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture
def entry(folder: Path) -> Path:
    """The file of one sound entry."""
    store.save(KEY, TEXT, CODE)
    (path,) = files(folder)
    return path


def files(folder: Path) -> list[Path]:
    return [p for p in folder.rglob("*") if p.is_file()]


def test_what_was_saved_is_loaded(entry: Path) -> None:
    assert store.load(KEY) == (TEXT, CODE)
    assert store.load("cd" * 32) is None


@given(text=st.text("{}[]\"\n\0ä語", max_size=20), code=st.binary(max_size=64))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
def test_any_content_round_trips(text: str, code: bytes) -> None:
    store.save(KEY, text, code)
    assert store.load(KEY) == (text, code)


def test_a_later_save_replaces(entry: Path, folder: Path) -> None:
    store.save(KEY, "new", b"code")
    assert store.load(KEY) == ("new", b"code")
    assert files(folder) == [entry]


def test_files_are_private(entry: Path) -> None:
    assert stat.S_IMODE(entry.stat().st_mode) & 0o077 == 0
    assert stat.S_IMODE(entry.parent.stat().st_mode) & 0o077 == 0


def test_usage_and_clear_know_the_files_of_the_store_only(entry: Path, folder: Path) -> None:
    (folder / "README").write_text("not ours")
    (entry.parent / "other.txt").write_text("not ours")
    (entry.parent / ".writing-killed").write_bytes(b"left by a killed process")
    store.save("ab" + "01" * 31, "x", b"y")
    assert store.usage() == (3, sum(p.stat().st_size for p in files(folder)) - 2 * len("not ours"))
    assert store.clear() == 3
    assert sorted(p.name for p in files(folder)) == ["README", "other.txt"]
    assert store.usage() == (0, 0) and store.clear() == 0


def test_usage_of_no_folder_is_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert store.usage() == (0, 0)
    monkeypatch.setattr(knobs, "cache_dir", None)
    assert store.usage() == (0, 0) and store.clear() == 0


# -- damage -----------------------------------------------------------------------------------------------------------
def test_any_flipped_byte_is_noticed(entry: Path) -> None:
    sound = entry.read_bytes()
    for at in range(len(sound)):
        entry.write_bytes(sound[:at] + bytes([sound[at] ^ 0x10]) + sound[at + 1 :])
        assert store.load(KEY) is None, f"byte {at}"
        assert not entry.exists(), "a damaged entry is removed"


def test_any_truncation_is_noticed(entry: Path) -> None:
    sound = entry.read_bytes()
    for length in range(len(sound)):
        entry.write_bytes(sound[:length])
        assert store.load(KEY) is None, f"{length} bytes"
        assert not entry.exists()


@pytest.mark.parametrize("extra", [b"\0", b"more"])
def test_trailing_bytes_are_noticed(entry: Path, extra: bytes) -> None:
    entry.write_bytes(entry.read_bytes() + extra)
    assert store.load(KEY) is None


def test_another_version_counts_as_absent(entry: Path) -> None:
    data = entry.read_bytes()
    entry.write_bytes(data.replace(store.MAGIC, b"mlxir-0\n"))
    assert store.load(KEY) is None


def test_a_sound_checksum_over_too_little_is_no_entry(entry: Path) -> None:
    body = b"short"
    entry.write_bytes(store.MAGIC + hashlib.sha256(body).digest() + body)
    assert store.load(KEY) is None


def test_a_damaged_entry_is_written_anew(entry: Path) -> None:
    entry.write_bytes(b"garbage")
    assert store.load(KEY) is None
    store.save(KEY, TEXT, CODE)
    assert store.load(KEY) == (TEXT, CODE)


def _program() -> tuple[Program, np.ndarray]:
    m, x = GraphBuilder(), np.arange(6, dtype=np.float32)
    handle = m.handle(constant(x))
    return cut([m.sin(handle * 3.0).value], [handle.value]).program, x


def test_a_damaged_executable_is_compiled_again(folder: Path) -> None:
    program, x = _program()
    expected = np.sin(x * 3)

    def run() -> tuple[int, int]:
        before = cache.info()
        cache.clear()
        (result,) = cache.executable(program).run([Buffer.from_numpy(x)])
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-6)
        after = cache.info()
        return after.compilations - before.compilations, after.disk_hits - before.disk_hits

    assert run() == (1, 0)
    assert run() == (0, 1)
    outcomes = []
    for path in files(folder):
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        outcomes.append(run())
        assert run() == (0, 1)
    # The program, its object and the launcher are needed; the entry of the kernel is one for other programs.
    assert sorted(outcomes) == [(0, 1), (1, 0), (1, 0), (1, 0)]


def test_an_edited_program_compiles_only_the_kernels_that_changed(folder: Path) -> None:
    def program(scale: float) -> Program:
        m = GraphBuilder()
        x = m.handle(constant(np.ones((4, 8), np.float32)))
        sums = m.cumsum(x, axis=1, reverse=False, inclusive=True)
        return cut([sums.value, (m.sin(x) * scale).value], [x.value]).program

    cache.clear()
    cache.executable(program(2.0))
    before = {p.name: p.stat().st_mtime_ns for p in files(folder)}
    cache.clear()
    cache.executable(program(3.0))
    after = {p.name: p.stat().st_mtime_ns for p in files(folder)}
    assert before.items() <= after.items() and len(after) == len(before) + 3, "a program, a kernel and its object"


# -- owners and folders -----------------------------------------------------------------------------------------------
@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners on this system")
def test_a_foreign_entry_counts_as_absent(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen with the eyes of another user: making a file of another owner needs privileges."""
    monkeypatch.setattr(os, "getuid", lambda: entry.stat().st_uid + 1)
    assert store.load(KEY) is None
    assert entry.exists(), "it is not ours to remove"


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a file away")
def test_an_entry_given_away_counts_as_absent(entry: Path) -> None:
    os.chown(entry, 12345, -1)
    assert store.load(KEY) is None


def test_no_folder_means_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_dir", None)
    store.save(KEY, TEXT, CODE)
    assert store.load(KEY) is None


def test_a_folder_that_cannot_be_made_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(knobs, "cache_dir", tmp_path / "file" / "cache")
    store.save(KEY, TEXT, CODE)
    assert store.load(KEY) is None


@pytest.mark.skipif(hasattr(os, "getuid") and os.getuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_no_error(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o500)
    store.save(KEY, TEXT, CODE)
    assert store.load(KEY) is None
    assert files(folder) == []


@pytest.mark.parametrize("call", ["mkstemp", "replace", "mkdir"])
def test_a_full_or_read_only_disk_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """The same for any user: each step of writing fails in turn, and nothing half-written stays."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(30, "Read-only file system")

    where = {"mkstemp": store.tempfile, "replace": os, "mkdir": Path}[call]
    monkeypatch.setattr(where, call, refuse)
    store.save(KEY, TEXT, CODE)
    monkeypatch.undo()
    assert files(folder) == []
    assert store.load(KEY) is None


def test_an_entry_that_cannot_be_read_counts_as_absent(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert store.load(KEY) is None


# -- concurrent writers -----------------------------------------------------------------------------------------------
def _complete(found: tuple[str, bytes] | None) -> bool:
    """What some writer saved, whole; or nothing."""
    return found is None or (found[1] == found[1][:1] * 50_000 and found[0] == str(found[1][0]))


def test_threads_that_write_one_key_leave_one_complete_entry(folder: Path) -> None:
    start = threading.Barrier(5)
    broken: list[object] = []

    def write(n: int) -> None:
        start.wait()
        for _ in range(20):
            store.save(KEY, str(n), bytes([n]) * 50_000)

    def read() -> None:
        start.wait()
        for _ in range(100):
            found = store.load(KEY)
            if not _complete(found):
                broken.append(found)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)] + [threading.Thread(target=read)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not broken
    found = store.load(KEY)
    assert found is not None and _complete(found)
    assert len(files(folder)) == 1, "no temporary file stays"


def test_processes_that_write_one_key_leave_one_complete_entry(folder: Path) -> None:
    code = (
        "import sys; from mlxir.runtime import store\n"
        "n = int(sys.argv[1])\n"
        f"for _ in range(20): store.save({KEY!r}, str(n), bytes([n]) * 50_000)"
    )
    environment = {**os.environ, "MLXIR_CACHE_DIR": str(folder)}
    writers = [subprocess.Popen([sys.executable, "-c", code, str(n)], env=environment) for n in range(3)]
    while any(w.poll() is None for w in writers):
        assert _complete(store.load(KEY))
        time.sleep(0.002)
    assert [w.returncode for w in writers] == [0, 0, 0]
    found = store.load(KEY)
    assert found is not None and _complete(found)
    assert len(files(folder)) == 1
