"""A convolutional variational autoencoder: reparameterisation, Upsample, transposed convolution, KL divergence."""

import json
import math
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class UpsamplingConv2d(nn.Module):
    """Upsample by nearest neighbours, then convolve; see mlx-examples/cvae."""

    def __init__(self, in_channels, out_channels, kernel_size, stride, padding):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)

    def __call__(self, x):
        B, H, W, C = x.shape
        x = mx.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C)).reshape(B, H * 2, W * 2, C)
        return self.conv(x)


class CVAE(nn.Module):
    def __init__(self, latents=3):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm(4)
        self.proj_mu, self.proj_log_var = nn.Linear(64, latents), nn.Linear(64, latents)
        self.lin = nn.Linear(latents, 64)
        self.up = UpsamplingConv2d(4, 4, 3, stride=1, padding=1)
        self.out = nn.ConvTranspose2d(4, 1, 3, stride=1, padding=1)

    def encode(self, x):
        x = nn.leaky_relu(self.bn1(self.conv1(x))).flatten(1)
        mu = self.proj_mu(x)
        sigma = mx.exp(self.proj_log_var(x) * 0.5)
        eps = mx.random.normal(sigma.shape)
        return eps * sigma + mu, mu, mx.log(sigma.square())

    def decode(self, z):
        x = self.lin(z).reshape(-1, 4, 4, 4)
        return mx.sigmoid(self.out(nn.leaky_relu(self.up(x))))

    def __call__(self, x):
        z, mu, logvar = self.encode(x)
        return self.decode(z), mu, logvar


def loss_fn(model, X):
    X_recon, mu, logvar = model(X)
    recon_loss = nn.losses.mse_loss(X_recon, X, reduction="sum")
    kl_div = -0.5 * mx.sum(1 + logvar - mu.square() - logvar.exp())
    return recon_loss + kl_div


mx.random.seed(0)
model = CVAE()
mx.eval(model.parameters())
optimizer = optim.AdamW(learning_rate=1e-2)
state = [model.state, optimizer.state, mx.random.state]
grid = mx.arange(8) / 8
X = mx.stack([mx.sin(math.tau * (grid[:, None] * k + grid[None] * 0.5)) * 0.5 + 0.5 for k in range(1, 7)])[..., None]


@partial(mx.compile, inputs=state, outputs=state)
def step(X):
    loss, grads = nn.value_and_grad(model, loss_fn)(model, X)
    optimizer.update(model, grads)
    return loss


losses = []
for _ in range(6):
    loss = step(X)
    mx.eval(state)
    losses.append(loss.item())
model.eval()
samples = model.decode(mx.random.normal((2, 3)))
print(json.dumps({"losses": losses, "samples": samples.squeeze(-1).tolist(), "shape": list(samples.shape)}))
