"""Quantised weights, products with them, block and segment products, Hadamard: as real MLX gives them, bit by bit."""

from __future__ import annotations

import mlx.core as real
import numpy as np
import oracle
import pytest
from counting import Counter

import mlxir as mx

MODES = [("affine", g, b) for g in (32, 64, 128) for b in (1, 2, 3, 4, 5, 6, 8)]
MODES += [("mxfp4", 32, 4), ("mxfp8", 32, 8), ("nvfp4", 16, 4)]


def names(m: object) -> dict:
    rng = np.random.default_rng(0)
    array = m.array  # type: ignore[attr-defined]
    w = np.float32(rng.standard_normal((6, 256)) * rng.uniform(0.01, 20, (6, 1)))
    w[0, :64], w[1, :32] = 0, np.abs(w[1, :32])
    quantize = m.quantize  # type: ignore[attr-defined]
    return {"w": array(w), "x": array(np.float32(rng.standard_normal((3, 256)))), "y": array(np.float32(rng.standard_normal((2, 3, 6)))),
            "q": quantize(array(w)), "f": quantize(array(w), mode="mxfp4"), "n": quantize(array(w), mode="nvfp4"),
            "b": quantize(array(np.stack([w, 2 * w, -w]))), "a": array(np.float32(rng.standard_normal((5, 3, 7)))),
            "c": array(np.float32(rng.standard_normal((4, 7, 6)))), "p": array(np.float32(rng.standard_normal((70, 100)))),
            "r": array(np.float32(rng.standard_normal((100, 40)))), "k": array(rng.integers(0, 2, (3, 4)).astype(bool)), "g": array(np.float32(rng.standard_normal((4, 2))))}  # fmt: skip


EXPRESSIONS = [
    *[f"m.quantize(w, {g}, {b}, {mode!r})" for mode, g, b in MODES],
    *[f"m.quantize(w.astype(m.{d}), 32, 4)" for d in ("float16", "bfloat16", "int32", "complex64")],
    *[f"m.dequantize(*m.quantize(w, {g}, {b}, {mode!r}), group_size={g}, bits={b}, mode={mode!r})" for mode, g, b in MODES],
    *[f"m.dequantize(*m.quantize(w.astype(m.{d}), 32, 4), group_size=32)" for d in ("float16", "bfloat16")],
    "m.quantize(w, 16)", "m.quantize(w, bits=7)", "m.quantize(w, mode='mxfp4', bits=8)", "m.quantize(w, mode='no')", "m.quantize(w[0])",
    "m.quantize(w[:, :100])", "m.quantize(m.stack([w, w]))", "m.dequantize(*q, dtype=m.float16)", "m.dequantize(q[0], q[1])",
    "m.dequantize(*q, group_size=32)", "m.dequantize(*f, mode='mxfp4', dtype=m.float32)",
    *[f"m.quantized_matmul({t})" for t in ("x, *q", "y, *q, transpose=False", "x[0], *q", "x[:, :100], *q", "x, *f, mode='mxfp4'",
      "x.astype(m.float16), *q", "x.astype(m.int32), *q", "x, q[0].astype(m.int32), *q[1:]", "m.stack([x, x, x]), *b")],
    "m.gather_qmm(x[:, None, None], *b, rhs_indices=m.array([[0, 1], [2, 0], [1, 1]]))", "m.gather_qmm(x[:, None], *b, None, m.array([2, 0, 1]))",
    "m.gather_qmm(y[:, None], *b, m.array([1, 0]), m.array([2, 2]), transpose=False)",
    *[f"m.gather_mm(a, c, {t})" for t in ("m.array([0, 4, 2]), m.array([3, 1, 1])", "None, m.array([[0], [1]])", "m.array([0.5]), None", "m.array([1, 2]), None")],
    *[f"m.block_masked_mm(p, r, {t})" for t in ("32, k[:, :2]", "32, None, k", "32, None, k.astype(m.float32), g.astype(m.float32)", "64, None, g[:2]", "64, k", "64")],
    *[f"m.segmented_mm(p[:3], r, {t})" for t in ("m.array([[0, 4], [4, 100], [2, 2]])", "m.array([3, 9])", "m.array([[[0, 9]], [[7, 20]]])", "m.array([[0., 1]])")],
    *[f"m.hadamard_transform({t})" for t in ("p[:, :64]", "r[:, :1]", "r[:, :12]", "w[:, :40]", "w[:, :28]", "w[:, :224]", "p[:, :3]", "x, scale=2.0", "m.arange(8)")],
    "m.to_fp8(m.array([1, 2]))", "m.from_fp8(m.array([1, 2]))", "m.from_fp8(m.arange(256).astype(m.uint8), m.float32)", "m.from_fp8(m.arange(127).astype(m.uint8))",
]  # fmt: skip


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_agrees_with_mlx(text: str) -> None:
    oracle.assert_agree(oracle.expression(text, names))


