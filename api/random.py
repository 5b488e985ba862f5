"""mlxir.random: the Threefry generator and the distributions built on it, with the bits of real MLX for the same key.

Every function takes an explicit `key` or draws the next one of the calling thread's key sequence: the state is split,
its first half is kept and the second half is used. `state` stands for that thread's state in the trees given to
`compile(inputs=, outputs=)`.
"""

from __future__ import annotations

import math
import operator
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from mlxir.compiler.graph import Value, constant
from mlxir.dialects.mx import RECORDS
from mlxir.dialects.mx.random import PARITY, ROTATIONS
from mlxir.dialects.mx.record import Shape
from mlxir.runtime.dtypes import Dtype, bfloat16, bool_, complex64, float16, float32, int32, uint32

from . import values
from .devices import StreamOrDevice, check_stream
from .linalg import svd
from .ndarray import array, as_value, wrap
from .ops import reduce
from .ops.common import check_array
from .ops.contract import matmul_value
from .ops.elementwise import exp, logical_not, minimum, where
from .ops.sorting import searchsorted

__all__ = [
    "bernoulli", "categorical", "gumbel", "key", "laplace", "multivariate_normal", "normal", "permutation", "randint",
    "seed", "split", "state", "truncated_normal", "uniform",
]  # fmt: skip

_BITS, _ERF, _ERFINV, _LOG, _LOG1P, _SQRT = (
    RECORDS[n] for n in ("random_bits", "erf", "erfinv", "log", "log1p", "sqrt")
)
_ADD, _SUB, _MUL, _DIV = (RECORDS[n] for n in ("add", "subtract", "multiply", "divide"))
_MIN, _MAX, _LESS, _ABS, _SIGN = (RECORDS[n] for n in ("minimum", "maximum", "less", "abs", "sign"))
_NEG, _FLOOR, _ARGSORT, _ARGMAX, _GATHER = (RECORDS[n] for n in ("negative", "floor", "argsort", "argmax", "gather"))
_SPAN = 4294967296.0  # the largest uint32 as a float32
_BELOW_ONE = float(np.nextafter(np.float32(1), np.float32(0)))
_HALF_BELOW_ONE = {float16: 1 - 2.0**-11, bfloat16: 1 - 2.0**-8}


# -- keys ------------------------------------------------------------------------------------------------------------
_U32 = 0xFFFFFFFF


def _hash(key: tuple[int, int], low: int, high: int) -> tuple[int, int]:
    """`threefry` of one pair of counters in Python ints: splitting a concrete key takes no array operation."""
    keys = (*key, key[0] ^ key[1] ^ PARITY)
    low, high = (low + keys[0]) & _U32, (high + keys[1]) & _U32
    for i in range(5):
        for r in ROTATIONS[i % 2]:
            low = (low + high) & _U32
            high = low ^ (((high << r) | (high >> (32 - r))) & _U32)
        low, high = (low + keys[(i + 1) % 3]) & _U32, (high + keys[(i + 2) % 3] + i + 1) & _U32
    return low, high


def _key_value(seed: int) -> Value:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 1 << 64:
        raise TypeError(f"[random] a seed must be an int from 0 to 2**64 - 1, got {seed!r}")
    return constant(np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32))


def _split_in_two(state: Value) -> tuple[Value, Value]:
    if state.buffer is not None and state.alias is None and state.node is None:
        words = tuple(state.buffer.numpy().tolist())
        # Four words: counters 0 and 1 are paired with 2 and 3.
        (a, c), (b, d) = _hash(words, 0, 2), _hash(words, 1, 3)
        return constant(np.array([a, b], np.uint32)), constant(np.array([c, d], np.uint32))
    both = values.emit(_BITS, state, shape=(2, 2), width=4)
    first, second = (values.reshape(values.slice_axis(both, 0, i, i + 1), (2,)) for i in (0, 1))
    return first, second


class _Local(threading.local):
    """The key of one thread; a new thread starts from the time."""

    def __init__(self) -> None:
        self.key = _key_value(time.time_ns() ^ threading.get_ident())


