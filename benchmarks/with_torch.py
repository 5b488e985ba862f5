"""PyTorch: each function under one `torch.compile` (inductor, whole graph, static shapes)."""

import torch
import torch.nn.functional as F
from workloads import BETA1, BETA2, EPS, LAYER_NORM_EPS, LEARNING_RATE

VERSION = f"torch {torch.__version__}"


def softmax(x):
    return (torch.softmax(x, dim=-1),)


def chain(x):
    t = torch.sin(x * 1.5 + 0.25) * x
    return (torch.exp(-torch.sqrt(torch.abs(t) + 1.0)).clamp_min(0.1),)


def gelu_chain(x, w, b):
    return (F.gelu(F.gelu(x + b) * w),)


def matmul(a, b):
    return (a @ b,)


def sum_all(x):
    return (x.sum(),)


def sum_columns(x):
    return (x.sum(dim=0),)


def sum_rows(x):
    return (x.sum(dim=1),)


def layer_norm_grad(x, w, b, c):
    def loss(x, w, b):
        return (F.layer_norm(x, x.shape[-1:], w, b, LAYER_NORM_EPS) * c).sum()

    grads, value = torch.func.grad_and_value(loss, argnums=(0, 1, 2))(x, w, b)
    return value, *grads


def dense(params, x):
    *hidden, w, b = params
    for i in range(0, len(hidden), 2):
        x = F.gelu(x @ hidden[i] + hidden[i + 1])
    return x @ w + b


def mlp(x, *params):
    return (dense(params, x),)


def train_step(*arrays):
    params, ms, vs, (t, x, y) = list(arrays[:6]), arrays[6:12], arrays[12:18], arrays[18:]

    def cross_entropy(params):
        return F.cross_entropy(dense(params, x), y)

    grads, loss = torch.func.grad_and_value(cross_entropy)(params)
    t = t + 1
    ms = [BETA1 * m + (1 - BETA1) * g for m, g in zip(ms, grads, strict=True)]
    vs = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(vs, grads, strict=True)]
    rate = LEARNING_RATE * torch.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    params = [p - rate * m / (torch.sqrt(v) + EPS) for p, m, v in zip(params, ms, vs, strict=True)]
    return loss, *params, *ms, *vs, t


FUNCTIONS = {
    f.__name__: f
    for f in (softmax, chain, gelu_chain, matmul, sum_all, sum_columns, sum_rows, layer_norm_grad, mlp, train_step)
}


def prepare(name, inputs):
    compiled = torch.compile(FUNCTIONS[name], fullgraph=True, dynamic=False)
    # Class indices are int64 in PyTorch.
    arrays = [torch.from_numpy(a).long() if a.dtype.kind == "i" else torch.from_numpy(a) for a in inputs]
    return lambda: compiled(*arrays)
