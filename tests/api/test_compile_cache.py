"""What is kept of compiled functions and told about them: counters, bounds, and explanations of new traces."""

import gc
import os
import re
import sys

import numpy as np
import processes
import pytest
from counting import Counter, value

import mlxir as mx
from mlxir.runtime.knobs import knobs

a = mx.array
V = a(np.arange(4, dtype=np.float32))


@pytest.fixture
def small_cache():
    before, knobs.cache_entries = knobs.cache_entries, 3
    yield
    knobs.cache_entries = before


def test_counters_of_a_function_and_of_the_process():
    mx.clear_compile_cache()
    g = mx.compile(lambda x: mx.cos(x) * 1.75)
    before = mx.compile_cache_info()
    assert g.cache_info() == (0, 0, 0, 0.0, 0)
    for x in (V, V, V[:2]):
        g(x)
    info, after = g.cache_info(), mx.compile_cache_info()
    assert info._fields == ("hits", "misses", "entries", "compile_seconds", "code_bytes")
    assert info[:3] == (1, 2, 2) and info.compile_seconds > 0 and info.code_bytes > 0
    assert (after.misses - before.misses, after.entries, after.code_bytes) == (2, 2, info.code_bytes)
    assert after.compilations + after.disk_hits == before.compilations + before.disk_hits + 2
    mx.clear_compile_cache()
    assert g.cache_info() == (0, 0, 0, 0.0, 0)
    assert (mx.compile_cache_info().entries, mx.compile_cache_info().code_bytes) == (0, 0)


def test_least_recently_used_signatures_are_dropped(small_cache):
    f = Counter(lambda x: x * 2)
    g = mx.compile(f)
    for n in (1, 2, 3):
        g(mx.ones((n,)))
    g(mx.ones((1,)))
    g(mx.ones((4,)))  # drops 2
    assert f.runs == 4 and g.cache_info().entries == 3
    for n in (1, 3, 4):
        g(mx.ones((n,)))
    assert f.runs == 4
    assert value(g(mx.ones((2,)))) == [2.0, 2.0] and f.runs == 5
    assert mx.compile_cache_info().entries <= 3


def test_dropped_signatures_let_go_of_what_they_captured(small_cache):
    f = Counter(lambda x, k: x * big[0])
    g, big = mx.compile(f), [a(np.ones(100, np.float32))]
    g(a(1.0), "a")
    value = big[0]._value
    big[0] = a(2.0)
    gc.collect()
    held = sys.getrefcount(value)
    for name in "bcde":
        g(a(1.0), name)
    gc.collect()
    assert sys.getrefcount(value) == 2 < held  # the name and the argument


def test_equal_calls_after_clearing_trace_again():
    f = Counter(lambda x, k: x * k)
    g = mx.compile(f, shapeless=True)
    for _ in range(2):
        f.runs = 0
        for k in range(6):
            g(V, float(k))
        assert f.runs == 4
        g.cache_clear()


# -- explanations ------------------------------------------------------------------------------------------------------
@pytest.fixture
def explained(capsys):
    with mx.explain_recompiles():
        yield lambda: capsys.readouterr().err


def params(w, extra=None, *, scale=1.0):
    return mx.sum(w["a"]) * scale


CHANGES = [
    ("shape", ({"a": V},), {}, ({"a": V[:2]},), {}, r"w\['a'\]: f32\[2\], was f32\[4\]"),
    ("dtype", ({"a": V},), {}, ({"a": V.astype(mx.int32)},), {}, r"w\['a'\]: i32\[4\], was f32\[4\]"),
    ("constant", ({"a": V}, "x"), {}, ({"a": V}, "y"), {}, r"extra: str 'y', was str 'x'"),
    ("container", ({"a": V}, [1]), {}, ({"a": V}, (1,)), {}, r"extra: tuple of 1, was list of 1"),
    ("new key", ({"a": V},), {}, ({"a": V, "b": V},), {}, r"w\['b'\]: f32\[4\] is new"),
    ("gone", ({"a": V}, None), {}, ({"a": V},), {}, r"extra: NoneType None is gone"),
    ("keyword", ({"a": V},), {"scale": 2}, ({"a": V},), {"scale": True}, r"scale: bool True, was int 2"),
]


@pytest.mark.parametrize("case", CHANGES, ids=[c[0] for c in CHANGES])
def test_a_new_trace_is_explained(case, explained):
    _, args, kwargs, args2, kwargs2, message = case
    g = mx.compile(params)
    g(*args, **kwargs)
    assert explained() == ""
    g(*args2, **kwargs2)
    g(*args, **kwargs)
    lines = explained().splitlines()
    assert re.match(r"\[mlxir\] params \(test_compile_cache.py:\d+\) .* called \(test_compile_cache.py:\d+\)", lines[0])
    assert any(re.search(message, line) for line in lines[1:])


def test_the_nearest_earlier_signature_is_compared(explained):
    g = mx.compile(lambda x, y, mode: x * y)
    g(V, V, "a"), g(V[:2], V[:2], "b"), g(V[:2], V[:2], "c")
    assert explained().splitlines()[-1] == "[mlxir]   mode: str 'c', was str 'b'"


def test_what_a_shapeless_trace_assumed_is_explained(explained):
    g = mx.compile(lambda x: x * int(x.shape[0]), shapeless=True)
    g(V), g(V[:2])
    assert "the trace before assumed x.shape[0] == 4 (test_compile_cache.py:" in explained()
    h = mx.compile(lambda x: x * 2 if x.shape[0] > 3 else x, shapeless=True)
    h(V), h(V[:2])
    assert "the trace before assumed x.shape[0] - 3 > 0 (test_compile_cache.py:" in explained()


def test_a_number_that_becomes_an_input_is_explained(explained):
    g = mx.compile(lambda x, lr: x * lr)
    for i in range(9):
        g(V, i / 2)
    text = explained()
    assert text.count("is traced again") == 3
    assert text.endswith("lr has had 4 values: an input from now on\n")


def test_the_switch(capsys):
    g = mx.compile(lambda x: x)
    g(V)
    assert not knobs.explain
    mode = mx.explain_recompiles()
    assert knobs.explain and "explained" in repr(mode)
    mx.explain_recompiles(False)
    assert not knobs.explain
    g(V[:2])
    assert capsys.readouterr().err == ""


def test_the_environment_variable():
    code = "import mlxir as mx; f = mx.compile(lambda x: x); f(mx.ones(2)); f(mx.ones(3))"
    done = processes.run([sys.executable, "-c", code], env={**os.environ, "MLXIR_EXPLAIN": "1"})
    assert done.returncode == 0 and "x: f32[3], was f32[2]" in done.stderr
