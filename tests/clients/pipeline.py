"""Asynchronous evaluation, streams and devices as generation loops use them; memory counters; distributed fallbacks."""

import json
import threading

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

mx.random.seed(26)
report = {}
model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11))
generation_stream = mx.new_stream(mx.default_device())


def generate_step(y, steps):
    """One token ahead: while the host handles a token, the next one is computed."""

    def _step(y):
        with mx.stream(generation_stream):
            logits = model(y[None])[:, -1]
            return mx.argmax(logits, axis=-1)

    y = _step(y)
    mx.async_eval(y)
    n = 0
    while True:
        if n != steps:
            next_y = _step(y)
            mx.async_eval(next_y)
        if n == 0:
            mx.eval(y)
        if n == steps:
            break
        yield y.item()
        y = next_y
        n += 1


report["tokens"] = list(generate_step(mx.array([1, 2, 3]), 6))

with mx.stream(mx.cpu):
    a = mx.random.normal((4, 4))
    b = mx.linalg.inv(a)
c = mx.matmul(a, b, stream=mx.cpu)
s1, s2 = mx.default_stream(mx.default_device()), mx.new_stream(mx.default_device())
assert s1 != s2 and s1 == mx.default_stream(mx.default_device())
d = mx.add(mx.abs(a, stream=s1), mx.exp(a, stream=s2), stream=s1)
mx.synchronize(s2)
mx.synchronize()
report["identity"], report["streams"] = mx.allclose(c, mx.eye(4), atol=1e-4).item(), d.tolist()
device = mx.default_device()
mx.set_default_device(mx.cpu)
report["device"] = [str(mx.default_device()), mx.default_device() == mx.Device(mx.cpu, 0)]
mx.set_default_device(device)
with mx.stream(s2):
    report["inside"] = mx.default_stream(mx.default_device()) == s2
report["outside"] = mx.default_stream(mx.default_device()) == s1

results = [None] * 3


def work(i):
    with mx.stream(mx.cpu):
        results[i] = (mx.arange(10) * i).sum().item()


threads = [threading.Thread(target=work, args=(i,)) for i in range(3)]
[t.start() for t in threads]
[t.join() for t in threads]
report["threads"] = results

mx.reset_peak_memory()
big = mx.zeros((256, 256)) + 1
mx.eval(big)
report["memory"] = mx.get_peak_memory() >= big.nbytes and mx.get_active_memory() >= big.nbytes
del big
mx.clear_cache()
report["cache"] = mx.get_cache_memory()
old = mx.set_cache_limit(1 << 20)
mx.set_cache_limit(old)

world = mx.distributed.init()
report["world"] = [world.rank(), world.size(), mx.distributed.is_available() in (True, False)]
grads = {"w": mx.ones((3,)), "b": [mx.zeros((2,))]}
averaged = tree_map(lambda g: mx.distributed.all_sum(g) / world.size(), grads)
report["averaged"] = [averaged["w"].tolist(), nn.average_gradients(grads)["w"].tolist()]
report["gathered"] = mx.distributed.all_gather(mx.arange(3)).tolist()
info = mx.device_info()
report["info"] = isinstance(info, dict) and not mx.metal.is_available()
print(json.dumps(report))
