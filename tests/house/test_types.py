"""What type checkers see: the examples pass mypy, a user's script has types, and declared methods are those bound."""

import ast
import inspect
import sys
from pathlib import Path

import processes
import pytest

import mlxir as mx

ROOT = Path(__file__).parents[2]

SCRIPT = '''
import mlxir as mx
import mlxir.nn as nn
import mlxir.optimizers
from mlxir.utils import tree_flatten

x = mx.array([1.0, 2.0])
a: mx.array = x.reshape(2, 1).T.astype(mx.float16).sum(axis=0, keepdims=True)
b: mx.array = 2 * (x + 1) @ x - mx.exp(-x) ** 2
c: mx.array = mx.fast.rms_norm(x, None, 1e-5) + mx.linalg.norm(x) + mx.random.normal((2,)) + mx.fft.fft(x).real
d: list[mx.array] = mx.split(x, 2)
e: mx.array = (x == 1) & (x < mx.sum(x[::-1]))
f: tuple[int, ...] = x.at[0].add(1).shape
g: mx.Dtype = mx.result_type(x, mx.float32)
h: mx.Device = mx.default_device()
model = nn.Linear(2, 3)
x += 1
for row in x:
    k: mx.array = row
'''
WRONG = {
    "x.summ()": "attr-defined",
    "x.sum(axes=0)": "call-arg",
    "x.reshape(2).T.transposed": "attr-defined",
    "mx.random.normall((2,))": "attr-defined",
    "mx.expp(x)": "attr-defined",
    "mx.matmul(x)": "call-arg",
    "i: int = mx.sum(x)": "assignment",
    "x.shape = (1,)": "misc",
}


@pytest.fixture(scope="module")
def check(tmp_path_factory):
    """Runs mypy on files against the package, laid out as it installs (see the Makefile); returns what it prints."""
    folder = tmp_path_factory.mktemp("types")
    package = folder / "mlxir"
    package.mkdir()
    for path in [*(ROOT / "api").iterdir(), *(ROOT / name for name in ("compiler", "dialects", "runtime"))]:
        (package / path.name).symlink_to(path)
    (folder / "mypy.ini").write_text(
        f"[mypy]\nmypy_path = {folder}\ncache_dir = {folder}/cache\nfollow_imports = silent\n"
        "ignore_missing_imports = True\ncheck_untyped_defs = True\n"
    )

    def run(*files):
        command = [sys.executable, "-m", "mypy", "--config-file", str(folder / "mypy.ini"), *map(str, files)]
        return processes.run(command, cwd=folder).stdout

    return run


def test_the_examples_pass_the_type_checker(check):
    told = check(*sorted((ROOT / "examples").glob("*.py")))
    assert told.startswith("Success"), told


def test_a_script_is_checked_against_the_signatures(check, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT + "\n".join(WRONG) + "\n")
    told = check(script)
    first = SCRIPT.count("\n") + 1
    expected = {(first + n, code) for n, code in enumerate(WRONG.values())}
    lines = [line for line in told.splitlines() if ": error:" in line]
    found = {(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in lines}
    assert found == expected, told


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "api" / "py.typed").is_file()


def declared():
    """The functions of the class in declared.pyi, by name."""
    tree = ast.parse((ROOT / "api" / "declared.pyi").read_text())
    (body,) = [node.body for node in tree.body if isinstance(node, ast.ClassDef)]
    return {node.name: node for node in body if isinstance(node, ast.FunctionDef)}


def parameters(node):
    """(name, default) of what a declared function takes beside self."""
    names, defaults = [a.arg for a in node.args.args], [ast.unparse(d) for d in node.args.defaults]
    found = [*zip(names, [None] * (len(names) - len(defaults)) + defaults, strict=True)][1:]
    if node.args.vararg:
        found.append((f"*{node.args.vararg.arg}", None))
    keywords = zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)
    return [*found, *[(a.arg, None if d is None else ast.unparse(d)) for a, d in keywords]]


def test_declared_methods_have_the_signatures_of_those_bound():
    known = declared()
    public = {name for name in vars(mx.array) if not name.startswith("_")}
    own = {"shape", "dtype", "ndim", "size", "itemsize", "nbytes", "item", "tolist"}  # written out in ndarray.py
    assert public - own == {name for name in known if not name.startswith("_")}
    for name, node in known.items():
        method = getattr(mx.array, name)
        if name.startswith("__") or isinstance(method, property):
            continue
        bound = [
            ("*" * (p.kind is p.VAR_POSITIONAL) + p.name, None if p.default is p.empty else repr(p.default))
            for p in list(inspect.signature(method).parameters.values())[1:]
        ]
        assert parameters(node) == bound, name


def test_declared_operators_exist():
    assert [name for name in declared() if name not in vars(mx.array)] == []
