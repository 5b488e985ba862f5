"""Other libraries: the buffer protocol, NumPy's functions, DLPack, PyTorch; and pickles that cross processes."""

import array as python_array
import gc
import hashlib
import pickle
import sys

import mlx.core as real
import numpy as np
import processes
import pytest
from oracle import assert_agree

import mlxir as mx

BUFFER_DTYPES = ["bool_", "uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float16",
                 "float32", "complex64"]  # fmt: skip


@pytest.mark.parametrize("dtype", BUFFER_DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0, 2)])
def test_buffer_protocol(dtype, shape):
    x = mx.arange(int(np.prod(shape))).reshape(shape).astype(getattr(mx, dtype))
    view = memoryview(x)
    data = np.array(x)
    assert (view.format, view.shape, view.strides, view.readonly) == (*_layout(data), True)
    np.testing.assert_array_equal(np.array(view), data)
    assert np.shares_memory(np.asarray(view), np.asarray(x)) or not x.size
    assert bytes(x) == data.tobytes()


def _layout(data):
    view = memoryview(data)
    return view.format, view.shape, view.strides


def test_a_buffer_outlives_its_array_and_keeps_its_values():
    x = mx.array([1.0, 2.0])
    view = memoryview(x)
    x[0] = 5
    assert x.tolist() == [5, 2] and view.tolist() == [1, 2]
    del x
    gc.collect()
    assert view.tolist() == [1, 2]


def test_buffers_do_not_leak():
    x = mx.array([1.0])
    mx.eval(x)
    before = sys.getrefcount(x)
    for _ in range(100):
        memoryview(x)
        np.array(x)
    assert sys.getrefcount(x) == before


def test_readers_of_buffers():
    x = mx.array([1, 2, 3])
    assert hashlib.sha256(x).digest() == hashlib.sha256(np.array(x)).digest()
    assert mx.array(memoryview(x)).tolist() == mx.array(python_array.array("i", [1, 2, 3])).tolist() == [1, 2, 3]


def test_a_buffer_that_cannot_be_is_refused():
    with pytest.raises((SystemError, ValueError, BufferError)):
        memoryview(mx.ones(2, mx.bfloat16))
    assert np.array(mx.ones(2, mx.bfloat16)).tolist() == [1, 1]
    with pytest.raises(ValueError, match="not allowed during"):
        mx.vmap(lambda row: mx.array(np.array(row)))(mx.ones((2, 2)))


# With real MLX's results and error types.
SAME = """
np.ones(2) + m.ones(2)
m.ones(2) + np.ones(2)
m.ones(2) * np.float32(3)
np.float32(3) * m.ones(2)
np.stack([m.ones(2), m.zeros(2)])
np.sin(m.ones(2))
np.ones((2, 2)) @ m.ones((2, 2))
m.ones((2, 2)) @ np.ones((2, 2))
np.asarray(m.ones(2), dtype=np.float64)
m.array(np.ones(2)), m.array(np.ones(2, np.int64)), m.array(np.ones(2, np.complex128))
m.array(np.ones((2, 3)).T), m.array(np.arange(6)[::2])
m.array(bytearray(b"abc")), m.array(memoryview(b"abc"))
m.array(np.array(["a"]).tolist())
m.from_dlpack(np.arange(3, dtype=np.float32))
m.from_dlpack(np.arange(6, dtype=np.int64)[::2])
m.from_dlpack(m.ones(2))
m.from_dlpack([1, 2])
m.ones(2).__dlpack_device__()
np.from_dlpack(m.ones(2))
np.from_dlpack(m.ones(2).astype(m.complex64))
m.ones(2).__dlpack__(dl_device=(2, 0))
""".strip().splitlines()


@pytest.mark.parametrize("text", SAME)
def test_exchange_as_in_mlx(text):
    code = compile(text, text, "eval")
    assert_agree(lambda m: eval(code, {"m": m, "np": np}))


