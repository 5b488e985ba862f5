"""The class `array`: construction, conversions, operators, exchange with other libraries; mostly against real MLX."""

import copy
import gc
import pickle
import sys

import ml_dtypes
import mlx.core as real
import numpy as np
import pytest
from oracle import assert_agree, assert_same, expression

import mlxir as mx


def names(m):
    return {
        "f": m.array([1.0, 2.0]),
        "i": m.array([1, 2]),
        "b": m.array([True, False]),
        "h": m.array([1.5], m.float16),
        "i8": m.array([1], m.int8),
        "u8": m.array([1], m.uint8),
        "u64": m.array([1], m.uint64),
        "c": m.array([1 + 2j]),
        "e": m.zeros((0, 3)),
        "bf": ml_dtypes.bfloat16,
    }


CONSTRUCTION = """
m.array(3)
m.array(2**31)
m.array(-2**31)
m.array(1.5)
m.array(True)
m.array(2j)
m.array(1e40)
m.array(val=3)
m.array([])
m.array([[]])
m.array([[], []])
m.array(())
m.array([1, 2.5])
m.array([True, 2])
m.array([True, 1.5])
m.array([True, False])
m.array([1, 2j])
m.array([1, 2**40])
m.array([(1, 2), [3, 4]])
m.array([1, [2]])
m.array([[1], [2, 3]])
m.array([[1], 2])
m.array([1, None])
m.array(['a'])
m.array('abc')
m.array(None)
m.array({1})
m.array({})
m.array(range(3))
m.array([range(2)])
m.array([1, 2], m.float16)
m.array([1, 2], m.bool_)
m.array([1.7, 2], m.int32)
m.array([300, -1], m.uint8)
m.array(300, m.uint8)
m.array(-1, m.uint32)
m.array(1.5, m.int32)
m.array(1j, m.float32)
m.array(2**40, m.int32)
m.array([[1, 2], [3, 4]], dtype=m.complex64)
m.array([0.1], m.float64)
m.array(1, dtype='float32')
m.array(3, 4)
m.array([m.array(1), 2])
m.array([m.array([1, 2]), m.array([3.0, 4.0])])
m.array([m.array([1, 2]), [3, 4]])
m.array([m.array([1], m.float16), m.array([1], m.bfloat16)])
m.array(f)
m.array(f, m.int32)
m.array(np.array([1, 2], np.float64))
m.array(np.array([1, 2], np.int64))
m.array(np.array([1, 2], np.complex128))
m.array(np.array([1, 2], bf))
m.array(np.float64(3))
m.array(np.int64(3))
m.array(np.float16(3))
m.array(np.array(3.0))
m.array([np.float64(1.5), 2])
m.array(np.bool_(True))
m.array(np.arange(6).reshape(2, 3).T)
m.array(np.zeros((0, 3)))
m.array(b'abc')
m.array(bytearray(b'abc'))
m.array(memoryview(b'abc'))
m.asarray([1, 2])
m.asarray(np.ones(2))
m.asarray(f, dtype=m.int32, copy=False)
m.from_dlpack(np.arange(3))
m.from_dlpack(np.arange(3.0))
""".strip().splitlines()

OPERATORS = """
f + i
i + f
h + f
h + i
i8 + i
u8 + i8
u64 + i
c + f
b + i
b + b
h + 1
h + 1e6
h + 1j
i + 1.5
i + True
b + 1
i8 + 1000
u8 + (-1)
u8 + 256
i + 2**40
f + 2**40
1 + f
1.5 - i
2 / f
2 // i
2 % i
2 ** i
f - 1
f * 2
f / 0
i / 2
i / i
b / b
i // 2
b // b
f // 0.3
f % 0.3
i ** 2
f ** 0.5
-f
-i
-b
+f
abs(-f)
~i
~b
~f
i & 3
i | 8
i ^ 3
b & b
b | 1
b ^ b
i & True
i & 1.5
f & f
i << 2
i >> 1
b << b
f << 1
1 & i
1 << i
f == i
f != 1
f < 1.5
f <= f
f > i
f >= 2
c == c
f == [1, 2]
f == 'a'
f != 'a'
f < 'a'
f < None
f + None
f + 'a'
f + [1, 2]
[1, 2] + f
f == object()
f @ f
f @ 2
2 @ f
f @ np.ones(2)
np.ones(2) @ f
np.ones(2) + f
np.float32(2) * f
f + np.ones(2)
i + np.array([1.5, 2.5])
h + np.float32(2)
i8 + np.int64(3)
divmod(f, 2)
round(f)
f + m.ones((3, 1))
f + m.ones((3,))
e + 1
f.__div__(2)
f.__rdiv__(2)
""".strip().splitlines()

