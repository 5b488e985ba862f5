"""The house's walls: which room may import which, what loads with `import mlxir`, and how long a file may grow.

The rules are read off the syntax trees of the four code folders, so they hold for code that no test happens to run.
An import inside a function needs the comment `# lazy: <reason>` on its line; the direction rules hold for it too.
"""

import ast
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import processes
import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"api": "mlxir", "compiler": "mlxir.compiler", "dialects": "mlxir.dialects", "runtime": "mlxir.runtime"}
MLIR_FILE = "dialects/mlir.py"

# What each room may import of the project. `dialects` knows the dtypes of `runtime` and nothing else of it.
ALLOWED = {
    "runtime": ("mlxir.runtime",),
    "dialects": ("mlxir.dialects", "mlxir.runtime.dtypes", "mlxir.runtime.errors", "mlxir.runtime.knobs"),
    "compiler": ("mlxir.compiler", "mlxir.dialects", "mlxir.runtime"),
    "api": ("mlxir",),
}
MLIR = ("torch_mlir", "mlir")
FAMILIES_FILE = "dialects/mx/__init__.py"  # imports all of its own folder
WHEEL_FILE = "api/wheel.py"  # loads the Python part of an installed MLX wheel under names of ours
LINKER = "runtime/launch.py"  # links object code; imported at the first executable
COMPUTED = "<computed>"  # what stands for the argument of an import_module call that is no literal
NEVER = ("mlx", "torch", "jax", "tensorflow", "api", "compiler", "dialects", "runtime")

MAX_LINES = 600
LONG_FILES: dict[str, str] = {}  # path -> why it is one room and not several
IMPORT_BYTES = 1_200_000  # of source beyond NumPy's own import: 1,050,000 take 35 to 49 of DESIGN section 1's 50 ms


@dataclass(frozen=True)
class Import:
    """One imported module, absolute; `name` is the name that `from module import name` took out of it, else None."""

    module: str
    name: str | None
    line: int
    in_function: bool

    def is_within(self, packages):
        """Whether the import names one of the packages, something inside it, or takes it (`name`) out of its parent."""
        targets = [self.module] if self.name is None else [self.module, f"{self.module}.{self.name}"]
        return any(target == p or target.startswith(p + ".") for target in targets for p in packages)


def module_name(path):
    """compiler/passes/vmap.py -> mlxir.compiler.passes.vmap; for a package's __init__.py the package itself."""
    room, *rest = Path(path).with_suffix("").parts
    return ".".join([FOLDERS[room], *(part for part in rest if part != "__init__")])


def absolute(path, node):
    """The module that a `from ... import` reads, with its leading dots resolved against the file's package."""
    if not node.level:
        return node.module
    package = module_name(path).split(".")
    up = node.level - 1 if path.endswith("__init__.py") else node.level
    base = package[: len(package) - up]
    return ".".join([*base, node.module] if node.module else base)


def imports_of(path, tree):
    """Every import in the file: statements, and importlib.import_module / __import__ of a literal name."""
    found = []

    def visit(node, in_function):
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, None, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = absolute(path, node)
            found.extend(Import(module, alias.name, node.lineno, in_function) for alias in node.names)
        elif isinstance(node, ast.Call):
            function = node.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if called in ("import_module", "__import__") and node.args:
                literal = node.args[0].value if isinstance(node.args[0], ast.Constant) else COMPUTED
                found.append(Import(str(literal), None, node.lineno, in_function))
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, in_function or is_function)

    visit(tree, False)
    return found


def violations(path, source):
    """The broken rules of one product file, as `path:line: what` lines; `path` is relative to the repository's root."""
    room = Path(path).parts[0]
    lines = source.splitlines()
    broken = []
    for found in imports_of(path, ast.parse(source)):
        what = found.module if found.name is None else f"{found.module}.{found.name}"

        def report(rule, line=found.line, what=what):
            broken.append(f"{path}:{line}: import of {what}: {rule}")

        _, lazy, reason = lines[found.line - 1].partition("# lazy:")
        if found.in_function and not reason.strip():
            report("inside a function without `# lazy: <reason>` on its line")
        if lazy and not found.in_function:
            report("`# lazy:` at module level says what is not so")
        if found.module == COMPUTED and path not in (MLIR_FILE, WHEEL_FILE, FAMILIES_FILE):
            report("a computed name cannot be checked")
        if found.module.split(".")[0] in NEVER:
            report("the product never imports it")
        if found.module.split(".")[0] in MLIR and path != MLIR_FILE:
            report(f"only {MLIR_FILE} imports MLIR")
        if found.module.split(".")[0] == "mlxir" and not found.is_within(ALLOWED[room]):
            report(f"{room} may only know {', '.join(ALLOWED[room])}")
        if found.is_within([module_name(MLIR_FILE)]) and (room == "runtime" or path.startswith("dialects/mx/")):
            report("records and runtime work without MLIR")
        if (
            found.module.split(".")[0] == "llvmlite"
            and path != LINKER
            and room in ("runtime", "dialects")
            and not found.in_function
        ):
            report("records and runtime load without LLVM")
    return broken


def files(*folders):
    return sorted(
        path.relative_to(ROOT).as_posix()
        for folder in folders
        for path in (ROOT / folder).rglob("*.py")
        if "__pycache__" not in path.parts
    )


