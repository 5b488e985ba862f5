"""A normalising flow of affine couplings: log densities, exact inverses, sampling, and the Jacobian by vmap of vjp."""

import json
import math

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class Coupling(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self._mask = mx.array(mask)
        self.net = nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 4))

    def parts(self, x):
        s, t = mx.split(self.net(x * self._mask), 2, axis=-1)
        return mx.tanh(s) * (1 - self._mask), t * (1 - self._mask)

    def __call__(self, x):
        s, t = self.parts(x)
        return x * mx.exp(s) + t, s.sum(axis=-1)

    def inverse(self, y):
        s, t = self.parts(y)
        return (y - t) * mx.exp(-s)


class Flow(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = [Coupling([i % 2, 1 - i % 2]) for i in range(layers)]

    def __call__(self, x):
        total = mx.zeros(x.shape[:-1])
        for layer in self.layers:
            x, log_det = layer(x)
            total = total + log_det
        return x, total

    def log_prob(self, x):
        z, log_det = self(x)
        return -0.5 * (z.square().sum(-1) + 2 * math.log(2 * math.pi)) + log_det

    def inverse(self, z):
        for layer in reversed(self.layers):
            z = layer.inverse(z)
        return z


mx.random.seed(6)
model, optimizer = Flow(4), optim.Adam(5e-3)
angle = mx.random.uniform(0, math.pi, (32,))
data = mx.stack([mx.cos(angle), mx.sin(angle)], -1) + 0.1 * mx.random.normal((32, 2))
assert "layers.0._mask" not in dict(nn.utils.tree_flatten(model.parameters()))


def step(data):
    loss, grads = nn.value_and_grad(model, lambda x: -model.log_prob(x).mean())(data)
    optimizer.update(model, grads)
    return loss


step = mx.compile(step, inputs=[model.state, optimizer.state], outputs=[model.state, optimizer.state])
losses = []
for _ in range(8):
    losses.append(step(data).item())
z, log_det = model(data)
assert mx.allclose(model.inverse(z), data, atol=1e-5)


def jacobian(x):
    return mx.vmap(lambda ct: mx.vjp(lambda x: model(x)[0], [x], [ct])[1][0])(mx.eye(2))


jacobians = mx.vmap(jacobian)(data[:4])
determinants = jacobians[:, 0, 0] * jacobians[:, 1, 1] - jacobians[:, 0, 1] * jacobians[:, 1, 0]
assert mx.allclose(mx.log(mx.abs(determinants)), log_det[:4], atol=1e-4)
print(json.dumps({"losses": losses, "jacobians": jacobians.tolist(),
                  "samples": model.inverse(mx.random.normal((3, 2))).tolist()}))  # fmt: skip
