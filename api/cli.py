"""The command `mlxir`, also `python -m mlxir`.

    mlxir dump FILE.py:FUNCTION --arg 'f32[64,64]' --arg '{"w": f32[3], "n": 4}'   what the compiler makes of a function
    mlxir run script.py [args]                                                     an MLX program, unchanged, on mlxir
    mlxir bench [--suite ...] [--peers ...] [--md FILE]                            mlxir and its peers, side by side
    mlxir bench --profile FILE.py:FUNCTION --arg SPEC                              the kernels of a compiled function
    mlxir check-metal FILE.metal ...                                               what clang says of Metal shaders
    mlxir coverage                                                                 the table of all primitives
    mlxir cache [info|clear]                                                       the disk cache

A mistake of the user gives one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import inspect
import math
import os
import re
import runpy
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from mlxir.dialects.mx.__main__ import table
from mlxir.runtime import store
from mlxir.runtime.errors import CompileError, RuleNotImplementedError
from mlxir.runtime.knobs import knobs

from . import bench, wheel
from .dump import TARGETS, Spec, compile_stages, select, trace_captured, write_stages

_STAGES = list(dict.fromkeys(stage for stages in TARGETS.values() for stage in stages))
_NAMES = {"true": True, "false": False, "null": None, "inf": math.inf, "nan": math.nan}


class UsageError(Exception):
    """A mistake of the user, told in one line."""


# -- argument specs --------------------------------------------------------------------------------------------------
def parse_spec(text: str) -> Any:
    """The tree that an argument's text stands for: JSON, or a Python literal, whose leaves may be arrays (`Spec`).

    Raises UsageError for anything else.

    >>> parse_spec("[f32[2], {'w': f32[3,3], 'n': 4}]")
    [Spec(shape=(2,), dtype=mlx.core.float32), {'w': Spec(shape=(3, 3), dtype=mlx.core.float32), 'n': 4}]
    """
    # It is read as a Python expression, in which f32[] is none; strings stay as they are.
    source = re.sub(r"""("[^"]*"|'[^']*')|(?<=\w)\[\s*\]""", lambda m: m[1] or "[()]", text.strip())
    try:
        return _tree(ast.parse(source, mode="eval").body)
    except (SyntaxError, ValueError) as error:
        told = error if type(error) is ValueError else "it is neither an array such as f32[64,64] nor a tree of them"
        raise UsageError(f"--arg {text!r}: {told}") from None


