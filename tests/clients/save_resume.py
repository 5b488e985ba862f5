"""Training that is saved, stopped and resumed: weights and optimizer state in npz, safetensors and npy."""

import json
import os
import pickle
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten


def make():
    mx.random.seed(24)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.ReLU(), nn.Linear(12, 3))
    return model, optim.AdamW(optim.cosine_decay(1e-2, 20))


def train(model, optimizer, steps):
    step = nn.value_and_grad(model, lambda m, x, y: nn.losses.cross_entropy(m(x), y, reduction="mean"))
    losses = []
    for _ in range(steps):
        loss, grads = step(model, x, y)
        optimizer.update(model, grads)
        mx.eval(model.state, optimizer.state)
        losses.append(loss.item())
    return losses


x, y = mx.array(np.random.RandomState(0).randn(10, 6).astype(np.float32)), mx.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])
model, optimizer = make()
whole = train(model, optimizer, 6)

with tempfile.TemporaryDirectory() as folder:
    at = lambda name: os.path.join(folder, name)  # noqa: E731
    model, optimizer = make()
    first = train(model, optimizer, 3)
    model.save_weights(at("model.safetensors"))
    model.save_weights(at("model.npz"))
    mx.save_safetensors(at("optimizer.safetensors"), dict(tree_flatten(optimizer.state)))

    model, optimizer = make()
    model.load_weights(at("model.safetensors"))
    optimizer.state = tree_unflatten(list(mx.load(at("optimizer.safetensors")).items()))
    second = train(model, optimizer, 3)
    assert np.allclose(first + second, whole, rtol=1e-6)

    other, _ = make()
    other.load_weights(at("model.npz"))
    arrays = dict(mx.load(at("model.npz")))
    assert sorted(arrays) == ["layers.0.bias", "layers.0.weight", "layers.3.bias", "layers.3.weight"]
    try:
        other.load_weights([("layers.0.weight", mx.zeros((12, 6)))])
    except ValueError as error:
        missing = "Missing" in str(error)
    other.load_weights([("layers.0.weight", mx.zeros((12, 6)))], strict=False)
    mx.savez_compressed(at("c.npz"), x, labels=y)
    packed = mx.load(at("c.npz"))
    mx.save_safetensors(at("meta"), {"x": x.astype(mx.bfloat16), "i": y.astype(mx.int8)}, {"epoch": "3"})
    loaded, meta = mx.load(at("meta.safetensors"), return_metadata=True)
    with open(at("x.npy"), "wb") as file:
        np.save(file, np.arange(6).reshape(2, 3))
    with open(at("x.npy"), "rb") as file:
        from_numpy = mx.load(file)

copy = pickle.loads(pickle.dumps(x))
assert mx.array_equal(copy, x)
print(json.dumps({
    "losses": whole, "missing": missing, "meta": meta, "packed": sorted(packed), "numpy": from_numpy.tolist(),
    "dtypes": [str(loaded[k].dtype).rpartition(".")[2] for k in sorted(loaded)], "logits": other.eval()(x).tolist(),
}))  # fmt: skip
