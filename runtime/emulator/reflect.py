"""Kernel signatures, read from the source, and Metal's rules for them (Metal Shading Language Specification, attributes
of kernel function arguments; from memory, the document was not at hand)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .errors import MetalLintError
from .tokens import Token, closing, tokenize

MAX_BUFFERS = 31
ADDRESS_SPACES = frozenset({"device", "constant", "threadgroup", "thread"})

# Built-in parameter -> (offset in runtime/emulator.h's ThreadContext, counted in uint32; components available).
BUILTINS = {
    "thread_position_in_grid": (0, 3),
    "thread_position_in_threadgroup": (3, 3),
    "threadgroup_position_in_grid": (6, 3),
    "threadgroups_per_grid": (9, 3),
    "threads_per_threadgroup": (12, 3),
    "threads_per_grid": (15, 3),
    "dispatch_threads_per_threadgroup": (18, 3),
    "thread_index_in_threadgroup": (21, 1),
    "thread_index_in_simdgroup": (22, 1),
    "simdgroup_index_in_threadgroup": (23, 1),
    "threads_per_simdgroup": (24, 1),
    "thread_execution_width": (24, 1),
    "simdgroups_per_threadgroup": (25, 1),
}
# Built-ins that must be declared with one and the same type.
_SAME_TYPE = (
    ("thread_position_in_grid", "threads_per_grid"),
    ("thread_position_in_threadgroup", "threads_per_threadgroup", "dispatch_threads_per_threadgroup"),
)


class Kind(Enum):
    """Where a parameter's value comes from."""

    BUFFER = "buffer"
    THREADGROUP = "threadgroup"
    BUILTIN = "builtin"


@dataclass(frozen=True)
class Parameter:
    """One kernel parameter.

    `type` is the pointee's or the built-in's type without qualifiers; `index` that of `[[buffer(i)]]` or
    `[[threadgroup(i)]]`; `builtin` the attribute of a built-in; `components` its vector size (1 for a scalar).
    """

    kind: Kind
    name: str
    type: str
    index: int = -1
    space: str = ""
    reference: bool = False
    read_only: bool = False
    builtin: str = ""
    components: int = 1


@dataclass(frozen=True)
class Kernel:
    """The signature of one kernel; `max_threads` bounds the threads per threadgroup."""

    name: str
    parameters: tuple[Parameter, ...]
    max_threads: int = 1024
    line: int = 0

    @property
    def buffers(self) -> dict[int, Parameter]:
        return {p.index: p for p in self.parameters if p.kind is Kind.BUFFER}


def _split(tokens: list[Token]) -> list[list[Token]]:
    """Splits at commas outside of brackets."""
    parts: list[list[Token]] = [[]]
    depth = 0
    for token in tokens:
        depth += token.text in ("(", "[", "[[", "{", "<")
        depth -= token.text in (")", "]", "]]", "}", ">")
        if token.text == "," and depth == 0:
            parts.append([])
        else:
            parts[-1].append(token)
    return [p for p in parts if p]


def _attributes(tokens: list[Token]) -> tuple[list[tuple[str, str]], list[Token]]:
    """Takes the `[[name]]` and `[[name(argument)]]` out of `tokens`: (attributes, other tokens)."""
    attributes, rest, i = [], [], 0
    while i < len(tokens):
        if tokens[i].text != "[[":
            rest.append(tokens[i])
            i += 1
            continue
        end = closing(tokens, i)
        for part in _split(tokens[i + 1 : end]):
            attributes.append((part[0].text, part[2].text if len(part) == 4 else ""))
        i = end + 1
    return attributes, rest


def _builtin(kernel: str, name: str, type_: str, attribute: str) -> Parameter:
    scalar, components = type_, 1
    if type_[-1:] in ("2", "3"):
        scalar, components = type_[:-1], int(type_[-1])
    if scalar not in ("uint", "ushort") or components > BUILTINS[attribute][1]:
        raise MetalLintError(f"{kernel}: {name}: type {type_} is wrong for [[{attribute}]]")
    return Parameter(Kind.BUILTIN, name, type_, builtin=attribute, components=components)