def _tree(node: ast.expr) -> Any:
    match node:
        case ast.Subscript(value=ast.Name(id=name), slice=lengths):
            return Spec.parse(f"{name}[{ast.unparse(lengths).strip('(),')}]")
        case ast.List(elts=items):
            return [_tree(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple([_tree(item) for item in items])
        case ast.Dict(keys=keys, values=items):
            return {_key(key): _tree(item) for key, item in zip(keys, items, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=operand) if isinstance(number := _tree(operand), (int, float)):
            return -number
        case ast.Constant(value=bool() | int() | float() | str() | None):
            return node.value
        case ast.Name(id=name) if name in _NAMES:
            return _NAMES[name]
    raise ValueError(f"{ast.unparse(node)!r} is no array such as f32[64,64] and no number, string, true, false or null")


def _key(node: ast.expr | None) -> Any:
    """A key of a dict; its quotes may be left out."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Constant) and isinstance(node.value, (str, int)):
        return node.value
    raise ValueError("the keys of a dict are strings or integers")


# -- the user's file -------------------------------------------------------------------------------------------------
def _told(error: BaseException, path: Path) -> str:
    """The error with the line of `path` at which it was raised, if its message does not name one."""
    if knobs.debug:
        traceback.print_exception(error)
    text = str(error)
    if not text.startswith("["):  # the messages of mlxir name the operation
        text = f"{type(error).__name__}: {text}" if text else type(error).__name__
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
    return text if not lines or f"({path.name}:" in text else f"{text} ({path.name}:{lines[-1]})"


def _load(path: Path) -> ModuleType:
    """Execute the user's file as a module. Raises UsageError if that fails."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location("__dumped__", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file")
    module = sys.modules["__dumped__"] = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))  # as when Python runs the file
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        place = Path(error.filename or path).name
        raise UsageError(f"{place}:{error.lineno}: {error.msg}") from None
    except (Exception, SystemExit) as error:
        told = _told(error, path)
        raise UsageError(told if path.name in told else f"{told} ({path.name})") from None
    return module


def _function(module: ModuleType, path: Path, name: str) -> Callable:
    try:
        found = reduce(getattr, name.split("."), module)
    except AttributeError:
        names = [n for n, v in vars(module).items() if callable(v) and getattr(v, "__module__", "") == module.__name__]
        has = f"; it has {', '.join(names)}" if names else ""
        raise UsageError(f"{path.name} has no function {name!r}{has}") from None
    if not callable(found):
        raise UsageError(f"{name} in {path.name} is a {type(found).__name__}, no function")
    return found


def _arguments(given: list[str] | None, module: ModuleType, path: Path, name: str, function: Callable) -> list[Any]:
    """What `--arg` says, else what the file's `example_args` says, fitted to the function's parameters."""
    if given is not None:
        arguments = [parse_spec(text) for text in given]
    else:
        examples = getattr(module, "example_args", [])
        arguments = examples.get(name, []) if isinstance(examples, dict) else examples
        if not isinstance(arguments, (list, tuple)):
            raise UsageError(f"example_args in {path.name} must hold a list of arguments for {name}")
    try:
        signature = inspect.signature(function)
        signature.bind(*arguments)
    except TypeError as error:
        hint = f"give one --arg for each, or put example_args = {{{name!r}: [...]}} into {path.name}"
        raise UsageError(f"{name}{signature}: {error}; {hint}") from None
    except ValueError:  # it has no signature
        pass
    return list(arguments)


def load_function(place: str, given: list[str] | None) -> tuple[Path, str, Callable, list[Any]]:
    """What FILE.py:FUNCTION names: the file, the name, the function and its arguments. Raises UsageError."""
    file, _, name = place.rpartition(":")
    if not file or not name:
        raise UsageError(f"{place!r}: write FILE.py:FUNCTION")
    path = Path(file).resolve()
    module = _load(path)
    function = _function(module, path, name)
    return path, name, function, _arguments(given, module, path, name, function)


# -- the commands ----------------------------------------------------------------------------------------------------
def _dump(options: argparse.Namespace) -> None:
    target = options.target or ("metal" if options.stage == "metal" else "cpu")
    try:
        stages = select(target, None if options.stage == "all" else [options.stage])
    except ValueError as error:
        raise UsageError(str(error)) from None
    path, name, function, arguments = load_function(options.function, options.arg)
    try:
        program, captured = trace_captured(function, tuple(arguments), {})
    except Exception as error:
        raise UsageError(_told(error, path)) from None
    try:
        if options.stage != "all" and options.output is None:
            compile_stages(program, target, stages, lambda _, text: print(text.rstrip("\n")))
            return
        for written in write_stages(program, options.output or Path("out") / name, target, stages, captured):
            print(written)
    except (CompileError, RuleNotImplementedError) as error:
        raise UsageError(_told(error, path)) from None
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(f"cannot write: {error}") from None


def _bench(options: argparse.Namespace) -> int:
    """Hand the command's own options to the harness; its exit code."""
    try:
        return bench.run(options.rest)
    except FileNotFoundError as error:
        raise UsageError(str(error)) from None


def _run(options: argparse.Namespace) -> None:
    """The program with its own arguments, as `python script.py` or `python -m module` runs it."""
    wheel.load("dropin")
    if not options.program:
        raise UsageError("run: name a script, or a module behind -m (see mlxir run --help)")
    sys.argv = options.program
    target = sys.argv[0]
    if options.module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(target, run_name="__main__", alter_sys=True)
        return
    if not os.path.exists(target):
        raise UsageError(f"there is no file {target}")
    sys.path.insert(0, str(Path(target).resolve().parent))
    runpy.run_path(target, run_name="__main__")


def _check_metal(options: argparse.Namespace) -> int:
    from mlxir.runtime.emulator import unavailable_reason  # lazy: few commands need the emulator

    from . import check_metal  # lazy: as above

    if reason := unavailable_reason():
        raise UsageError(f"check-metal: {reason}")
    try:
        return check_metal.run(options.files)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"check-metal: {error}") from None


