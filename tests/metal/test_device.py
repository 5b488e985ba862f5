"""`mx.gpu` on an emulated device: where evaluation goes, whole models with their gradients, programs compiled ahead.

What runs is the product's runtime; results are compared with the CPU target.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mlxir as mx
from mlxir.cli import main
from mlxir.runtime import devices
from mlxir.runtime.emulator import unavailable_reason
from mlxir.runtime.emulator.device import EmulatedMetal
from mlxir.runtime.errors import CompileError
from mlxir.runtime.knobs import knobs
from mlxir.runtime.metal.device import Device, DeviceError
from mlxir.runtime.trees import leaves

pytestmark = pytest.mark.skipif(unavailable_reason() is not None, reason=unavailable_reason() or "")


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatedMetal]:
    """The emulated device as this process's GPU, which threads that start now take by default."""
    emulated = EmulatedMetal()
    device = Device(emulated)
    monkeypatch.setattr(devices, "gpu", lambda: device)
    monkeypatch.setattr(devices, "_current", devices._Current())
    mx.clear_compile_cache()
    yield emulated
    mx.clear_compile_cache()
    mx.clear_streams()
    assert emulated.findings == []


def normal(*shape: int, seed: int = 0) -> mx.array:
    return mx.array(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def both(fn: Callable[..., Any], *arguments: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The arrays that a compiled function returns, from the GPU and from the CPU."""
    found = []
    for device in (mx.gpu, mx.cpu):
        with mx.stream(device):
            found.append([np.array(x) for x in leaves(mx.compile(fn)(*arguments)) if isinstance(x, mx.array)])
    return found[0], found[1]


# -- where evaluation goes ---------------------------------------------------------------------------------------------
def test_the_gpu_is_the_default_where_there_is_one(backend: EmulatedMetal) -> None:
    assert mx.default_device() == mx.gpu and mx.metal.is_available() and mx.is_available(mx.gpu)
    assert mx.device_count(mx.gpu) == 1 and mx.default_stream(mx.gpu).device == mx.gpu
    assert "emulated" in mx.metal.device_info()["device_name"] == mx.device_info(mx.gpu)["device_name"]
    assert "CPU" in str(mx.device_info(mx.cpu)["device_name"])


def test_a_compiled_function_runs_on_the_default_device_of_each_call(backend: EmulatedMetal) -> None:
    fn = mx.compile(lambda x: mx.exp(x) * 2)
    x = normal(7)
    mx.eval(fn(x))
    assert sum(backend.dispatched.values()) == 1
    with mx.stream(mx.cpu):
        np.testing.assert_allclose(np.array(fn(x)), np.exp(np.array(x)) * 2, rtol=1e-6)
    mx.set_default_device(mx.cpu)
    mx.eval(fn(x))
    assert sum(backend.dispatched.values()) == 1
    mx.set_default_device(mx.gpu)
    np.testing.assert_allclose(np.array(fn(x)), np.exp(np.array(x)) * 2, rtol=1e-6)
    assert sum(backend.dispatched.values()) == 2


def test_plain_evaluation_goes_there_in_the_compiled_tier(
    backend: EmulatedMetal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs, "tier", "compiled")
    x = normal(4, 6)
    np.testing.assert_allclose(np.array(mx.sum(x * 3, axis=0)), np.array(x).sum(0) * 3, rtol=1e-5)
    mx.async_eval(y := x - 1)
    np.testing.assert_allclose(np.array(y), np.array(x) - 1)
    assert sum(backend.dispatched.values()) == 2  # the worker's thread took this thread's device


def test_shapeless_functions_are_compiled_for_each_size(backend: EmulatedMetal) -> None:
    fn = mx.compile(lambda x: mx.softmax(x, axis=-1), shapeless=True)
    for n in (5, 9, 5):
        x = normal(3, n)
        e = np.exp(np.array(x) - np.array(x).max(-1, keepdims=True))
        np.testing.assert_allclose(np.array(fn(x)), e / e.sum(-1, keepdims=True), rtol=1e-5)
    assert sum(backend.dispatched.values()) == 3


def test_threads_have_a_default_of_their_own(backend: EmulatedMetal) -> None:
    mx.set_default_device(mx.cpu)
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(mx.default_device()))
    thread.start()
    thread.join()
    assert seen == [mx.gpu] and mx.default_device() == mx.cpu


def test_float64_is_refused_with_what_to_do(backend: EmulatedMetal) -> None:
    with pytest.raises(CompileError, match="float64.*use the CPU"):
        mx.compile(lambda x: x + 1)(mx.ones(3).astype(mx.float64))


def test_errors_of_kernels_reach_the_user(backend: EmulatedMetal, monkeypatch: pytest.MonkeyPatch) -> None:
    fn = mx.compile(lambda x: x + 1)
    x = normal(5)
    mx.eval(fn(x))
    monkeypatch.setattr(backend, "_execute", lambda buffer: setattr(buffer, "message", "Caused GPU Timeout Error"))
    y = fn(x)  # nothing is waited for yet
    with pytest.raises(DeviceError, match="GPU Timeout"):
        mx.eval(y)
    z = fn(x)
    with pytest.raises(DeviceError, match="GPU Timeout"):
        mx.synchronize()
    del z
    mx.synchronize()


# -- models ------------------------------------------------------------------------------------------------------------
HEADS, WIDTH, LENGTH, WORDS = 2, 16, 8, 11


def gpt_block(p: dict[str, mx.array], tokens: mx.array) -> mx.array:
    """The loss of a transformer block that predicts the next token."""
    x = p["embedding"][tokens[:, :-1]]
    h = mx.fast.layer_norm(x, p["norm1"], None, 1e-5)
    q, k, v = [
        (h @ p[name]).reshape(*h.shape[:2], HEADS, WIDTH // HEADS).transpose(0, 2, 1, 3) for name in ("q", "k", "v")
    ]
    scores = (q @ k.transpose(0, 1, 3, 2)) / (WIDTH // HEADS) ** 0.5
    mask = mx.triu(mx.full((h.shape[1], h.shape[1]), -1e9), k=1)
    attended = mx.softmax(scores + mask, axis=-1) @ v
    x = x + attended.transpose(0, 2, 1, 3).reshape(*h.shape) @ p["o"]
    h = mx.fast.rms_norm(x, p["norm2"], 1e-5) @ p["up"]
    x = x + (h * mx.sigmoid(1.702 * h)) @ p["down"]
    logits = x @ p["embedding"].T
    picked = mx.take_along_axis(logits, tokens[:, 1:, None], axis=-1)[..., 0]
    return mx.mean(mx.logsumexp(logits, axis=-1) - picked)


def conv_net(p: dict[str, mx.array], x: mx.array, labels: mx.array) -> mx.array:
    """The loss of two convolutions with pooling and a linear layer."""
    h = mx.maximum(mx.conv2d(x, p["conv1"], padding=1) + p["bias1"], 0)
    h = mx.max(h.reshape(h.shape[0], 4, 2, 4, 2, -1), axis=(2, 4))
    h = mx.tanh(mx.conv2d(h, p["conv2"], stride=2, padding=1))
    logits = mx.mean(h, axis=(1, 2)) @ p["out"]
    return mx.mean(mx.logsumexp(logits, axis=-1) - mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0])


def parameters(**shapes: tuple[int, ...]) -> dict[str, mx.array]:
    return {name: normal(*shape, seed=i) * 0.3 for i, (name, shape) in enumerate(shapes.items())}


MODELS: dict[str, tuple[Callable[..., mx.array], tuple[Any, ...]]] = {
    "GPT block": (gpt_block, (parameters(
        embedding=(WORDS, WIDTH), norm1=(WIDTH,), norm2=(WIDTH,), q=(WIDTH, WIDTH), k=(WIDTH, WIDTH), v=(WIDTH, WIDTH),
        o=(WIDTH, WIDTH), up=(WIDTH, 3 * WIDTH), down=(3 * WIDTH, WIDTH),
    ), mx.array(np.random.default_rng(1).integers(0, WORDS, (2, LENGTH + 1)).astype(np.int32)))),
    "convolutional net": (conv_net, (parameters(
        conv1=(6, 3, 3, 2), bias1=(6,), conv2=(5, 3, 3, 6), out=(5, 4),
    ), normal(3, 8, 8, 2), mx.array(np.array([0, 3, 1], np.int32)))),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_loss_and_gradients_are_those_of_the_cpu(backend: EmulatedMetal, name: str) -> None:
    loss, arguments = MODELS[name]
    on_gpu, on_cpu = both(mx.value_and_grad(loss), *arguments)
    assert len(on_gpu) == 1 + len(arguments[0]) and sum(backend.dispatched.values()) > 10
    assert np.isfinite(on_cpu[0]) and all(np.abs(g).max() > 1e-4 for g in on_cpu)
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=2e-5)


# -- ahead of time -----------------------------------------------------------------------------------------------------
MODEL = """\
import mlxir as mx
import numpy as np

weights = mx.array(np.random.default_rng(3).standard_normal((16, 8)).astype(np.float32))
offset = mx.array(np.arange(8, dtype=np.float32))


def net(x, p):
    y = mx.softmax(mx.tanh(x @ weights + offset) * p["scale"], axis=-1)
    return mx.sort(y, axis=-1), mx.real(mx.fft.fft(y)), x, mx.where(y > 0.1, y, -mx.inf).max()


example_args = {"net": [mx.zeros((5, 16)), {"scale": mx.ones((8,))}]}
"""
LOADER = """\
import sys
import numpy as np
import mlxir as mx

given = np.load("given.npz")
results = mx.metal.load("out")(*[mx.array(given[k]) for k in given.files])
np.savez("found.npz", *[np.array(r) for r in results])
from mlxir.runtime.devices import gpu
print(sum(gpu().backend.dispatched.values()), [m for m in sys.modules if m.partition(".")[0] in ("torch_mlir", "mlir")])
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that was dumped into out/, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    assert main(["dump", "model.py:net", "--target", "metal", "-o", "out"]) == 0
    return tmp_path


def test_a_dumped_folder_runs_without_python_source_and_mlir(folder: Path) -> None:
    x = np.random.default_rng(0).standard_normal((5, 16)).astype(np.float32)
    scale = np.linspace(1, 2, 8).astype(np.float32)
    np.savez("given.npz", x, scale)
    Path("model.py").unlink()
    Path("load.py").write_text(LOADER)
    environment = {**os.environ, "MLXIR_DEVICE": "metal-emulated"}
    ran = subprocess.run([sys.executable, "load.py"], env=environment, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    kernels = [s for s in json.loads(Path("out/schedule.json").read_text())["steps"] if "kernel" in s]
    assert ran.stdout.split(maxsplit=1) == [str(len(kernels)), "[]\n"]
    names: dict[str, Any] = {}
    exec(MODEL, names)
    expected = [np.array(r) for r in names["net"](mx.array(x), {"scale": mx.array(scale)})]
    found = np.load("found.npz")
    found_arrays = [found[k] for k in found.files]
    assert len(found_arrays) == 3  # x is returned as it came in: it is no output of the program
    for a, b in zip(found_arrays, [expected[0], expected[1], expected[3]], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_folder_is_complete_and_its_json_strict(folder: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    schedule = json.loads(Path("out/schedule.json").read_text(), parse_constant=refuse)
    data = Path("out/constants.bin").read_bytes()
    assert len(data) == schedule["constants"] and [p["shape"] for p in schedule["parameters"]] == [[5, 16], [8]]
    places = [p for s in schedule["steps"] for p in [*s.get("buffers", ()), *s.get("operands", ())]]
    constants = [p for p in places if p["kind"] == "constant"]
    assert {p["at"] % 256 for p in constants} == {0} and {tuple(p["shape"]) for p in constants} == {(16, 8), (8,)}
    first = next(p for p in constants if p["shape"] == [16, 8])
    weights = np.random.default_rng(3).standard_normal((16, 8)).astype(np.float32)
    assert data[first["at"] : first["at"] + first["bytes"]] == weights.tobytes()
    sizes = {"parameter": len(schedule["parameters"]), "result": len(schedule["results"])}
    for p in places:
        limit = sizes.get(p["kind"])
        assert p["at"] < limit if limit else p["at"] + p["bytes"] <= max(schedule["arena"], schedule["constants"])
    readme = Path("out/README.md").read_text()
    assert "never run on Metal" in readme and "parameter 0: float32[5,16]" in readme and "constants.bin" in readme


def test_the_loader_refuses_what_does_not_fit(folder: Path, backend: EmulatedMetal) -> None:
    program = mx.metal.load("out")
    with pytest.raises(ValueError, match=r"takes .*\(5, 16\)"):
        program(normal(5, 16))
    whole = Path("out/constants.bin").read_bytes()
    Path("out/constants.bin").write_bytes(b"short")
    with pytest.raises(ValueError, match="has 5 bytes"):
        mx.metal.load("out")
    Path("out/constants.bin").write_bytes(whole)
    Path("out/kernels.metal").unlink()
    with pytest.raises(OSError):
        mx.metal.load("out")


def test_without_a_device_nothing_is_loaded() -> None:
    if not mx.metal.is_available():
        with pytest.raises(RuntimeError, match="MLXIR_DEVICE=metal-emulated"):
            mx.metal.load("anywhere")


# -- check-metal -------------------------------------------------------------------------------------------------------
def test_check_metal_reports_signatures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["check-metal", "out/kernels.metal"]) == 0
    out = capsys.readouterr().out
    assert "out/kernels.metal: accepted, " in out and "no warnings" in out and "nothing here ran on Metal" in out
    source = Path("out/kernels.metal").read_text()
    assert "buffer(0)" in out and "in0: device const float*" in out
    assert all(f"  {line.split('(')[0].removeprefix('kernel void ')}: at most" in out
               for line in source.splitlines() if line.startswith("kernel void"))  # fmt: skip


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("x[i] = y;", "bad.metal:4:"),
        ("float4 v = (float4)(1, 2, 3, 4); x[i] = v.x;", "OpenCL vector literal"),
        ("threadgroup float t[9000]; t[i] = 1; x[i] = t[i];", "36000 bytes of threadgroup memory"),
    ],
)
def test_check_metal_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], body: str, told: str) -> None:
    file = tmp_path / "bad.metal"
    file.write_text(
        "#include <metal_stdlib>\nusing namespace metal;\n"
        f"kernel void f(device float* x [[buffer(0)]], uint i [[thread_position_in_grid]]) {{\n{body}\n}}\n"
    )
    assert main(["check-metal", str(file)]) == 1
    out = capsys.readouterr().out
    assert "bad.metal: refused" in out and told in out
    assert main(["check-metal", str(tmp_path / "none.metal")]) == 2


def test_the_environment_selects_the_emulated_device(tmp_path: Path) -> None:
    script = (
        "import mlxir as mx; x = mx.arange(6.0); print(mx.default_device(), (x * x).sum().item());"
        "from mlxir.runtime.devices import gpu; print(sum(gpu().backend.dispatched.values()) > 0)"
    )
    environment = {**os.environ, "MLXIR_DEVICE": "metal-emulated"}
    environment.pop("MLXIR_TIER", None)
    ran = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120,
                         cwd=tmp_path)  # fmt: skip
    assert ran.stdout.splitlines() == ["Device(gpu, 0) 55.0", "True"], ran.stderr
