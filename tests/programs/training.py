"""Trains a small network for 20 steps, eagerly or compiled, and prints the losses. An ordinary MLX program."""

import json
import sys

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim


class MLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = [nn.Linear(8, 32), nn.Linear(32, 32), nn.Linear(32, 4)]
        self.dropout = nn.Dropout(0.1)

    def __call__(self, x):
        for layer in self.layers[:-1]:
            x = self.dropout(nn.relu(layer(x)))
        return self.layers[-1](x)


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 3, stride=2)
        self.norm, self.pool, self.out = nn.BatchNorm(4), nn.MaxPool2d(2), nn.Linear(8, 4)

    def __call__(self, x):
        x = nn.relu(self.norm(self.conv1(x)))
        x = self.pool(self.conv2(x))
        return self.out(mx.mean(x, axis=(1, 2)))


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(11, 16), nn.Linear(16, 11)
        self.encoder = nn.TransformerEncoder(1, 16, 2, 32)

    def __call__(self, x):
        mask = nn.MultiHeadAttention.create_additive_causal_mask(x.shape[1])
        return self.out(self.encoder(self.embedding(x), mask))


def mlp_case():
    return MLP(), optim.SGD(0.1, momentum=0.9), mx.random.normal((16, 8)), mx.random.randint(0, 4, (16,))


def cnn_case():
    return CNN(), optim.Adam(1e-3), mx.random.normal((8, 8, 8, 1)), mx.random.randint(0, 4, (8,))


def transformer_case():
    tokens = mx.random.randint(0, 11, (4, 9))
    schedule = optim.join_schedules([optim.linear_schedule(1e-3, 1e-2, 5), optim.cosine_decay(1e-2, 15)], [5])
    return Transformer(), optim.AdamW(schedule), tokens[:, :-1], tokens[:, 1:]


def main(case, mode):
    mx.random.seed(0)
    model, optimizer, x, y = {"mlp": mlp_case, "cnn": cnn_case, "transformer": transformer_case}[case]()
    mx.eval(model.parameters())
    value_and_grad = nn.value_and_grad(model, lambda x, y: nn.losses.cross_entropy(model(x), y, reduction="mean"))

    def step(x, y):
        loss, grads = value_and_grad(x, y)
        grads, _ = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(model, grads)
        return loss

    state = [model.state, optimizer.state, mx.random.state]
    if mode == "compiled":
        step = mx.compile(step, inputs=state, outputs=state)
    losses = []
    for _ in range(20):
        loss = step(x, y)
        mx.eval(state, loss)
        losses.append(loss.item())
    print(json.dumps(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