_local = _Local()


class RandomState:
    """The random state of the calling thread, as a leaf of a tree: `state[0]` is its key."""

    __slots__ = ()

    @property
    def value(self) -> Value:
        return _local.key

    @value.setter
    def value(self, new: Value) -> None:
        _local.key = new

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> array:
        return [wrap(_local.key)][index]

    def __iter__(self) -> Iterator[array]:
        return iter([wrap(_local.key)])


state = RandomState()


def _next_key(key: array | None) -> Value:
    """The given key, checked, or the next one of this thread."""
    if key is None:
        _local.key, used = _split_in_two(_local.key)
        return used
    value = as_value(key)
    if value.dtype is not uint32:
        raise ValueError(f"[bits] Expected key type uint32 but received {value.dtype.name}.")
    if value.shape != (2,):
        raise ValueError(f"[bits] Expected key shape (2) but received {value.shape}.")
    return value


def seed(seed: int) -> None:
    """Set the state of the calling thread. Raises TypeError unless `seed` is an int in the range of uint64."""
    _local.key = _key_value(seed)


def key(seed: int) -> array:
    """The key (uint32, shape (2,)) of a seed. Raises TypeError unless `seed` is an int in the range of uint64."""
    return wrap(_key_value(seed))


def split(key: array, num: int = 2, stream: StreamOrDevice = None) -> array:
    """`num` independent keys made from one, shape (num, 2)."""
    check_stream("split", stream)
    return wrap(values.emit(_BITS, _next_key(key), shape=_shape((num, 2)), width=4))


# -- building blocks -------------------------------------------------------------------------------------------------
def _shape(shape: Sequence[int]) -> Shape:
    sizes = tuple(operator.index(n) for n in shape)
    if any(n < 0 for n in sizes):
        raise ValueError(f"[bits] Negative dimensions not allowed, got shape {sizes}.")
    return sizes


def _float(tag: str, dtype: Dtype | None, complex_too: bool = False) -> Dtype:
    dtype = float32 if dtype is None else dtype
    if not isinstance(dtype, Dtype):
        raise TypeError(f"[{tag}] dtype must be a Dtype, got {type(dtype).__name__}.")
    if not (dtype.is_float or (complex_too and dtype is complex64)):
        kinds = "floating point and complex64 types" if complex_too else "real floating point types"
        raise ValueError(f"[{tag}] Only {kinds} are supported, got {dtype.name}.")
    return dtype


def _number(value: float, dtype: Dtype) -> Value:
    return values.full(value, (), dtype)


def _unit(shape: Shape, dtype: Dtype, key: Value) -> Value:
    """Uniform in [0, 1): 32 random bits over 2**32 in float32, then cast; never 1, whatever rounding does."""
    bits = values.emit(_BITS, key, shape=shape, width=4)
    ratio = values.cast(values.binary(_DIV, values.cast(bits, float32), _number(_SPAN, float32)), dtype)
    return values.binary(_MIN, ratio, _number(_HALF_BELOW_ONE.get(dtype, _BELOW_ONE), dtype))


def _between(low: Value, high: Value, shape: Shape, dtype: Dtype, key: Value) -> Value:
    """Uniform in [low, high), which must broadcast to `shape`."""
    low, high = values.cast(low, dtype), values.cast(high, dtype)
    span = values.binary(_SUB, high, low)
    if values.broadcast_shape("broadcast_shapes", shape, span.shape) != shape:
        raise ValueError(f"[uniform] Cannot generate random values of shape {shape} from bounds of shape {span.shape}.")
    return values.binary(_ADD, values.binary(_MUL, span, _unit(shape, dtype, key)), low)


def _symmetric(shape: Shape, key: Value) -> Value:
    """Uniform in (-1, 1), in float32."""
    return _between(_number(-_BELOW_ONE, float32), _number(1.0, float32), shape, float32, key)


