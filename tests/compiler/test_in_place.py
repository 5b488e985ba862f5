"""Updates of a part of an array: which copies a program makes, and which of them its caller may leave out."""

import numpy as np
import pytest

import mlxir as mx
from mlxir.compilation import traced
from mlxir.compiler import donation, pipeline
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.references import references

X, K = mx.zeros((64, 4, 48)), mx.ones((1, 4, 48))


def schedule(f, *args):
    mx.eval(args)
    program, _ = traced(f, args, {})
    return pipeline.compile_program(program)[1]


def launches(made):
    return [launch.extent for segment in made.segments for launch in segment.launches]


def set_rows(x, *pairs):
    for n, k in pairs:
        x[n : n + 1] = k
    return x


def test_a_static_slice_is_written_to_a_copy_that_may_be_left_out():
    made = schedule(lambda x, k: set_rows(x, (3, k)), X, K)
    assert made.copies == [(0, 2)] and launches(made) == [X.size, 1] and not made.arena


def test_a_chain_of_updates_makes_one_copy():
    made = schedule(lambda x, k: set_rows(x, (3, k), (5, k * 2), (7, k + 1)), X, K)
    assert made.copies == [(0, 2)] and len(launches(made)) == 4 and not made.arena


def test_rows_apart_are_loops_of_their_own():
    """Each is contiguous."""

    def f(x, k):
        x[:, 2:3] = k
        return x

    assert launches(schedule(f, X, mx.ones((64, 1, 48)))) == [X.size, 64]


@pytest.mark.parametrize(
    "f",
    [
        lambda x, k: (set_rows(x + 0, (3, k)), x),  # x is a result
        lambda x, k: set_rows(x, (3, x[5:6] + k)),  # the same kernel reads it
        lambda x, k: (set_rows(mx.stop_gradient(x), (3, k)), set_rows(mx.array(x), (4, k)))[0] * 2,  # no result is one
    ],
)
def test_copies_that_are_needed(f):
    assert schedule(f, X, K).copies == []


def test_the_last_of_two_updates_of_one_array_may_leave_out_its_copy():
    made = schedule(lambda x, k: (set_rows(x + 0, (3, k)), mx.slice_update(x, k, mx.array([2]), (0,))), X, K)
    assert [parameter for parameter, _ in made.copies] == [0]

    def both(x, k):
        return mx.slice_update(x, k, mx.array([1]), (0,)), mx.slice_update(x, k, mx.array([2]), (0,))

    assert len(schedule(both, X, K).copies) == 1 and launches(schedule(both, X, K)).count(X.size) == 2


def test_an_array_that_is_read_before_may_be_written_over():
    def f(x, k):
        total = (x * 2).sum()
        return total, set_rows(x, (3, k))

    assert len(schedule(f, X, K).copies) == 1


def test_large_updates_stay_elementwise():
    def f(x, k):
        x[:32] = k
        return x

    assert schedule(f, X, mx.ones((32, 4, 48))).copies == []


def test_who_refers_to_memory():
    probe = [object()]
    alone = references(probe[0])  # (pytest keeps what an assertion computes on the way)
    other = probe[0]
    both = references(probe[0])
    assert (alone, both) == (1, 2) and other is not None
    pooled, foreign = [Buffer.empty((4,), mx.float32)], [Buffer.from_numpy(np.zeros(4))]
    for buffers in (pooled, foreign):
        assert buffers[0].is_unseen() and not buffers[0].is_unseen(2)
        buffers[0].numpy()
        assert buffers[0].is_unseen()
        view = buffers[0].numpy()[1:]
        assert not buffers[0].is_unseen()
        del view
        assert buffers[0].is_unseen()
        second = Buffer(buffers[0].pointer, (4,), mx.float32, buffers[0].owner)
        assert not buffers[0].is_unseen() and second.shape == (4,)
        del second
        assert buffers[0].is_unseen()
    data = np.zeros(4)
    assert not Buffer.from_numpy(data).is_unseen()
    data.flags.writeable = False
    locked = Buffer.from_numpy(data)
    del data
    assert not locked.is_unseen()


def test_programs_know_what_they_update():
    program, _ = traced(lambda k, x: set_rows(x, (3, k)) + (k * 2).at[0].add(1), (K, X), {})
    assert donation.updated(program) == [1]
