"""Functions to look at with the compiler's eyes: every stage of each, from the traced program to machine code.

mlxir dump examples/attention.py:attention --target metal

`example_args` gives the arguments that the dump command traces a function with; "f32[64,64]" is a float32 array of
that shape, a number or a bool is itself.
"""

import math

import mlxir as mx

example_args = {
    "attention": ["f32[64,64]", "f32[64,64]", "f32[64,64]"],
    "causal_attention": ["f32[64,64]", "f32[64,64]", "f32[64,64]"],
    "softmax": ["f32[64,256]"],
    "layer_norm": ["f32[64,256]", "f32[256]", "f32[256]"],
    "mlp": ["f32[32,64]", "f32[64,256]", "f32[256]", "f32[256,64]", "f32[64]"],
}


def softmax(x):
    """Along the last axis; the maximum is taken off first, so that exp cannot overflow."""
    e = mx.exp(x - mx.max(x, axis=-1, keepdims=True))
    return e / mx.sum(e, axis=-1, keepdims=True)


def attention(q, k, v, causal=False):
    """Scaled dot-product attention, one head: q (n, d), k (m, d), v (m, e) to (n, e)."""
    scores = (q @ k.T) / math.sqrt(q.shape[-1])
    if causal:
        query, key = mx.arange(q.shape[0])[:, None], mx.arange(k.shape[0])[None, :]
        scores = mx.where(key <= query, scores, -math.inf)
    return softmax(scores) @ v


def causal_attention(q, k, v):
    """Attention in which position i sees the keys 0..i only."""
    return attention(q, k, v, causal=True)


def layer_norm(x, w, b, eps=1e-5):
    """Normalise each row of x (n, d) to mean 0 and variance 1, then scale by w (d,) and shift by b (d,)."""
    centred = x - mx.mean(x, axis=-1, keepdims=True)
    variance = mx.mean(centred * centred, axis=-1, keepdims=True)
    return centred * mx.rsqrt(variance + eps) * w + b


def gelu(x):
    """x times the normal distribution's probability of being below x, by the error function."""
    return 0.5 * x * (1 + mx.erf(x / math.sqrt(2)))


def mlp(x, w1, b1, w2, b2):
    """Two dense layers with GELU between them: x (n, d), w1 (d, h), b1 (h,), w2 (h, o), b2 (o,) to (n, o)."""
    return gelu(x @ w1 + b1) @ w2 + b2
