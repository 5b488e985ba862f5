"""Functions exported to files and imported again: one trace, several, shapeless, with keywords, of a whole model."""

import json
import os
import tempfile

import mlx.core as mx
import mlx.nn as nn

mx.random.seed(25)
model = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
mx.eval(model.parameters())
report = {}


def call(x):
    return model(x)


def scaled(x, *, scale=None):
    return x * scale if scale is not None else x


with tempfile.TemporaryDirectory() as folder:
    path = os.path.join(folder, "model.mlxfn")
    mx.export_function(path, call, mx.zeros((3, 4)))
    run = mx.import_function(path)
    x = mx.random.normal((3, 4))
    (out,) = run(x)
    assert mx.allclose(out, model(x), atol=1e-6)
    report["out"] = out.tolist()
    (again,) = mx.compile(run)(x)
    assert mx.allclose(again, out, atol=1e-6)
    report["gradient"] = mx.grad(lambda x: run(x)[0].square().sum())(x).tolist()
    try:
        run(mx.zeros((5, 4)))
    except ValueError:
        report["refused"] = True

    path = os.path.join(folder, "shapeless.mlxfn")
    mx.export_function(
        path, lambda x, y: mx.softmax(x, axis=-1) @ y, mx.zeros((2, 3)), mx.zeros((3, 3)), shapeless=True
    )
    run = mx.import_function(path)
    report["shapeless"] = [run(mx.ones((n, 3)), mx.eye(3))[0].tolist() for n in (1, 4)]

    path = os.path.join(folder, "many.mlxfn")
    with mx.exporter(path, scaled) as exporter:
        exporter(mx.zeros((2,)))
        exporter(mx.zeros((2,)), scale=mx.array(3.0))
        exporter(mx.zeros((4,)), scale=mx.array(3.0))
    run = mx.import_function(path)
    report["many"] = [
        run(mx.ones((2,)))[0].tolist(),
        run(mx.ones((2,)), scale=mx.array(2.0))[0].tolist(),
        run(mx.ones((4,)), scale=mx.array(5.0))[0].tolist(),
    ]

    dot = os.path.join(folder, "graph.dot")
    mx.export_to_dot(dot, model(x))
    with open(dot) as file:
        report["dot"] = file.read().startswith("digraph")
print(json.dumps(report))
