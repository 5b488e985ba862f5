"""Sentence embeddings: post-norm encoder, padding masks, mean pooling, cosine similarities, masked-token loss."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np


class Embeddings(nn.Module):
    def __init__(self, vocab, dims):
        super().__init__()
        self.word, self.position, self.token_type = (
            nn.Embedding(vocab, dims),
            nn.Embedding(16, dims),
            nn.Embedding(2, dims),
        )
        self.norm = nn.LayerNorm(dims, eps=1e-12)

    def __call__(self, ids, types):
        position = mx.broadcast_to(mx.arange(ids.shape[1]), ids.shape)
        return self.norm(self.position(position) + self.word(ids) + self.token_type(types))


class Layer(nn.Module):
    def __init__(self, dims, heads):
        super().__init__()
        self.attention = nn.MultiHeadAttention(dims, heads, bias=True)
        self.ln1, self.ln2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.linear1, self.linear2, self.gelu = nn.Linear(dims, 32), nn.Linear(32, dims), nn.GELU()

    def __call__(self, x, mask):
        x = self.ln1(x + self.attention(x, x, x, mask))
        return self.ln2(x + self.linear2(self.gelu(self.linear1(x))))


class Bert(nn.Module):
    def __init__(self, vocab=30, dims=16):
        super().__init__()
        self.embeddings = Embeddings(vocab, dims)
        self.encoder = [Layer(dims, 4) for _ in range(2)]
        self.pooler, self.bias = nn.Linear(dims, dims), mx.zeros((vocab,))

    def __call__(self, ids, types, attention_mask):
        x = self.embeddings(ids, types)
        mask = mx.expand_dims(mx.log(attention_mask), (1, 2))
        for layer in self.encoder:
            x = layer(x, mask)
        return x, mx.tanh(self.pooler(x[:, 0]))

    def predict(self, hidden):
        return self.embeddings.word.as_linear(hidden) + self.bias


mx.random.seed(14)
model = Bert()
ids = np.random.default_rng(1).integers(3, 30, (3, 8))
mask = np.ones((3, 8), np.float32)
mask[1, 5:], mask[2, 3:] = 0, 0
ids[mask == 0] = 0
types, attention_mask = mx.zeros((3, 8), mx.int32), mx.array(mask)
tokens = mx.array(ids)
hidden, pooled = model(tokens, types, attention_mask)
mean = (hidden * attention_mask[..., None]).sum(axis=1) / attention_mask.sum(axis=1, keepdims=True)
unit = mean / mx.sqrt((mean * mean).sum(axis=-1, keepdims=True))

masked = mx.where((mx.random.uniform(shape=tokens.shape) < 0.3) & (attention_mask > 0), 2, tokens)
wanted = (masked == 2) & (tokens != 2)


def loss_fn(model):
    logits = model.predict(model(masked, types, attention_mask)[0])
    losses = nn.losses.cross_entropy(logits, tokens)
    return mx.where(wanted, losses, 0).sum() / wanted.sum()


optimizer, losses = optim.Adamax(1e-2), []
for _ in range(4):
    loss, grads = nn.value_and_grad(model, loss_fn)(model)
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    losses.append(loss.item())
assert not any(np.isnan(np.array(p)).any() for _, p in nn.utils.tree_flatten(model.parameters()))
print(json.dumps({"similarity": (unit @ unit.T).tolist(), "pooled": pooled.tolist(), "losses": losses}))
