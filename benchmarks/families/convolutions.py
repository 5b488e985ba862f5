"""A small convolutional network: forward and the gradients of its loss for all parameters."""

import numpy as np
from families.networks import jax_cross_entropy, mlx_cross_entropy
from suite import normal, workload

BATCH, SIDE, FIRST, SECOND, CLASSES = 16, 28, 16, 32, 10
FLOPS = 2 * BATCH * (SIDE**2 * 9 * FIRST + (SIDE // 2) ** 2 * 9 * FIRST * SECOND + SECOND * CLASSES)


def numpy_conv(np, x, w, stride):
    """x: (batch, height, width, in), w: (out, 3, 3, in), padded by one."""
    x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(1, 2))[:, ::stride, ::stride]
    return np.tensordot(windows, w, ((3, 4, 5), (3, 1, 2)))


def mlx_network(mx, p, x):
    x = mx.maximum(mx.conv2d(x, p["conv1"], padding=1) + p["bias1"], 0.0)
    x = mx.maximum(mx.conv2d(x, p["conv2"], stride=2, padding=1) + p["bias2"], 0.0)
    return mx.mean(x, axis=(1, 2)) @ p["dense"]


def jax_network(jax, p, x):
    def conv(x, w, stride):
        layout = ("NHWC", "OHWI", "NHWC")
        return jax.lax.conv_general_dilated(x, w, (stride, stride), ((1, 1), (1, 1)), dimension_numbers=layout)

    x = jax.nn.relu(conv(x, p["conv1"], 1) + p["bias1"])
    x = jax.nn.relu(conv(x, p["conv2"], 2) + p["bias2"])
    return x.mean(axis=(1, 2)) @ p["dense"]


def torch_network(torch, p, x):
    """Channels last, which is PyTorch's fast layout on CPUs."""
    F = torch.nn.functional
    x = F.relu(F.conv2d(x.permute(0, 3, 1, 2), p["conv1"].permute(0, 3, 1, 2), p["bias1"], padding=1))
    x = F.relu(F.conv2d(x, p["conv2"].permute(0, 3, 1, 2), p["bias2"], stride=2, padding=1))
    return x.mean(dim=(2, 3)) @ p["dense"]


@workload(flops=FLOPS)
class conv_net:
    """3x3 to 16 channels, 3x3 stride 2 to 32, mean, dense; 16 images of 28x28."""

    def inputs(rng):
        return [
            normal(rng, BATCH, SIDE, SIDE, 1), normal(rng, FIRST, 3, 3, 1, scale=0.4), normal(rng, FIRST, scale=0.1),
            normal(rng, SECOND, 3, 3, FIRST, scale=0.1), normal(rng, SECOND, scale=0.1), normal(rng, SECOND, CLASSES),
        ]  # fmt: skip

    def tree(x, *params):
        return dict(zip(("conv1", "bias1", "conv2", "bias2", "dense"), params, strict=True)), x

    def numpy(np, p, x):
        x = np.maximum(numpy_conv(np, x, p["conv1"], 1) + p["bias1"], 0)
        x = np.maximum(numpy_conv(np, x, p["conv2"], 2) + p["bias2"], 0)
        return x.mean(axis=(1, 2)) @ p["dense"]

    mlx, jax, torch = mlx_network, jax_network, torch_network


@workload(flops=3 * FLOPS, tolerance=1e-4)
class conv_net_grad:
    """Cross-entropy of the network and its gradients. The referee is agreement."""

    def inputs(rng):
        return [rng.integers(0, CLASSES, BATCH).astype(np.int32), *conv_net.inputs(rng)]

    def tree(y, *arrays):
        return *conv_net.tree(*arrays), y

    def mlx(mx, p, x, y):
        return mx.value_and_grad(lambda p: mlx_cross_entropy(mx, mlx_network(mx, p, x), y))(p)

    def jax(jax, p, x, y):
        return jax.value_and_grad(lambda p: jax_cross_entropy(jax, jax_network(jax, p, x), y))(p)

    def torch(torch, p, x, y):
        def loss(p):
            return torch.nn.functional.cross_entropy(torch_network(torch, p, x), y)

        grads, value = torch.func.grad_and_value(loss)(p)
        return value, grads
