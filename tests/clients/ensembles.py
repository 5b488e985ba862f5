"""vmap over ensembles of models, learning rates, random keys and data; trained at once under compile."""

import json
from functools import partial

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

mx.random.seed(22)
members = 4


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.l1, self.l2 = nn.Linear(2, 8), nn.Linear(8, 1)

    def __call__(self, x):
        return self.l2(mx.tanh(self.l1(x))).squeeze(-1)


nets = [Net() for _ in range(members)]
stacked = tree_map(lambda *leaves: mx.stack(leaves), *[n.parameters() for n in nets])
base = nets[0]


def apply(params, x):
    base.update(params)
    return base(x)


def loss(params, x, y):
    return (apply(params, x) - y).square().mean()


x = mx.random.normal((16, 2))
y = mx.sin(x[:, 0]) * x[:, 1]
rates = mx.array([0.01, 0.05, 0.1, 0.2])
separate = mx.stack([loss(n.parameters(), x, y) for n in nets])
assert mx.allclose(mx.vmap(loss, in_axes=(0, None, None))(stacked, x, y), separate, atol=1e-6)


@mx.compile
def step(params, rates, x, y):
    losses, grads = mx.vmap(mx.value_and_grad(loss), in_axes=(0, None, None))(params, x, y)
    update = mx.vmap(lambda p, g, r: tree_map(lambda a, b: a - r * b, p, g))
    return update(params, grads, rates), losses


history = []
for _ in range(6):
    stacked, losses = step(stacked, rates, x, y)
    mx.eval(stacked, losses)
    history.append(losses.tolist())

keys = mx.random.split(mx.random.key(5), members)
noise = mx.vmap(lambda k: mx.random.normal((3,), key=k))(keys)
bags = mx.vmap(lambda k, x: x[mx.random.randint(0, 16, (5,), key=k)].mean(axis=0), in_axes=(0, None))(keys, x)
pairwise = mx.vmap(mx.vmap(lambda a, b: mx.abs(a - b).sum(), (None, 0)), (0, None))(x[:3], x[:4])
columns = mx.vmap(partial(mx.linalg.norm), in_axes=1)(x)
moved = mx.vmap(lambda a: mx.sort(a), in_axes=1, out_axes=1)(x[:5])


def scatter(row, index):
    row[index] = 9.0
    return row


written = mx.vmap(scatter)(mx.zeros((3, 4)), mx.array([2, 0, 3]))
windows = mx.vmap(lambda i: mx.take(mx.arange(10), i + mx.arange(3)))(mx.array([0, 4, 7]))
convolved = mx.vmap(lambda w: mx.conv1d(x[None], w), in_axes=0)(mx.random.normal((2, 3, 3, 2)))
solved = mx.vmap(lambda a, b: mx.where(mx.any(a > 1), a @ b, b))(mx.random.normal((3, 2, 2)), mx.ones((3, 2)))
print(json.dumps({
    "history": history, "noise": noise.tolist(), "bags": bags.tolist(), "pairwise": pairwise.tolist(),
    "columns": columns.tolist(), "moved": moved.tolist(), "written": written.tolist(), "windows": windows.tolist(),
    "convolved": convolved.tolist(), "solved": solved.tolist(),
    "shapes": {k: list(v.shape) for k, v in tree_flatten(stacked)},
}))  # fmt: skip
