"""Denoising diffusion: cosine schedule, time embeddings, noise prediction, classifier-free guidance, DDIM sampling."""

import json
import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim

STEPS = 20


def cosine_schedule(steps, s=0.008):
    t = mx.linspace(0, steps, steps + 1) / steps
    alphas = mx.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    alphas = alphas / alphas[0]
    betas = mx.clip(1 - alphas[1:] / alphas[:-1], 0, 0.999)
    return mx.cumprod(1 - betas)


class Denoiser(nn.Module):
    def __init__(self, dims=16, classes=3):
        super().__init__()
        self.time = nn.SinusoidalPositionalEncoding(dims, max_freq=1, cos_first=True, scale=1.0, full_turns=False)
        self.label = nn.Embedding(classes + 1, dims)
        self.conv_in, self.conv_out = nn.Conv2d(1, dims, 3, padding=1), nn.Conv2d(dims, 1, 3, padding=1)
        self.norm, self.middle = nn.GroupNorm(4, dims, pytorch_compatible=True), nn.Conv2d(dims, dims, 3, padding=1)
        self.film = nn.Linear(dims, 2 * dims)

    def __call__(self, x, t, label):
        h = self.conv_in(x)
        scale, shift = mx.split(self.film(nn.silu(self.time(t) + self.label(label))), 2, axis=-1)
        h = self.norm(h) * (1 + scale[:, None, None]) + shift[:, None, None]
        return self.conv_out(nn.silu(self.middle(nn.silu(h))) + h)


mx.random.seed(8)
alphas = cosine_schedule(STEPS)
model, optimizer = Denoiser(), optim.AdamW(3e-3)
x, labels = mx.random.normal((6, 6, 6, 1)), mx.arange(6) % 3
state = [model.state, optimizer.state, mx.random.state]


def loss_fn(model, x, labels):
    t = mx.random.randint(0, STEPS, (x.shape[0],))
    noise = mx.random.normal(x.shape)
    dropped = mx.where(mx.random.bernoulli(0.2, labels.shape), 3, labels)
    a = alphas[t][:, None, None, None]
    predicted = model(mx.sqrt(a) * x + mx.sqrt(1 - a) * noise, t, dropped)
    snr = mx.minimum(a / (1 - a), 5.0) * (1 - a) / a
    return (snr * (predicted - noise).square()).mean()


@partial(mx.compile, inputs=state, outputs=state)
def step(x, labels):
    loss, grads = nn.value_and_grad(model, loss_fn)(model, x, labels)
    optimizer.update(model, grads)
    return loss


@mx.compile
def guided(noisy, t, label, weight):
    both = model(
        mx.concatenate([noisy, noisy]), mx.concatenate([t, t]), mx.concatenate([label, mx.full_like(label, 3)])
    )
    with_label, without = mx.split(both, 2)
    return without + weight * (with_label - without)


losses = []
for _ in range(5):
    loss = step(x, labels)
    mx.eval(state)
    losses.append(loss.item())
sample, label = mx.random.normal((2, 6, 6, 1)), mx.array([0, 2])
guided = mx.compile(guided, inputs=model.state)
for t in range(STEPS - 1, -1, -5):
    noise = guided(sample, mx.full((2,), t), label, mx.array(2.0))
    a, before = alphas[t], alphas[t - 5] if t >= 5 else mx.array(1.0)
    clean = (sample - mx.sqrt(1 - a) * noise) / mx.sqrt(a)
    sample = mx.sqrt(before) * mx.clip(clean, -2, 2) + mx.sqrt(1 - before) * noise
    mx.eval(sample)
print(json.dumps({"alphas": alphas.tolist(), "losses": losses, "sample": sample.squeeze(-1).tolist()}))