CONVERSIONS = """
bool(m.array(2))
bool(m.array([[0]]))
bool(f)
bool(e)
int(m.array(2.7))
int(f)
float(m.array(3))
float(m.array(1j))
complex(c)
complex(m.array(2))
m.array(1).__index__()
m.array([1]).__index__()
m.array(1.5).__index__()
[1, 2, 3][m.array(1)]
len(f)
len(m.array(1))
list(m.array(1))
list(f)
list(m.ones((2, 2)))
f.item()
m.array([[1.5]]).item()
m.array(1.5, m.bfloat16).item()
m.array(True).item()
m.array(0.1).item()
f.tolist()
b.tolist()
c.tolist()
m.array(1).tolist()
m.array([1.5], m.bfloat16).tolist()
m.array([[1, 2], [3, 4]]).tolist()
e.tolist()
f.shape, f.ndim, f.size, f.itemsize, f.nbytes
e.shape, e.size, e.nbytes
m.array(1).shape
f.dtype
bytes(m.array([1, 2], m.uint8))
f.T.shape
m.ones((2, 3)).mT.shape
f.mT
c.real
c.imag
f.imag
f'{m.array(1.5):.3f}'
f'{m.array(2)}'
f'{f:.3f}'
'%d' % m.array(3)
np.array(f)
np.asarray(i).dtype
np.array(h)
np.array(b)
np.array(m.array(3)).shape
np.array(f, dtype=np.int32)
np.sum(f)
np.from_dlpack(f)
f.__dlpack_device__()
1 in i
5 in i
""".strip().splitlines()


@pytest.mark.parametrize("text", CONSTRUCTION + OPERATORS + CONVERSIONS)
def test_agrees_with_mlx(text):
    assert_agree(expression(text, names))


@pytest.mark.parametrize("text", ["f == None", "None == f", "f != None"])
def test_comparison_with_none_is_no_error(text):
    """MLX 0.32.4 raises TypeError; BEHAVIOUR section 12 asks for False and True."""
    assert eval(text, {"f": mx.array([1.0])}) is ("!=" in text)


# -- in-place operators ----------------------------------------------------------------------------------------------
IN_PLACE = ["+=", "-=", "*=", "/=", "//=", "%=", "**=", "&=", "|=", "^=", "<<=", ">>="]


@pytest.mark.parametrize("op", IN_PLACE)
@pytest.mark.parametrize(
    "left, right", [([5, 6], [2, 3]), ([5.0, 6.0], [2.0, 0.5]), ([5, 6], 1.5), ([True, False], True)]
)
def test_in_place_operators(op, left, right):
    def build(m):
        scope = {"x": m.array(left), "y": m.array(right) if isinstance(right, list) else right}
        exec(f"x {op} y", scope)
        return scope["x"]

    assert_agree(build)


def test_in_place_operators_rebind_the_same_object():
    a = mx.array([1, 2])
    alias, other = a, mx.array(a)
    a += mx.ones((2, 2))
    assert alias is a and alias.shape == (2, 2) and alias.dtype is mx.float32
    assert other.tolist() == [1, 2]
    m = mx.eye(2)
    alias = m
    m @= mx.full((2, 2), 3.0)
    assert alias is m and m.tolist() == [[3, 3], [3, 3]]
    with pytest.raises(TypeError):
        m @= 2


def test_in_place_division_of_integers_raises():
    a = mx.array([1, 2])
    with pytest.raises(ValueError, match="divide"):
        a /= 2


# -- identity, copies, pickles ---------------------------------------------------------------------------------------
def test_arrays_hash_by_identity():
    a, b = mx.array([1.0]), mx.array([1.0])
    assert hash(a) != hash(b) and {a: 1}[a] == 1 and b not in {a: 1}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "bool_", "complex64", "uint64", "float64"])
