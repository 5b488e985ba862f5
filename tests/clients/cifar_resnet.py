"""A residual network for small images with batch norm, augmentation and a learning-rate schedule."""

import json
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten


class ShortcutA(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.dims = dims

    def __call__(self, x):
        return mx.pad(x[:, ::2, ::2, :], pad_width=[(0, 0), (0, 0), (0, 0), (self.dims // 4, self.dims // 4)])


class Block(nn.Module):
    def __init__(self, in_dims, dims, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_dims, dims, kernel_size=3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm(dims)
        self.conv2 = nn.Conv2d(dims, dims, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn2 = nn.BatchNorm(dims)
        if stride != 1:
            self.shortcut = ShortcutA(dims)
        else:
            self.shortcut = None

    def __call__(self, x):
        out = nn.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.shortcut is None else self.shortcut(x)
        return nn.relu(out)


class ResNet(nn.Module):
    def __init__(self, dims=8, num_classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(3, dims, kernel_size=3, stride=1, padding=1, bias=False)
        self.bn1 = nn.BatchNorm(dims)
        self.layer1 = nn.Sequential(Block(dims, dims), Block(dims, dims))
        self.layer2 = nn.Sequential(Block(dims, 2 * dims, stride=2))
        self.linear = nn.Linear(2 * dims, num_classes)

    def num_params(self):
        return sum(x.size for k, x in tree_flatten(self.parameters()))

    def __call__(self, x):
        x = nn.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        x = mx.mean(x, axis=[1, 2]).reshape(x.shape[0], -1)
        return self.linear(x)


def augment(x):
    """Random flips and shifts."""
    flip = mx.random.uniform(shape=(x.shape[0], 1, 1, 1)) < 0.5
    x = mx.where(flip, x[:, :, ::-1, :], x)
    padded = mx.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], mode="edge")
    return padded[:, 1:-1, 2:, :] * 0.5 + x * 0.5


mx.random.seed(7)
model = ResNet()
schedule = optim.join_schedules([optim.linear_schedule(0, 5e-2, 2), optim.cosine_decay(5e-2, 4)], [2])
optimizer = optim.SGD(learning_rate=schedule, momentum=0.9)
state = [model.state, optimizer.state, mx.random.state]
images, labels = mx.random.normal((10, 8, 8, 3)), mx.arange(10) % 5


def train_step(model, inp, tgt):
    output = model(inp)
    loss = mx.mean(nn.losses.cross_entropy(output, tgt))
    return loss, mx.mean(mx.argmax(output, axis=1) == tgt)


@partial(mx.compile, inputs=state, outputs=state)
def step(inp, tgt):
    (loss, acc), grads = nn.value_and_grad(model, train_step)(model, augment(inp), tgt)
    optimizer.update(model, grads)
    return loss, acc


report = {"parameters": model.num_params(), "losses": [], "rates": []}
model.train()
for _ in range(5):
    loss, acc = step(images, labels)
    mx.eval(state)
    report["losses"].append(loss.item())
    report["rates"].append(optimizer.learning_rate.item())
model.eval()
report["logits"] = model(images).tolist()
report["statistics"] = [model.bn1.running_mean.tolist(), model.layer2.layers[0].bn2.running_var.tolist()]
print(json.dumps(report))
