"""`fast` and `linalg` against real MLX."""

import numpy as np
import pytest
from oracle import assert_agree, expression


def model(m):
    rng = np.random.default_rng(1)

    def normal(*shape):
        return m.array(rng.standard_normal(shape).astype(np.float32))

    options = {"traditional": False, "base": 1e4, "scale": 1.0, "offset": 0}
    return {
        "x": normal(2, 5, 8), "w": normal(8), "q": normal(2, 4, 3, 8), "k": normal(2, 2, 6, 8), "v": normal(2, 2, 6, 8),
        "sinks": normal(4), "mask": normal(3, 6), "keep": normal(2, 4, 3, 6) > 0, "shared": normal(2, 1, 3, 6) > 0,
        "t": m.array([[0, 1, 2, 3, 4], [5, 6, 7, 0, 1]]), "half": m.float16,
        "mat": m.arange(9).reshape(3, 3) - 4, "inf": m.inf,
        "attend": m.fast.scaled_dot_product_attention,
        "rope": lambda a, d=8, **kw: m.fast.rope(a, d, **(options | kw)),
    }  # fmt: skip


FAST = """
m.fast.rms_norm(x, w, 1e-5)
m.fast.rms_norm(x, None, 1e-5)
m.fast.rms_norm(x.astype(half), w.astype(half), 1e-5)
m.fast.rms_norm(x.astype(half), w, 1e-5)
m.fast.rms_norm(x, w[:3], 1e-5)
m.fast.rms_norm(x, x, 1e-5)
m.fast.rms_norm(m.array(1.0), None, 1e-5)
m.fast.rms_norm(t, None, 1e-5)
m.fast.layer_norm(x, w, w, 1e-5)
m.fast.layer_norm(x, None, None, 1e-5)
m.fast.layer_norm(x, None, w, 1e-5)
m.fast.layer_norm(x, w[:3], w, 1e-5)
m.fast.cross_entropy(x, t)
m.fast.cross_entropy(x, t[0])
m.fast.cross_entropy(x, t.astype(half))
rope(x)
rope(x, 4)
rope(x, traditional=True)
rope(x, 4, traditional=True)
rope(x, offset=7, scale=0.5)
rope(x, offset=m.array(7))
rope(x, offset=m.array([7, 1]))
rope(x, base=None, freqs=m.array([1.0, 2, 3, 4]))
rope(x, base=None, freqs=m.array([1.0, 2, 3]))
rope(x, freqs=m.array([1.0, 2, 3, 4]))
rope(x, base=None)
rope(q, offset=m.array([1, 2]))
rope(x[0])
rope(t[None], 4)
attend(q, k, v, scale=0.3)
attend(q, k, v, scale=0.3, mask='causal')
attend(q, k, v, scale=0.3, mask=mask)
attend(q, k, v, scale=0.3, mask=mask > 0)
attend(q, k, v, scale=0.3, mask=keep)
attend(q, k, v, scale=0.3, mask=shared)
attend(q, k, v, scale=0.3, mask=m.zeros((3, 6), m.bool_))
attend(q, k, v, scale=0.3, sinks=sinks)
attend(q, k, v[..., :5], scale=0.3)
attend(q.astype(half), k.astype(half), v.astype(half), scale=0.3)
attend(q.astype(half), k.astype(half), v.astype(half), scale=0.3, mask=mask)
attend(q, k, v, scale=0.3, mask=m.where(mask > 0, 0.0, -inf))
attend(q, k, v, scale=0.3, mask='causal', sinks=sinks)
attend(q[:, :, :1], k, v, scale=0.3, mask='causal')
attend(q[:, :, :1], k, v, scale=0.3, mask=mask[:1], sinks=sinks)
attend(q, k[:, :, :2], v[:, :, :2], scale=0.3, mask='causal')
m.grad(lambda a: attend(a, k, v, scale=0.3, mask='causal').square().sum())(q)
m.grad(lambda a: attend(q, a, v, scale=0.3, mask=keep).square().sum())(k)
m.grad(lambda a: attend(q, k, a, scale=0.3, mask=mask).square().sum())(v)
m.grad(lambda a: attend(q, k, v, scale=0.3, mask=a).square().sum())(mask)
m.grad(lambda a: attend(q, k, v, scale=0.3, sinks=a).square().sum())(sinks)
m.vmap(lambda a: attend(a[None], k[:1], v[:1], scale=0.3))(q)
m.softmax(0.3 * q[:, :2] @ k.swapaxes(-1, -2), axis=-1) @ v
attend(q, k, v, scale=0.3, mask='foo')
attend(q, k, v, scale=0.3, mask=mask[:2])
attend(q, k, v, scale=0.3, sinks=sinks[:2])
attend(q[0], k, v, scale=0.3)
attend(q, k[:1], v, scale=0.3)
attend(q[:, :3], k, v, scale=0.3)
attend(q, k[..., :3], v, scale=0.3)
attend(q, k, v[:, :, :3], scale=0.3)
m.linalg.norm(mat)
m.linalg.norm(mat, 'fro')
m.linalg.norm(mat, inf)
m.linalg.norm(mat, -inf)
m.linalg.norm(mat, 1)
m.linalg.norm(mat, -1)
m.linalg.norm(mat, 'foo')
m.linalg.norm(mat, 3)
m.linalg.norm(mat.reshape(-1), 3)
m.linalg.norm(mat.reshape(-1), 0)
m.linalg.norm(mat.reshape(-1), -inf)
m.linalg.norm(mat.reshape(-1), 'fro')
m.linalg.norm(mat, axis=0)
m.linalg.norm(mat, ord=1, axis=1, keepdims=True)
m.linalg.norm(x, axis=(1, 2))
m.linalg.norm(x, 1, axis=(2, 1), keepdims=True)
m.linalg.norm(x, keepdims=True)
m.linalg.norm(x, 1)
m.linalg.norm(x, axis=(0, 1, 2))
m.linalg.norm(x, axis=9)
m.linalg.norm(m.array([3 + 4j]))
m.linalg.cross(m.array([1, 2, 3]), m.array([4.0, 5, 6]))
m.linalg.cross(m.array([1.0, 2]), m.array([4.0, 5, 6]))
m.linalg.cross(m.array([1.0, 2]), m.array([4.0, 5]))
m.linalg.cross(mat, mat + 1, axis=0)
m.linalg.cross(mat[:1], mat)
m.linalg.cross(w, w)
""".strip().splitlines()


@pytest.mark.parametrize("text", FAST)
def test_fast_and_linalg(text):
    assert_agree(expression(text, model))
