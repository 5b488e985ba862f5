"""A GPT: the training step of one block with its embedding and head, and one decoding step with a KV cache."""

import numpy as np
from families.networks import adam, jax_cross_entropy, mlx_cross_entropy
from families.rows import jax_layer_norm
from suite import normal, workload

BATCH, LENGTH, WIDTH, HEADS, VOCABULARY = 4, 256, 256, 8, 512
CACHED = 511  # tokens that the decoding step finds in its cache
EPS = 1e-5
NAMES = ("qkv", "out", "up", "down", "norm1", "bias1", "norm2", "bias2")
TOKENS = BATCH * LENGTH
# Products of a step: 12 width^2 weights and the head, three each; causal attention counts for half the square.
STEP_FLOPS = 6 * TOKENS * (12 * WIDTH**2 + WIDTH * VOCABULARY) + 7 * TOKENS * LENGTH * WIDTH


def block_arrays(rng):
    def weight(n, m):
        return normal(rng, n, m, scale=n**-0.5)

    ones, zeros = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    return [
        weight(WIDTH, 3 * WIDTH), weight(WIDTH, WIDTH), weight(WIDTH, 4 * WIDTH), weight(4 * WIDTH, WIDTH),
        ones, zeros, ones, zeros,
    ]  # fmt: skip


