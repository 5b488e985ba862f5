"""A generative adversarial network: two optimizers, stop_gradient, losses by logits, frozen parts."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten

mx.random.seed(5)
generator = nn.Sequential(
    nn.Linear(4, 16, bias=False), nn.LeakyReLU(0.2), nn.BatchNorm(16), nn.Linear(16, 2), nn.Tanh()
)
discriminator = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Dropout(0.3), nn.Linear(16, 1))
g_opt, d_opt = optim.Adam(2e-3, betas=[0.5, 0.999]), optim.RMSprop(1e-3)


def g_loss(generator, z):
    return nn.losses.binary_cross_entropy(discriminator(generator(z)), mx.ones((z.shape[0], 1)))


def d_loss(discriminator, real, z):
    fake = mx.stop_gradient(generator(z))
    ones, zeros = mx.full((real.shape[0], 1), 0.9), mx.zeros((real.shape[0], 1))
    on_real = nn.losses.binary_cross_entropy(discriminator(real), ones)
    on_fake = nn.losses.binary_cross_entropy(discriminator(fake), zeros)
    return (on_real + on_fake) / 2, (on_real, on_fake)


history = []
for _ in range(6):
    angles = mx.random.uniform(0, 6.2831853, (16,))
    real = mx.stack([mx.cos(angles), mx.sin(angles)], axis=-1)
    (loss_d, parts), grads = nn.value_and_grad(discriminator, d_loss)(discriminator, real, mx.random.normal((16, 4)))
    d_opt.update(discriminator, grads)
    loss_g, grads = nn.value_and_grad(generator, g_loss)(generator, mx.random.normal((16, 4)))
    g_opt.update(generator, grads)
    mx.eval(generator.state, discriminator.state, g_opt.state, d_opt.state)
    history.append([loss_d.item(), loss_g.item(), *[p.item() for p in parts]])

discriminator.freeze()
assert tree_flatten(discriminator.trainable_parameters()) == []
discriminator.layers[3].unfreeze(keys="bias")
print(json.dumps({
    "history": history,
    "trainable": [name for name, _ in tree_flatten(discriminator.trainable_parameters())],
    "samples": generator.eval()(mx.random.normal((3, 4))).tolist(),
}))  # fmt: skip