@pytest.mark.parametrize("dtype", BUFFER_DTYPES[1:])
def test_dlpack_shares_memory_both_ways(dtype):
    x = mx.arange(4).astype(getattr(mx, dtype))
    theirs = np.from_dlpack(x)
    assert np.shares_memory(theirs, np.asarray(x))
    assert np.shares_memory(np.asarray(mx.from_dlpack(theirs, copy=False)), theirs)
    assert not np.shares_memory(np.asarray(mx.from_dlpack(theirs, copy=True)), theirs)
    assert real.from_dlpack(x).tolist() == x.tolist()


def test_torch_both_ways():
    torch = pytest.importorskip("torch")
    x = mx.array([[1.0, 2.0], [3.0, 4.0]])
    shared = torch.from_dlpack(x)
    assert shared.tolist() == x.tolist() and shared.data_ptr() == np.asarray(x).__array_interface__["data"][0]
    assert torch.tensor(x).tolist() == torch.tensor(np.array(x)).tolist() == x.tolist()
    half = torch.from_dlpack(x.astype(mx.bfloat16))
    assert half.dtype == torch.bfloat16 and half.tolist() == x.tolist()
    sources = [torch.arange(4), torch.ones(2, 3).T, torch.tensor([True, False]), torch.ones(2).half(), half, half.T]
    for source in sources:
        for found in (mx.from_dlpack(source), mx.array(source), mx.asarray(source)):
            assert str(found.dtype).rpartition(".")[2] == str(source.dtype).rpartition(".")[2]
            assert found.tolist() == source.tolist()
    assert (x + torch.ones(2, 2)).tolist() == [[2, 3], [4, 5]]
    assert mx.array(torch.ones(2, requires_grad=True)).tolist() == [1, 1]
    assert np.shares_memory(np.asarray(mx.from_dlpack(half)).view(np.uint16), half.view(torch.int16).numpy())


def test_bfloat16_travels_by_dlpack():
    x = mx.array([1.5, -2.0, float("inf")], mx.bfloat16)
    assert real.from_dlpack(x).dtype == real.bfloat16 and real.from_dlpack(x).tolist() == x.tolist()
    back = mx.from_dlpack(real.from_dlpack(x))
    assert back.dtype == mx.bfloat16 and back.tolist() == x.tolist()
    own = mx.from_dlpack(x)
    assert np.shares_memory(np.asarray(own), np.asarray(x))


def test_pickles_are_read_in_another_process(tmp_path):
    tree = {"a": mx.array([[1, 2]]), "b": [mx.ones(2, mx.bfloat16), mx.array(1j)], "dtype": mx.float16}
    (tmp_path / "tree.pickle").write_bytes(pickle.dumps(tree))
    code = "import pickle, sys; t = pickle.load(open(sys.argv[1], 'rb')); print(t['a'].tolist(), t['b'], t['dtype'])"
    command = [sys.executable, "-c", code, str(tmp_path / "tree.pickle")]
    told = processes.run(command, check=True).stdout
    assert told == (
        "[[1, 2]] [array([1, 1], dtype=bfloat16), array(0+1j, dtype=complex64)] mlx.core.float16\n"
    )  # fmt: skip


def test_an_interrupt_while_numpy_asks_for_the_data_is_raised(monkeypatch):
    """As Ctrl-C during the evaluation; what must not happen is that NumPy takes the request for granted."""

    def interrupted(data):
        raise KeyboardInterrupt

    x = mx.array([1.0, 2.0])
    with monkeypatch.context() as patch:
        patch.setattr(mx.interop, "buffer_of", interrupted)
        with pytest.raises(KeyboardInterrupt):
            np.array(x)
        with pytest.raises((KeyboardInterrupt, SystemError)):
            memoryview(x)
    assert np.array(mx.array([3.0])).tolist() == [3.0] and np.array(x).tolist() == [1.0, 2.0]
    assert x.__array__().tolist() == [1.0, 2.0]