def split(x):
    """(..., length, 3 width) -> q, k, v of (..., heads, length, width / heads), for every framework."""
    parts = x.reshape(*x.shape[:-1], 3, HEADS, WIDTH // HEADS)
    return [parts[..., i, :, :].swapaxes(-2, -3) for i in range(3)]


def merge(x):
    x = x.swapaxes(-2, -3)
    return x.reshape(*x.shape[:-2], WIDTH)


def block(p, h, norm, attention, gelu):
    """A transformer block of a framework's parts; `attention` maps q, k, v."""
    h = h + merge(attention(*split(norm(h, p["norm1"], p["bias1"]) @ p["qkv"]))) @ p["out"]
    return h + gelu(norm(h, p["norm2"], p["bias2"]) @ p["up"]) @ p["down"]


def tanh_gelu(module, x):
    return 0.5 * x * (1 + module.tanh(0.7978845608 * (x + 0.044715 * x * x * x)))


def mlx_parts(mx):
    scale = (WIDTH // HEADS) ** -0.5
    return {
        "norm": lambda x, w, b: mx.fast.layer_norm(x, w, b, EPS),
        "attention": lambda q, k, v: mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal"),
        "gelu": lambda x: tanh_gelu(mx, x),
    }


def jax_causal(jax, q, k, v):
    """The last query sees all keys."""
    scores = q @ k.swapaxes(-1, -2) * (WIDTH // HEADS) ** -0.5
    length, keys = scores.shape[-2:]
    visible = jax.numpy.tril(jax.numpy.ones((length, keys), bool), keys - length)
    return jax.nn.softmax(jax.numpy.where(visible, scores, -jax.numpy.inf), axis=-1) @ v


def jax_parts(jax):
    return {
        "norm": lambda x, w, b: jax_layer_norm(jax, x, w, b),
        "attention": lambda q, k, v: jax_causal(jax, q, k, v),
        "gelu": lambda x: jax.nn.gelu(x, approximate=True),
    }


def torch_parts(torch):
    F = torch.nn.functional
    return {
        "norm": lambda x, w, b: F.layer_norm(x, (WIDTH,), w, b, EPS),
        "attention": lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "gelu": lambda x: F.gelu(x, approximate="tanh"),
    }


@workload(flops=STEP_FLOPS, tolerance=2e-3)
class gpt_step:
    """Width 256, 8 heads, 4 x 256 tokens of a vocabulary of 512: loss, gradients, Adam. The referee is agreement."""

    def inputs(rng):
        params = [normal(rng, VOCABULARY, WIDTH), normal(rng, WIDTH, VOCABULARY, scale=WIDTH**-0.5), *block_arrays(rng)]
        m = [normal(rng, *p.shape, scale=1e-2) for p in params]
        v = [rng.uniform(1e-4, 1e-3, p.shape).astype(np.float32) for p in params]
        ids = rng.integers(0, VOCABULARY, (BATCH, LENGTH + 1)).astype(np.int32)
        return [*params, *m, *v, np.array(10, np.float32), ids[:, :-1].copy(), ids[:, 1:].copy()]

    def tree(*arrays):
        names = ("embedding", "head", *NAMES)
        count = len(names)
        trees = [dict(zip(names, arrays[i : i + count], strict=True)) for i in range(0, 3 * count, count)]
        return *trees, *arrays[3 * count :]

    def mlx(mx, params, m, v, t, x, y):
        def loss(p):
            return mlx_cross_entropy(mx, block(p, p["embedding"][x], **mlx_parts(mx)) @ p["head"], y)

        value, grads = mx.value_and_grad(loss)(params)
        return value, *adam(mx, params, grads, m, v, t)

    def jax(jax, params, m, v, t, x, y):
        def loss(p):
            return jax_cross_entropy(jax, block(p, p["embedding"][x], **jax_parts(jax)) @ p["head"], y)

        value, grads = jax.value_and_grad(loss)(params)
        return value, *adam(jax.numpy, params, grads, m, v, t)

    def torch(torch, params, m, v, t, x, y):
        F = torch.nn.functional

        def loss(p):
            logits = block(p, F.embedding(x, p["embedding"]), **torch_parts(torch)) @ p["head"]
            return F.cross_entropy(logits.reshape(-1, VOCABULARY), y.reshape(-1))

        grads, value = torch.func.grad_and_value(loss)(params)
        return value, *adam(torch, params, grads, m, v, t)


@workload(flops=24 * WIDTH**2 + 4 * (CACHED + 1) * WIDTH, tolerance=1e-4)
class decode:
    """One token through the block: its keys and values are appended to 511 cached ones, which are results too."""

    def inputs(rng):
        cache = [normal(rng, HEADS, CACHED, WIDTH // HEADS) for _ in range(2)]
        return [*block_arrays(rng), *cache, normal(rng, 1, WIDTH)]

    def tree(*arrays):
        return dict(zip(NAMES, arrays[:-3], strict=True)), *arrays[-3:]

    def numpy(np, p, keys, values, h):
        def norm(x, w, b):
            centred = x - x.mean(axis=-1, keepdims=True)
            return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + np.asarray(EPS, x.dtype)) * w + b

        def attention(q, k, v):
            scores = q @ np.swapaxes(k, -1, -2) * np.asarray((WIDTH // HEADS) ** -0.5, q.dtype)
            e = np.exp(scores - scores.max(axis=-1, keepdims=True))
            return e / e.sum(axis=-1, keepdims=True) @ v

        return decoded(np.concatenate, p, keys, values, h, norm, attention, lambda x: tanh_gelu(np, x))

    def mlx(mx, p, keys, values, h):
        parts = mlx_parts(mx)

        def attention(q, k, v):
            q, k, v = (x[None] for x in (q, k, v))
            return mx.fast.scaled_dot_product_attention(q, k, v, scale=(WIDTH // HEADS) ** -0.5)[0]

        return decoded(mx.concatenate, p, keys, values, h, parts["norm"], attention, parts["gelu"])

    def jax(jax, p, keys, values, h):
        return decoded(jax.numpy.concatenate, p, keys, values, h, **jax_parts(jax))

    def torch(torch, p, keys, values, h):
        parts = torch_parts(torch) | {"attention": torch.nn.functional.scaled_dot_product_attention}
        return decoded(torch.cat, p, keys, values, h, **parts)


def decoded(concatenate, p, keys, values, h, norm, attention, gelu):
    """The block's result for one token and the caches with it, of a framework's parts."""
    grown = []

    def cached(q, k, v):
        grown.extend([concatenate([keys, k], -2), concatenate([values, v], -2)])
        return attention(q, *grown)

    return block(p, h, norm, cached, gelu), *grown
