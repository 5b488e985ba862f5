"""What the compiler makes of a function, stage by stage: the ahead-of-time view of `compile`.

    mx.dump(attention, "f32[64,64]", "f32[64,64]", "f32[64,64]", directory="out/attention", target="metal")

The function is traced on abstract arguments and compiled; it is never run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxir.compiler.evaluate import evaluate, pipeline
from mlxir.compiler.graph import Value, resolve
from mlxir.compiler.program import Program
from mlxir.runtime.dtypes import Dtype, from_short
from mlxir.runtime.trees import tree_map

from .compilation import traced
from .ndarray import wrap
from .transforms import check_callable, describe

__all__ = ["Spec", "dump"]

_SHARED = ("mx", "transformed", "fused", "loops")
TARGETS = {"cpu": (*_SHARED, "llvm", "asm", "schedule"), "metal": (*_SHARED, "metal", "schedule")}
"""Target -> its stages, in the order of the pipeline."""

_SPEC = re.compile(r"\s*([A-Za-z_]\w*)\s*\[([\s\d,]*)\]\s*")


@dataclass(frozen=True)
class Spec:
    """An abstract array: its shape and dtype. Spelled `f32[64,64]`; `f32[]` is a scalar."""

    shape: tuple[int, ...]
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.dtype.short}[{','.join(map(str, self.shape))}]"

    @staticmethod
    def parse(text: str) -> Spec:
        """The spec that `text` spells. Raises ValueError where it is none."""
        match = _SPEC.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is no array spec such as f32[64,64]")
        sizes = [s.strip() for s in match[2].split(",")] if match[2].strip() else []
        if not all(s.isdigit() for s in sizes):
            raise ValueError(f"{text!r}: the shape is a list of lengths such as [64,64]")
        return Spec(tuple(map(int, sizes)), from_short(match[1]))


def trace(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> Program:
    """The program of `fn` for abstract arguments, see `trace_captured`."""
    return trace_captured(fn, args, kwargs)[0]


def trace_captured(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> tuple[Program, list[Value]]:
    """The program of `fn` for abstract arguments: trees of arrays, specs (also as strings) and constants.

    Arrays that `fn` captures become parameters after those of the arguments; they are returned, too. Raises what `fn`
    raises, and ValueError if it computes nothing.
    """
    check_callable("dump", fn)
    program, captured = traced(fn, tree_map(_abstract, args), tree_map(_abstract, kwargs))
    if not program.outputs:
        raise ValueError(f"[dump] {describe(fn)[0]} computes nothing: it returns arguments or arrays from outside.")
    return program, captured


def _abstract(leaf: Any) -> Any:
    """An array without data for a spec; any other leaf is passed as it is."""
    if isinstance(leaf, str) and _SPEC.fullmatch(leaf):
        leaf = Spec.parse(leaf)
    return wrap(Value(leaf.shape, leaf.dtype)) if isinstance(leaf, Spec) else leaf


def select(target: str, stages: Iterable[str] | None) -> list[str]:
    """The stages to show, in order; None stands for all of the target. Raises ValueError for unknown names."""
    if target not in TARGETS:
        raise ValueError(f"[dump] no target is called {target!r}; there are {', '.join(TARGETS)}")
    wanted = TARGETS[target] if stages is None else list(stages)
    for stage in wanted:
        if stage not in TARGETS[target]:
            raise ValueError(f"[dump] target {target} has no stage {stage!r}; there are {', '.join(TARGETS[target])}")
    return [s for s in TARGETS[target] if s in wanted]


def compile_stages(program: Program, target: str, stages: list[str], show: Callable[[str, str], None]) -> None:
    """Compile a program as far as its last wanted stage needs; `show(stage, text)` is called for each."""

    def observe(stage: str, text: Callable[[], str]) -> None:
        if stage in stages:
            show(stage, text())

    early = _SHARED if target == "cpu" else _SHARED[:-1]  # the loops of a matmul are the target's
    if stages == ["mx"]:
        pipeline().transformed(program, observe)
    elif set(stages) <= set(early):
        pipeline().lowered(program, observe)
    elif target == "cpu":
        pipeline().compile_program(program, observe)
    else:
        pipeline().compile_metal(program, observe)


def write_stages(
    program: Program, directory: str | Path, target: str, stages: list[str], captured: Sequence[Value] = ()
) -> list[Path]:
    """One numbered file per stage in `directory`, which is made; those before an error are written.

    For Metal the last two are what a program ships: `kernels.metal` and `schedule.json`, by these names, with a README
    and the `captured` arrays, which are the last parameters of the program (runtime/metal/folder.py).
    """
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    files = {stage: folder / pipeline().STAGES[stage][0] for stage in stages}
    shipped = [s for s in stages if target == "metal" and s in ("metal", "schedule")]
    files.update({s: folder / files[s].name.partition("-")[2] for s in shipped})
    extra = [folder / "README.md", folder / _metal_folder().CONSTANTS] if "schedule" in shipped else []
    for file in [*files.values(), *extra]:
        file.unlink(missing_ok=True)  # an old file must not pass for a stage that is not reached

    def show(stage: str, text: str) -> None:
        if stage == "schedule" and extra:
            text = _ship(json.loads(text), program.name, captured, extra)
        _write(files[stage], text)

    compile_stages(program, target, stages, show)
    return [file for file in [*files.values(), *extra] if file.exists()]


def _metal_folder() -> Any:
    from mlxir.runtime.metal import folder  # lazy: few programs dump, and it loads the Metal runtime

    return folder


def _ship(schedule: dict[str, Any], name: str, captured: Sequence[Value], extra: list[Path]) -> str:
    """Write the README and the constants beside a schedule; its text as the folder has it."""
    evaluate(captured)
    buffers = [resolve(v).buffer for v in captured]
    schedule, data = _metal_folder().with_constants(schedule, [b.numpy() for b in buffers if b is not None])
    readme, constants = extra
    _write(readme, _metal_folder().readme(schedule, name))
    if data:
        constants.write_bytes(data)
    return json.dumps(schedule, indent=1, allow_nan=False)


def _write(file: Path, text: str) -> None:
    file.write_text(text.rstrip("\n") + "\n")


def dump(
    fn: Callable,
    /,
    *args: Any,
    directory: str | Path,
    target: str = "cpu",
    stages: Iterable[str] | None = None,
    **kwargs: Any,
) -> Path:
    """Write what the compiler makes of `fn` into `directory`, one numbered file per stage; returns the directory.

    `fn` is a plain function or one made by `compile`; it is traced, never run. `args` and `kwargs` are trees of arrays,
    of abstract arrays (`Spec`, or a string such as "f32[64,64]") and of constants; arrays that `fn` captures become
    parameters. `target` is "cpu" (LLVM IR, assembly, schedule) or "metal" (shaders and their schedule, on any machine);
    `stages` names those to write, all by default.

    Raises ValueError for unknown targets or stages, and what tracing and compiling raise.
    """
    wanted = select(target, stages)
    program, captured = trace_captured(fn, args, kwargs)
    write_stages(program, directory, target, wanted, captured)
    return Path(directory)