@pytest.mark.parametrize("room", FOLDERS)
def test_imports_keep_their_direction(room):
    paths = files(room)
    assert paths, f"no Python file in {room}/"
    broken = [line for path in paths for line in violations(path, (ROOT / path).read_text())]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "path, source",
    [
        ("runtime/a.py", "from mlxir.compiler import pipeline"),
        ("runtime/a.py", "from ..dialects.mx import record"),
        ("runtime/a.py", "from .. import compiler"),
        ("runtime/a.py", "import mlxir"),
        ("runtime/a.py", "from mlxir import array"),
        ("runtime/a.py", "from mlxir import compiler as c"),
        ("runtime/a.py", "import llvmlite.binding"),
        ("runtime/a.py", "def f():\n    from mlxir.dialects import mlir  # lazy: at the first miss"),
        ("dialects/mx/a.py", "from mlxir.runtime import buffers"),
        ("dialects/mx/a.py", "from mlxir.runtime.trees import flatten"),
        ("dialects/mx/a.py", "from ...runtime import buffers"),
        ("dialects/mx/a.py", "from mlxir.dialects import mlir"),
        ("dialects/mx/a.py", "from ..mlir import ir"),
        ("dialects/mx/__init__.py", "from ..mlir import ir"),
        ("dialects/other.py", "import torch_mlir.ir"),
        ("compiler/passes/a.py", "from mlxir import array"),
        ("compiler/passes/a.py", "from ... import ops"),
        ("compiler/passes/a.py", "import mlxir.ops"),
        ("compiler/a.py", "from torch_mlir import ir"),
        ("compiler/a.py", "try:\n    import mlir\nexcept ImportError:\n    pass"),
        ("compiler/a.py", "import importlib\nir = importlib.import_module('torch_mlir.ir')"),
        ("compiler/a.py", "import os  # lazy: but it is not"),
        ("api/a.py", "import mlx.core as mx"),
        ("api/a.py", "from mlx import nn"),
        ("api/a.py", "import compiler.pipeline"),
        ("api/a.py", "def f():\n    import json"),
        ("api/a.py", "def f():\n    import json  # lazy:"),
        ("api/a.py", "class C:\n    async def f(self):\n        from . import ops"),
        ("api/a.py", "import importlib\ndef f(name):\n    return importlib.import_module(name)  # lazy: some reason"),
    ],
)
def test_a_broken_rule_is_caught(path, source):
    assert violations(path, source)


@pytest.mark.parametrize(
    "path, source",
    [
        ("runtime/a.py", "import numpy\nfrom mlxir.runtime import dtypes\nfrom . import trees\nfrom .errors import E"),
        ("runtime/a.py", "def f():\n    import llvmlite.binding  # lazy: 50 ms, not needed for cached executables"),
        (
            "dialects/mx/a.py",
            "from mlxir.runtime import dtypes\nfrom mlxir.runtime.dtypes import float32\nfrom . import b",
        ),
        ("dialects/mlir.py", "try:\n    from mlir import ir\nexcept ImportError:\n    from torch_mlir import ir"),
        ("compiler/a.py", "from mlxir.dialects import mlir, mx\nfrom mlxir import runtime\nimport llvmlite.binding"),
        ("api/a.py", "from mlxir.compiler import pipeline\nfrom . import ops\nimport mlxir.runtime.trees"),
    ],
)
def test_what_the_rules_allow_passes(path, source):
    assert violations(path, source) == []


def in_new_process(code):
    """Run the code in a fresh interpreter outside the repository and return what it printed, as JSON."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    done = processes.run([sys.executable, "-c", code], env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_import_loads_no_compiler():
    loaded = in_new_process(
        "import sys, json, mlxir; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    assert "mlxir" in loaded
    assert not {*MLIR, "llvmlite", "mlx", "torch", "jax"} & set(loaded)


def test_import_takes_little_beyond_numpy():
    """What is imported, not how long that takes, which benchmarks/startup.py measures: busy machines differ."""
    code = (
        "import json, os, sys, numpy; before = set(sys.modules); import mlxir;"
        " files = [getattr(sys.modules[name], '__file__', None) or '' for name in set(sys.modules) - before];"
        " print(json.dumps([os.path.getsize(file) for file in files if file.endswith('.py')]))"
    )
    sizes = in_new_process(code)
    assert len(sizes) > 50 and sum(sizes) <= IMPORT_BYTES, (len(sizes), sum(sizes))


def test_no_file_outgrows_its_room():
    folders = [*FOLDERS, "tests", "examples", "benchmarks"]
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in files(*folders)}
    too_long = {path: n for path, n in lengths.items() if n > MAX_LINES and path not in LONG_FILES}
    assert not too_long, f"past {MAX_LINES} lines; split them or give a reason in LONG_FILES: {too_long}"
    stale = [path for path in LONG_FILES if lengths.get(path, 0) <= MAX_LINES]
    assert not stale, f"LONG_FILES lists files that are short or gone: {stale}"


def waits_for_ever(tree):
    """Lines with a call that waits for a process and has no bound."""
    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)]
    return [
        n.lineno for n in calls
        if (n.func.attr == "communicate" or ast.unparse(n.func) in ("subprocess.run", "subprocess.check_output"))
        and not any(k.arg in ("timeout", None) for k in n.keywords)
    ]  # fmt: skip


def test_no_test_waits_for_a_process_for_ever():
    assert waits_for_ever(ast.parse("subprocess.run([])\np.communicate()\np.communicate(timeout=3)")) == [1, 2]
    for path in sorted((ROOT / "tests").rglob("*.py")):
        assert waits_for_ever(ast.parse(path.read_text())) == [], f"{path}: see tests/processes.py"
