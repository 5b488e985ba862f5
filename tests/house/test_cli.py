"""The command `mlxir`: what it prints and writes, and one line with exit code 2 for every mistake."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import processes
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlxir as mx
from mlxir.cli import UsageError, main, parse_spec
from mlxir.compiler.pipeline import STAGES
from mlxir.dump import TARGETS, Spec
from mlxir.runtime import dtypes
from mlxir.runtime.knobs import knobs

ATTENTION = Path(__file__).resolve().parents[2] / "examples" / "attention.py"
MODEL = '''
import helper_of_model
import mlxir as mx

def affine(x, p, n=1):
    return helper_of_model.twice(x @ p["w"]) + p["b"] * n

def loss(w, x):
    return mx.mean(mx.square(x @ w))

gradient = mx.compile(mx.value_and_grad(loss))

class Net:
    def __call__(self, x):
        return mx.sin(x)

net = Net()

def wrong_type(x):
    return x.no_such

def wrong_shape(x):
    y = x + 1
    return y @ mx.zeros((5, 5))

def reads(x):
    return x * float(mx.sum(x))

def identity(x):
    return x

def nullary():
    return mx.sin(mx.arange(4).astype(mx.float32))

number = 3
example_args = {
    "affine": ["f32[2,3]", {"w": "f32[3,4]", "b": mx.zeros(4)}],
    "gradient": ["f32[3,1]", "f32[2,3]"],
    "net": ["f32[3]"],
    "wrong_type": ["f32[3]"],
    "wrong_shape": ["f32[3,3]"],
    "reads": ["f32[3]"],
    "identity": ["f32[3]"],
    "loss": "f32[3]",
}
'''


def line(text: str) -> str:
    """How the line of the model that begins so is named in a message."""
    return f"(model.py:{next(n for n, s in enumerate(MODEL.splitlines(), 1) if s.strip().startswith(text))})"


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's file, beside a module that it imports."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper_of_model.py").write_text("def twice(x):\n    return x + x\n")
    sys.modules.pop("helper_of_model", None)
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


class Ran:
    """A call of `main` in this process."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *argv: object):
        self.code = main([str(a) for a in argv])
        self.out, self.err = capsys.readouterr()

    def mistake(self) -> str:
        """The one line of a mistake."""
        assert self.code == 2 and self.out == ""
        assert self.err.startswith("mlxir: ") and self.err.endswith("\n") and self.err.count("\n") == 1, self.err
        return self.err


# -- argument specs ---------------------------------------------------------------------------------------------------
F32, I32 = dtypes.float32, dtypes.int32


@pytest.mark.parametrize(
    ("text", "tree"),
    [
        ("f32[64,64]", Spec((64, 64), F32)),
        ("i32[64]", Spec((64,), I32)),
        ("f32[]", Spec((), F32)),
        (" float32 [ 2 , 3 ] ", Spec((2, 3), F32)),
        ("[f32[2], {'w': f32[3,3], 'n': 4}]", [Spec((2,), F32), {"w": Spec((3, 3), F32), "n": 4}]),
        ('{"a": [f32[]], b: (i32[1], "text[]")}', {"a": [Spec((), F32)], "b": (Spec((1,), I32), "text[]")}),
        ("3", 3), ("-1.5", -1.5), ("1e-5", 1e-5), ("-inf", -float("inf")),
        ("true", True), ("False", False), ("null", None), ("'text'", "text"),
        ("[]", []), ("{}", {}), ("()", ()), ("[[1], [2, [3]]]", [[1], [2, [3]]]),
    ],
)  # fmt: skip
def test_a_spec_is_read(text: str, tree: Any) -> None:
    assert parse_spec(text) == tree and type(parse_spec(text)) is type(tree)


@pytest.mark.parametrize(
    "text",
    ["", "f32", "f32[", "f32[2", "f32]2[", "f32[-2]", "f32[2.5]", "f32[n]", "f32[2][3]", "f31[2]", "f32[2]+f32[2]",
     "1 2", "[1", "{1}", "{**x}", "{f32[2]: 1}", "x", "print(1)", "__import__('os')", "lambda: 1", "f'{1}'",
     "[1 for _ in x]", "\0", "-'a'", "a.b", "1 if x else 2"],
)  # fmt: skip
def test_what_is_no_spec_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError) as raised:
        parse_spec(text)
    assert "\n" not in str(raised.value) and "--arg" in str(raised.value)


