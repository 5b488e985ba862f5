"""Machine code for all sizes (compiler/generic.py): random programs at random sizes against the reference evaluator."""

import os
import sys

import numpy as np
import processes
import pytest

import mlxir as mx
from mlxir.compiler import generic, pipeline
from mlxir.dialects.mlir import aval_of, decode, encode, tensor_type
from mlxir.dialects.mlir import context as mlir_context
from mlxir.dialects.mx import Aval
from mlxir.dialects.symbolic import Scope
from mlxir.runtime.dtypes import float32
from mlxir.runtime.knobs import knobs

OPERATIONS = [
    lambda x: mx.exp(x * 0.3), lambda x: x + x.shape[0], lambda x: x / x.shape[-1], lambda x: mx.softmax(x, axis=-1),
    lambda x: mx.softmax(x, axis=0), lambda x: x - mx.sum(x, axis=-1, keepdims=True) * 0.1,
    lambda x: x + mx.mean(x, axis=0, keepdims=True), lambda x: x - mx.max(x, axis=0), lambda x: x.T,
    lambda x: mx.concatenate([x, x * 2], axis=0), lambda x: mx.concatenate([x, x[:, :1]], axis=1), lambda x: x[1:-1],
    lambda x: x[::-1, ::2], lambda x: mx.pad(x, ((1, 0), (0, 2))), lambda x: x.reshape(-1).reshape(x.shape),
    lambda x: x.reshape(x.shape[1], x.shape[0]), lambda x: (x @ x.T) * 0.1, lambda x: mx.cumsum(x, axis=1) * 0.3,
    lambda x: mx.cumsum(x, axis=0) * 0.3, lambda x: mx.roll(x, 1, 0), lambda x: mx.repeat(x, 2, axis=1),
    lambda x: mx.take(x, mx.array([0, 0]), axis=0), lambda x: x * mx.arange(x.shape[1]) * 0.1, mx.tril,
    lambda x: mx.mean(x, axis=1)[:, None] * mx.mean(x, axis=0)[None], lambda x: x + mx.argmax(x, axis=0),
    lambda x: mx.fast.layer_norm(x, None, None, 1e-3), lambda x: x.at[0].add(1.0), lambda x: mx.where(x > 0, x, x[:1]),
    lambda x: mx.grad(lambda v: mx.sum(mx.tanh(mx.softmax(v, axis=-1) * v)))(x), lambda x: x + mx.sum(mx.diagonal(x)),
    lambda x: x - mx.logsumexp(x, axis=1, keepdims=True),
]  # fmt: skip
SIZES = [1, 2, 3, 5, 8, 13, 16, 17, 40]


@pytest.mark.parametrize("seed", range(16))
def test_random_programs_at_random_sizes(seed, monkeypatch):
    monkeypatch.setattr(knobs, "tier", "reference")
    rng = np.random.default_rng(seed)
    chain = [OPERATIONS[i] for i in rng.integers(0, len(OPERATIONS), rng.integers(2, 5))]

    def f(x):
        for op in chain:
            x = op(x)
        return x, mx.sum(x)

    g = mx.compile(f, shapeless=True)
    done = 0
    for _ in range(8):
        data = rng.standard_normal(rng.choice(SIZES, 2)).astype(np.float32)
        with mx.disable_compile():
            try:
                want = [np.array(v) for v in f(mx.array(data))]
            except (ValueError, IndexError):
                continue  # an empty axis has no maximum
        done += 1
        for x, y in zip(map(np.array, g(mx.array(data))), want, strict=True):
            assert x.shape == y.shape
            np.testing.assert_allclose(x, y, rtol=2e-3, atol=2e-3 * max(1, np.abs(y).max(initial=0)))
        if done == 4:
            break
    assert done


def family_of(g):
    """The family of the only shapeless trace of a compiled function."""
    (cache,) = [c.cell_contents for c in g.slowly.__closure__ if hasattr(c.cell_contents, "traces")]
    ((trace,),) = cache.traces.values()
    return trace.family


