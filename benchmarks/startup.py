"""How long a user waits: a fresh process to the first result of a training step, by stage.

    python startup.py [--rounds 3] [--peers mlx,jax] [--json FILE]

For each framework and model, in processes of their own and in turn:

    import      `import numpy`, then what the framework's import adds to it
    first       from the import to the first result of one compiled training step, with nothing cached on disk
    second      the same in a second process, with the disk cache that the first one left (where there is one)
    step        one more call, compiled and warm

The models are an MLP (784-1024-1024-10, batch 256) and a GPT block (width 256, 4 heads, 4 x 128 tokens), with Adam; one
text serves mlxir, MLX and JAX. Shown are medians. Bytecode is cached: PYTHONDONTWRITEBYTECODE would double the imports.
"""

import argparse
import importlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

MODELS = ("mlp", "gpt")
MODULES = {"mlxir": "mlxir", "mlx": "mlx.core", "jax": "jax.numpy"}
STAGES = ("import_numpy", "import_framework", "first", "step")


# -- the models, in the functions that all three frameworks share -----------------------------------------------------
def mlp_arrays(np):
    rng = np.random.default_rng(0)
    sizes = (784, 1024, 1024, 10)
    layers = [
        {"w": rng.standard_normal((n, m)).astype("f4") * (2 / n) ** 0.5, "b": np.zeros(m, "f4")}
        for n, m in zip(sizes, sizes[1:], strict=False)
    ]
    return layers, rng.standard_normal((256, 784)).astype("f4"), rng.integers(0, 10, 256).astype("i4")


def mlp_loss(xp, layers, x, y):
    for layer in layers[:-1]:
        x = xp.maximum(x @ layer["w"] + layer["b"], 0.0)
    return cross_entropy(xp, x @ layers[-1]["w"] + layers[-1]["b"], y)


def gpt_arrays(np):
    rng = np.random.default_rng(0)
    width, tokens = 256, 64

    def weight(n, m):
        return rng.standard_normal((n, m)).astype("f4") * n**-0.5

    params = {
        "embed": weight(tokens, width), "qkv": weight(width, 3 * width), "out": weight(width, width),
        "up": weight(width, 4 * width), "down": weight(4 * width, width), "head": weight(width, tokens),
        "norm1": np.ones(width, "f4"), "norm2": np.ones(width, "f4"), "norm3": np.ones(width, "f4"),
    }  # fmt: skip
    ids = rng.integers(0, tokens, (4, 129)).astype("i4")
    return params, ids[:, :-1], ids[:, 1:]