def _located(samples: Value, loc: Any, scale: Any) -> Value:
    """`samples * scale + loc`, where given."""
    if scale is not None:
        samples = values.binary(_MUL, values.cast(as_value(scale), samples.dtype), samples)
    if loc is not None:
        samples = values.binary(_ADD, values.cast(as_value(loc), samples.dtype), samples)
    return samples


# -- distributions ---------------------------------------------------------------------------------------------------
def uniform(
    low: Any = 0,
    high: Any = 1,
    shape: Sequence[int] = (),
    dtype: Dtype | None = float32,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Uniform samples of [low, high), bounds that broadcast to `shape`; ValueError unless `dtype` is a real float."""
    check_stream("uniform", stream)
    dtype, shape, used = _float("uniform", dtype), _shape(shape), _next_key(key)
    if type(low) is int and type(high) is int and (low, high) == (0, 1):
        return wrap(_unit(shape, dtype, used))
    return wrap(_between(as_value(low), as_value(high), shape, dtype, used))


def normal(
    shape: Sequence[int] = (),
    dtype: Dtype | None = float32,
    loc: Any = None,
    scale: Any = None,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Gaussian samples with mean `loc` and standard deviation `scale`; complex ones have variance 1/2 per part."""
    check_stream("normal", stream)
    dtype, shape, used = _float("normal", dtype, complex_too=True), _shape(shape), _next_key(key)
    if dtype is complex64:
        parts = values.unary(_ERFINV, _symmetric((*shape, 2), used))
        halves = [values.reshape(values.slice_axis(parts, len(shape), i, i + 1), shape) for i in (0, 1)]
        real, imag = (values.cast(half, complex64) for half in halves)
        samples = values.binary(_ADD, real, values.binary(_MUL, imag, values.full(1j, (), complex64)))
        return wrap(_located(samples, loc, scale))
    factor = _number(math.sqrt(2), dtype)
    if scale is not None:
        factor = values.binary(_MUL, factor, values.cast(as_value(scale), dtype))
    samples = values.binary(_MUL, factor, values.cast(values.unary(_ERFINV, _symmetric(shape, used)), dtype))
    return wrap(_located(samples, loc, None))


def multivariate_normal(
    mean: array,
    cov: array,
    shape: Sequence[int] = (),
    dtype: Dtype | None = float32,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Jointly Gaussian samples (..., n) with means (..., n) and positive semi-definite covariances (..., n, n).

    `shape` is the batch shape, to which those of `mean` and `cov` broadcast; by default theirs. Raises ValueError for
    shapes that do not fit and for dtypes other than float32.
    """
    check_stream("multivariate_normal", stream)
    if (dtype or float32) is not float32:
        raise ValueError("[multivariate_normal] dtype must be float32.")
    centre, spread = as_value(mean), values.cast(as_value(cov), float32)
    if not centre.shape:
        raise ValueError("[multivariate_normal] mean must have at least one dimension.")
    if len(spread.shape) < 2:
        raise ValueError("[multivariate_normal] cov must have at least two dimensions.")
    n = centre.shape[-1]
    if spread.shape[-1] != spread.shape[-2]:
        raise ValueError("[multivariate_normal] last two dimensions of cov must be equal.")
    if spread.shape[-1] != n:
        raise ValueError("[multivariate_normal] mean and cov must have compatible shapes.")
    batch = values.broadcast_shape("broadcast_shapes", _shape(shape), centre.shape[:-1], spread.shape[:-2])
    u, s, vt = (part._value for part in svd(wrap(spread)))
    scaled = values.binary(_MUL, u, values.reshape(values.unary(_SQRT, s), (*s.shape[:-1], 1, n)))
    draws = normal((*batch, 1, n), key=key)._value
    moved = values.reshape(matmul_value(draws, matmul_value(scaled, vt)), (*batch, n))
    return wrap(values.binary(_ADD, values.cast(centre, float32), moved))


def randint(
    low: Any,
    high: Any,
    shape: Sequence[int] = (),
    dtype: Dtype | None = int32,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Integers of [low, high), drawn through a float32 uniform as in MLX: beyond 2**24 not every integer can occur.

    Raises ValueError for dtypes that are neither integer nor bool.
    """
    check_stream("randint", stream)
    dtype = dtype or int32
    if dtype.is_inexact:
        raise ValueError("[randint] randint only accepts integer dtypes and bool.")
    first, end = as_value(low), as_value(high)
    drawn = values.cast(values.unary(_FLOOR, _between(first, end, _shape(shape), float32, _next_key(key))), dtype)
    if dtype is not bool_:
        # Rounding in float32 may reach `high`: clamp in the integer dtype.
        drawn = values.binary(_MIN, drawn, values.binary(_SUB, values.cast(end, dtype), values.full(1, (), dtype)))
    return wrap(values.binary(_MAX, drawn, values.cast(first, dtype)))


def bernoulli(
    p: Any = 0.5, shape: Sequence[int] | None = None, key: array | None = None, stream: StreamOrDevice = None
) -> array:
    """True with probability `p`; `shape` defaults to that of `p`. Raises ValueError unless `p` is a real float."""
    check_stream("bernoulli", stream)
    chance = as_value(p)
    if not chance.dtype.is_float:
        raise ValueError("[bernoulli] bernoulli probability `p` must be a float type.")
    shape = chance.shape if shape is None else _shape(shape)
    if values.broadcast_shape("broadcast_shapes", shape, chance.shape) != shape:
        raise ValueError(f"[bernoulli] shape of `p` {chance.shape} is incompatible with argument `shape` {shape}.")
    bits = values.emit(_BITS, _next_key(key), shape=shape, width=4)
    upper = _number(float(np.nextafter(np.float32(_SPAN), np.float32(np.inf))), float32)
    bound = values.binary(_MUL, values.cast(chance, float32), upper)
    return wrap(values.emit(_LESS, values.cast(bits, float32), bound))


def truncated_normal(
    lower: Any,
    upper: Any,
    shape: Sequence[int] | None = None,
    dtype: Dtype | None = float32,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Gaussian samples limited to (lower, upper); `shape` defaults to that of the bounds, which broadcast."""
    check_stream("truncated_normal", stream)
    dtype = _float("trunc_normal", dtype)
    low, high = values.cast(as_value(lower), dtype), values.cast(as_value(upper), dtype)
    shape = values.broadcast_shape("broadcast_shapes", low.shape, high.shape) if shape is None else _shape(shape)
    root = _number(math.sqrt(2), dtype)
    a, b = (values.unary(_ERF, values.binary(_DIV, bound, root)) for bound in (low, high))
    samples = values.binary(_MUL, root, values.unary(_ERFINV, _between(a, b, shape, dtype, _next_key(key))))
    return wrap(values.binary(_MAX, values.binary(_MIN, high, samples), low))


def gumbel(
    shape: Sequence[int] = (), dtype: Dtype | None = float32, key: array | None = None, stream: StreamOrDevice = None
) -> array:
    """Samples of the standard Gumbel distribution."""
    check_stream("gumbel", stream)
    return wrap(_gumbel(_shape(shape), _float("uniform", dtype), _next_key(key)))


def _gumbel(shape: Shape, dtype: Dtype, key: Value) -> Value:
    return values.unary(_NEG, values.unary(_LOG, values.unary(_NEG, values.unary(_LOG, _unit(shape, dtype, key)))))


def laplace(
    shape: Sequence[int] = (),
    dtype: Dtype | None = float32,
    loc: float | None = None,
    scale: float | None = None,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Samples of the Laplace distribution with mean `loc` (0) and scale `scale` (1)."""
    check_stream("laplace", stream)
    dtype = _float("laplace", dtype)
    u = _symmetric(_shape(shape), _next_key(key))
    samples = values.binary(
        _MUL, values.unary(_SIGN, u), values.unary(_LOG1P, values.unary(_NEG, values.unary(_ABS, u)))
    )
    return wrap(_located(values.cast(samples, dtype), loc, scale))


def categorical(
    logits: array,
    axis: int = -1,
    shape: Sequence[int] | None = None,
    num_samples: int | None = None,
    key: array | None = None,
    stream: StreamOrDevice = None,
) -> array:
    """Indices (uint32) drawn from the distributions given by unnormalised log-probabilities along `axis`.

    The result has the shape of `logits` without `axis`, or `shape`, to which that must broadcast, or `num_samples`
    behind it. Raises ValueError if both are given. As in MLX, draws from a single distribution whose result has an
    axis invert its cumulative sum; all others find the largest sum of logit and Gumbel noise.
    """
    check_stream("categorical", stream)
    scores = check_array("categorical", logits)._value
    axis = values.axis_of("categorical", axis, len(scores.shape))
    if shape is not None and num_samples is not None:
        raise ValueError("[categorical] At most one of shape or num_samples can be specified.")
    rest = _without(scores.shape, axis)
    if num_samples is not None:
        wanted = (*rest, num_samples)
        scores = values.reshape(scores, (*scores.shape, 1))
    else:
        wanted = rest if shape is None else _shape(shape)
        if values.broadcast_shape("broadcast_shapes", wanted, rest) != wanted:
            raise ValueError(
                f"[categorical] Requested shape {wanted} is not broadcast compatible with reduced logits shape {rest}."
            )
    if wanted and scores.shape[axis] and all(n == 1 for n in rest):
        return _inverted(values.reshape(scores, (scores.shape[axis],)), wanted, _next_key(key))
    at = axis + len(wanted) - len(scores.shape) + 1
    noise = _gumbel((*wanted[:at], scores.shape[axis], *wanted[at:]), float32, _next_key(key))
    noise, scores = values.promoted(noise, scores)
    return wrap(values.emit(_ARGMAX, values.binary(_ADD, noise, scores), axis=at))


def _inverted(logits: Value, shape: Shape, key: Value) -> array:
    """Draws from one distribution: how many partial sums of the probabilities a uniform share of their sum reaches."""
    x = wrap(values.cast(logits, float32))
    top, last = reduce.max(x), logits.shape[0] - 1
    sums = reduce.cumsum(where(x == top, 1.0, exp(x - top)))  # also where the largest is infinite
    share = wrap(_unit(shape, float32, key)) * sums[-1]
    if values.size_of(shape) == 1:  # one pass, where a search has a step for each bit of the index
        reached = values.reshape(reduce.sum(logical_not(sums > share.reshape(1)))._value, shape)
    else:
        reached = searchsorted(sums, share, side="right")._value
    return wrap(values.cast(minimum(wrap(reached), last)._value, uint32))


def permutation(x: int | array, axis: int = 0, key: array | None = None, stream: StreamOrDevice = None) -> array:
    """A random permutation of `range(x)`, or the entries of `x` along `axis` in random order."""
    check_stream("permutation", stream)
    if isinstance(x, int):
        (n,) = _shape((x,))
        return wrap(_permutation(n, _next_key(key)))
    given = check_array("permutation", x)._value
    axis = values.axis_of("permutation", axis, len(given.shape))
    order = _permutation(given.shape[axis], _next_key(key))
    if 0 in given.shape:
        return wrap(given)
    sizes = (*given.shape[:axis], 1, *given.shape[axis + 1 :])
    taken = values.emit(_GATHER, given, order, axes=(axis,), slice_sizes=sizes)
    taken = values.reshape(taken, (order.shape[0], *_without(given.shape, axis)))
    return wrap(values.transpose(taken, (*range(1, axis + 1), 0, *range(axis + 1, len(given.shape)))))


def _without(shape: Shape, axis: int) -> Shape:
    """A shape without one axis."""
    return shape[:axis] + shape[axis + 1 :]


def _permutation(n: int, key: Value) -> Value:
    return values.emit(_ARGSORT, values.emit(_BITS, key, shape=(n,), width=4), axis=0)
