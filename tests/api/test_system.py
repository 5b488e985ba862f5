"""Devices, streams, memory, and what this machine does not have: names that are there answer honestly."""

import threading

import mlx.core as real
import numpy as np
import pytest
from oracle import assert_agree, outcome

import mlxir as mx

# Expressions with the outcome of MLX (values, or the error's type).
SAME = """
m.metal.is_available()
m.cuda.is_available()
m.metal.device_info()
m.device_info(m.gpu)
m.device_count(m.cpu), m.device_count(m.gpu)
m.is_available(m.cpu), m.is_available(m.gpu)
m.set_default_device(m.gpu)
m.set_default_device(3)
m.new_stream(m.gpu)
m.stream("cpu")
m.stream(None)
m.stream(m.gpu).__enter__()
m.set_default_stream(m.cpu)
m.default_stream(m.default_stream(m.cpu))
m.synchronize("x")
m.set_memory_limit("x")
m.set_cache_limit("x")
m.set_cache_limit(-1)
m.set_memory_limit(-1)
m.default_stream(m.gpu)
m.default_device() == m.cpu
m.default_device() == m.Device(m.cpu, 0)
m.Device(m.cpu) == m.Device(m.gpu)
str(m.Device(m.cpu, 0)), str(m.cpu)
isinstance(m.new_thread_local_stream(m.cpu), m.ThreadLocalStream)
isinstance(m.new_thread_local_stream(m.cpu), m.Stream)
isinstance(m.new_thread_unsafe_stream(m.cpu), m.Stream)
m.new_stream(m.cpu).device == m.cpu
m.synchronize()
m.synchronize(m.new_stream(m.cpu))
m.distributed.init().rank(), m.distributed.init().size()
m.distributed.init(strict=True)
m.distributed.init(backend="nonsense")
m.distributed.init().split(0)
m.distributed.all_sum(m.ones(2)), m.distributed.all_max(m.ones(2)), m.distributed.all_min(m.ones(2))
m.distributed.all_gather(m.ones(2)), m.distributed.sum_scatter(m.ones(2))
m.distributed.send(m.ones(2), 0)
m.distributed.recv((2,), m.float32, 0)
m.distributed.recv_like(m.ones(2), 0)
m.get_array_buffer_size(m.ones(3) + 1)
m.fast.cuda_kernel(name="k", input_names=["x"], output_names=["y"], source="")
m.fast.precompiled_cuda_kernel()
""".strip().splitlines()


@pytest.mark.parametrize("text", SAME)
def test_answers_as_mlx(text):
    code = compile(text, text, "eval")
    assert_agree(lambda m: eval(code, {"m": m}))


def test_a_metal_kernel_says_that_it_cannot_run():
    kernel = mx.fast.metal_kernel(name="twice", input_names=["x"], output_names=["y"], source="y[0] = 2 * x[0];")
    call = dict(inputs=[mx.ones(1)], grid=(1, 1, 1), threadgroup=(1, 1, 1), output_shapes=[(1,)],
                output_dtypes=[mx.float32])  # fmt: skip
    with pytest.raises(RuntimeError, match=r"\[metal_kernel\] No Metal back-end.*'twice'"):
        kernel(**call)
    with pytest.raises(RuntimeError, match="start_capture"):
        mx.metal.start_capture("x.gputrace")
    with pytest.raises(RuntimeError, match="stop_capture"):
        mx.metal.stop_capture()


def test_clear_streams_brings_back_the_first():
    mx.set_default_stream(mx.new_stream(mx.cpu))
    assert mx.default_stream(mx.cpu).index > 0
    mx.clear_streams()
    assert mx.default_stream(mx.cpu).index == 0


