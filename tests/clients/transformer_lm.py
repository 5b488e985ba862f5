"""A decoder-only language model: trained under compile, then sampled with a KV cache by several rules."""

import json
import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class KVCache:
    """Keys and values in a buffer that grows in steps, as mlx-lm does it."""

    step = 8

    def __init__(self):
        self.keys = self.values = None
        self.offset = 0

    def update_and_fetch(self, keys, values):
        previous = self.offset
        if self.keys is None or previous + keys.shape[2] > self.keys.shape[2]:
            B, H, _, D = keys.shape
            rows = (self.step + keys.shape[2] - 1) // self.step * self.step
            new = mx.zeros((B, H, rows, D), keys.dtype)
            if self.keys is not None:
                if previous % self.step != 0:
                    self.keys, self.values = self.keys[..., :previous, :], self.values[..., :previous, :]
                self.keys = mx.concatenate([self.keys, new], axis=2)
                self.values = mx.concatenate([self.values, new], axis=2)
            else:
                self.keys, self.values = new, mx.zeros((B, H, rows, D), values.dtype)
        self.offset += keys.shape[2]
        self.keys[..., previous : self.offset, :] = keys
        self.values[..., previous : self.offset, :] = values
        return self.keys[..., : self.offset, :], self.values[..., : self.offset, :]


class Attention(nn.Module):
    def __init__(self, dims, heads, kv_heads):
        super().__init__()
        self.heads, self.kv_heads, self.scale = heads, kv_heads, math.sqrt(heads / dims)
        self.q_proj = nn.Linear(dims, dims, bias=False)
        self.k_proj = nn.Linear(dims, dims // heads * kv_heads, bias=False)
        self.v_proj = nn.Linear(dims, dims // heads * kv_heads, bias=False)
        self.o_proj = nn.Linear(dims, dims, bias=False)
        self.rope = nn.RoPE(dims // heads)

    def __call__(self, x, mask=None, cache=None):
        B, L, _ = x.shape
        queries, keys, values = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        queries = queries.reshape(B, L, self.heads, -1).transpose(0, 2, 1, 3)
        keys = keys.reshape(B, L, self.kv_heads, -1).transpose(0, 2, 1, 3)
        values = values.reshape(B, L, self.kv_heads, -1).transpose(0, 2, 1, 3)
        if cache is not None:
            queries = self.rope(queries, offset=cache.offset)
            keys = self.rope(keys, offset=cache.offset)
            keys, values = cache.update_and_fetch(keys, values)
        else:
            queries, keys = self.rope(queries), self.rope(keys)
        out = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=self.scale, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, L, -1))


class Block(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.attention = Attention(dims, 4, 2)
        self.norm1, self.norm2 = nn.RMSNorm(dims), nn.RMSNorm(dims)
        self.gate, self.up, self.down = nn.Linear(dims, 24), nn.Linear(dims, 24), nn.Linear(24, dims)

    def __call__(self, x, mask=None, cache=None):
        x = x + self.attention(self.norm1(x), mask, cache)
        h = self.norm2(x)
        return x + self.down(nn.silu(self.gate(h)) * self.up(h))


class LM(nn.Module):
    def __init__(self, vocab, dims, layers):
        super().__init__()
        self.embed = nn.Embedding(vocab, dims)
        self.layers = [Block(dims) for _ in range(layers)]
        self.norm = nn.RMSNorm(dims)

    def __call__(self, tokens, cache=None):
        h = self.embed(tokens)
        mask = "causal" if h.shape[1] > 1 else None
        for layer, c in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            h = layer(h, mask, c)
        return self.embed.as_linear(self.norm(h))


@partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)
def categorical(logits, temp):
    return mx.random.categorical(logits * (1 / temp))


@partial(mx.compile, inputs=mx.random.state, outputs=mx.random.state)
def top_p(logits, p, temp):
    probs = mx.softmax(logits / temp, axis=-1)
    order = mx.argsort(probs, axis=-1)
    ordered = mx.take_along_axis(probs, order, axis=-1)
    cumulative = mx.cumsum(ordered, axis=-1)
    kept = mx.where(cumulative > 1 - p, ordered, 0)
    token = mx.random.categorical(mx.log(kept))
    return mx.take_along_axis(order, token[..., None], axis=-1).squeeze(-1)


def top_k(logits, k):
    mask = mx.argpartition(-logits, kth=k - 1, axis=-1)[..., k:]
    return mx.random.categorical(mx.put_along_axis(logits, mask, mx.array(-float("inf"), logits.dtype), axis=-1))


def generate(model, prompt, sample):
    cache = [KVCache() for _ in model.layers]
    tokens, y = [], prompt
    for _ in range(10):
        logits = model(y[None], cache)[:, -1, :]
        y = sample(logits)
        mx.async_eval(y)
        tokens.append(y.item())
    return tokens


mx.random.seed(3)
text = "the quick brown fox jumps over the lazy dog; " * 3
vocabulary = sorted(set(text))
data = mx.array([vocabulary.index(c) for c in text])
model = LM(len(vocabulary), 16, 1)
optimizer = optim.AdamW(learning_rate=1e-2)
state = [model.state, optimizer.state]


@partial(mx.compile, inputs=state, outputs=state)
def step(inputs, targets):
    def loss_fn(model):
        return nn.losses.cross_entropy(model(inputs), targets, reduction="mean")

    loss, grads = nn.value_and_grad(model, loss_fn)(model)
    optimizer.update(model, grads)
    return loss


losses = []
for i in range(12):
    start = mx.arange(4)[:, None] * 20 + i + mx.arange(16)[None]
    loss = step(data[start], data[start + 1])
    mx.eval(state)
    losses.append(loss.item())
prompt = data[:5]
cached = generate(model, prompt, lambda logits: mx.argmax(logits, axis=-1))
whole = prompt
for _ in range(10):
    whole = mx.concatenate([whole, mx.argmax(model(whole[None])[:, -1], axis=-1).astype(whole.dtype)])
assert whole[5:].tolist() == cached
print(json.dumps({
    "losses": losses,
    "greedy": str(cached),
    "temperature": str(generate(model, prompt, lambda logits: categorical(logits, 0.7))),
    "top_p": str(generate(model, prompt, lambda logits: top_p(logits, 0.8, 0.9))),
    "top_k": str(generate(model, prompt, lambda logits: top_k(logits, 4))),
}))  # fmt: skip