def _coverage(options: argparse.Namespace) -> None:
    print(table())


def _cache(options: argparse.Namespace) -> None:
    folder = knobs.cache_dir
    if folder is None:
        print("the disk cache is off: MLXIR_CACHE_DIR is empty")
    elif options.action == "info":
        entries, size = store.usage()
        print(f"{folder}: {entries} entries, {size / 1e6:.1f} MB")
    else:
        try:
            print(f"{folder}: {store.clear()} entries removed")
        except OSError as error:
            raise UsageError(f"cannot clear the cache: {error}") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="mlxir", description="MLX's array API on a tracing JIT compiler: tools around the compiler.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    command = commands.add_parser(
        "dump",
        help="show what the compiler makes of a function, stage by stage",
        description="Trace a function on abstract arguments and write every stage of its compilation. It is never run.",
        epilog="Without --arg the module's `example_args` is used: a dict of lists of arguments by function name, or a"
        " list. MLXIR_DEBUG=1 shows the traceback of an error.",
    )
    argument = command.add_argument
    argument("function", metavar="FILE.py:FUNCTION")
    argument("--arg", action="append", metavar="SPEC", help="for each argument: f32[64,64], [f32[2], {'n': 4}], 1.5")
    argument("--stage", choices=["all", *_STAGES], default="all", help="only this one; printed, if there is no -o")
    argument("-o", "--output", type=Path, metavar="DIR", help="where to write (default: out/FUNCTION)")
    argument("--target", choices=list(TARGETS), help="default: cpu; metal works on any machine")
    command.set_defaults(run=_dump)

    command = commands.add_parser(
        "run",
        help="run an MLX program unchanged: its mlx.core is mlxir",
        description="Run a Python script or module whose `import mlx.core` gives mlxir; see mlxir.dropin.",
    )
    command.add_argument("-m", dest="module", action="store_true", help="PROGRAM is a module, as with `python -m`")
    command.add_argument("program", nargs=argparse.REMAINDER, metavar="PROGRAM", help="a script, then its arguments")
    command.set_defaults(run=_run)

    command = commands.add_parser(
        "check-metal",
        help="compile Metal shaders on Linux, report their kernels and what is wrong with them",
        description="Compile .metal files with clang against a stand-in for metal_stdlib. Exit code 0 if all are"
        " accepted, 1 if one is refused, 2 if one cannot be checked.",
    )
    command.add_argument("files", nargs="+", type=Path, metavar="FILE.metal")
    command.set_defaults(run=_check_metal)

    command = commands.add_parser("bench", help="time mlxir and its peers; profile kernels", add_help=False)
    command.set_defaults(run=_bench, rest=[])

    command = commands.add_parser("coverage", help="print the table of primitives and their rules")
    command.set_defaults(run=_coverage)

    command = commands.add_parser("cache", help="look at the disk cache, or clear it")
    command.add_argument("action", nargs="?", choices=["info", "clear"], default="info")
    command.set_defaults(run=_cache)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; its exit code."""
    try:
        parser = _parser()
        options, rest = parser.parse_known_args(argv)
        if rest and "rest" not in options:
            parser.error(f"unrecognized arguments: {' '.join(rest)}")
        options.rest = rest
        code: int = options.run(options) or 0
        sys.stdout.flush()
        return code
    except UsageError as error:
        print("mlxir:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except BrokenPipeError:  # `mlxir coverage | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
