"""mlx-lm's Llama with random weights: 16 greedy tokens with its KV cache, or 20 steps of fine-tuning."""

import json
import sys

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_map
from mlx_lm.generate import generate_step
from mlx_lm.models import cache, llama


def make(layers):
    """A model whose weights are large enough that its tokens vary."""
    mx.random.seed(0)
    sizes = {"hidden_size": 64, "num_hidden_layers": layers, "intermediate_size": 64, "num_attention_heads": 4}
    args = llama.ModelArgs(model_type="llama", **sizes, num_key_value_heads=2, rms_norm_eps=1e-5, vocab_size=97)
    model = llama.Model(args)
    model.update(tree_map(lambda p: p * 3 if p.ndim > 1 else p, model.parameters()))
    mx.eval(model.parameters())
    return model


def generate(quantised):
    model, prompt = make(2), mx.array([1, 5, 9, 20, 33])
    if quantised:
        nn.quantize(model, group_size=32, bits=4)
    tokens = [int(token) for token, _ in generate_step(prompt, model, max_tokens=16)]
    kept, y, by_hand = cache.make_prompt_cache(model), prompt[None], []
    for _ in range(16):
        y = mx.argmax(model(y, cache=kept)[:, -1, :], axis=-1)[None]
        by_hand.append(y.item())
    assert tokens == by_hand
    return tokens


def tune(compiled):
    model, optimizer, x = make(1), optim.AdamW(learning_rate=1e-3), mx.random.randint(0, 97, (2, 9))
    value_and_grad = nn.value_and_grad(
        model, lambda x: nn.losses.cross_entropy(model(x[:, :-1]), x[:, 1:], reduction="mean")
    )

    def step(x):
        loss, grads = value_and_grad(x)
        optimizer.update(model, grads)
        return loss

    state = [model.state, optimizer.state]
    if compiled:
        step = mx.compile(step, inputs=state, outputs=state)
    losses = []
    for _ in range(20):
        loss = step(x)
        mx.eval(state, loss)
        losses.append(loss.item())
    return losses


if __name__ == "__main__":
    what, flag = sys.argv[1], sys.argv[2] == "1"
    print(json.dumps({"generate": generate, "tune": tune}[what](flag)))
