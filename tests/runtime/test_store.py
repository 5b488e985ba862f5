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
import processes
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlxir.compiler import cache, objects
from mlxir.compiler.graph import GraphBuilder, constant, cut
from mlxir.compiler.program import Program
from mlxir.runtime import store
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.knobs import Knobs, knobs
from mlxir.runtime.launch import Object

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


def test_a_damaged_object_is_written_anew_by_who_has_it(folder: Path) -> None:
    code = Object("cd" * 32, ("f",), b"code")
    objects.keep(code)
    objects.clear()
    (path,) = files(folder)
    path.write_bytes(b"garbage")
    objects.keep(code)
    objects.clear()
    assert objects.recall(code.digest) == code
    path.unlink()
    objects.keep(code)
    assert path.exists(), "removed by another process"


@pytest.mark.parametrize("gone", ["program", "object"])
def test_a_part_that_is_gone_is_compiled_again(folder: Path, gone: str) -> None:
    """As the bound may have it, or another process."""
    program, x = _program()
    cache.clear()
    before = cache.info().compilations
    cache.executable(program)
    digests = {p.stem for p in files(folder)}
    (mine,) = [d for d in digests if (store.load(d) or ("",))[0].startswith('["{')]  # a schedule, then digests
    for path in files(folder):
        if (path.stem == mine) == (gone == "program"):
            path.unlink()
    cache.clear()
    for expected in (2, 2):
        (result,) = cache.executable(program).run([Buffer.from_numpy(x)])
        np.testing.assert_allclose(result.numpy(), np.sin(x * 3), atol=1e-6)
        cache.clear()
        assert cache.info().compilations - before == expected
    assert {p.stem for p in files(folder)} == digests


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
    def refuse(self: Path, mode: str) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "open", refuse)
    assert store.load(KEY) is None


@pytest.mark.skipif(not hasattr(os, "seteuid") or os.getuid() != 0, reason="only root can become someone else")
def test_a_folder_of_somebody_else_is_no_error(folder: Path) -> None:
    """What a run as root leaves in a home: to others, whatever lies in it is neither there nor not there."""
    folder.mkdir(mode=0o700)
    folder.parent.chmod(0o755)
    os.seteuid(65534)
    try:
        store.save(KEY, TEXT, CODE)
        assert store.load(KEY) is None and not store.holds(KEY)
    finally:
        os.seteuid(0)
    assert files(folder) == []


def test_a_home_that_cannot_be_written_to_means_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_dir", Path("/proc/nobody/.cache/mlxir"))
    program, x = _program()
    cache.clear()
    (result,) = cache.executable(program).run([Buffer.from_numpy(x)])
    np.testing.assert_allclose(result.numpy(), np.sin(x * 3), atol=1e-6)


def test_without_a_home_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLXIR_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert Knobs().cache_dir == Path("/home/somebody/.cache/mlxir")
    monkeypatch.setenv("XDG_CACHE_HOME", "caches")  # not absolute: to be ignored
    assert Knobs().cache_dir == Path("/home/somebody/.cache/mlxir")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    assert Knobs().cache_dir is None
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/caches")
    assert Knobs().cache_dir == Path("/var/caches/mlxir")


def test_a_relative_folder_stays_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLXIR_CACHE_DIR", "here")
    assert Knobs().cache_dir == tmp_path / "here"


