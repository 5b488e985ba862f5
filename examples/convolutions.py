"""Classify handwritten digits with a small convolutional network of `mlxir.nn` layers.

The layers are the pure-Python ones of an installed MLX wheel (`pip install "mlx[cpu]"`); arrays, gradients and the
compiled step are mlxir's. Bias, ReLU and what follows happen inside the kernel of each convolution.

    python examples/convolutions.py          under half a minute on two cores
"""

import time
from functools import partial

import numpy as np
from sklearn.datasets import load_digits

import mlxir as mx
from mlxir import nn, optimizers

BATCH, EPOCHS = 64, 12


class Network(nn.Module):
    """Images (n, 8, 8, 1) to logits (n, 10)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, kernel_size=3, padding=1),
            nn.ReLU(),
        )
        self.classify = nn.Linear(4 * 4 * 32, 10)

    def __call__(self, x):
        return self.classify(self.features(x).reshape(len(x), -1))


def load():
    """(train x, train y), (test x, test y), 4 : 1; pixels in [0, 1], channels last."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32).reshape(-1, 8, 8, 1), y[order].astype(np.int32)
    split = len(x) * 4 // 5
    return (x[:split], y[:split]), (x[split:], y[split:])


def loss_fn(model, x, y):
    return nn.losses.cross_entropy(model(x), y, reduction="mean")


def main():
    mx.random.seed(0)
    (x, y), (test_x, test_y) = load()
    model = Network()
    optimizer = optimizers.Adam(learning_rate=2e-3)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y):
        loss, grads = nn.value_and_grad(model, loss_fn)(model, x, y)
        optimizer.update(model, grads)
        return loss

    rng = np.random.default_rng(0)
    for epoch in range(EPOCHS):
        started = time.perf_counter()
        order = rng.permutation(len(x))
        for start in range(0, len(x) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            loss = step(mx.array(x[rows]), mx.array(y[rows]))
            mx.eval(loss, state)
        print(f"epoch {epoch + 1:2}   loss {loss.item():.4f}   {time.perf_counter() - started:.2f} s", flush=True)

    predicted = mx.argmax(model(mx.array(test_x)), axis=1)
    print(f"test accuracy {mx.mean(predicted == mx.array(test_y)).item():.3f} on {len(test_y)} digits")


if __name__ == "__main__":
    main()
