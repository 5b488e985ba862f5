"""Multi-layer perceptrons: forward, and whole training steps (cross-entropy, gradients, Adam)."""

import numpy as np
from scipy.special import erf
from suite import normal, tree_map, workload

LEARNING_RATE, BETA1, BETA2, EPS = 2e-3, 0.9, 0.999, 1e-8


def dense_layers(rng, sizes):
    """Weight and bias of each layer, alternating."""
    pairs = zip(sizes, sizes[1:], strict=False)
    return [a for n, m in pairs for a in (normal(rng, n, m, scale=(2 / n) ** 0.5), normal(rng, m, scale=0.1))]


def layered(arrays):
    return [{"w": w, "b": b} for w, b in zip(arrays[::2], arrays[1::2], strict=True)]


def forward(gelu, layers, x):
    """For every framework, by its own GELU."""
    *hidden, last = layers
    for layer in hidden:
        x = gelu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def numpy_gelu(x):
    return np.asarray(0.5, x.dtype) * x * (1 + erf(x * np.asarray(0.5**0.5, x.dtype)))


def numpy_gelu_slope(x):
    root = np.asarray(0.5**0.5, x.dtype)
    return 0.5 * (1 + erf(x * root)) + x * np.exp(-0.5 * x * x) * np.asarray((2 * np.pi) ** -0.5, x.dtype)


def mlx_gelu(mx):
    return lambda x: x * (1 + mx.erf(x * 0.5**0.5)) * 0.5


def jax_gelu(jax):
    return lambda x: jax.nn.gelu(x, approximate=False)


def mlx_cross_entropy(mx, logits, y):
    picked = mx.take_along_axis(logits, y[..., None], axis=-1).squeeze(-1)
    return mx.mean(mx.logsumexp(logits, axis=-1) - picked)


def jax_cross_entropy(jax, logits, y):
    picked = jax.numpy.take_along_axis(logits, y[..., None], axis=-1)[..., 0]
    return jax.numpy.mean(jax.nn.logsumexp(logits, axis=-1) - picked)


def adam(module, params, grads, m, v, t):
    """(params, m, v, t) after one step, for every framework."""
    t = t + 1
    m = tree_map(lambda a, g: BETA1 * a + (1 - BETA1) * g, m, grads)
    v = tree_map(lambda a, g: BETA2 * a + (1 - BETA2) * g * g, v, grads)
    rate = LEARNING_RATE * module.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    params = tree_map(lambda p, a, b: p - rate * a / (module.sqrt(b) + EPS), params, m, v)
    return params, m, v, t


@workload(flops=2 * 256 * (784 * 1024 + 1024 * 1024 + 1024 * 10))
class mlp:
    """784-1024-1024-10 with GELU, forward, batch 256."""

    def inputs(rng):
        return [normal(rng, 256, 784), *dense_layers(rng, (784, 1024, 1024, 10))]

    def tree(x, *params):
        return layered(params), x

    def numpy(np, layers, x):
        return forward(numpy_gelu, layers, x)

    def mlx(mx, layers, x):
        return forward(mlx_gelu(mx), layers, x)

    def jax(jax, layers, x):
        return forward(jax_gelu(jax), layers, x)

    def torch(torch, layers, x):
        return forward(torch.nn.functional.gelu, layers, x)


def train(name, sizes, batch):
    """Enter a training step of an MLP of these sizes: (params, m, v, t, x, y) -> (loss, params, m, v, t)."""
    # Three products per layer, less the first one's gradient for x.
    products = 3 * sum(n * m for n, m in zip(sizes, sizes[1:], strict=False)) - sizes[0] * sizes[1]
    weights = sum(n * m for n, m in zip(sizes, sizes[1:], strict=False))

    @workload(name, flops=2 * batch * products + 12 * weights, tolerance=5e-4)
    class step:
        def inputs(rng):
            params = dense_layers(rng, sizes)
            m = [normal(rng, *p.shape, scale=1e-2) for p in params]
            v = [rng.uniform(1e-4, 1e-3, p.shape).astype(np.float32) for p in params]
            x = rng.uniform(0, 1, (batch, sizes[0])).astype(np.float32)
            return [*params, *m, *v, np.array(10, np.float32), x, rng.integers(0, 10, batch).astype(np.int32)]

        def tree(*arrays):
            count = 2 * (len(sizes) - 1)
            params, m, v = (layered(arrays[i * count : (i + 1) * count]) for i in range(3))
            return params, m, v, *arrays[3 * count :]

        def numpy(np, params, m, v, t, x, y):
            inputs, before = [x], []
            for layer in params:
                before.append(inputs[-1] @ layer["w"] + layer["b"])
                inputs.append(numpy_gelu(before[-1]))
            logits, rows = before[-1], np.arange(batch)
            top = logits.max(axis=1, keepdims=True)
            lse = np.log(np.exp(logits - top).sum(axis=1, keepdims=True)) + top
            loss = (lse[:, 0] - logits[rows, y]).mean()
            d = np.exp(logits - lse)
            d[rows, y] -= 1
            d /= np.asarray(batch, x.dtype)
            grads = []
            for i in reversed(range(len(params))):
                grads.insert(0, {"w": inputs[i].T @ d, "b": d.sum(axis=0)})
                if i:
                    d = (d @ params[i]["w"].T) * numpy_gelu_slope(before[i - 1])
            return loss, *adam(np, params, grads, m, v, t)

        def mlx(mx, params, m, v, t, x, y):
            def loss(params):
                return mlx_cross_entropy(mx, forward(mlx_gelu(mx), params, x), y)

            value, grads = mx.value_and_grad(loss)(params)
            return value, *adam(mx, params, grads, m, v, t)

        def jax(jax, params, m, v, t, x, y):
            def loss(params):
                return jax_cross_entropy(jax, forward(jax_gelu(jax), params, x), y)

            value, grads = jax.value_and_grad(loss)(params)
            return value, *adam(jax.numpy, params, grads, m, v, t)

        def torch(torch, params, m, v, t, x, y):
            def loss(params):
                return torch.nn.functional.cross_entropy(forward(torch.nn.functional.gelu, params, x), y)

            grads, value = torch.func.grad_and_value(loss)(params)
            return value, *adam(torch, params, grads, m, v, t)


train("mlp_train", (784, 1024, 1024, 10), 256)
train("tiny_mlp_train", (64, 32, 10), 32)
