"""Classes of the user as containers of trees: dataclasses, and classes with functions of their own."""

import dataclasses

import numpy as np
import pytest

import mlxir as mx
from mlxir.runtime import trees


@mx.register_dataclass(meta_fields=("kind",))
@dataclasses.dataclass(frozen=True)
class Layer:
    w: object
    b: object
    kind: str = "tanh"

    def __call__(self, x):
        return getattr(mx, self.kind)(x @ self.w + self.b)


@mx.register_dataclass
@dataclasses.dataclass
class Model:
    layers: list
    scale: object


class Interval:
    """Its constructor refuses what its children may be while a tree is rebuilt: `unflatten` goes around it."""

    def __init__(self, low, high, name):
        if not isinstance(low, mx.array):
            raise TypeError("an array is needed")
        self.low, self.high, self.name = low, high, name

    @classmethod
    def remade(cls, name, items):
        out = cls.__new__(cls)
        (out.low, out.high), out.name = items, name
        return out


mx.register_tree_node(Interval, lambda x: ((x.low, x.high), x.name), Interval.remade)
RNG = np.random.default_rng(0)
W, B, X = (RNG.standard_normal(s).astype(np.float32) for s in ((3, 3), (3,), (4, 3)))


def model():
    return Model([Layer(mx.array(W), mx.array(B)), Layer(mx.array(W * 2), mx.array(B), "sin")], mx.array(0.5))


def loss(m, x):
    for layer in m.layers:
        x = layer(x)
    return mx.sum(mx.square(x)) * m.scale


def as_dicts(m):
    return [{"w": layer.w, "b": layer.b} for layer in m.layers], m.scale


def plain_loss(parameters, x):
    layers, scale = parameters
    return loss(Model([Layer(p["w"], p["b"], k) for p, k in zip(layers, ("tanh", "sin"), strict=True)], scale), x)


def close(mine, theirs):
    a, b = trees.leaves(mine), trees.leaves(theirs)
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(np.array(x), np.array(y), rtol=2e-5, atol=1e-6)


def test_grad_has_the_class_of_the_argument():
    m, x = model(), mx.array(X)
    w = m.layers[0].w
    grads = mx.grad(loss)(m, x)
    assert type(grads) is Model and type(grads.layers[1]) is Layer and grads.layers[1].kind == "sin"
    close(as_dicts(grads), mx.grad(plain_loss)(as_dicts(m), x))
    assert m.layers[0].w is w
    (value, aux), _ = mx.value_and_grad(lambda m: (loss(m, x), Interval(m.scale, m.scale * 2, "n")))(m)
    assert type(aux) is Interval and aux.name == "n" and aux.high.item() == 1.0
    mx.eval(m, aux, value)


def test_vmap_axes_may_be_an_object_of_the_class():
    m = Layer(mx.array(np.stack([W, W * 2])), mx.array(B))
    out = mx.vmap(lambda layer, x: Interval(layer(x), layer.b, "n"), in_axes=(Layer(0, None), None))(m, mx.array(X))
    assert type(out) is Interval and out.low.shape == (2, 4, 3) and out.high.shape == (2, 3)
    np.testing.assert_allclose(np.array(out.low[1]), np.tanh(X @ (2 * W) + B), rtol=1e-5, atol=1e-6)
    same = mx.vmap(lambda layer, x: layer(x), in_axes=(0, None))(Layer(m.w, mx.array(np.stack([B, B]))), mx.array(X))
    np.testing.assert_allclose(np.array(same), np.array(out.low), rtol=1e-5)
    with pytest.raises(ValueError, match="not a valid prefix"):
        mx.vmap(lambda layer: layer, in_axes=Interval.remade("n", [0, 0]))(m)
    with pytest.raises(ValueError, match="tree_flatten"):
        mx.vmap(lambda x: Layer(x, 1.0))(mx.array(B))


def test_compile_traces_once_per_auxiliary_data():
    traced = []

    @mx.compile
    def step(m, x):
        traced.append(m.layers[1].kind)
        value, grads = mx.value_and_grad(loss)(m, x)
        pairs = zip(m.layers, grads.layers, strict=True)
        return value, Model([dataclasses.replace(a, w=a.w - b.w) for a, b in pairs], m.scale)

    m, x = model(), mx.array(X)
    for _ in range(2):
        value, new = step(m, x)
    assert traced == ["sin"] and type(new) is Model and type(new.layers[0]) is Layer and new.layers[1].kind == "sin"
    close(value, loss(m, x))
    close([a.w for a in new.layers], [a.w - b.w for a, b in zip(m.layers, mx.grad(loss)(m, x).layers, strict=True)])
    m.layers[1] = dataclasses.replace(m.layers[1], kind="cos")
    close(step(m, x)[0], loss(m, x))
    assert traced == ["sin", "cos"]


def test_captured_state_may_hold_objects():
    state = {"layer": Layer(mx.array(W), mx.array(B)), "n": [mx.array(0.0)]}

    def step(x):
        layer = state["layer"]
        state["layer"] = dataclasses.replace(layer, w=layer.w * 2)
        state["n"][0] = state["n"][0] + 1
        return layer(x)

    compiled = mx.compile(step, inputs=state, outputs=state)
    for i in range(3):
        out = compiled(mx.array(X))
        np.testing.assert_allclose(np.array(out), np.tanh(X @ (2**i * W) + B), rtol=1e-4, atol=1e-5)
    assert type(state["layer"]) is Layer and state["n"][0].item() == 3
    np.testing.assert_allclose(np.array(state["layer"].w), 8 * W)


def test_checkpoint_and_custom_function():
    m, x = model(), mx.array(X)
    close(as_dicts(mx.grad(mx.checkpoint(loss))(m, x)), as_dicts(mx.grad(loss)(m, x)))

    @mx.custom_function
    def scaled(layer):
        return mx.sum(layer.w) + mx.sum(layer.b)

    @scaled.vjp
    def rule(layer, ct, out):
        return Layer(layer.w * ct, 2 * layer.b * ct)

    grads = mx.grad(lambda layer: scaled(layer))(m.layers[0])
    close([grads.w, grads.b], [mx.array(W), mx.array(2 * B)])


def test_what_is_refused():
    with pytest.raises(ValueError, match="registered already"):
        mx.register_dataclass(Model)
    with pytest.raises(ValueError, match="container already"):
        mx.register_tree_node(type("Items", (list,), {}), tuple, list)
    with pytest.raises(TypeError, match="class is needed"):
        mx.register_tree_node(3, tuple, list)
    with pytest.raises(TypeError, match="dataclass is needed"):
        mx.register_dataclass(type("Plain", (), {}))
    with pytest.raises(ValueError, match="has the fields"):
        mx.register_dataclass(meta_fields=("nothing",))(dataclasses.make_dataclass("Other", ["x"]))


def test_structures_of_objects():
    a, b = Layer(1, [2]), Layer(3, [4], "sin")
    leaves, structure = trees.flatten({"k": a})
    assert leaves == [1, 2] and trees.unflatten(structure, leaves) == {"k": a}
    assert trees.flatten(a)[1] != trees.flatten(b)[1]
    assert hash(trees.flatten(a)[1]) == hash(trees.flatten(Layer(0, [0]))[1])
    assert trees.tree_map(lambda x: x + 1, b) == Layer(4, [5], "sin")
    assert trees.update(lambda x: x, a) is a