def _memory(kernel: str, name: str, words: list[str], attribute: str, index: str) -> Parameter:
    spaces = [w for w in words if w in ADDRESS_SPACES]
    if len(spaces) != 1 or not {"*", "&"} & set(words):
        raise MetalLintError(f"{kernel}: {name} needs exactly one address space and * or &")
    if (attribute == "threadgroup") != (spaces[0] == "threadgroup") or spaces[0] == "thread":
        raise MetalLintError(f"{kernel}: {name}: [[{attribute}]] on a {spaces[0]} pointer")
    if not index.isdigit() or int(index) >= MAX_BUFFERS:
        raise MetalLintError(f"{kernel}: {name}: index {index or 'missing'} is not in 0..{MAX_BUFFERS - 1}")
    qualifiers = ADDRESS_SPACES | {"const", "volatile", "*", "&"}
    return Parameter(
        Kind(attribute),
        name,
        " ".join(w for w in words if w not in qualifiers),
        int(index),
        spaces[0],
        reference="&" in words,
        read_only=spaces[0] == "constant" or "const" in words,
    )


def _parameter(kernel: str, tokens: list[Token]) -> Parameter:
    attributes, rest = _attributes(tokens)
    words = [t.text for t in rest]
    if len(words) < 2 or not rest[-1].is_name:
        raise MetalLintError(f"{kernel}: cannot read the parameter {' '.join(words)!r}")
    name, words = words[-1], words[:-1]
    if len(attributes) != 1:
        raise MetalLintError(f"{kernel}: parameter {name} needs one attribute, it has {len(attributes)}")
    attribute, argument = attributes[0]
    if attribute in BUILTINS:
        return _builtin(kernel, name, " ".join(w for w in words if w != "const"), attribute)
    if attribute in (Kind.BUFFER.value, Kind.THREADGROUP.value):
        return _memory(kernel, name, words, attribute, argument)
    raise MetalLintError(f"{kernel}: unknown attribute [[{attribute}]] on {name}")


def _check_together(kernel: str, parameters: tuple[Parameter, ...]) -> None:
    """The rules that concern several parameters at once."""
    seen: set[tuple[Kind, int, str]] = set()
    for p in parameters:
        key = (p.kind, p.index, p.builtin)
        if key in seen:
            raise MetalLintError(f"{kernel}: [[{p.builtin or f'{p.kind.value}({p.index})'}]] is used twice")
        seen.add(key)
    builtins = {p.builtin: p for p in parameters if p.kind is Kind.BUILTIN}
    for names in _SAME_TYPE:
        if len({builtins[n].type for n in names if n in builtins}) > 1:
            raise MetalLintError(f"{kernel}: {', '.join(n for n in names if n in builtins)} must have the same type")
    if len({p.components for p in builtins.values() if p.components > 1}) > 1:
        raise MetalLintError(f"{kernel}: built-in vectors must all have the same number of components")


def parse_kernels(source: str) -> dict[str, Kernel]:
    """The kernels of a Metal source by name.

    Raises:
        MetalLintError: a signature breaks a rule of Metal, or is beyond this parser (template kernels).
    """
    tokens = tokenize(source)
    kernels: dict[str, Kernel] = {}
    for i, token in enumerate(tokens):
        if token.text != "kernel":
            continue
        start, first = i + 1, i
        if i and tokens[i - 1].text == "[[" and start < len(tokens) and tokens[start].text == "]]":
            start, first = start + 1, i - 1
        while first and tokens[first - 1].text == "]]":
            first = max(k for k in range(first) if tokens[k].text == "[[")
        if first and tokens[first - 1].text == ">":
            raise MetalLintError(f"line {token.line}: template kernels are beyond this verifier")
        opening = start
        while opening < len(tokens) and tokens[opening].text not in ("(", "{", ";"):
            opening = closing(tokens, opening) + 1 if tokens[opening].text == "[[" else opening + 1
        words = [t.text for t in tokens[opening - 2 : opening + 1]]
        if len(words) != 3 or words[0] != "void" or words[2] != "(":
            raise MetalLintError(f"line {token.line}: a kernel must be declared `kernel void name(...)`")
        name = words[1]
        if name in kernels:
            raise MetalLintError(f"kernel {name} is defined twice")
        attributes = dict(_attributes(tokens[first:i] + tokens[start : opening - 2])[0])
        parts = _split(tokens[opening + 1 : closing(tokens, opening)])
        parameters = tuple(_parameter(name, part) for part in parts)
        _check_together(name, parameters)
        max_threads = int(attributes.get("max_total_threads_per_threadgroup", 1024))
        kernels[name] = Kernel(name, parameters, max_threads, token.line)
    if not kernels:
        raise MetalLintError("the source has no kernel")
    return kernels
