"""JAX: each function under one `jax.jit`."""

import jax
import jax.numpy as jnp
from workloads import BETA1, BETA2, EPS, LAYER_NORM_EPS, LEARNING_RATE

VERSION = f"jax {jax.__version__}"


def softmax(x):
    return (jax.nn.softmax(x, axis=-1),)


def chain(x):
    t = jnp.sin(x * 1.5 + 0.25) * x
    return (jnp.maximum(jnp.exp(-jnp.sqrt(jnp.abs(t) + 1.0)), 0.1),)


def gelu(x):
    return jax.nn.gelu(x, approximate=False)


def gelu_chain(x, w, b):
    return (gelu(gelu(x + b) * w),)


def matmul(a, b):
    return (a @ b,)


def sum_all(x):
    return (jnp.sum(x),)


def sum_columns(x):
    return (jnp.sum(x, axis=0),)


def sum_rows(x):
    return (jnp.sum(x, axis=1),)


def layer_norm_grad(x, w, b, c):
    def loss(x, w, b):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred * centred).mean(axis=-1, keepdims=True)
        return ((centred * jax.lax.rsqrt(variance + LAYER_NORM_EPS) * w + b) * c).sum()

    value, grads = jax.value_and_grad(loss, argnums=(0, 1, 2))(x, w, b)
    return value, *grads


def dense(params, x):
    *hidden, w, b = params
    for i in range(0, len(hidden), 2):
        x = gelu(x @ hidden[i] + hidden[i + 1])
    return x @ w + b


def mlp(x, *params):
    return (dense(params, x),)


def train_step(*arrays):
    params, ms, vs, (t, x, y) = list(arrays[:6]), arrays[6:12], arrays[12:18], arrays[18:]

    def cross_entropy(params):
        logits = dense(params, x)
        picked = jnp.take_along_axis(logits, y[:, None], axis=1)[:, 0]
        return jnp.mean(jax.nn.logsumexp(logits, axis=1) - picked)

    loss, grads = jax.value_and_grad(cross_entropy)(params)
    t = t + 1
    ms = [BETA1 * m + (1 - BETA1) * g for m, g in zip(ms, grads, strict=True)]
    vs = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(vs, grads, strict=True)]
    rate = LEARNING_RATE * jnp.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    params = [p - rate * m / (jnp.sqrt(v) + EPS) for p, m, v in zip(params, ms, vs, strict=True)]
    return loss, *params, *ms, *vs, t


FUNCTIONS = {
    f.__name__: f
    for f in (softmax, chain, gelu_chain, matmul, sum_all, sum_columns, sum_rows, layer_norm_grad, mlp, train_step)
}


def prepare(name, inputs):
    compiled = jax.jit(FUNCTIONS[name])
    arrays = jax.block_until_ready([jnp.asarray(a) for a in inputs])
    return lambda: jax.block_until_ready(compiled(*arrays))
