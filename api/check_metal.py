"""`mlxir check-metal`: compile Metal shaders with clang against a stand-in for metal_stdlib, on x86-64 Linux.

A file is refused where clang refuses it or a rule of Metal that clang does not know is broken (address spaces, words
that Metal reserves, attributes and their types, recursion, threadgroup memory). Accepted does not mean that Apple's
compiler accepts it: docs/metal.md lists what cannot be seen here.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlxir.runtime.emulator import Kernel, Kind, MetalError, MetalLibrary, Parameter

_INDENT = "    "


def check(path: Path) -> tuple[bool, list[str]]:
    """(whether a file is accepted, the lines of its report). Raises OSError where it cannot be read."""
    source = path.read_text()
    try:
        library = MetalLibrary(source)
    except MetalError as refused:
        return False, [f"{path}: refused", *_indented(str(refused), path)]
    kernels = f"{len(library.kernels)} kernel{'s' * (len(library.kernels) != 1)}"
    lines = [f"{path}: accepted, {kernels}, {'with' if library.warnings else 'no'} warnings"]
    for kernel in library.kernels.values():
        memory = sum(symbol.size for symbol in library.threadgroup_variables(kernel.name).values())
        lines += _kernel(kernel, memory)
    return True, [*lines, *_indented(library.warnings, path)]


def run(paths: list[Path]) -> int:
    """Print the reports of files; 0 where all are accepted, else 1."""
    accepted = True
    for path in paths:
        good, lines = check(path)
        accepted = accepted and good
        print("\n".join(lines))
    print("Checked by clang against a stand-in for Apple's headers; nothing here ran on Metal.")
    return 0 if accepted else 1


def _indented(text: str, path: Path) -> list[str]:
    """Messages of the verifier, which calls every source kernel.metal, under the file's own name."""
    return [_INDENT + line.replace("kernel.metal:", f"{path.name}:") for line in text.splitlines()]


def _kernel(kernel: Kernel, memory: int) -> Iterator[str]:
    """The signature of one kernel, read from the source."""
    used = f", {memory} bytes of threadgroup memory" if memory else ""
    yield f"  {kernel.name}: at most {kernel.max_threads} threads per threadgroup{used}"
    for p in kernel.parameters:
        yield f"{_INDENT}{_place(p):<34}{p.name}: {_type(p)}"


def _place(p: Parameter) -> str:
    return p.builtin if p.kind is Kind.BUILTIN else f"{p.kind.value}({p.index})"


def _type(p: Parameter) -> str:
    if p.kind is Kind.BUILTIN:
        return p.type
    const = "const " if p.read_only and p.space != "constant" else ""
    return f"{p.space} {const}{p.type}{'&' if p.reference else '*'}"
