"""Custom rules and checkpoints: a straight-through estimator, gradient reversal, an implicit function."""

import json

import mlx.core as mx
import mlx.nn as nn


@mx.custom_function
def quantise(x):
    return mx.round(x * 4) / 4


@quantise.vjp
def _(primals, cotangent, output):
    return mx.where(mx.abs(primals) <= 1, cotangent, 0)


@mx.custom_function
def reverse(x, strength):
    return x


@reverse.vjp
def _(primals, cotangent, _):
    x, strength = primals
    return -strength * cotangent, mx.zeros_like(strength)


@mx.custom_function
def square_root(a):
    """By Newton's method; the derivative is that of the root, not of the iterations."""
    x = mx.ones_like(a)
    for _ in range(12):
        x = 0.5 * (x + a / x)
    return x


@square_root.vjp
def _(a, cotangent, root):
    return cotangent / (2 * root)


@square_root.jvp
def _(a, tangent):
    return tangent / (2 * square_root(a))


@square_root.vmap
def _(inputs, axes):
    return square_root(inputs), axes


@mx.custom_function
def norm_and_sum(tree):
    return {"norm": mx.sqrt(sum(v.square().sum() for v in tree.values())), "sum": sum(v.sum() for v in tree.values())}


@norm_and_sum.vjp
def _(primals, cotangents, outputs):
    return {k: cotangents["norm"] * v / outputs["norm"] + cotangents["sum"] for k, v in primals.items()}


mx.random.seed(21)
x = mx.random.normal((5,))
report = {
    "quantise": [quantise(x).tolist(), mx.grad(lambda x: (quantise(x) * mx.arange(5)).sum())(x).tolist()],
    "reverse": mx.grad(lambda x: (reverse(x, mx.array(0.5)) ** 2).sum())(x).tolist(),
}
positive = mx.abs(x) + 0.5
report["root"] = [
    square_root(positive).tolist(),
    mx.grad(lambda a: square_root(a).sum())(positive).tolist(),
    mx.jvp(square_root, [positive], [mx.ones((5,))])[1][0].tolist(),
    mx.vmap(square_root)(positive).tolist(),
    mx.vmap(mx.grad(lambda a: square_root(a)))(positive).tolist(),
    mx.compile(mx.grad(lambda a: square_root(a).sum()))(positive).tolist(),
]
tree = {"a": x, "b": mx.array([2.0, -1.0])}
gradient = mx.grad(lambda t: norm_and_sum(t)["norm"] * norm_and_sum(t)["sum"])(tree)
report["tree"] = {k: v.tolist() for k, v in gradient.items()}


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.Linear(32, 8)

    def __call__(self, x):
        return x + self.down(nn.gelu(self.up(self.norm(x))))


blocks = nn.Sequential(Block(), Block())
calls = []


def counted(params, h, block):
    calls.append(1)
    block.update(params)
    return block(h)


def loss(params, x, checkpointed):
    h = x
    for block, p in zip(blocks.layers, params["layers"], strict=True):
        run = lambda p, h, block=block: counted(p, h, block)  # noqa: E731
        h = (mx.checkpoint(run) if checkpointed else run)(p, h)
    return h.square().mean()


h = mx.random.normal((4, 8))
plain = mx.value_and_grad(loss)(blocks.trainable_parameters(), h, False)
saved = mx.value_and_grad(loss)(blocks.trainable_parameters(), h, True)
mx.eval(plain, saved)
flat = [dict(nn.utils.tree_flatten(g)) for _, g in (plain, saved)]
assert all(mx.allclose(flat[0][k], flat[1][k], atol=1e-6) for k in flat[0])
remat = nn.utils.checkpoint(blocks.layers[0])
report["checkpoint"] = [saved[0].item(), {k: mx.abs(v).sum().item() for k, v in flat[1].items()}]
report["module"] = nn.value_and_grad(blocks.layers[0], lambda h: remat(h).sum())(h)[0].item()
print(json.dumps(report))
