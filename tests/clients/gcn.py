"""A graph network: normalised adjacency, message passing by scatter-add, segment softmax, masked loss."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np

rng = np.random.default_rng(0)
nodes, edges = 12, 30
source, target = (mx.array(rng.integers(0, nodes, edges)) for _ in range(2))
adjacency = mx.zeros((nodes, nodes))
adjacency[source, target] = 1
adjacency = mx.maximum(adjacency, adjacency.T) + mx.eye(nodes)
degree = adjacency.sum(axis=1)
normalised = adjacency * mx.rsqrt(degree)[:, None] * mx.rsqrt(degree)[None]


class GCNLayer(nn.Module):
    def __init__(self, in_features, out_features):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.bias = mx.zeros((out_features,))

    def __call__(self, x, adj):
        return adj @ self.linear(x) + self.bias


class Attention(nn.Module):
    """Graph attention by gathers and scatters over the list of edges."""

    def __init__(self, dims):
        super().__init__()
        self.lin, self.a_source, self.a_target = nn.Linear(dims, dims), nn.Linear(dims, 1), nn.Linear(dims, 1)

    def __call__(self, x):
        h = self.lin(x)
        logits = nn.leaky_relu(self.a_source(h)[source] + self.a_target(h)[target], 0.2).squeeze(-1)
        largest = mx.full((nodes,), -1e9).at[target].maximum(logits)
        weights = mx.exp(logits - mx.stop_gradient(largest)[target])
        total = mx.zeros((nodes,)).at[target].add(weights)
        weights = weights / (total[target] + 1e-9)
        return mx.zeros_like(h).at[target].add(weights[:, None] * h[source]) + h


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.gcn1, self.attention, self.gcn2 = GCNLayer(5, 8), Attention(8), GCNLayer(8, 3)
        self.dropout = nn.Dropout(p=0.2)

    def __call__(self, x, adj):
        x = self.dropout(nn.relu(self.gcn1(x, adj)))
        return self.gcn2(nn.elu(self.attention(x)), adj)


mx.random.seed(1)
features, labels = mx.random.normal((nodes, 5)), mx.array(rng.integers(0, 3, nodes))
mask = mx.arange(nodes) < 8
model, optimizer = Net(), optim.Adam(1e-2)


def loss_fn(model):
    losses = nn.losses.cross_entropy(model(features, normalised), labels)
    regulariser = mx.linalg.norm(model.gcn1.linear.weight)
    return (losses * mask).sum() / mask.sum() + 1e-3 * regulariser


losses = []
for _ in range(5):
    loss, grads = nn.value_and_grad(model, loss_fn)(model)
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state)
    losses.append(loss.item())
pooled = mx.zeros((3, 5)).at[labels].add(features)
print(json.dumps({"losses": losses, "logits": model.eval()(features, normalised).tolist(), "pooled": pooled.tolist()}))
