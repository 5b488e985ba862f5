"""Quantised inference in several formats: mixed precision by layer, a quantised cache, experts by gather_qmm."""

import json

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

mx.random.seed(23)
report = {}


class Experts(nn.Module):
    """A mixture of experts whose matrices lie in one stack (as SwitchLinear in mlx-lm)."""

    def __init__(self, experts, inputs, outputs):
        super().__init__()
        self.gate = nn.Linear(inputs, experts, bias=False)
        self.weight = mx.random.uniform(-0.1, 0.1, (experts, outputs, inputs))

    def __call__(self, x):
        gates = mx.softmax(self.gate(x), axis=-1, precise=True)
        chosen = mx.stop_gradient(mx.argpartition(-gates, kth=1, axis=-1)[..., :2])
        scores = mx.take_along_axis(gates, chosen, axis=-1)
        y = mx.gather_mm(x[:, None, None, :], self.weight.swapaxes(-1, -2), rhs_indices=chosen)
        return (y.squeeze(-2) * scores[..., None]).sum(axis=-2), chosen


x = mx.random.normal((4, 64))
experts = Experts(4, 64, 32)
dense, chosen = experts(x)
w, scales, biases = mx.quantize(experts.weight, group_size=32, bits=8)
by_hand = mx.gather_qmm(
    x[:, None, None, :], w, scales, biases, rhs_indices=chosen, transpose=True, group_size=32, bits=8
)
report["experts"], report["chosen"] = dense.tolist(), mx.sort(chosen, axis=-1).tolist()
report["gathered"] = by_hand.squeeze(-2).sum(axis=-1).tolist()

for mode, options in {"affine": {"group_size": 64, "bits": 4}, "mxfp4": {}, "mxfp8": {}, "nvfp4": {}}.items():
    parts = mx.quantize(experts.weight[0], mode=mode, **options)
    restored = mx.dequantize(*parts, mode=mode, **options)
    product = mx.quantized_matmul(x, *parts, transpose=True, mode=mode, **options)
    assert mx.allclose(product, x @ restored.T, atol=1e-3)
    report[mode] = [product.tolist(), mx.abs(restored - experts.weight[0]).max().item()]

model = nn.Sequential(
    nn.Embedding(8, 64), nn.Linear(64, 128), nn.SiLU(), nn.Linear(128, 64), nn.RMSNorm(64), nn.Linear(64, 8)
)
tokens = mx.array([[1, 5, 2], [7, 0, 3]])
exact = model(tokens)


def mixed(path, module):
    if not hasattr(module, "to_quantized"):
        return False
    return {"group_size": 32, "bits": 8} if path.endswith("5") else True


nn.quantize(model, group_size=64, bits=4, class_predicate=mixed)
report["bits"] = [m.bits if hasattr(m, "bits") else 0 for m in model.layers]
report["model"] = model(tokens).tolist()
report["error"] = mx.abs(model(tokens) - exact).max().item()
report["bytes"] = sum(v.nbytes for _, v in tree_flatten(model.parameters()))
half = mx.compile(lambda t: model(t))
model.apply(lambda p: p.astype(mx.bfloat16) if mx.issubdtype(p.dtype, mx.floating) else p)
report["dtype"] = str(half(tokens).dtype).rpartition(".")[2]

keys, values = mx.random.normal((1, 2, 6, 64)), mx.random.normal((1, 2, 6, 64))
queries = mx.random.normal((1, 4, 1, 64)) * 64**-0.5
q_keys, q_values = (mx.quantize(t, group_size=64, bits=8) for t in (keys, values))
grouped = queries.reshape(1, 2, 2, 1, 64)
q_keys, q_values = (tree_map(lambda t: mx.expand_dims(t, axis=-3), kv) for kv in (q_keys, q_values))
scores = mx.quantized_matmul(grouped, *q_keys, transpose=True, group_size=64, bits=8)
out = mx.quantized_matmul(mx.softmax(scores, axis=-1, precise=True), *q_values, transpose=False, group_size=64, bits=8)
reference = mx.fast.scaled_dot_product_attention(queries, keys, values, scale=1.0)
assert mx.allclose(out.reshape(1, 4, 1, 64), reference, atol=2e-2)
report["cache"] = out.tolist()
print(json.dumps(report))
