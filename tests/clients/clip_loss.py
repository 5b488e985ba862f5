"""Contrastive training of two towers: normalised features, a learned temperature, symmetric loss, retrieval."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map_with_path


class Tower(nn.Module):
    def __init__(self, inputs, dims):
        super().__init__()
        self.layers = [nn.Linear(inputs, 24), nn.Linear(24, dims, bias=False)]
        self.norm = nn.LayerNorm(24)

    def __call__(self, x):
        x = self.layers[1](self.norm(nn.gelu_approx(self.layers[0](x))))
        return x / mx.linalg.norm(x, axis=-1, keepdims=True)


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.text = Tower(10, 8), Tower(6, 8)
        self.logit_scale = mx.array(2.6592)

    def __call__(self, image, text):
        return mx.exp(self.logit_scale) * (self.image(image) @ self.text(text).T)


def clip_loss(logits):
    N, M = logits.shape
    caption = nn.losses.cross_entropy(logits, mx.arange(N), reduction="mean")
    image = nn.losses.cross_entropy(logits.T, mx.arange(M), reduction="mean")
    return (caption + image) / 2.0


mx.random.seed(12)
model = Clip()
image = mx.random.normal((8, 10))
text = image[:, :6] * 0.8 + 0.2 * mx.random.normal((8, 6))
decayed = optim.AdamW(5e-3, weight_decay=0.2)
plain = optim.AdamW(5e-3, weight_decay=0.0)
optimizer = optim.MultiOptimizer([decayed, plain], [lambda name, p: p.ndim > 1])
loss_and_grad = nn.value_and_grad(model, lambda model, i, t: clip_loss(model(i, t)))
losses = []
for _ in range(8):
    loss, grads = loss_and_grad(model, image, text)
    grads = tree_map_with_path(lambda path, g: g * 0.1 if "logit_scale" in path else g, grads)
    optimizer.update(model, grads)
    model.logit_scale = mx.minimum(model.logit_scale, mx.log(mx.array(100.0)))
    mx.eval(model.parameters(), optimizer.state)
    losses.append(loss.item())
logits = model(image, text)
ranks = mx.argsort(-logits, axis=-1)
hits = (mx.argmax(logits, axis=-1) == mx.arange(8)).sum().item()
print(json.dumps({
    "losses": losses, "logits": logits.tolist(), "first": ranks[:, 0].tolist(), "hits": hits,
    "scale": model.logit_scale.item(), "sizes": {k: v.size for k, v in tree_flatten(model.parameters())},
}))  # fmt: skip
