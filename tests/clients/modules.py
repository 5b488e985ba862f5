"""What programs do with modules: names, freezing, updates, visitors, children, repr, dtype changes."""

import json

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_map_with_path, tree_merge, tree_reduce, tree_unflatten

mx.random.seed(27)
report = {}


class Scaled(nn.Module):
    def __init__(self, dims):
        super().__init__()
        self.scale = mx.full((dims,), 2.0)
        self._hidden = mx.array(3.0)
        self.name = "scaled"
        self.options = {"deep": [nn.Linear(dims, dims), {"drop": nn.Dropout(0.1)}], "none": None}

    def __call__(self, x):
        return self.options["deep"][1]["drop"](self.options["deep"][0](x)) * self.scale * self._hidden

    def _extra_repr(self):
        return f"dims={self.scale.size}"


model = nn.Sequential(nn.Linear(3, 4), Scaled(4), nn.BatchNorm(4))
report["repr"] = str(model).replace("\n", "|")
report["parameters"] = [k for k, _ in tree_flatten(model.parameters())]
report["leaves"] = [k for k, _ in tree_flatten(model.leaf_modules(), is_leaf=nn.Module.is_module)]
report["children"] = list(model.children())
report["named"] = [k for k, _ in model.named_modules()]
report["modules"] = len(model.modules())
model.freeze(keys="bias")
report["frozen"] = [k for k, _ in tree_flatten(model.trainable_parameters())]
model.unfreeze()
model.layers[1].freeze(recurse=False)
report["partly"] = [k for k, _ in tree_flatten(model.trainable_parameters())]
model.unfreeze().train(False)
report["training"] = [m.training for m in model.modules()]
model.train()
x = mx.random.normal((5, 3))
report["train"] = model(x).tolist()
report["running"] = model.layers[2].running_mean.tolist()
model.eval()
report["eval"] = model(x).tolist()
model.apply(
    lambda p: p * 0.5, filter_fn=lambda m, k, v: nn.Module.trainable_parameter_filter(m, k, v) and k == "weight"
)
report["applied"] = model(x).tolist()
model.apply_to_modules(lambda k, m: setattr(m, "seen", k))
report["seen"] = [m.seen for m in model.modules()]
report["filtered"] = [
    k for k, _ in tree_flatten(model.filter_and_map(lambda m, k, v: isinstance(v, mx.array) and v.size == 4))
]
model.update({"layers": [{"bias": mx.zeros((4,))}]})
try:
    model.update({"layers": [{"wrong": mx.zeros((4,))}]})
except ValueError:
    report["strict"] = True
model.update_modules({"layers": [{}, {}, nn.Identity()]})
report["replaced"] = type(model.layers[2]).__name__
model.set_dtype(mx.float16)
report["dtypes"] = sorted({str(v.dtype).rpartition(".")[2] for _, v in tree_flatten(model.parameters())})
model.layers[0].extra = mx.ones((2,))
assert "extra" in model.layers[0] and "bias" in model.layers[0].parameters()
del model.layers[0].extra
report["missing"] = hasattr(model.layers[0], "extra")
try:
    _ = model.layers[0].nothing
except AttributeError:
    report["attribute"] = True

tree = {"a": [mx.array(1.0), (mx.array(2.0), None)], "b": {"c": mx.array(3.0)}}
report["tree"] = [
    [[k, v if v is None else v.item()] for k, v in tree_flatten(tree)],
    tree_reduce(lambda total, v: total + (0 if v is None else v.item()), tree, 0),
    tree_flatten(tree_map_with_path(lambda k, v: f"{k}={v}", {"x": 1, "y": [2, 3]}), destination={}),
    tree_unflatten([("a.0", 1), ("a.1.b", 2), ("c", 3)]),
    tree_merge({"a": [None, 2]}, {"a": [1, None]}),
    tree_map(lambda a, b: a + b, (1, [2]), (10, [20])),
]
init = nn.init.glorot_uniform()
model = nn.Sequential(nn.Linear(3, 3), nn.Conv2d(1, 2, 3))
model.apply(lambda p: init(p) if p.ndim == 2 else p)
INITIALISERS = {
    "he_normal": {},
    "orthogonal": {"gain": 2.0},
    "sparse": {"sparsity": 0.4},
    "uniform": {"low": -1, "high": 2},
    "identity": {},
    "constant": {"value": 4},
}
for name, arguments in INITIALISERS.items():
    report[name] = getattr(nn.init, name)(**arguments)(mx.zeros((5, 5))).tolist()
report["init"] = model.layers[0].weight.tolist()
print(json.dumps(report))
