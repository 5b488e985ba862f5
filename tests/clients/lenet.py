"""LeNet with max pooling, Adam, gradient accumulation and gradient clipping, uncompiled."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map


class LeNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 5), nn.Conv2d(4, 8, 3)
        self.pool = nn.MaxPool2d(2, 2)
        self.fc = [nn.Linear(8 * 2 * 2, 16), nn.Linear(16, 10)]

    def __call__(self, x):
        x = self.pool(mx.tanh(self.conv1(x)))
        x = self.pool(mx.tanh(self.conv2(x)))
        x = mx.flatten(x, start_axis=1)
        return self.fc[1](mx.tanh(self.fc[0](x)))


mx.random.seed(11)
model, optimizer = LeNet(), optim.Adam(learning_rate=3e-3)
x, y = mx.random.uniform(shape=(12, 16, 16, 1)), mx.random.randint(0, 10, (12,))
loss_and_grad = nn.value_and_grad(model, lambda m, x, y: nn.losses.cross_entropy(m(x), y).mean())
losses, norms = [], []
for _ in range(4):
    total = None
    for i in range(0, 12, 4):
        loss, grads = loss_and_grad(model, x[i : i + 4], y[i : i + 4])
        total = grads if total is None else tree_map(mx.add, total, grads)
        losses.append(loss.item())
    total, norm = optim.clip_grad_norm(tree_map(lambda g: g / 3, total), max_norm=0.5)
    optimizer.update(model, total)
    mx.eval(model.parameters(), optimizer.state)
    norms.append(norm.item())
print(json.dumps({"losses": losses, "norms": norms, "step": optimizer.step.item(), "logits": model(x).tolist()}))