WITHOUT_ROOM = """
import resource, sys
import numpy as np, mlxir as mx
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
x = np.arange(6, dtype=np.float32)
np.testing.assert_allclose(np.array(mx.compile(lambda x: mx.sin(x) * 3)(mx.array(x))), np.sin(x) * 3, rtol=1e-5)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits of files")
def test_where_files_cannot_grow_code_is_compiled(folder: Path) -> None:
    """Writes that fail in the middle, as on a full disk: whatever is kept is whole."""
    environment = {**os.environ, "MLXIR_CACHE_DIR": str(folder), "MLXIR_DEVICE": "cpu"}
    done = processes.run([sys.executable, "-c", WITHOUT_ROOM], env=environment)
    assert done.returncode == 0, done.stderr
    kept = files(folder)
    assert all(p.suffix == ".mlxir" and store.load(p.stem) is not None for p in kept), kept


# -- the bound --------------------------------------------------------------------------------------------------------
def _key(n: int) -> str:
    """Keys of one folder."""
    return f"ab{n:062x}"


def _age(key: str, seconds: float) -> None:
    path = store._path(key)
    assert path is not None
    os.utime(path, times=(time.time() - seconds,) * 2)


def _held() -> list[int]:
    return [n for n in range(9) if store.holds(_key(n))]


def test_what_was_used_least_recently_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_bytes", 3500 * store.FOLDERS)
    for n in range(3):
        store.save(_key(n), "", bytes(1000))
        _age(_key(n), 10 * store.HOUR - n)
    assert store.load(_key(0)) is not None  # a use
    store.save(_key(3), "", bytes(1000))
    assert _held() == [0, 2, 3]
    store.save(_key(4), "", bytes(9000))
    assert _held() == [4], "the newest stays, however large it is"


def test_without_a_bound_nothing_goes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_bytes", 0)
    for n in range(4):
        store.save(_key(n), "", bytes(1000))
    assert _held() == [0, 1, 2, 3]


def test_a_time_in_the_future_is_set_right(entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _age(KEY, -100 * store.HOUR)
    assert store.load(KEY) == (TEXT, CODE)
    assert abs(entry.stat().st_mtime - time.time()) < store.HOUR
    _age(KEY, 2 * store.HOUR)
    monkeypatch.setattr(os, "utime", lambda path: os.stat("/no such file"))
    assert store.load(KEY) == (TEXT, CODE), "a folder that nobody may write to by now"


def test_what_killed_processes_left_goes_in_time(entry: Path, folder: Path) -> None:
    for name, age in (("old", 2 * store.HOUR), ("new", 0)):
        left = entry.parent / f".writing-{name}"
        left.write_bytes(b"half")
        os.utime(left, times=(time.time() - age,) * 2)
    store.save(_key(1), "", b"")
    assert sorted(p.name for p in files(folder) if p.suffix != ".mlxir") == [".writing-new"]


def test_a_file_that_goes_while_the_bound_is_kept_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knobs, "cache_bytes", 1500 * store.FOLDERS)
    unlink = os.unlink

    def late(path: str) -> None:
        unlink(path)
        unlink(path)  # as if another process had done it meanwhile

    store.save(_key(0), "", bytes(1000))
    monkeypatch.setattr(os, "unlink", late)
    store.save(_key(1), "", bytes(1000))
    assert _held() == [1]


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
    end = time.monotonic() + 300
    while any(w.poll() is None for w in writers) and time.monotonic() < end:
        assert _complete(store.load(KEY))
        time.sleep(0.002)
    assert [w.returncode for w in writers] == [0, 0, 0]
    found = store.load(KEY)
    assert found is not None and _complete(found)
    assert len(files(folder)) == 1


FILLING = """
import sys
import numpy as np, mlxir as mx
x = np.arange(6, dtype=np.float32)
for scale in (2, 3, 4):
    found = mx.compile(lambda x: mx.softmax(mx.sin(x) * scale))(mx.array(x))
    expected = np.exp(np.sin(x) * scale)
    np.testing.assert_allclose(np.array(found), expected / expected.sum(), rtol=1e-5)
print(mx.compile_cache_info().compilations)
"""


def test_processes_that_fill_one_cache_leave_it_whole(folder: Path) -> None:
    environment = {**os.environ, "MLXIR_CACHE_DIR": str(folder), "MLXIR_DEVICE": "cpu"}

    def fill() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", FILLING], env=environment, stdout=subprocess.PIPE, text=True,
                                cwd="/")  # fmt: skip

    both = [fill(), fill()]
    for process in both:
        process.communicate(timeout=300)
        assert process.returncode == 0
    assert all(store.load(p.stem) is not None for p in files(folder))
    third = fill()
    assert third.communicate(timeout=300)[0] == "0\n", "everything is there"
