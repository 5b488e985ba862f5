"""`mx.dump`: golden IR of two small functions, and what the call promises about arguments, files and state.

`pytest tests/compiler/test_dump.py --update-golden` writes the golden files anew after a change of the compiler that is
meant; the diff then shows what it did. They hold MLIR's own printing, which another MLIR may change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mlxir as mx
from mlxir.compiler import evaluate
from mlxir.dump import TARGETS, Spec
from mlxir.runtime.errors import CompileError

GOLDEN = Path(__file__).parent / "golden"
CPU_FILES = {
    "1-mx.mlir", "2-transformed.mlir", "3-fused.mlir", "4-loops.mlir", "5-kernels.ll", "6-kernels.s", "7-schedule.json",
}  # fmt: skip


def softmax(x: mx.array) -> mx.array:
    """Two reductions over the rows and what is between and after them: one kernel of the form `row`."""
    e = mx.exp(x - mx.max(x, axis=-1, keepdims=True))
    return e / mx.sum(e, axis=-1, keepdims=True)


def loss(w: mx.array, x: mx.array) -> mx.array:
    return mx.sum(mx.tanh(x * w))


def gradient(w: mx.array, x: mx.array) -> tuple[mx.array, mx.array]:
    """A transform; its reduction over the first axis is a kernel of the form `column`."""
    return mx.value_and_grad(loss)(w, x)


CASES: dict[str, tuple[Callable, list[str]]] = {
    "softmax": (softmax, ["f32[4,8]"]),
    "gradient": (gradient, ["f32[8]", "f32[4,8]"]),
}


# -- golden files -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", CASES)
def test_golden_ir(name: str, tmp_path: Path, update_golden: bool) -> None:
    function, arguments = CASES[name]
    stages = ["transformed", "fused", "loops"]
    folder = mx.dump(function, *arguments, directory=tmp_path, stages=stages)
    for stage, file in zip(stages, sorted(folder.iterdir()), strict=True):
        golden, actual = GOLDEN / f"{name}-{stage}.mlir", file.read_text()
        if update_golden:
            golden.parent.mkdir(exist_ok=True)
            golden.write_text(actual)
        assert golden.exists(), f"{golden.name} is missing: run with --update-golden"
        assert actual == golden.read_text(), f"{golden.name} differs; if that is meant, run with --update-golden"


def test_every_golden_file_is_compared() -> None:
    expected = {f"{name}-{stage}.mlir" for name in CASES for stage in ("transformed", "fused", "loops")}
    assert {p.name for p in GOLDEN.iterdir()} == expected


# -- files ------------------------------------------------------------------------------------------------------------
def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


def test_one_numbered_file_per_stage(tmp_path: Path) -> None:
    folder = mx.dump(softmax, "f32[4,8]", directory=tmp_path / "new" / "folder")
    assert folder == tmp_path / "new" / "folder" and names(folder) == CPU_FILES
    texts = {p.name: p.read_text() for p in folder.iterdir()}
    assert '"mx.exp"' in texts["1-mx.mlir"] and "scf.parallel" in texts["4-loops.mlir"]
    symbol = json.loads(texts["7-schedule.json"])["t"][4]["t"][0]["t"][0]["t"][0]["t"][0]
    assert f"define void @{symbol}(i64" in texts["5-kernels.ll"] and f"{symbol}:" in texts["6-kernels.s"]
    json.loads(texts["7-schedule.json"])


def test_the_transform_is_an_operation_first_and_expanded_then(tmp_path: Path) -> None:
    folder = mx.dump(gradient, "f32[8]", "f32[4,8]", directory=tmp_path, stages=["mx", "transformed"])
    assert names(folder) == {"1-mx.mlir", "2-transformed.mlir"}
    assert '"mx.vjp"() ' in (folder / "1-mx.mlir").read_text()
    assert "mx.vjp" not in (folder / "2-transformed.mlir").read_text()


def test_stages_are_written_as_asked(tmp_path: Path) -> None:
    mx.dump(softmax, "f32[2,3]", directory=tmp_path, stages=("llvm", "mx"))
    assert names(tmp_path) == {"1-mx.mlir", "5-kernels.ll"}


def test_an_old_file_does_not_outlive_a_failed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mx.dump(softmax, "f32[2,3]", directory=tmp_path)

    def fail(module: object, **options: object) -> None:
        raise RuntimeError("the pass fails")

    monkeypatch.setattr(evaluate.pipeline(), "fuse", fail)
    with pytest.raises(RuntimeError, match="the pass fails"):
        mx.dump(softmax, "f32[2,3]", directory=tmp_path)
    assert names(tmp_path) == {"1-mx.mlir", "2-transformed.mlir"}


def test_every_stage_of_a_target_has_a_file() -> None:
    stages = evaluate.pipeline().STAGES
    assert {s for target in TARGETS.values() for s in target} == set(stages)
    for target in TARGETS.values():
        files = [stages[s][0] for s in target]
        assert len(set(files)) == len(files) and files == sorted(files)


def test_metal_has_shaders_and_a_schedule_of_the_same_kernels(tmp_path: Path) -> None:
    folder = mx.dump(gradient, "f32[8]", "f32[4,8]", directory=tmp_path, target="metal")
    assert names(folder) == {"1-mx.mlir", "2-transformed.mlir", "3-fused.mlir", "4-loops.mlir", "kernels.metal",
                             "schedule.json", "README.md"}  # fmt: skip
    schedule = json.loads((folder / "schedule.json").read_text())
    assert [p["shape"] for p in schedule["parameters"]] == [[8], [4, 8]]
    fused, shaders = (folder / "3-fused.mlir").read_text(), (folder / "kernels.metal").read_text()
    for step in schedule["steps"]:
        assert f"kernel void {step['kernel']}(" in shaders and f"@{step['kernel']}(" in fused


def test_a_dtype_that_metal_lacks_is_told(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="float64.*Metal.*cast to float32"):
        mx.dump(softmax, "f64[4,8]", directory=tmp_path, target="metal")
    assert names(tmp_path) == {"1-mx.mlir", "2-transformed.mlir", "3-fused.mlir", "4-loops.mlir"}


# -- arguments --------------------------------------------------------------------------------------------------------
def parameters(folder: Path) -> str:
    """The parameters of `main` as the first stage prints them."""
    text = (folder / "1-mx.mlir").read_text()
    return text[text.index("@main(") :].split(") ->")[0]


def test_arguments_are_trees_of_arrays_specs_and_constants(tmp_path: Path) -> None:
    def model(x: mx.array, params: dict, scales: tuple, flag: bool = False) -> mx.array:
        assert flag and type(scales) is tuple and params["name"] == "linear"
        return (x * scales[0] + params["w"][0]) * params["n"] + scales[1]

    folder = mx.dump(
        model, mx.array([1.0, 2.0], dtype=mx.float16), {"w": ["f16[2]"], "n": 4, "name": "linear"},
        (0.5, Spec((2,), mx.float16)), flag=True, directory=tmp_path, stages=["mx"],
    )  # fmt: skip
    assert parameters(folder).count("tensor<2xf16>") == 3


def test_captured_arrays_become_parameters(tmp_path: Path) -> None:
    w = mx.array([1.0, 2.0, 3.0])
    folder = mx.dump(lambda x: x * w, "f32[2,3]", directory=tmp_path, stages=["mx"])
    assert parameters(folder) == "@main(%arg0: tensor<2x3xf32>, %arg1: tensor<3xf32>"


def test_a_lazy_captured_array_is_not_evaluated(tmp_path: Path) -> None:
    w = mx.array([1.0, 2.0, 3.0]) + 1
    mx.dump(lambda x: x * w, "f32[3]", directory=tmp_path, stages=["mx"])
    assert w._value.buffer is None


def test_nothing_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: object) -> None:
        raise AssertionError("something was evaluated")

    monkeypatch.setattr(evaluate, "_evaluate", never)
    monkeypatch.setattr(evaluate, "executable", never)
    mx.dump(gradient, mx.array([1.0, 2.0]), mx.array([[1.0, 2.0]]), directory=tmp_path)
    assert names(tmp_path) == CPU_FILES


def test_evaluating_a_traced_array_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[eval\].*test_dump.py"):
        mx.dump(lambda x: x * x.sum().item(), "f32[3]", directory=tmp_path)


def test_a_compiled_function_is_unwrapped(tmp_path: Path) -> None:
    compiled = mx.compile(softmax)
    plain = mx.dump(softmax, "f32[4,8]", directory=tmp_path / "plain", stages=["loops"])
    folder = mx.dump(compiled, "f32[4,8]", directory=tmp_path / "compiled", stages=["loops"])
    assert (folder / "4-loops.mlir").read_text() == (plain / "4-loops.mlir").read_text()
    assert compiled.cache_info().entries == 0


def test_captured_state_stays_as_it_was(tmp_path: Path) -> None:
    """State that a compiled function reads and writes is parameters and results of the program; it keeps its values."""
    w = mx.array([1.0, 2.0])
    state = {"w": w, "steps": [mx.array(0)]}

    def step(x: mx.array) -> mx.array:
        state["w"] = state["w"] - 0.1 * x
        state["steps"][0] = state["steps"][0] + 1
        return mx.sum(state["w"]) + mx.random.uniform()

    mx.random.seed(3)
    expected = np.array(mx.random.uniform())
    mx.random.seed(3)
    compiled = mx.compile(step, inputs=[state, mx.random.state], outputs=[state, mx.random.state])
    folder = mx.dump(compiled, "f32[2]", directory=tmp_path, stages=["mx"])
    assert parameters(folder).count("%arg") == 4  # x, w, steps and the random key
    text = (folder / "1-mx.mlir").read_text()
    assert text[text.index(") -> (") :].split("{")[0].count("tensor") == 4
    assert state["w"] is w and state["steps"][0].item() == 0
    np.testing.assert_array_equal(np.array(mx.random.uniform()), expected)


def test_the_random_state_of_a_plain_function_stays(tmp_path: Path) -> None:
    mx.random.seed(5)
    expected = np.array(mx.random.uniform())
    mx.random.seed(5)
    mx.dump(lambda x: x + mx.random.uniform(), "f32[2]", directory=tmp_path, stages=["mx"])
    np.testing.assert_array_equal(np.array(mx.random.uniform()), expected)


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda d: mx.dump(softmax, "f32[2]", directory=d, target="tpu"), ValueError, "no target is called 'tpu'"),
        (lambda d: mx.dump(softmax, "f32[2]", directory=d, stages=["ptx"]), ValueError, "no stage 'ptx'"),
        (lambda d: mx.dump(softmax, "f32[2]", directory=d, stages=["metal"]), ValueError, "target cpu has no stage"),
        (lambda d: mx.dump(3, "f32[2]", directory=d), TypeError, "must be a function"),
        (lambda d: mx.dump(softmax, "f33[2]", directory=d), ValueError, "unknown dtype 'f33'"),
        (lambda d: mx.dump(loss, "f32[2]", "f32[3]", directory=d), ValueError, r"cannot be broadcast.*test_dump.py"),
        (lambda d: mx.dump(lambda x: x, "f32[2]", directory=d), ValueError, "computes nothing"),
        (lambda d: mx.dump(lambda x: None, "f32[2]", directory=d), ValueError, "computes nothing"),
    ],
)
def test_mistakes_are_told(call: Callable, error: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=message):
        call(tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize("text", ["f32[2,3]", "f32[]", "bool[1]", "bf16[4,0]", "u8[2]", "c64[3]"])
def test_a_spec_is_spelled_as_it_is_read(text: str) -> None:
    assert str(Spec.parse(text)) == text


@pytest.mark.parametrize("text", ["f32", "f32[2", "f32[-1]", "[2]", "f32[2 3]", "f32[,]", "f32[1,,3]", "x[2]"])
def test_what_is_no_spec_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Spec.parse(text)


def test_names_of_dtypes_and_spaces_are_read_too() -> None:
    assert Spec.parse(" float32 [ 2, 3 ] ") == Spec((2, 3), mx.float32)
