"""Input pipelines: threads that make arrays, queues, generators, NumPy views, buckets, augmentation, shards."""

import itertools
import json
import queue
import threading
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

out = {}
rng = np.random.default_rng(0)
images = rng.integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)
labels = rng.integers(0, 4, 64)
mean, std = mx.array([0.485, 0.456, 0.406]).reshape(1, 1, 3), mx.array([0.229, 0.224, 0.225]).reshape(1, 1, 3)
mx.eval(mean, std)


def prep(i):
    with mx.stream(mx.cpu):
        x = mx.array(images[i]).astype(mx.float32) / 255.0
        x = (x - mean) / std
        if i % 2:
            x = x[:, ::-1]
        x = mx.pad(x, [(1, 1), (1, 1), (0, 0)])[i % 3 : i % 3 + 8, :8]
        y = mx.array(labels[i])
        mx.eval(x, y)
        return x, y


def loader(bs, workers=3):
    q = queue.Queue(4)
    stop = object()

    def produce():
        with mx.stream(mx.cpu):
            with ThreadPoolExecutor(workers) as pool:
                for s in range(0, 64, bs):
                    items = list(pool.map(prep, range(s, s + bs)))
                    xs, ys = zip(*items, strict=True)
                    q.put((xs, ys))
            q.put(stop)

    t = threading.Thread(target=produce, daemon=True)
    t.start()
    while (b := q.get()) is not stop:
        yield mx.stack(b[0]), mx.stack(b[1])
    t.join()


mx.random.seed(0)
m = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.MaxPool2d(2), lambda x: x.flatten(1), nn.Linear(72, 4))
opt = optim.Adamax(1e-2)
vg = nn.value_and_grad(m, lambda m, x, y: nn.losses.cross_entropy(m(x), y, reduction="mean"))
h = []
for _ in range(2):
    for x, y in loader(16):
        cost, g = vg(m, x, y)
        opt.update(m, g)
        mx.eval(m.parameters(), opt.state)
        h.append(cost.item())
out["h"] = h
texts = [list(range(n)) for n in (3, 7, 5, 2, 9, 4)]


def collate(b):
    n = max(map(len, b))
    return mx.array([t + [0] * (n - len(t)) for t in b]), mx.array([len(t) for t in b])


out["buckets"] = [
    [ids.tolist(), ln.tolist(), (mx.arange(ids.shape[1]) < ln[:, None]).sum().item()]
    for ids, ln in (collate(sorted(texts, key=len)[i : i + 2]) for i in range(0, 6, 2))
]
perm = mx.random.permutation(10)
out["perm"] = perm.tolist()
x = mx.arange(20).reshape(10, 2)
out["shuffled"] = x[perm].tolist()
out["perm2"] = mx.random.permutation(x, axis=1).tolist()
np_view = np.array(x, copy=False)
out["np"] = [np_view.sum().item(), np.asarray(x)[3].tolist(), np.mean(np.array(x * 1.5)).item(), str(np_view.dtype)]
out["back"] = mx.array(np.asfortranarray(np.arange(6).reshape(2, 3))).tolist()
out["np types"] = [
    str(mx.array(np.zeros(1, d)).dtype).split(".")[-1] for d in ("f2", "f4", "f8", "i1", "u8", "?", "c8", "c16")
]
res = [None] * 4


def work(i):
    with mx.stream(mx.cpu):
        key = mx.random.key(i)
        s = mx.random.normal((50,), key=key)
        g = mx.grad(lambda t: (t**2).sum())(s)
        f = mx.compile(lambda a: mx.softmax(a) * 2)
        res[i] = [round(v, 4) for v in (f(s) + g)[:2].tolist()]


ts = [threading.Thread(target=work, args=(i,)) for i in range(4)]
[t.start() for t in ts]
[t.join() for t in ts]
out["threads"] = res
w = mx.distributed.init()
out["dist"] = [
    w.rank(),
    w.size(),
    mx.distributed.all_sum(mx.ones(3)).tolist(),
    mx.distributed.all_gather(mx.ones((2, 2))).shape,
]
shard = np.array_split(np.arange(10), w.size())[w.rank()]
out["shard"] = mx.array(shard).tolist()
out["avg"] = nn.utils.average_gradients({"a": mx.ones(2), "b": [mx.zeros(3)]})["a"].tolist()


def stream():
    for i in itertools.count():
        yield mx.full((2,), i)


out["gen"] = [a.tolist() for a in itertools.islice(stream(), 3)]
out["iter"] = [r.tolist() for r in mx.arange(6).reshape(3, 2)]
out["zip"] = [(a.item(), b.item()) for a, b in zip(mx.arange(3), mx.arange(3) * 2, strict=True)]
a, b = mx.array([1, 2])
out["unpack"] = [a.item(), b.item()]
out["minmax"] = [max(mx.array([3, 1, 2])).item(), sorted(mx.array([3, 1, 2]).tolist()), sum(mx.array([1, 2, 3])).item()]
s = mx.new_stream(mx.default_device())
y = mx.add(mx.ones(3), 1, stream=s)
mx.async_eval(y)
mx.synchronize(s)
out["async"] = y.tolist()
mx.eval(tree_map(lambda a: a + 1, {"x": [mx.zeros(2)], "y": (mx.ones(1), 3)} | {"y": mx.ones(1)}))
print(json.dumps(out))
