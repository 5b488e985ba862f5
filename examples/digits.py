"""Train a small classifier on the 1,797 handwritten digits that scikit-learn ships.

The whole training step (forward pass, cross-entropy, gradients, Adam) is one Python function under one `@mx.compile`.
It is traced on the first batch, compiled to a few fused kernels, and every later batch only launches them. Run it a
second time and the first step is fast too: the executable comes from the disk cache.

    python examples/digits.py          writes out/digits.png and out/ir/
"""

import math
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tqdm import tqdm

import mlxir as mx

LAYERS = (64, 128, 64, 10)
BATCH_SIZE = 128
EPOCHS = 30
LEARNING_RATE = 2e-3
SEED = 0
OUT = Path("out")


# The model: a list of layers, each a dict of arrays ------------------------------------------------------------------


def init(sizes):
    """One {"w": (n_in, n_out), "b": (n_out,)} per layer, with He's normal initialisation."""
    return [
        {"w": mx.random.normal((n_in, n_out)) * math.sqrt(2 / n_in), "b": mx.zeros((n_out,))}
        for n_in, n_out in zip(sizes, sizes[1:], strict=False)
    ]


def gelu(x):
    return 0.5 * x * (1 + mx.erf(x / math.sqrt(2)))


def model(params, x):
    """Images (n, 64) to logits (n, 10)."""
    *hidden, last = params
    for layer in hidden:
        x = gelu(x @ layer["w"] + layer["b"])
    return x @ last["w"] + last["b"]


def cross_entropy(params, x, y):
    """Mean over the batch of -log softmax(logits)[label]."""
    logits = model(params, x)
    picked = mx.take_along_axis(logits, y[:, None], axis=1).squeeze(1)
    return mx.mean(mx.logsumexp(logits, axis=1) - picked)


# The optimiser: Adam (Kingma & Ba, 2015, algorithm 1) on trees of arrays ---------------------------------------------


def tree_map(f, tree, *rest):
    """Apply f to the leaves of trees of the same structure (lists and dicts)."""
    if isinstance(tree, list):
        return [tree_map(f, *children) for children in zip(tree, *rest, strict=True)]
    if isinstance(tree, dict):
        return {key: tree_map(f, tree[key], *(other[key] for other in rest)) for key in tree}
    return f(tree, *rest)


def adam_init(params):
    return {"t": mx.array(0.0), "m": tree_map(mx.zeros_like, params), "v": tree_map(mx.zeros_like, params)}


def adam(params, grads, state, beta1=0.9, beta2=0.999, eps=1e-8):
    t = state["t"] + 1
    m = tree_map(lambda m, g: beta1 * m + (1 - beta1) * g, state["m"], grads)
    v = tree_map(lambda v, g: beta2 * v + (1 - beta2) * g * g, state["v"], grads)
    rate = LEARNING_RATE * mx.sqrt(1 - beta2**t) / (1 - beta1**t)
    params = tree_map(lambda p, m, v: p - rate * m / (mx.sqrt(v) + eps), params, m, v)
    return params, {"t": t, "m": m, "v": v}


# The step: everything above, compiled as one program -----------------------------------------------------------------


@mx.compile
def step(params, state, x, y):
    loss, grads = mx.value_and_grad(cross_entropy)(params, x, y)
    params, state = adam(params, grads, state)
    return loss, params, state


# Data, loop, report --------------------------------------------------------------------------------------------------


def load():
    """The digits, scaled to [0, 1] and shuffled with a fixed seed: (train x, train y), (test x, test y), 4 : 1."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(SEED).permutation(len(x))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    split = len(x) * 4 // 5
    return (x[:split], y[:split]), (x[split:], y[split:])


def batches(x, y, rng):
    """One epoch in random order. Every batch has BATCH_SIZE rows (the remainder waits for a later epoch), so the step
    sees one signature only and is compiled once."""
    order = rng.permutation(len(x))
    for start in range(0, len(x) - BATCH_SIZE + 1, BATCH_SIZE):
        rows = order[start : start + BATCH_SIZE]
        yield mx.array(x[rows]), mx.array(y[rows])


def train(x, y):
    """Returns the trained parameters, the loss and the seconds of every step."""
    mx.random.seed(SEED)
    rng = np.random.default_rng(SEED)
    params = init(LAYERS)
    state = adam_init(params)
    mx.eval(params, state)

    losses, seconds = [], []
    with tqdm(total=EPOCHS * (len(x) // BATCH_SIZE), unit="step") as progress:
        for _ in range(EPOCHS):
            for batch in batches(x, y, rng):
                start = time.perf_counter()
                loss, params, state = step(params, state, *batch)
                mx.eval(loss, params, state)
                seconds.append(time.perf_counter() - start)
                losses.append(loss.item())
                progress.update()
            progress.set_postfix(loss=f"{losses[-1]:.4f}")
    return params, losses, seconds


def draw(losses, x, y, predicted, path, rows=6, columns=8):
    """The loss curve beside test digits with their predictions: the mistakes first, in red."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    ((left, right),) = figure.subfigures(1, 2, squeeze=False, width_ratios=(1, 1.3))
    axes = left.subplots()
    axes.semilogy(losses, linewidth=0.8)
    axes.set(title="training loss", xlabel="step", ylabel="cross-entropy")

    right.suptitle(f"test digits as predicted ({np.sum(predicted != y)} of {len(y)} wrong, shown first)")
    mistakes_first = np.argsort(predicted == y, kind="stable")
    for axes, i in zip(right.subplots(rows, columns).flat, mistakes_first, strict=False):
        axes.imshow(x[i].reshape(8, 8), cmap="gray_r")
        wrong = predicted[i] != y[i]
        axes.set_title(f"{predicted[i]} (is {y[i]})" if wrong else f"{predicted[i]}", color="red" if wrong else "black")
        axes.axis("off")
    figure.savefig(path, dpi=100)


def main():
    (x_train, y_train), (x_test, y_test) = load()
    params, losses, seconds = train(x_train, y_train)

    predicted = np.array(mx.argmax(model(params, mx.array(x_test)), axis=1))
    cache = mx.compile_cache_info()
    OUT.mkdir(exist_ok=True)
    draw(losses, x_test, y_test, predicted, OUT / "digits.png")

    print(f"final loss: {losses[-1]:.4f}")
    print(f"test accuracy: {np.mean(predicted == y_test):.3f}")
    print(f"first step: {seconds[0] * 1e3:.1f} ms, compile or load included")
    print(f"time per step: {np.median(seconds) * 1e3:.3f} ms (median of {len(seconds)})")
    print(
        f"compiled {cache.compilations} times in {cache.compile_seconds:.2f} s; "
        f"{cache.disk_hits} loaded from disk, {cache.hits} calls served from memory"
    )
    print(f"picture: {OUT / 'digits.png'}")

    batch = mx.array(x_train[:BATCH_SIZE]), mx.array(y_train[:BATCH_SIZE])
    directory = mx.dump(step, params, adam_init(params), *batch, directory=OUT / "ir", target="cpu")
    print(f"what the compiler made of this step, stage by stage: {directory}")


if __name__ == "__main__":
    main()