def test_every_kind_of_number_becomes_the_fp8_of_mlx() -> None:
    """All float16 values: subnormal results, ties, overflow and infinities. NaN stays NaN; in MLX it becomes 448."""
    every = np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)
    nan = np.isnan(every)
    ours, theirs = np.array(mx.to_fp8(mx.array(every))), np.array(real.to_fp8(real.array(every)))
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert set(ours[nan]) == {127, 255}


def test_half_precision_is_as_good_as_its_last_bits() -> None:
    x = names(mx)["x"]
    wide, narrow = mx.hadamard_transform(x), mx.hadamard_transform(x.astype(mx.float16))
    np.testing.assert_allclose(np.array(narrow.astype(mx.float32)), np.array(wide), atol=1e-2)
    packed, scales = names(mx)["f"]
    exact = mx.quantized_matmul(x, packed, scales, mode="mxfp4")
    rounded = mx.quantized_matmul(x.astype(mx.bfloat16), packed, scales, mode="mxfp4").astype(mx.float32)
    np.testing.assert_allclose(np.array(rounded), np.array(exact), rtol=2e-2, atol=2e-2 * float(mx.abs(exact).max()))


def test_packing_inverts_unpacking() -> None:
    for bits in (1, 2, 3, 4, 5, 6, 8):
        values = np.random.default_rng(bits).integers(0, 1 << bits, (2, 64)).astype(np.float32)
        values[:, 0], values[:, 1] = 0, (1 << bits) - 1
        w, scales, biases = mx.quantize(mx.array(values), 64, bits)
        np.testing.assert_allclose(np.array(mx.dequantize(w, scales, biases, 64, bits)), values, atol=1e-5)


def test_gradients_of_a_quantised_product() -> None:
    """To x, the scales and the biases; the words carry none."""
    data = names(mx)
    w, scales, biases = data["q"]
    f = lambda x, s, b: mx.tanh(mx.quantized_matmul(x, w, s, b) * 1e-2)  # noqa: E731
    mx.testing.check_grads(f, [data["x"], scales, biases], order=2, atol=2e-2, rtol=2e-2)


def test_compiled_and_mapped_products_are_equal_to_the_plain_ones() -> None:
    data = names(mx)
    w, scales, biases = data["b"]
    one = Counter(lambda x, *q: mx.quantized_matmul(x, *q))
    mapped = mx.compile(mx.vmap(one, in_axes=(None, 0, 0, 0)))
    for _ in range(2):
        found = mapped(data["x"], w, scales, biases)
    expected = np.stack([np.array(mx.quantized_matmul(data["x"], w[i], scales[i], biases[i])) for i in range(3)])
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-5, atol=1e-4)
    assert one.runs == 1


def test_products_of_two_quantised_sides_are_those_of_their_rounded_values() -> None:
    """Real MLX computes these on a GPU only: the definition is the oracle."""
    data = names(mx)
    for mode in ("nvfp4", "mxfp8"):
        rounded = [np.array(mx.dequantize(*mx.quantize(data[v], mode=mode), mode=mode, dtype=mx.float32)) for v in "xw"]
        np.testing.assert_allclose(np.array(mx.qqmm(data["x"], data["w"], mode=mode)), rounded[0] @ rounded[1].T, rtol=1e-4, atol=1e-3)
        packed, scales = mx.quantize(data["w"], mode=mode)
        assert mx.allclose(mx.qqmm(data["x"], packed, scales, mode=mode), mx.qqmm(data["x"], data["w"], mode=mode))
    gathered = mx.gather_qqmm(data["x"][:, None], mx.stack([data["w"], -data["w"]]), rhs_indices=mx.array([0, 1, 1]))
    assert gathered.shape == (3, 1, 6)
    with pytest.raises(ValueError, match="nvfp4"):
        mx.qqmm(data["x"], data["w"], mode="affine")
