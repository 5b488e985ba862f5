"""The modules, initialisers, losses, optimizers and utilities that layers.py leaves out. An ordinary MLX program."""

import json

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_merge, tree_reduce, tree_unflatten

found = {}


def keep(name, tree):
    found[name] = [[key, value.tolist()] for key, value in tree_flatten({"": tree})]


mx.random.seed(0)
flat, line = mx.random.normal((3, 8)), mx.random.normal((2, 6, 4))
image, volume = mx.random.normal((2, 6, 6, 4)), mx.random.normal((1, 4, 4, 4, 2))
wide, tokens = mx.random.normal((3, 64)), mx.array([[0, 3], [2, 1]])

ACTIVATIONS = ["CELU", "ELU", "GELU", "GLU", "HardShrink", "HardTanh", "Hardswish", "Identity", "LeakyReLU",
               "LogSigmoid", "LogSoftmax", "Mish", "PReLU", "ReLU", "ReLU2", "ReLU6", "SELU", "SiLU", "Sigmoid",
               "Softmax", "Softmin", "Softplus", "Softshrink", "Softsign", "Step", "Tanh"]  # fmt: skip
for name in ACTIVATIONS:
    keep(name, getattr(nn, name)()(flat))
for approx in ("none", "precise", "tanh", "fast"):
    keep(f"GELU {approx}", nn.GELU(approx)(flat))

SPATIAL = [
    (nn.Conv1d(4, 6, 3, padding=1), line),
    (nn.ConvTranspose1d(4, 3, 3, stride=2), line),
    (nn.MaxPool1d(2), line),
    (nn.AvgPool1d(3, 2, 1), line),
    (nn.Conv2d(4, 8, 3, dilation=2, groups=2), image),
    (nn.Conv3d(2, 3, 2), volume),
    (nn.ConvTranspose3d(2, 3, 2, stride=2), volume),
    (nn.MaxPool3d(2), volume),
    (nn.AvgPool3d(2), volume),
    (nn.Upsample(scale_factor=(2, 1.5), mode="cubic"), image),
    (nn.Dropout2d(0.5), image),
    (nn.Dropout3d(0.5), volume),
    (nn.BatchNorm(4), image),
    (nn.InstanceNorm(4, affine=True), image),
    (nn.GroupNorm(2, 4, pytorch_compatible=True), image),
]
for layer, x in SPATIAL:
    keep(str(layer), layer(x))
keep("Bilinear", nn.Bilinear(8, 8, 2)(flat, flat))
keep("ALiBi", nn.ALiBi()(mx.zeros((1, 2, 5, 5))))
keep("TransformerDecoder", nn.TransformerDecoder(1, 4, 2)(line, line, None, None))

for bits, group in ((4, 32), (8, 64)):
    model = nn.Sequential(nn.Embedding(4, 64), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 5))
    nn.quantize(
        model, group, bits, class_predicate=lambda path, m: hasattr(m, "to_quantized") and m.weight.shape[-1] >= 64
    )
    keep(f"quantised {bits}", model(tokens))
    keep(f"quantised parameters {bits}", model.parameters())
    step = nn.value_and_grad(model, lambda x, m=model: m(x).square().sum())
    model.freeze()
    model.layers[3].unfreeze()
    keep(f"quantised gradient {bits}", step(tokens))

for name in ("AllToShardedLinear", "ShardedToAllLinear"):
    keep(name, getattr(nn, name)(64, 8)(wide))
keep("average_gradients", nn.average_gradients({"a": flat}))

INITIALISERS = {"constant": (2.0,), "normal": (), "uniform": (), "identity": (), "glorot_normal": (), "sparse": (0.5,),
                "glorot_uniform": (), "he_normal": (), "he_uniform": (), "orthogonal": ()}  # fmt: skip
for name, arguments in INITIALISERS.items():
    keep(f"init.{name}", getattr(nn.init, name)(*arguments)(mx.zeros((4, 4))))

positive = mx.abs(flat) + 0.1
keep("gaussian_nll_loss", nn.losses.gaussian_nll_loss(flat, flat + 1, positive))
keep("margin_ranking_loss", nn.losses.margin_ranking_loss(flat, flat[::-1], mx.sign(flat)))
keep("nll_loss", nn.losses.nll_loss(nn.log_softmax(flat), mx.array([1, 0, 7])))
keep("triplet_loss", nn.losses.triplet_loss(flat, flat + 0.1, flat[::-1]))
for options in ({"label_smoothing": 0.1}, {"weights": mx.array([1.0, 2.0, 0.5])}, {"reduction": "sum"}, {"axis": -1}):
    keep(f"cross_entropy {list(options)}", nn.losses.cross_entropy(flat, mx.array([1, 0, 7]), **options))

network = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))
network.apply_to_modules(lambda path, m: m.set_dtype(mx.float32))
checkpointed = nn.utils.checkpoint(network)
both = optim.MultiOptimizer([optim.Muon(1e-2), optim.Adam(1e-2)], [lambda path, g: g.ndim == 2])
for name, optimizer in (
    ("Muon", optim.Muon(1e-2)),
    ("MultiOptimizer", both),
    ("step", optim.SGD(optim.step_decay(0.1, 0.5, 2))),
):
    for forward in (network, checkpointed):
        for _ in range(3):
            value, grads = nn.value_and_grad(network, lambda x, f=forward: f(x).square().mean())(flat)
            optimizer.update(network, grads)
    keep(name, [value, network.parameters()])
for schedule in (
    optim.exponential_decay(0.1, 0.9),
    optim.cosine_decay(0.1, 5, 0.01),
    optim.linear_schedule(0.0, 1.0, 4),
):
    found[f"schedule {len(found)}"] = [float(schedule(mx.array(n))) for n in range(7)]

tree = {"a": [flat, {"b": line}], "c": (image,)}
keep("tree_map", tree_map(lambda x: x + 1, tree))
keep("tree_map_with_path", tree_map_with_path(lambda path, x: x * len(path), tree))
keep("tree_merge", tree_merge({"a": [None, flat]}, {"a": [line, None]}))
keep("tree_unflatten", tree_unflatten(tree_flatten(tree)))
keep("tree_reduce", tree_reduce(lambda total, x: total + x.sum(), tree, mx.array(0.0)))
print(json.dumps(found))
