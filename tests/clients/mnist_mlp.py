"""A multi-layer perceptron on synthetic digits, in the style of mlx-examples/mnist: batches, eval, compiled step."""

import json
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np


class MLP(nn.Module):
    """A simple MLP."""

    def __init__(self, num_layers: int, input_dim: int, hidden_dim: int, output_dim: int):
        super().__init__()
        layer_sizes = [input_dim] + [hidden_dim] * num_layers + [output_dim]
        self.layers = [nn.Linear(idim, odim) for idim, odim in zip(layer_sizes[:-1], layer_sizes[1:], strict=True)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = nn.relu(layer(x))
        return self.layers[-1](x)


def loss_fn(model, X, y):
    return nn.losses.cross_entropy(model(X), y, reduction="mean")


def batch_iterate(batch_size, X, y):
    perm = mx.array(np.random.permutation(y.size))
    for s in range(0, y.size, batch_size):
        ids = perm[s : s + batch_size]
        yield X[ids], y[ids]


np.random.seed(0)
mx.random.seed(0)
centres = np.random.normal(size=(10, 49)).astype(np.float32)
labels = np.random.randint(0, 10, 200).astype(np.uint32)
images = mx.array(centres[labels] + 0.5 * np.random.normal(size=(200, 49)).astype(np.float32))
labels = mx.array(labels)

model = MLP(2, 49, 32, 10)
mx.eval(model.parameters())
optimizer = optim.SGD(learning_rate=0.1)


@partial(mx.compile, inputs=model.state, outputs=model.state)
def step(X, y):
    loss, grads = nn.value_and_grad(model, loss_fn)(model, X, y)
    optimizer.update(model, grads)
    return loss


@partial(mx.compile, inputs=model.state)
def eval_fn(X, y):
    return mx.mean(mx.argmax(model(X), axis=1) == y)


losses, accuracies = [], []
for _ in range(3):
    for X, y in batch_iterate(48, images, labels):
        losses.append(step(X, y).item())
        mx.eval(model.state)
    accuracies.append(eval_fn(images, labels).item())
assert accuracies[-1] > accuracies[0]
print(
    json.dumps(
        {
            "losses": losses,
            "accuracies": accuracies,
            "parameters": sum(v.size for _, v in nn.utils.tree_flatten(model.parameters())),
        }
    )
)
