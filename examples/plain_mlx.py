"""A program written for MLX, and nothing else: no line of it knows mlxir.

    mlxir run examples/plain_mlx.py          with mlxir in the place of mlx.core
    python examples/plain_mlx.py             with MLX itself

It fits y = sin(x) with a multilayer perceptron and prints the same losses either way.
"""

from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class MLP(nn.Module):
    def __init__(self, sizes):
        super().__init__()
        self.layers = [nn.Linear(n, m) for n, m in zip(sizes, sizes[1:], strict=False)]

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = mx.tanh(layer(x))
        return self.layers[-1](x)


def main():
    mx.random.seed(0)
    model = MLP([1, 32, 32, 1])
    optimizer = optim.Adam(learning_rate=1e-2)
    x = mx.linspace(-3, 3, 256).reshape(-1, 1)
    y = mx.sin(x)
    loss_and_grad = nn.value_and_grad(model, lambda model, x, y: nn.losses.mse_loss(model(x), y))
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y):
        loss, grads = loss_and_grad(model, x, y)
        optimizer.update(model, grads)
        return loss

    for i in range(501):
        loss = step(x, y)
        mx.eval(loss, state)
        if i % 100 == 0:
            print(f"step {i:3}   loss {loss.item():.5f}")


if __name__ == "__main__":
    main()
