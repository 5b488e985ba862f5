"""A vision transformer: patches by convolution, class token, learned positions, erf GELU, layer scale, mean teacher."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map


class Encoder(nn.Module):
    def __init__(self, dims, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dims), nn.LayerNorm(dims)
        self.qkv, self.proj = nn.Linear(dims, 3 * dims), nn.Linear(dims, dims)
        self.fc1, self.fc2, self.heads = nn.Linear(dims, 2 * dims), nn.Linear(2 * dims, dims), heads
        self.gamma = mx.full((dims,), 0.1)

    def __call__(self, x):
        B, N, D = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(B, N, 3, self.heads, D // self.heads)
        q, k, v = mx.split(qkv.transpose(2, 0, 3, 1, 4), 3, axis=0)
        q, k, v = (mx.squeeze(t, axis=0) for t in (q, k, v))
        scores = mx.softmax((q * (D // self.heads) ** -0.5) @ k.swapaxes(-1, -2), axis=-1)
        x = x + self.gamma * self.proj(mx.moveaxis(scores @ v, 1, 2).reshape(B, N, D))
        return x + self.fc2(nn.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, size=8, patch=4, dims=16, classes=3):
        super().__init__()
        self.patch = nn.Conv2d(3, dims, kernel_size=patch, stride=patch)
        self.cls = mx.zeros((1, 1, dims))
        self.positions = 0.02 * mx.random.truncated_normal(-2, 2, ((size // patch) ** 2 + 1, dims))
        self.blocks = [Encoder(dims, 4) for _ in range(2)]
        self.norm, self.head = nn.LayerNorm(dims), nn.Linear(dims, classes)

    def __call__(self, x):
        x = mx.flatten(self.patch(x), 1, 2)
        cls = mx.broadcast_to(self.cls, (x.shape[0], 1, x.shape[-1]))
        x = mx.concatenate([cls, x], axis=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def mixup(x, y, classes):
    """Pairs of images mixed by a Beta-like weight."""
    weight = mx.maximum(mx.random.uniform(shape=(x.shape[0], 1)), 0.5)
    order = mx.random.permutation(x.shape[0])
    targets = mx.eye(classes)[y]
    return x * weight[:, :, None, None] + x[order] * (1 - weight[:, :, None, None]), (
        targets * weight + targets[order] * (1 - weight)
    )


mx.random.seed(9)
model, teacher = ViT(), ViT()
teacher.update(model.parameters())
x, y = mx.random.normal((6, 8, 8, 3)), mx.array([0, 1, 2, 2, 1, 0])
optimizer = optim.Lion(learning_rate=1e-3, weight_decay=0.1)
step = nn.value_and_grad(model, lambda m, x, t: nn.losses.cross_entropy(m(x), t, reduction="mean"))
losses = []
for _ in range(4):
    loss, grads = step(model, *mixup(x, y, 3))
    optimizer.update(model, grads)
    teacher.update(tree_map(lambda a, b: 0.9 * a + 0.1 * b, teacher.parameters(), model.parameters()))
    mx.eval(model.parameters(), teacher.parameters(), optimizer.state)
    losses.append(loss.item())
print(json.dumps({"losses": losses, "student": model(x).tolist(), "teacher": teacher(x).tolist()}))
