"""Fine-tuning of a frozen, quantised model through low-rank adapters, which are saved, loaded and fused."""

import json
import math
import os
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten


class LoRALinear(nn.Module):
    @staticmethod
    def from_linear(linear, rank=4):
        output_dims, input_dims = linear.weight.shape
        if isinstance(linear, nn.QuantizedLinear):
            input_dims *= 32 // linear.bits
        lora = LoRALinear(input_dims, output_dims, rank)
        lora.linear = linear
        return lora

    def __init__(self, input_dims, output_dims, rank, scale=20.0):
        super().__init__()
        self.linear = nn.Linear(input_dims, output_dims)
        self.scale = scale
        bound = 1 / math.sqrt(input_dims)
        self.lora_a = mx.random.uniform(low=-bound, high=bound, shape=(input_dims, rank))
        self.lora_b = mx.zeros(shape=(rank, output_dims))

    def __call__(self, x):
        dtype = self.linear.scales.dtype if isinstance(self.linear, nn.QuantizedLinear) else self.linear.weight.dtype
        y = self.linear(x.astype(dtype))
        z = (x @ self.lora_a) @ self.lora_b
        return y + self.scale * z

    def to_linear(self):
        weight = self.linear.weight
        if isinstance(self.linear, nn.QuantizedLinear):
            weight = mx.dequantize(weight, self.linear.scales, self.linear.biases, self.linear.group_size,
                                   self.linear.bits)  # fmt: skip
        fused = nn.Linear(weight.shape[1], weight.shape[0], bias=True)
        fused.weight = weight + (self.scale * self.lora_b.T) @ self.lora_a.T
        fused.bias = self.linear.bias
        return fused


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(16, 64)
        self.layers = [nn.Linear(64, 64) for _ in range(2)]
        self.head = nn.Linear(64, 16)

    def __call__(self, tokens):
        x = self.embedding(tokens)
        for layer in self.layers:
            x = x + nn.gelu(layer(x))
        return self.head(x)


mx.random.seed(2)
model = Model()
nn.quantize(model, group_size=32, bits=4, class_predicate=lambda path, m: path.startswith("layers"))
model.freeze()
for i, layer in enumerate(model.layers):
    model.layers[i] = LoRALinear.from_linear(layer)
    model.layers[i].linear.freeze()
names = [name for name, _ in tree_flatten(model.trainable_parameters())]
count = sum(v.size for _, v in tree_flatten(model.trainable_parameters()))

tokens, targets = mx.random.randint(0, 16, (4, 6)), mx.random.randint(0, 16, (4, 6))
optimizer = optim.Adam(learning_rate=1e-3)
loss_and_grad = nn.value_and_grad(model, lambda m: nn.losses.cross_entropy(m(tokens), targets).mean())
losses = []
for _ in range(8):
    loss, grads = loss_and_grad(model)
    optimizer.update(model, grads)
    mx.eval(model.parameters(), optimizer.state, loss)
    losses.append(loss.item())
tuned = model(tokens)

with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "adapters.safetensors")
    mx.save_safetensors(path, dict(tree_flatten(model.trainable_parameters())), metadata={"rank": "4"})
    adapters, metadata = mx.load(path, return_metadata=True)
    for layer in model.layers:
        layer.lora_b = mx.zeros_like(layer.lora_b)
    assert not mx.allclose(model(tokens), tuned)
    model.load_weights(list(adapters.items()), strict=False)
    assert mx.array_equal(model(tokens), tuned)

model.update_modules(tree_unflatten([(f"layers.{i}", layer.to_linear()) for i, layer in enumerate(model.layers)]))
fused = model(tokens)
assert mx.allclose(fused, tuned, rtol=1e-3, atol=1e-3)
print(json.dumps({"names": names, "count": count, "losses": losses, "metadata": metadata, "fused": fused.tolist()}))