def test_pickle_and_copy(dtype):
    a = mx.array([[0, 1], [1, 0]], getattr(mx, dtype))
    for b in (pickle.loads(pickle.dumps(a)), copy.copy(a), copy.deepcopy(a), copy.deepcopy({"a": [a]})["a"][0]):
        assert b is not a and b.dtype is a.dtype and mx.array_equal(a, b).item()
    b = copy.copy(a)
    b[0] = 1
    assert a.tolist() != b.tolist()


def test_only_slots():
    with pytest.raises(AttributeError):
        mx.array(1).anything = 2
    assert sys.getsizeof(mx.array(1)) <= 64


# -- exchange --------------------------------------------------------------------------------------------------------
def test_array_copies_numpy_and_asarray_shares():
    data = np.ones(3, np.float32)
    copied, shared = mx.array(data), mx.asarray(data)
    data[0] = 7
    assert copied.tolist() == [1, 1, 1] and shared.tolist() == [7, 1, 1]
    assert mx.asarray(np.ones(3, np.float32), copy=True).tolist() == [1, 1, 1]
    for bad in (np.ones(3), [1.0], np.ones((2, 2), np.float32).T):
        with pytest.raises(ValueError, match="avoid copy"):
            mx.asarray(bad, copy=False)


def test_numpy_view_shares_memory_and_is_read_only():
    a = mx.arange(4) + 1
    mx.eval(a)
    view = np.asarray(a)
    assert np.shares_memory(view, np.asarray(a)) and not view.flags.writeable
    assert np.array(a).flags.writeable and not np.shares_memory(np.array(a), view)
    del a
    gc.collect()
    assert view.tolist() == [1, 2, 3, 4]


def test_bfloat16_goes_through_ml_dtypes():
    a = mx.array([1.5, -2.25], mx.bfloat16)
    data = np.array(a)
    assert data.dtype == ml_dtypes.bfloat16 and mx.array(data).tolist() == [1.5, -2.25]


def test_dlpack_round_trip_shares_memory():
    a = mx.arange(6).reshape(2, 3)
    mx.eval(a)
    theirs = np.from_dlpack(a)
    assert np.shares_memory(theirs, np.asarray(a))
    back = mx.from_dlpack(theirs, copy=False)
    assert np.shares_memory(np.asarray(back), theirs)
    with pytest.raises(ValueError, match="without a copy"):
        mx.from_dlpack(np.ones((2, 3), np.float32).T, copy=False)
    with pytest.raises(TypeError, match="from_dlpack"):
        mx.from_dlpack([1])
    with pytest.raises(BufferError):
        a.__dlpack__(dl_device=(2, 0))


def test_real_mlx_reads_ours_through_dlpack():
    assert_same(mx.from_dlpack(real.array([1.5, 2.5])), real.array([1.5, 2.5]))
    assert_same(mx.array([1.5, 2.5]), real.from_dlpack(mx.array([1.5, 2.5])))


def test_mlx_array_protocol():
    class Wrapped:
        def __mlx_array__(self):
            return mx.array([1.0, 2.0])

    assert mx.array(Wrapped()).tolist() == [1, 2]
    assert (mx.array([1.0, 1.0]) + Wrapped()).tolist() == [2, 3]
    assert mx.array(mx.ArrayLike(Wrapped())).tolist() == [1, 2]
    with pytest.raises(TypeError):
        mx.ArrayLike(3)


@pytest.mark.parametrize(
    "data",
    [np.arange(6)[::-1], np.array([1.0, 2.0], ">f4"), np.arange(8, dtype=np.int16)[::2], np.asfortranarray(np.eye(3))],
)
def test_any_numpy_layout_is_accepted(data):
    a = mx.array(data)
    assert np.asarray(a).flags.c_contiguous
    np.testing.assert_array_equal(np.asarray(a), data)


def test_numpy_leaves_in_lists():
    """Real MLX rejects these; API.md asks for them."""
    a = mx.array([np.array([1, 2]), np.array([3.0, 4.0])])
    assert a.tolist() == [[1, 2], [3, 4]] and a.dtype is mx.float32
    assert mx.array([np.float32(1.5), 2]).tolist() == [1.5, 2]