def test_stream_contexts_nest_and_are_per_thread():
    first, second = mx.new_stream(mx.cpu), mx.new_thread_local_stream(mx.cpu)
    before, seen = mx.default_stream(mx.cpu), []
    with mx.stream(first):
        assert mx.default_stream(mx.cpu) == first
        with mx.stream(second):
            assert mx.default_stream(mx.cpu) == second
            thread = threading.Thread(target=lambda: seen.append(mx.default_stream(mx.cpu)))
            thread.start()
            thread.join()
        assert mx.default_stream(mx.cpu) == first
    assert mx.default_stream(mx.cpu) == before and seen == [mx.Stream(mx.Device(mx.cpu), 0)]


@pytest.mark.parametrize("compiled", [False, True])
def test_memory_counters_follow_arrays(compiled):
    make = mx.compile(lambda x: x + 1) if compiled else lambda x: x + 1
    x = mx.array(np.zeros((256, 256), np.float32))
    mx.eval(make(x))  # whatever the first time leaves behind
    before = mx.get_active_memory()
    assert before >= x.nbytes
    kept = make(x)
    mx.eval(kept)
    assert mx.get_active_memory() >= before + kept.nbytes
    mx.reset_peak_memory()
    assert mx.get_peak_memory() == 0
    dropped = make(x)
    mx.eval(dropped)
    assert mx.get_peak_memory() >= before + 2 * x.nbytes
    del kept, dropped
    assert mx.get_active_memory() <= before + 1024
    assert mx.get_array_buffer_size([x, {"a": x}], x) == x.nbytes


def test_the_peak_counts_blocks_that_were_lent_before():
    step = mx.compile(mx.sin)
    x = mx.ones((1 << 18,))
    for _ in range(6):
        mx.eval(step(x))
        mx.reset_peak_memory()
        base = mx.get_active_memory()
        mx.eval(step(x))
        assert mx.get_peak_memory() >= base + x.nbytes


def test_memory_limits():
    old = mx.set_cache_limit(0)
    try:
        x = mx.compile(lambda x: x * 2)(mx.ones((4096,)))
        mx.eval(x)
        del x
        mx.clear_cache()
        assert mx.get_cache_memory() == 0 and mx.set_cache_limit(10) == 0
    finally:
        mx.set_cache_limit(old)
    old = mx.set_memory_limit(10)
    assert mx.get_memory_limit() == 10 and mx.set_memory_limit(old) == 10
    assert mx.set_wired_limit(mx.set_wired_limit(5)) == 5


def test_multivariate_normal():
    mean, cov = [0.0, 1.0, -1.0], [[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 0.5]]
    cases = [
        lambda m: m.random.multivariate_normal(m.array(mean), m.array(cov), key=m.random.key(3)),
        lambda m: m.random.multivariate_normal(m.array(mean), m.array(cov), (4, 2), key=m.random.key(3)),
        lambda m: m.random.multivariate_normal(m.array([mean] * 2), m.array(cov), (5, 2), key=m.random.key(3)),
        lambda m: m.random.multivariate_normal(m.array(mean), m.array([cov] * 2), key=m.random.key(3)),
        lambda m: m.random.multivariate_normal(m.array(1.0), m.array(cov)),
        lambda m: m.random.multivariate_normal(m.array(mean), m.array(mean)),
        lambda m: m.random.multivariate_normal(m.array(mean), m.ones((2, 3))),
        lambda m: m.random.multivariate_normal(m.array(mean), m.ones((2, 2))),
        lambda m: m.random.multivariate_normal(m.array(mean), m.array(cov), (3, 4, 5), m.float16),
        lambda m: m.random.multivariate_normal(m.array([mean] * 4), m.array(cov), (3,)),
    ]
    with real.stream(real.cpu):
        results = [(outcome(c, mx), outcome(c, real)) for c in cases]
    for mine, theirs in results:
        if isinstance(theirs, Exception):
            assert isinstance(mine, type(theirs))
        else:
            np.testing.assert_allclose(np.array(mine), np.array(theirs), rtol=1e-4, atol=1e-5)
