"""Graph attention over edge lists: segment softmax by scatter, dropout on edges, batches of graphs, pooling."""

import json
from functools import partial

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np


def segment_sum(v, i, n):
    return mx.zeros((n, *v.shape[1:]), dtype=v.dtype).at[i].add(v)


def segment_max(v, i, n):
    return mx.full((n, *v.shape[1:]), -float("inf"), dtype=v.dtype).at[i].maximum(v)


def segment_softmax(v, i, n):
    v = mx.exp(v - mx.stop_gradient(segment_max(v, i, n))[i])
    return v / (segment_sum(v, i, n)[i] + 1e-16)


class GAT(nn.Module):
    def __init__(self, i, o, heads=2, concat=True):
        super().__init__()
        self.lin = nn.Linear(i, heads * o, bias=False)
        self.a_src = mx.random.normal((1, heads, o)) * 0.3
        self.a_dst = mx.random.normal((1, heads, o)) * 0.3
        self.h, self.o, self.concat = heads, o, concat
        self.drop = nn.Dropout(0.2)

    def __call__(self, x, e):
        n = x.shape[0]
        h = self.lin(x).reshape(n, self.h, self.o)
        s, d = e[0], e[1]
        al = nn.leaky_relu((h * self.a_src).sum(-1)[s] + (h * self.a_dst).sum(-1)[d], 0.2)
        al = self.drop(segment_softmax(al, d, n))
        out = segment_sum(h[s] * al[..., None], d, n)
        return out.reshape(n, -1) if self.concat else out.mean(1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.g1, self.g2 = GAT(6, 8), GAT(16, 8, 2, False)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(24, 3)

    def __call__(self, x, e, batch, n):
        x = nn.elu(self.norm(self.g1(x, e)))
        x = self.g2(x, e)
        mean = segment_sum(x, batch, n) / mx.maximum(segment_sum(mx.ones((x.shape[0], 1)), batch, n), 1)
        return self.out(mx.concatenate([mean, segment_max(x, batch, n), segment_sum(x, batch, n)], -1))


rng = np.random.default_rng(3)
N = 40
batch = np.sort(rng.integers(0, 5, N))
batch[:5] = np.arange(5)
batch.sort()
X = rng.normal(size=(N, 6)).astype(np.float32)
E = np.array([(i, j) for i in range(N) for j in range(N) if batch[i] == batch[j] and (i == j or rng.random() < 0.3)]).T
y = mx.array(rng.integers(0, 3, 5))
X, E, B = mx.array(X), mx.array(E), mx.array(batch)
mx.random.seed(3)
m = Net()
mx.eval(m.parameters())
opt = optim.Adagrad(0.05)


def loss(m):
    return nn.losses.cross_entropy(m(X, E, B, 5), y, reduction="mean")


state = [m.state, opt.state, mx.random.state]


@partial(mx.compile, inputs=state, outputs=state)
def step():
    cost, g = nn.value_and_grad(m, loss)(m)
    opt.update(m, g)
    return cost


h = []
for _ in range(6):
    h.append(step().item())
m.eval()
lg = m(X, E, B, 5)
deg = segment_sum(mx.ones(E.shape[1]), E[1], N)
A = mx.zeros((N, N)).at[E[0], E[1]].add(1.0)
L = mx.eye(N) - A / mx.sqrt(deg[:, None] * deg[None])
print(
    json.dumps(
        {
            "h": h,
            "lg": lg.tolist(),
            "deg": deg.tolist(),
            "trace": mx.trace(L).item(),
            "paths": mx.argmax(A @ A @ A, axis=1).tolist(),
            "tri": mx.tril(A).sum().item(),
            "sym": mx.array_equal(A, A.T).item(),
        }
    )
)
