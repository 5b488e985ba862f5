"""MLX's API: the same functions for real MLX and for mlxir, each under one `mx.compile`."""

from workloads import BETA1, BETA2, EPS, LAYER_NORM_EPS, LEARNING_RATE


def softmax(mx, x):
    return (mx.softmax(x, axis=-1),)


def chain(mx, x):
    t = mx.sin(x * 1.5 + 0.25) * x
    return (mx.maximum(mx.exp(-mx.sqrt(mx.abs(t) + 1.0)), 0.1),)


def gelu(mx, x):
    return 0.5 * x * (1 + mx.erf(x * 0.5**0.5))


def gelu_chain(mx, x, w, b):
    return (gelu(mx, gelu(mx, x + b) * w),)


def matmul(mx, a, b):
    return (a @ b,)


def sum_all(mx, x):
    return (mx.sum(x),)


def sum_columns(mx, x):
    return (mx.sum(x, axis=0),)


def sum_rows(mx, x):
    return (mx.sum(x, axis=1),)


def layer_norm_grad(mx, x, w, b, c):
    def loss(x, w, b):
        return (mx.fast.layer_norm(x, w, b, LAYER_NORM_EPS) * c).sum()

    value, grads = mx.value_and_grad(loss, argnums=(0, 1, 2))(x, w, b)
    return value, *grads


def dense(mx, params, x):
    *hidden, w, b = params
    for i in range(0, len(hidden), 2):
        x = gelu(mx, x @ hidden[i] + hidden[i + 1])
    return x @ w + b


def mlp(mx, x, *params):
    return (dense(mx, params, x),)


def train_step(mx, *arrays):
    params, ms, vs, (t, x, y) = list(arrays[:6]), arrays[6:12], arrays[12:18], arrays[18:]

    def cross_entropy(params):
        logits = dense(mx, params, x)
        picked = mx.take_along_axis(logits, y[:, None], axis=1).squeeze(1)
        return mx.mean(mx.logsumexp(logits, axis=1) - picked)

    loss, grads = mx.value_and_grad(cross_entropy)(params)
    t = t + 1
    ms = [BETA1 * m + (1 - BETA1) * g for m, g in zip(ms, grads, strict=True)]
    vs = [BETA2 * v + (1 - BETA2) * g * g for v, g in zip(vs, grads, strict=True)]
    rate = LEARNING_RATE * mx.sqrt(1 - BETA2**t) / (1 - BETA1**t)
    params = [p - rate * m / (mx.sqrt(v) + EPS) for p, m, v in zip(params, ms, vs, strict=True)]
    return loss, *params, *ms, *vs, t


FUNCTIONS = {
    f.__name__: f
    for f in (softmax, chain, gelu_chain, matmul, sum_all, sum_columns, sum_rows, layer_norm_grad, mlp, train_step)
}


def prepare(mx, name, inputs):
    function = FUNCTIONS[name]
    compiled = mx.compile(lambda *arrays: function(mx, *arrays))
    arrays = [mx.array(a) for a in inputs]
    mx.eval(arrays)

    def call():
        results = compiled(*arrays)
        mx.eval(results)
        return results

    return call
