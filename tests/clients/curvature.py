"""Second derivatives: a full Hessian, Hessian-vector products, Newton-CG, a hypergradient, per-example gradients."""

import json

import mlx.core as mx

mx.random.seed(20)
X = mx.random.normal((20, 3))
y = (X @ mx.array([1.0, -2.0, 0.5]) + 0.3 * mx.random.normal((20,)) > 0).astype(mx.float32)


DECAY = mx.array(0.1)


def loss(w, decay=DECAY):
    return mx.logaddexp(0.0, X @ w).mean() - (y * (X @ w)).mean() + 0.5 * decay * w.square().sum()


def hessian(f):
    def of(w):
        rows = mx.vmap(lambda ct: mx.vjp(mx.grad(f), [w], [ct])[1][0])
        return rows(mx.eye(w.size))

    return of


def hvp(f, w, v):
    return mx.jvp(mx.grad(f), [w], [v])[1][0]


w = mx.zeros((3,))
H = hessian(loss)(w)
assert mx.allclose(H, H.T, atol=1e-6)
products = mx.stack([hvp(loss, w, e) for e in mx.eye(3)])
assert mx.allclose(H, products, atol=1e-5)


def conjugate_gradient(product, b, steps=6):
    x, r = mx.zeros_like(b), b
    p, rs = r, r @ r
    for _ in range(steps):
        Ap = product(p)
        alpha = rs / mx.maximum(p @ Ap, 1e-12)
        x, r = x + alpha * p, r - alpha * Ap
        new = r @ r
        p, rs = r + (new / mx.maximum(rs, 1e-12)) * p, new
    return x


path = []
for _ in range(5):
    value, g = mx.value_and_grad(loss)(w)
    w = w - conjugate_gradient(lambda v, w=w: hvp(loss, w, v), g)
    mx.eval(w)
    path.append(value.item())


def inner(decay):
    """A few steps of gradient descent, differentiated with respect to the weight decay."""
    v = mx.zeros((3,))
    for _ in range(4):
        v = v - 0.5 * mx.grad(loss)(v, decay)
    return loss(v, mx.array(0.0))


hyper = mx.grad(inner)(mx.array(0.1))
third = mx.grad(lambda s: mx.grad(mx.grad(mx.sin))(s))(mx.array(0.7))
per_example = mx.vmap(mx.grad(lambda w, x, t: mx.logaddexp(0.0, x @ w) - t * (x @ w)), in_axes=(None, 0, 0))(w, X, y)
fisher = per_example.T @ per_example / 20
jacobian = mx.vmap(lambda v: mx.jvp(lambda w: mx.tanh(X[:4] @ w), [w], [v])[1][0], out_axes=1)(mx.eye(3))
print(json.dumps({
    "hessian": H.tolist(), "path": path, "w": w.tolist(), "hyper": hyper.item(), "third": third.item(),
    "fisher": fisher.tolist(), "jacobian": jacobian.tolist(),
    "argnums": [g.tolist() for g in mx.grad(loss, argnums=(0, 1))(w, mx.array(0.2))],
    "names": mx.grad(loss, argnames=["decay"])(w, decay=mx.array(0.2))[1]["decay"].item(),
}))  # fmt: skip