@pytest.mark.parametrize("bad", [2**63, [2**70], np.array(["a"]), np.array([None]), np.datetime64("2020-01-01")])
def test_data_without_a_dtype_of_ours_raises(bad):
    with pytest.raises(ValueError, match=r"\[array\]"):
        mx.array(bad)


def test_namespace_and_iteration():
    a = mx.ones((2, 3))
    assert a.__array_namespace__() is mx
    iterator = iter(a)
    assert isinstance(iterator, mx.ArrayIterator) and next(iterator).shape == (3,)
    assert [r.shape for r in a] == [(3,), (3,)]


def test_errors_name_the_users_line():
    with pytest.raises(ValueError, match=r"\[broadcast_shapes\].* in add\..*test_array\.py:\d+"):
        mx.ones((2,)) + mx.ones((3,))


# -- dtypes ----------------------------------------------------------------------------------------------------------
DTYPES = """
m.finfo(m.float32).eps
m.finfo(m.float16).max
m.finfo(m.bfloat16).min
m.finfo(m.float64).smallest_normal
m.finfo(m.complex64).dtype
m.finfo(m.float32).bits
m.finfo(m.int32)
m.iinfo(m.int8).min
m.iinfo(m.uint64).max
m.iinfo(m.bool_)
repr(m.finfo(m.float32))
repr(m.iinfo(m.int8))
m.result_type(i, f)
m.result_type(m.float16, m.bfloat16)
m.result_type(i, m.float16)
m.result_type()
m.result_type(i, 1.5)
m.isdtype(m.float32, 'real floating')
m.isdtype(m.int32, ('bool', 'integral'))
m.isdtype(m.bool_, 'numeric')
m.isdtype(m.uint8, 'signed integer')
m.isdtype(m.float32, 'foo')
m.issubdtype(m.float32, m.floating)
m.issubdtype(m.floating, m.inexact)
m.issubdtype(m.bool_, m.number)
m.issubdtype(m.float32, 'a')
m.float32 == m.float32
m.float32.size
str(m.floating)
""".strip().splitlines()
ALL = ["bool_", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "bfloat16",
       "float32", "float64", "complex64"]  # fmt: skip


@pytest.mark.parametrize("text", DTYPES)
def test_dtype_queries(text):
    assert_agree(expression(text, names))


@pytest.mark.parametrize("a", ALL)
def test_promotion_table(a):
    for b in ALL:
        assert str(mx.result_type(getattr(mx, a), getattr(mx, b))) == str(
            real.result_type(getattr(real, a), getattr(real, b))
        )
        assert mx.can_cast(getattr(mx, a), getattr(mx, b)) == real.can_cast(getattr(real, a), getattr(real, b)), (a, b)


# -- devices and memory ----------------------------------------------------------------------------------------------
DEVICES = """
str(m.default_device())
m.default_device() == m.cpu
m.Device(m.cpu, 1) == m.Device(m.cpu)
m.Device(m.cpu) == m.Device(m.cpu)
str(m.default_stream(m.cpu))
m.default_stream(m.cpu) == m.default_stream(m.cpu)
m.is_available(m.cpu), m.is_available(m.gpu)
m.device_count(m.cpu), m.device_count(m.gpu)
m.set_default_device(m.gpu)
m.default_stream(m.gpu)
m.synchronize()
m.synchronize(m.cpu)
m.add(f, f, stream=m.cpu)
m.sum(f, stream=m.default_stream(m.cpu))
f.sum(stream=m.cpu)
m.metal.is_available()
m.cuda.is_available()
m.distributed.init().size()
m.clear_cache()
m.pi, m.e, m.inf, m.newaxis, m.euler_gamma
""".strip().splitlines()


@pytest.mark.parametrize("text", DEVICES)
def test_devices(text):
    assert_agree(expression(text, names))


def test_stream_context_restores_the_defaults():
    before, new = mx.default_stream(mx.cpu), mx.new_stream(mx.cpu)
    with mx.stream(new) as context:
        assert isinstance(context, mx.StreamContext) and mx.default_stream(mx.cpu) == new
        assert (mx.array([1.0]) + 1).item() == 2
    assert mx.default_stream(mx.cpu) == before != new
    with pytest.raises(ValueError, match="without gpu backend"), mx.stream(mx.gpu):
        pass