def test_versions_and_what_they_assume():
    g = mx.compile(lambda x: mx.softmax(x, axis=-1), shapeless=True)
    for n in (5, 30, 9000, 7, 20000):
        x = np.random.default_rng(n).standard_normal((3, n)).astype(np.float32)
        e = np.exp(x - x.max(1, keepdims=True))
        np.testing.assert_allclose(np.array(g(mx.array(x))), e / e.sum(1, keepdims=True), rtol=1e-5, atol=1e-7)
    few, many = family_of(g).versions  # a row that stays in scratch memory, and one that does not
    assert any("s1" in text for text in few.assumed) and few.serves([3, 5]) and not few.serves([3, 9000])
    assert many.serves([3, 9000]) and not many.serves([3, 5]) and not many.serves([1, 9000])


def test_equal_sizes_share_a_symbol():
    g = mx.compile(lambda x, y: mx.sum(x * y, axis=1), shapeless=True)
    g(mx.ones((3, 4)), mx.ones((3, 4)))
    (code,) = family_of(g).versions
    assert set(code.assumed) <= {f"s{i} >= 2" for i in range(4)}


def test_what_has_no_form_for_symbolic_sizes_is_compiled_for_each(monkeypatch):
    def fails(*args):
        raise TypeError("a size, please")

    g = mx.compile(lambda x: mx.exp(x) * 1.125, shapeless=True)
    monkeypatch.setattr(pipeline, "compile_generic", fails)
    for n in (2, 5):
        assert np.array(g(mx.zeros((n,)))).tolist() == [1.125] * n
    assert family_of(g).versions == [] and not family_of(g).generic


def test_the_number_of_versions_is_bounded(monkeypatch):
    monkeypatch.setattr(generic, "MOST_VERSIONS", 2)
    g = mx.compile(lambda x: mx.sort(x, axis=0) + 0.5, shapeless=True)
    for n in (2, 9, 17, 33):
        x = np.random.default_rng(n).standard_normal((n, 3)).astype(np.float32)
        np.testing.assert_array_equal(np.array(g(mx.array(x))), np.sort(x, 0) + np.float32(0.5))
    assert len(family_of(g).versions) == 2


def test_types_and_attributes_carry_symbolic_sizes():
    scope = Scope(structural=True)
    n, m = scope.size(3, 2), scope.size(4, 2)
    for shape in ((n, 8), (n * m + 1, 2, m), (m,)):
        kind = tensor_type(Aval(shape, float32))
        assert "?" in str(kind) and aval_of(kind) == Aval(shape, float32)
    with mlir_context:
        for value in ((n, 2, -1), n * m - 1, (m // 3,), 1 / n):
            assert decode(encode(value)) is value or decode(encode(value)) == value
    assert str(tensor_type(Aval((n, 8), float32))) == 'tensor<?x8xf32, "s0;8">' and not scope.pins


SECOND_PROCESS = """
import sys
import os
import sys

import numpy as np
import mlxir as mx

f = mx.compile(lambda x: mx.softmax(x @ x.T, axis=-1).sum(axis=0), shapeless=True)
for n in (20, 33, 80, 200):
    x = np.random.default_rng(n).standard_normal((n, 24)).astype(np.float32)
    e = np.exp(x @ x.T - (x @ x.T).max(1, keepdims=True))
    np.testing.assert_allclose(np.array(f(mx.array(x))), (e / e.sum(1, keepdims=True)).sum(0), rtol=1e-4, atol=1e-5)
print("mlxir.dialects.mlir" in sys.modules)
"""


def test_a_second_process_finds_the_code(tmp_path):
    """All versions come from the disk, and nothing loads MLIR."""
    environment = {**os.environ, "MLXIR_CACHE_DIR": str(tmp_path)}
    for loads_mlir in ("True", "False"):
        done = processes.run([sys.executable, "-c", SECOND_PROCESS], env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == [loads_mlir]
