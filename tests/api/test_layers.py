"""Every layer, activation, loss, optimizer and schedule of mlx.nn and mlx.optimizers gives what it gives on real MLX.

Both run in one process from the same seed: the wheel's Python code on mlxir (`mlxir.nn`) and the wheel itself. Each row
is built twice and run twice: outputs, gradients by parameters and inputs, and state must agree to 1e-5 of the largest
element, uncompiled and, for a row of each, under `mx.compile(inputs=state, outputs=state)`.
"""

import re

import mlx.core
import mlx.nn
import mlx.optimizers
import mlx.utils
import numpy as np
import pytest
from layer_rows import LAYERS, LOSSES, OPTIMIZERS

import mlxir
import mlxir.nn
import mlxir.optimizers
import mlxir.utils

REAL = (mlx.core, mlx.nn, mlx.optimizers, mlx.utils)
OURS = (mlxir, mlxir.nn, mlxir.optimizers, mlxir.utils)


@pytest.fixture(autouse=True)
def reference_tier(monkeypatch):
    """Compiling what is evaluated twice would take most of the time; what is under `compile` is compiled anyway."""
    monkeypatch.setattr(mlxir.runtime.knobs.knobs, "tier", "reference")


def data(m, tree_flatten, tree):
    """(path, shape, dtype, data) of the arrays of a tree, and its other leaves."""
    out = []
    for path, x in tree_flatten(tree):
        if isinstance(x, m.array):
            wide = x.astype(m.float32) if x.dtype in (m.float16, m.bfloat16) else x
            out.append((path, x.shape, str(x.dtype).rpartition(".")[2], np.array(wide)))
        else:
            out.append((path, None, None, x))
    return out


def assert_same(mine, theirs, tolerance):
    assert [row[:3] for row in mine] == [row[:3] for row in theirs]
    for (path, shape, _, a), (*_, b) in zip(mine, theirs, strict=True):
        if shape is None or b.dtype.kind not in "fc":
            np.testing.assert_array_equal(a, b, err_msg=path)
        else:
            # Some gradients are 0 but for rounding, such as those of a bias in front of a normalisation.
            largest = np.abs(b[np.isfinite(b)]).max(initial=0.1)
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * largest, err_msg=path)


def run_layer(library, text, inputs, compiled):
    """Two training-like steps of a layer or a function of arrays."""
    m, nn, _, utils = library
    m.random.seed(0)
    scope = {"m": m, "nn": nn}
    layer, inputs = eval(text, scope), [eval(i, scope) for i in inputs]
    module = layer if isinstance(layer, nn.Module) else None
    smooth = [i for i, x in enumerate(inputs) if isinstance(x, m.array) and m.issubdtype(x.dtype, m.floating)]

    def loss(params, xs):
        given = list(inputs)
        for i, x in zip(smooth, xs, strict=True):
            given[i] = x
        if module is not None:
            module.update(params)
        out = layer(*given)
        outs = [x for _, x in utils.tree_flatten({"": out})]
        return sum((x * m.cos(m.arange(x.size)).reshape(x.shape)).sum() for x in outs), out

    params = module.trainable_parameters() if module is not None else {}
    wrt = [i for i, part in enumerate((utils.tree_flatten(params), smooth)) if part]
    step = m.value_and_grad(loss, argnums=wrt) if wrt else loss
    if compiled:
        state = [m.random.state, module.state if module is not None else {}]
        step = m.compile(step, inputs=state, outputs=state)
    found = []
    for _ in range(2):
        params = module.trainable_parameters() if module is not None else {}
        found.append(step(params, [inputs[i] for i in smooth]))
        m.eval(found)
    return data(m, utils.tree_flatten, {"steps": found, "end": module.parameters() if module is not None else {}})


def name_of(x):
    return x if isinstance(x, str) else str(len(x))


@pytest.mark.parametrize("text, inputs", LAYERS + LOSSES, ids=name_of)
def test_layer(text, inputs):
    assert_same(run_layer(OURS, text, inputs, False), run_layer(REAL, text, inputs, False), 2e-5)