SPECS = st.builds(Spec, st.lists(st.integers(0, 99), max_size=3).map(tuple), st.sampled_from(dtypes.ALL))
NUMBERS = st.integers(-9, 9) | st.floats(allow_nan=False, allow_infinity=False)
LEAVES = SPECS | NUMBERS | st.booleans() | st.none()
TREES = st.recursive(
    LEAVES | st.text("ab [],{}", max_size=5),
    lambda t: st.lists(t, max_size=3) | st.dictionaries(st.text("abc", min_size=1, max_size=3), t, max_size=3),
    max_leaves=6,
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_any_json_tree_of_specs_is_read_back(tree: Any) -> None:
    def spelled(t: Any) -> str:
        if isinstance(t, list):
            return "[" + ", ".join(map(spelled, t)) + "]"
        if isinstance(t, dict):
            return "{" + ", ".join(f"{json.dumps(k)}: {spelled(v)}" for k, v in t.items()) + "}"
        return str(t) if isinstance(t, Spec) else json.dumps(t)

    assert parse_spec(spelled(tree)) == tree


# -- dump -------------------------------------------------------------------------------------------------------------
def test_dump_writes_one_numbered_file_per_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = Ran(capsys, "dump", f"{ATTENTION}:softmax", "--arg", "f32[4,8]", "-o", tmp_path / "ir")
    files = sorted((tmp_path / "ir").iterdir())
    assert ran.code == 0 and ran.err == ""
    assert ran.out.split() == [str(f) for f in files]
    assert [f.name for f in files] == [STAGES[stage][0] for stage in TARGETS["cpu"]]


def test_a_single_stage_is_printed_or_written(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["dump", f"{ATTENTION}:softmax", "--arg", "f32[4,8]", "--stage", "fused"]
    printed = Ran(capsys, *arguments)
    assert printed.code == 0 and printed.out.startswith("module {") and '"mx.exp"' in printed.out
    written = Ran(capsys, *arguments, "-o", tmp_path / "ir")
    assert written.code == 0 and [f.name for f in (tmp_path / "ir").iterdir()] == ["3-fused.mlir"]
    assert (tmp_path / "ir" / "3-fused.mlir").read_text() == printed.out


def test_without_a_folder_it_writes_to_out(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    assert Ran(capsys, "dump", "model.py:net").code == 0
    assert (model.parent / "out" / "net" / "4-loops.mlir").exists()


@pytest.mark.parametrize("name", ["affine", "gradient", "net", "nullary"])
def test_example_arguments_of_the_file_are_used(capsys: pytest.CaptureFixture[str], model: Path, name: str) -> None:
    """A function whose file imports a neighbour, a compiled one, an object with __call__, one without parameters."""
    ran = Ran(capsys, "dump", f"model.py:{name}", "--stage", "mx")
    assert ran.code == 0, ran.err
    assert ran.out.startswith("module {") and "@main(" in ran.out


def test_every_example_of_the_repository_is_traced(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("attention", "causal_attention", "softmax", "layer_norm", "mlp"):
        assert Ran(capsys, "dump", f"{ATTENTION}:{name}", "--stage", "transformed").code == 0


def test_a_plain_list_is_good_for_any_function(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "one.py"
    file.write_text("import mlxir as mx\nexample_args = ['f32[7]', 2.5]\ndef f(x, k):\n    return x * k\n")
    ran = Ran(capsys, "dump", f"{file}:f", "--stage", "mx")
    assert ran.code == 0 and "tensor<7xf32>" in ran.out and "2.5" in ran.out


def test_arguments_given_win_over_examples(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    tree = "{w: f32[5,6], b: f32[6]}"
    ran = Ran(capsys, "dump", "model.py:affine", "--arg", "f32[4,5]", "--arg", tree, "--arg", "3", "--stage", "mx")
    assert ran.code == 0 and "tensor<4x6xf32>" in ran.out


def test_metal_is_written_on_any_machine(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    ran = Ran(capsys, "dump", f"{ATTENTION}:attention", "--target", "metal", "-o", tmp_path)
    numbered = [STAGES[s][0] for s in TARGETS["metal"] if s not in ("metal", "schedule")]
    assert ran.code == 0
    assert [f.name for f in sorted(tmp_path.iterdir())] == [*numbered, "README.md", "kernels.metal", "schedule.json"]
    shaders, schedule = tmp_path / "kernels.metal", tmp_path / "schedule.json"
    steps = json.loads(schedule.read_text())["steps"]
    assert steps and all(f"kernel void {s['kernel']}(" in shaders.read_text() for s in steps)
    assert all(len(s["grid"]) == 3 and s["buffers"] for s in steps)


def test_the_stage_metal_means_the_target_metal(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "dump", f"{ATTENTION}:softmax", "--stage", "metal")
    assert ran.code == 0 and ran.out.startswith("#include <metal_stdlib>")


# -- mistakes ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nowhere.py:f"], "there is no file"),
        (["model.py"], "write FILE.py:FUNCTION"),
        (["model.py:"], "write FILE.py:FUNCTION"),
        (["model.py:no_such"], "model.py has no function 'no_such'; it has affine, loss, gradient"),
        (["model.py:Net.no_such"], "has no function 'Net.no_such'"),
        (["model.py:number"], "is a int, no function"),
        (["model.py:affine", "--arg", "f32[2"], "--arg 'f32[2'"),
        (["model.py:affine", "--arg", "f31[2]"], "unknown dtype 'f31'"),
        (["model.py:affine", "--arg", "f32[2]"], "missing a required argument: 'p'"),
        (["model.py:affine", *["--arg", "f32[2]"] * 4], "too many positional arguments"),
        (["model.py:loss"], "example_args in model.py must hold a list"),
        (["model.py:wrong_shape"], "[matmul]"),
        (["model.py:wrong_shape"], line("return y @")),
        (["model.py:wrong_type"], "AttributeError: 'array' object has no attribute 'no_such' " + line("return x.no")),
        (["model.py:wrong_type", "--arg", "3"], "'int' object has no attribute 'no_such' " + line("return x.no")),
        (["model.py:reads"], "[eval]"),
        (["model.py:identity"], "computes nothing"),
        (["model.py:net", "--stage", "ptx"], "invalid choice: 'ptx'"),
        (["model.py:net", "--stage", "metal", "--target", "cpu"], "target cpu has no stage 'metal'"),
        (["model.py:net", "--stage", "llvm", "--target", "metal"], "target metal has no stage 'llvm'"),
        (["model.py:net", "--arg", "f64[3]", "--target", "metal"], "float64 does not exist in Metal"),
        (["model.py:net", "--target", "tpu"], "invalid choice: 'tpu'"),
        (["model.py:net", "--frobnicate"], "unrecognized arguments: --frobnicate"),
        (["model.py:net", "-o", "model.py/below"], "cannot write"),
        ([], "required: FILE.py:FUNCTION"),
    ],
)
def test_a_mistake_gives_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, arguments: list[str], told: str
) -> None:
    assert told in Ran(capsys, "dump", *arguments).mistake()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("def f(x:\n", "broken.py:1: "),
        ("import mlxir\n\n1 / 0\n", "ZeroDivisionError: division by zero (broken.py:3)"),
        ("import no_such_module_here\n", "ModuleNotFoundError: No module named 'no_such_module_here' (broken.py:1)"),
        ("import sys\nsys.exit('stop')\n", "SystemExit: stop (broken.py:2)"),
        ("raise ValueError('two\\nlines')\n", "ValueError: two lines (broken.py:1)"),
        ("x = '\\x00'\n\0", "broken.py"),
    ],
)
def test_a_broken_file_gives_one_line(
    capsys: pytest.CaptureFixture[str], model: Path, source: str, told: str
) -> None:
    (model.parent / "broken.py").write_text(source)
    assert told in Ran(capsys, "dump", "broken.py:f").mistake()


def test_a_text_file_is_no_python_file(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    (model.parent / "notes.txt").write_text("hello")
    assert "no Python file" in Ran(capsys, "dump", "notes.txt:f").mistake()


def test_commands_are_needed_and_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert "COMMAND" in Ran(capsys).mistake()
    assert "invalid choice: 'frobnicate'" in Ran(capsys, "frobnicate").mistake()


def test_the_traceback_is_there_for_who_asks(
    capsys: pytest.CaptureFixture[str], model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs, "debug", 1)
    ran = Ran(capsys, "dump", "model.py:wrong_type")
    assert ran.code == 2 and "Traceback" in ran.err and "x.no_such" in ran.err


# -- the other commands -----------------------------------------------------------------------------------------------
def test_coverage_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    ran = Ran(capsys, "coverage")
    assert ran.code == 0 and ran.out.split("\n")[0].split()[:3] == ["primitive", "kind", "shape"]
    assert any(line.startswith("matmul ") for line in ran.out.splitlines())


def test_cache_tells_and_clears(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knobs, "cache_dir", tmp_path / "cache")
    mx.clear_compile_cache()
    mx.compile(lambda x: mx.sin(x) * 7.25)(mx.array([1.0, 2.0]))
    # The program, its kernel, the object with the kernel's code, and the launcher.
    assert "4 entries" in Ran(capsys, "cache").out
    assert "4 entries removed" in Ran(capsys, "cache", "clear").out
    assert "0 entries" in Ran(capsys, "cache", "info").out
    monkeypatch.setattr(knobs, "cache_dir", None)
    assert "off" in Ran(capsys, "cache").out
    assert "invalid choice" in Ran(capsys, "cache", "burn").mistake()


# -- as a process -----------------------------------------------------------------------------------------------------
def test_as_a_module_in_a_process(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "mlxir", "dump", f"{ATTENTION}:softmax", *arguments]
        return processes.run(command, cwd=tmp_path)

    good = run("--arg", "f32[2,3]", "--stage", "loops")
    assert good.returncode == 0 and "scf.parallel" in good.stdout and good.stderr == ""
    bad = run("--arg", "f32[2,3")
    assert bad.returncode == 2 and bad.stdout == "" and bad.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error() -> None:
    script = f"{sys.executable} -m mlxir coverage | head -1; exit ${{PIPESTATUS[0]}}"
    done = processes.run(["bash", "-c", script])
    assert done.returncode == 0 and done.stderr == "" and done.stdout.startswith("primitive")
