"""Train a small transformer to write like the Python documentation, character by character.

The text is the help that ships with Python (`pydoc_data.topics`, about 700,000 characters). The model is built of
`mlxir.nn`, the pure-Python layers of an installed MLX wheel (`pip install "mlx[cpu]"`), on mlxir's arrays. The training
step is one compiled program: its state (parameters, optimizer, random numbers) goes in and comes back through `inputs=`
and `outputs=`.

    python examples/language_model.py [--steps 1500]         about a minute and a half on two cores
"""

import argparse
import math
import time
from functools import partial
from pydoc_data.topics import topics

import numpy as np

import mlxir as mx
from mlxir import nn, optimizers

CONTEXT, BATCH = 64, 16
WIDTH, HEADS, LAYERS = 128, 4, 3
RATE, WARM_UP = 2e-3, 100


class Block(nn.Module):
    """Attention and a two-layer perceptron, each on normalised input and added to what came in."""

    def __init__(self):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def __call__(self, x):
        batch, length, _ = x.shape
        q, k, v = (
            part.reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3)
            for part in mx.split(self.qkv(self.norm1(x)), 3, axis=-1)
        )
        scale = 1 / math.sqrt(WIDTH // HEADS)
        heads = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale, mask="causal")
        x = x + self.out(heads.transpose(0, 2, 1, 3).reshape(batch, length, WIDTH))
        return x + self.down(nn.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Characters (batch, length) to logits of the character that follows each (batch, length, alphabet)."""

    def __init__(self, alphabet):
        super().__init__()
        self.embedding = nn.Embedding(alphabet, WIDTH)
        self.position = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = [Block() for _ in range(LAYERS)]
        self.norm = nn.RMSNorm(WIDTH)

    def __call__(self, tokens):
        x = self.embedding(tokens) + self.position(mx.arange(tokens.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.embedding.as_linear(self.norm(x))


def load():
    """The text as numbers, and the alphabet; characters that occur less than 50 times become a space."""
    text = "\n".join(topics[name] for name in sorted(topics))
    alphabet = sorted(c for c in set(text) if text.count(c) >= 50)
    number = {c: i for i, c in enumerate(alphabet)}
    return np.array([number.get(c, number[" "]) for c in text], np.int32), alphabet


def batches(data, rng):
    """Random passages and, for each character, the one behind it."""
    while True:
        starts = rng.integers(0, len(data) - CONTEXT - 1, BATCH)
        rows = np.stack([data[s : s + CONTEXT + 1] for s in starts])
        yield mx.array(rows[:, :-1]), mx.array(rows[:, 1:])


def loss_fn(model, x, y):
    return nn.losses.cross_entropy(model(x), y, reduction="mean")


def train(model, data, steps):
    # Without a warm-up (and with moments that start at zero uncorrected, MLX's default) attention never forms.
    warm_up = optimizers.linear_schedule(0.0, RATE, WARM_UP)
    decay = optimizers.cosine_decay(RATE, max(steps - WARM_UP, 1))
    schedule = optimizers.join_schedules([warm_up, decay], [WARM_UP])
    optimizer = optimizers.AdamW(learning_rate=schedule, weight_decay=0.01, bias_correction=True)
    optimizer.init(model.trainable_parameters())
    state = [model.state, optimizer.state]

    @partial(mx.compile, inputs=state, outputs=state)
    def step(x, y):
        loss, grads = nn.value_and_grad(model, loss_fn)(model, x, y)
        optimizer.update(model, grads)
        return loss

    started = time.perf_counter()
    for i, (x, y) in zip(range(steps), batches(data, np.random.default_rng(0)), strict=False):
        loss = step(x, y)
        mx.eval(loss, state)
        if i % 100 == 0 or i == steps - 1:
            print(f"step {i:4}   loss {loss.item():.3f}   {time.perf_counter() - started:5.1f} s", flush=True)


def generate(model, alphabet, prompt, length, temperature=0.7):
    """Continue a prompt; the window of the last CONTEXT characters always has one shape, so one program serves all."""
    predict = mx.compile(lambda tokens, at, key: mx.random.categorical(model(tokens)[0, at] / temperature, key=key))
    number = {c: i for i, c in enumerate(alphabet)}
    tokens = [number[c] for c in prompt]
    for key in mx.random.split(mx.random.key(1), length):
        window = tokens[-CONTEXT:]
        padded = mx.array([window + [0] * (CONTEXT - len(window))])
        tokens.append(predict(padded, mx.array(len(window) - 1), key).item())
    return "".join(alphabet[t] for t in tokens)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    mx.random.seed(0)
    data, alphabet = load()
    model = Transformer(len(alphabet))
    mx.eval(model.parameters())
    print(f"{len(data)} characters, {len(alphabet)} different; guessing would have loss {math.log(len(alphabet)):.3f}")
    train(model, data, steps)
    print(generate(model, alphabet, "The import statement", 300))


if __name__ == "__main__":
    main()