def gpt_loss(xp, p, x, y):
    batch, length = x.shape
    h = p["embed"][x]
    width, heads = h.shape[-1], 4
    qkv = (layer_norm(xp, h, p["norm1"]) @ p["qkv"]).reshape(batch, length, 3, heads, width // heads)
    q, k, v = (xp.transpose(qkv[:, :, i], (0, 2, 1, 3)) for i in range(3))
    scores = q @ xp.transpose(k, (0, 1, 3, 2)) * (width // heads) ** -0.5
    visible = xp.arange(length)[:, None] >= xp.arange(length)[None, :]
    scores = xp.where(visible, scores, -1e9)
    weights = xp.exp(scores - xp.max(scores, axis=-1, keepdims=True))
    weights = weights / xp.sum(weights, axis=-1, keepdims=True)
    h = h + xp.transpose(weights @ v, (0, 2, 1, 3)).reshape(batch, length, width) @ p["out"]
    up = layer_norm(xp, h, p["norm2"]) @ p["up"]
    h = h + (0.5 * up * (1 + xp.tanh(0.7978845608 * (up + 0.044715 * up * up * up)))) @ p["down"]
    return cross_entropy(xp, layer_norm(xp, h, p["norm3"]) @ p["head"], y)


def layer_norm(xp, x, weight):
    centred = x - xp.mean(x, axis=-1, keepdims=True)
    return centred / xp.sqrt(xp.mean(centred * centred, axis=-1, keepdims=True) + 1e-5) * weight


def cross_entropy(xp, logits, y):
    top = xp.max(logits, axis=-1, keepdims=True)
    total = xp.log(xp.sum(xp.exp(logits - top), axis=-1)) + top[..., 0]
    return xp.mean(total - xp.take_along_axis(logits, y[..., None], axis=-1)[..., 0])


def adam_step(xp, value_and_grad, tree_map, loss):
    """(params, m, v, t, x, y) -> (loss, params, m, v, t) after one step."""

    def step(params, m, v, t, x, y):
        value, grads = value_and_grad(lambda p: loss(xp, p, x, y))(params)
        t = t + 1
        m = tree_map(lambda a, g: 0.9 * a + 0.1 * g, m, grads)
        v = tree_map(lambda a, g: 0.999 * a + 0.001 * g * g, v, grads)
        rate = 1e-3 * xp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        params = tree_map(lambda p, a, b: p - rate * a / (xp.sqrt(b) + 1e-8), params, m, v)
        return value, params, m, v, t

    return step


# -- one process ------------------------------------------------------------------------------------------------------
def mapped(function, first, *rest):
    """A tree map over lists and dicts, for every framework the same."""
    if isinstance(first, dict):
        return {k: mapped(function, first[k], *[r[k] for r in rest]) for k in first}
    if isinstance(first, list):
        return [mapped(function, *items) for items in zip(first, *rest, strict=True)]
    return function(first, *rest)


def child(framework, model):
    """Time the stages in this process and print them as JSON."""
    start = time.perf_counter()
    np = importlib.import_module("numpy")
    numpy_there = time.perf_counter()
    xp = importlib.import_module(MODULES[framework])
    root = importlib.import_module("jax") if framework == "jax" else xp
    there = time.perf_counter()

    params, x, y = mlp_arrays(np) if model == "mlp" else gpt_arrays(np)
    zeros = mapped(np.zeros_like, params)
    made = time.perf_counter()
    compile_ = root.jit if framework == "jax" else root.compile
    step = compile_(adam_step(xp, root.value_and_grad, mapped, mlp_loss if model == "mlp" else gpt_loss))
    state = [mapped(xp.array, tree) for tree in (params, zeros, zeros, np.float32(0), x, y)]

    def run():
        result = step(*state)
        if framework == "jax":
            root.block_until_ready(result)
        else:
            root.eval(result)
        return float(result[0])

    loss = run()
    first = time.perf_counter()
    run()
    print(json.dumps({
        "import_numpy": numpy_there - start, "import_framework": there - numpy_there, "first": first - made,
        "step": time.perf_counter() - first, "loss": loss,
    }))  # fmt: skip


# -- the run ----------------------------------------------------------------------------------------------------------
def measure(framework, model, cache):
    """The stages of one fresh process whose disk cache is the folder `cache`."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["MLXIR_CACHE_DIR"] = cache
    environment.setdefault("PYTHONPYCACHEPREFIX", os.path.join(tempfile.gettempdir(), "mlxir-startup-bytecode"))
    command = [sys.executable, os.path.abspath(__file__), "--child", framework, model]
    done = subprocess.run(command, env=environment, cwd=tempfile.gettempdir(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{framework} {model}:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", default=",".join(MODELS))
    parser.add_argument("--peers", default="", help="of mlx, jax")
    parser.add_argument("--json")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    frameworks = ["mlxir"]
    for peer in filter(None, arguments.peers.split(",")):
        if importlib.util.find_spec(MODULES[peer].split(".")[0]) is None:
            print(f"{peer} is not installed here: skipped")
        else:
            frameworks.append(peer)
    models = arguments.models.split(",")
    runs = {}
    for n in range(arguments.rounds + 1):  # the first round fills the bytecode caches and is not counted
        for framework in frameworks:
            for model in models:
                with tempfile.TemporaryDirectory() as cache:
                    cold, warm = measure(framework, model, cache), measure(framework, model, cache)
                if n:
                    runs.setdefault((framework, model), []).append((cold, warm))
    table = {}
    print(f"{'':16}{'numpy':>8}{'import':>8}{'first':>8}{'second':>8}{'step':>8}   milliseconds, medians")
    for (framework, model), pairs in runs.items():
        row = {k: statistics.median([cold[k] for cold, _ in pairs]) for k in STAGES}
        row["second"] = statistics.median([warm["first"] for _, warm in pairs])
        row["loss"] = pairs[0][0]["loss"]
        table[f"{framework} {model}"] = row
        shown = [row[k] * 1e3 for k in ("import_numpy", "import_framework", "first", "second", "step")]
        print(f"{framework + ' ' + model:16}" + "".join([f"{ms:8.0f}" for ms in shown]) + f"   loss {row['loss']:.6f}")
    for model in models:
        losses = [row["loss"] for name, row in table.items() if name.endswith(model)]
        if max(losses) - min(losses) > 1e-4 * abs(losses[0]):
            raise SystemExit(f"the frameworks disagree about the loss of {model}: {losses}")
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(table, file, indent=1)


if __name__ == "__main__":
    main()
