"""Attention: one head, several, and the gradient of the causal one."""

from suite import normal, workload

LENGTH, WIDTH, BATCH, HEADS = 256, 64, 4, 8
SCALE = WIDTH**-0.5


def numpy_attention(np, q, k, v):
    scores = q @ np.swapaxes(k, -1, -2) * np.asarray(SCALE, q.dtype)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True) @ v


def mlx_attention(mx, q, k, v):
    return mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE)


def jax_attention(jax, q, k, v, causal=False):
    scores = q @ jax.numpy.swapaxes(k, -1, -2) * SCALE
    if causal:
        visible = jax.numpy.tril(jax.numpy.ones(scores.shape[-2:], bool))
        scores = jax.numpy.where(visible, scores, -jax.numpy.inf)
    return jax.nn.softmax(scores, axis=-1) @ v


def torch_attention(torch, q, k, v):
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)


def attention(name, batch, heads):
    """Enter softmax(q kT / 8) v of (batch, heads, 256, 64)."""

    @workload(name, flops=4 * batch * heads * LENGTH**2 * WIDTH)
    class forward:
        def inputs(rng):
            return [normal(rng, batch, heads, LENGTH, WIDTH) for _ in range(3)]

        numpy, mlx, jax, torch = numpy_attention, mlx_attention, jax_attention, torch_attention


attention("attention_one_head", 1, 1)
attention("attention_heads", BATCH, HEADS)


@workload(flops=7 * BATCH * HEADS * LENGTH**2 * WIDTH, tolerance=1e-4)
class attention_grad:
    """The gradients for q, k and v of causal attention weighted by c: 7 products, each of half the square."""

    def inputs(rng):
        return [normal(rng, BATCH, HEADS, LENGTH, WIDTH) for _ in range(4)]

    def numpy(np, q, k, v, c):
        scale = np.asarray(SCALE, q.dtype)
        visible = np.tril(np.ones((LENGTH, LENGTH), bool))
        scores = np.where(visible, q @ np.swapaxes(k, -1, -2) * scale, np.asarray(-np.inf, q.dtype))
        e = np.exp(scores - scores.max(axis=-1, keepdims=True))
        p = e / e.sum(axis=-1, keepdims=True)
        dp = c @ np.swapaxes(v, -1, -2)
        ds = p * (dp - (dp * p).sum(axis=-1, keepdims=True)) * scale
        return ds @ k, np.swapaxes(ds, -1, -2) @ q, np.swapaxes(p, -1, -2) @ c

    def mlx(mx, q, k, v, c):
        def loss(q, k, v):
            return (mx.fast.scaled_dot_product_attention(q, k, v, scale=SCALE, mask="causal") * c).sum()

        return mx.grad(loss, argnums=(0, 1, 2))(q, k, v)

    def jax(jax, q, k, v, c):
        return jax.grad(lambda q, k, v: (jax_attention(jax, q, k, v, True) * c).sum(), argnums=(0, 1, 2))(q, k, v)

    def torch(torch, q, k, v, c):
        def loss(q, k, v):
            return (torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True) * c).sum()

        return torch.func.grad(loss, argnums=(0, 1, 2))(q, k, v)
