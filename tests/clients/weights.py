"""Saving and loading: strict and lax weights, metadata, npz, gguf, shards, resumed optimizers, what wrong calls say."""

import copy
import json
import pathlib
import pickle
import tempfile

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

out = {}
d = pathlib.Path(tempfile.mkdtemp())


def attempt(f):
    try:
        r = f()
        return "ok" if not isinstance(r, (str, list, int, float)) else r
    except Exception as e:
        return [type(e).__name__, str(e).split(str(d))[0].split(" (")[0].split("\n")[0][:160]]


class Net(nn.Module):
    def __init__(self, h=8):
        super().__init__()
        self.l = [nn.Linear(4, h), nn.Linear(h, 2)]
        self.bn = nn.BatchNorm(h)
        self.emb = nn.Embedding(5, 4)
        self._hidden = mx.ones(2)
        self.scale = 2.0

    def __call__(self, x):
        return self.l[1](self.bn(nn.relu(self.l[0](self.emb(x)))))


mx.random.seed(0)
m = Net()
x = mx.array([0, 1, 4, 2])
m.save_weights(str(d / "w.safetensors"))
m.save_weights(str(d / "w.npz"))
n = Net()
n.load_weights(str(d / "w.safetensors"))
out["same"] = mx.array_equal(m(x), n(x)).item()
n2 = Net()
n2.load_weights(str(d / "w.npz"))
out["npz"] = mx.array_equal(m.l[0].weight, n2.l[0].weight).item()
ws = tree_flatten(m.parameters())
out["names"] = [k for k, _ in ws]
out["missing"] = attempt(lambda: n.load_weights(ws[:-1]))
out["extra"] = attempt(lambda: n.load_weights(ws + [("foo.bar", mx.ones(1))]))
out["shape"] = attempt(lambda: n.load_weights([(k, v[..., :1] if k == "l.0.weight" else v) for k, v in ws]))
out["type"] = attempt(lambda: n.load_weights([(k, np.array(v) if k == "l.0.weight" else v) for k, v in ws]))
out["lax"] = attempt(lambda: n.load_weights(ws[:2] + [("nope", mx.ones(1))], strict=False))
out["nofile"] = attempt(lambda: n.load_weights(str(d / "none.safetensors")))
out["suffix"] = attempt(lambda: m.save_weights(str(d / "w.bin")))
out["badload"] = attempt(lambda: mx.load(str(d / "w.bin")))
out["upd"] = attempt(lambda: n.update({"l": [{}, {"weight": mx.zeros((2, 8))}]}))
out["updbad"] = attempt(lambda: n.update({"zzz": mx.ones(1)}))
out["updlax"] = attempt(lambda: n.update({"zzz": mx.ones(1)}, strict=False))
out["updmod"] = attempt(lambda: n.update_modules({"l": [nn.Linear(4, 8)]}))
out["zero"] = n.l[1].weight.sum().item()
big = {
    f"layer.{i}.w": mx.random.normal((4, 3)).astype(t)
    for i, t in enumerate([mx.float32, mx.float16, mx.bfloat16, mx.int8, mx.uint32, mx.int64, mx.bool_])
}
mx.save_safetensors(str(d / "s.safetensors"), big, metadata={"format": "mlx", "v": "1"})
got, meta = mx.load(str(d / "s.safetensors"), return_metadata=True)
out["meta"] = sorted(meta.items())
out["dt"] = {
    k: [str(v.dtype).split(".")[-1], v.shape, v.astype(mx.float32).sum().item()] for k, v in sorted(got.items())
}
shards, size = [{}], 0
for k, v in big.items():
    if size + v.nbytes > 60:
        shards.append({})
        size = 0
    shards[-1][k] = v
    size += v.nbytes
for i, s in enumerate(shards):
    mx.save_safetensors(str(d / f"m-{i + 1:05d}-of-{len(shards):05d}"), s)
allw = {}
for f in sorted(d.glob("m-*.safetensors")):
    allw.update(mx.load(str(f)))
out["shards"] = [len(shards), sorted(allw) == sorted(big), sorted(p.name for p in d.glob("m-*"))]
mx.savez(str(d / "z"), mx.arange(3), b=mx.ones((2, 2)))
z = mx.load(str(d / "z.npz"))
out["z"] = {k: v.tolist() for k, v in sorted(z.items())}
mx.savez_compressed(str(d / "zc.npz"), a=mx.zeros(100))
out["zc"] = mx.load(str(d / "zc.npz"))["a"].shape
nz = np.load(d / "z.npz")
out["npload"] = {k: nz[k].tolist() for k in sorted(nz.files)}
mx.save(str(d / "a"), mx.arange(4).astype(mx.int16))
out["npy"] = [np.load(d / "a.npy").tolist(), str(np.load(d / "a.npy").dtype)]
np.save(d / "n.npy", np.arange(6.0).reshape(2, 3))
out["fromnp"] = [mx.load(str(d / "n.npy")).tolist(), str(mx.load(str(d / "n.npy")).dtype)]
out["path"] = attempt(lambda: mx.load(d / "n.npy").tolist())
with open(d / "f.npy", "wb") as f:
    mx.save(f, mx.arange(3))
with open(d / "f.npy", "rb") as f:
    out["fobj"] = mx.load(f).tolist()
mx.save_gguf(str(d / "g"), {"w": mx.ones((2, 3))}, {"name": "x", "n": mx.array(3, mx.uint32), "list": ["a", "b"]})
gw, gm = mx.load(str(d / "g.gguf"), return_metadata=True)
out["gguf"] = [gw["w"].tolist(), gm["name"], gm["n"].tolist(), gm["list"]]
opt = optim.Adam(1e-2)
vg = nn.value_and_grad(m, lambda m: m(x).square().mean())
cost, g = vg(m)
opt.update(m, g)
st = tree_flatten(opt.state)
mx.save_safetensors(str(d / "opt.safetensors"), dict(st))
out["opt"] = [k for k, _ in st]
m.save_weights(str(d / "r.safetensors"))
r = Net()
r.load_weights(str(d / "r.safetensors"))
ro = optim.Adam(1e-2)
ro.state = tree_unflatten(list(mx.load(str(d / "opt.safetensors")).items()))
for mod, o in ((m, opt), (r, ro)):
    cost, g = nn.value_and_grad(mod, lambda q: q(x).square().mean())(mod)
    o.update(mod, g)
    mx.eval(mod.state)
out["resume"] = [m(x).tolist(), r(x).tolist(), ro.step.item()]
out["pickle"] = [
    pickle.loads(pickle.dumps(mx.arange(3))).tolist(),
    mx.array_equal(copy.deepcopy(m)(x), m(x)).item(),
    copy.copy(mx.ones(2)).tolist(),
]
c = copy.deepcopy(mx.arange(3))
c[0] = 9
out["copy"] = c.tolist()
out["repr"] = repr(m).split("\n")
out["children"] = [str(k) for k, _ in m.named_modules()]
out["leaf"] = sorted(m.leaf_modules())
out["filter"] = [
    k for k, _ in tree_flatten(m.filter_and_map(lambda mod, k, v: isinstance(v, mx.array) and v.ndim == 2))
]
print(json.dumps(out))