# Of each class and function the last row, which has the most options.
COMPILED = list({text.partition("(")[0] if text.startswith("nn.") else text: (text, i) for text, i in LAYERS}.values())


@pytest.mark.parametrize("text, inputs", COMPILED, ids=name_of)
def test_compiled_layer(text, inputs):
    assert_same(run_layer(OURS, text, inputs, True), run_layer(REAL, text, inputs, False), 2e-5)


def run_optimizer(library, text, compiled):
    """Five steps of a network with convolution, normalisation, dropout and residual blocks."""
    m, nn, optim, utils = library
    m.random.seed(3)

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.dropout = nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm(3), nn.Dropout(0.2)
            self.first, self.last = nn.Linear(12, 6), nn.Linear(6, 3)
            self.blocks = [nn.Linear(6, 6) for _ in range(2)]

        def __call__(self, x):
            x = nn.relu(self.norm(self.conv(x))).flatten(1)
            x = self.dropout(nn.gelu(self.first(x)))
            for block in self.blocks:
                x = x + m.tanh(block(x))
            return self.last(x)

    net, optimizer = Net(), eval(text, {"o": optim})
    x, y = m.random.normal((5, 4, 4, 1)), m.array([0, 1, 2, 1, 0])
    value_and_grad = nn.value_and_grad(net, lambda x: nn.losses.cross_entropy(net(x), y, reduction="mean"))

    def step(x):
        loss, grads = value_and_grad(x)
        grads, norm = optim.clip_grad_norm(grads, 1.0)
        optimizer.update(net, grads)
        return loss, norm

    m.eval(net.parameters())
    if compiled:
        state = [net.state, optimizer.state, m.random.state]
        step = m.compile(step, inputs=state, outputs=state)
    found = []
    for _ in range(5):
        found.append((*step(x), optimizer.state.get("learning_rate", 0)))
        m.eval(net.state, optimizer.state, found)
    return data(m, utils.tree_flatten, {"steps": found, "net": net.parameters(), "state": optimizer.state})


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("text", OPTIMIZERS)
def test_optimizer(text, compiled):
    assert_same(run_optimizer(OURS, text, compiled), run_optimizer(REAL, text, False), 2e-5)


def test_every_public_class_has_a_row():
    texts = " ".join([text for text, _ in LAYERS + LOSSES])
    layers = {name for name in dir(mlx.nn) if isinstance(getattr(mlx.nn, name), type)}
    functions = {name for name in vars(mlx.nn.losses) if name.endswith(("_loss", "_entropy"))}
    missing = sorted(name for name in layers | functions if not re.search(rf"\b{name}\b", texts))
    assert missing == ["Module", "QQLinear"]  # the last one: see below
    optimizers = {name for name in dir(mlx.optimizers) if isinstance(getattr(mlx.optimizers, name), type)}
    known = " ".join(OPTIMIZERS)
    assert sorted(name for name in optimizers if f"o.{name}(" not in known) == ["Module", "Optimizer"]


@pytest.mark.parametrize("mode", ["nvfp4", "mxfp8"])
@pytest.mark.parametrize("training", [True, False])
def test_qqlinear(mode, training):
    """MLX's raises on a CPU when it is evaluated: the product of what MLX quantises."""
    x, linear = mlxir.random.normal((3, 64)), mlxir.nn.Linear(64, 32, bias=False)
    layer = mlxir.nn.QQLinear.from_linear(linear, mode=mode).train(training)
    assert layer.weight.dtype == (mlxir.float32 if training else mlxir.uint32)
    m = mlx.core
    quantised = [m.quantize(m.array(np.array(v)), mode=mode) for v in (x, linear.weight)]
    a, b = (m.dequantize(*v, mode=mode, dtype=m.float32) for v in quantised)
    np.testing.assert_allclose(np.array(layer(x)), np.array(a @ b.T), rtol=0, atol=1e-5)
