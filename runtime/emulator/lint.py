"""Rules of Metal that clang's C++ for OpenCL mode does not enforce, checked on the tokens of the source.

Everything else is clang's business (build.py), or the run-time checker's (runtime/).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise

from .errors import MetalLintError
from .reflect import ADDRESS_SPACES
from .tokens import Token, directives, tokenize

# fmt: off
_NUMBERS = ("char", "uchar", "short", "ushort", "int", "uint", "long", "ulong", "half", "bfloat", "float")
_VECTORS = frozenset(number + components for number in _NUMBERS for components in "234")
_TYPES = _VECTORS.union(_NUMBERS, (
    "bool", "void", "size_t", "ptrdiff_t", "int8_t", "uint8_t", "int16_t", "uint16_t", "int32_t", "uint32_t", "int64_t",
    "uint64_t", "atomic_int", "atomic_uint", "atomic_bool", "atomic_float", "atomic_ulong",
))
_DIRECTIVES = frozenset(
    ("include", "pragma", "define", "undef", "if", "ifdef", "ifndef", "elif", "else", "endif")
)
_FORBIDDEN = {
    **dict.fromkeys((
        "goto", "asm", "double", "new", "delete", "try", "catch", "throw", "typeid", "dynamic_cast", "virtual",
        "thread_local", "std", "wchar_t",
    ), "not in Metal"),
    **dict.fromkeys((
        "local", "global", "private", "generic", "pipe", "event_t", "vec_step", "read_only", "write_only", "read_write",
        "image2d_t", "sampler_t",
    ), "a word of OpenCL, which clang takes as such"),
    **dict.fromkeys((
        "vertex", "fragment", "sampler", "ray_data", "object_data", "threadgroup_imageblock", "visible", "intersection",
        "stitchable",
    ), "a keyword of Metal"),
    **dict.fromkeys((
        "long3", "long4", "ulong3", "ulong4",
    ), "legal Metal, but the checker does not see accesses of more than 16 bytes"),
}
# fmt: on
_RESERVED = re.compile(r"__\w*|_[A-Z]\w*")
_OPENCL_SWIZZLE = re.compile(r"lo|hi|even|odd|s[0-9a-fA-F]+")

_Rule = Callable[[list[Token]], Iterable[tuple[int, str]]]


def _words(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """Words that Metal lacks or reserves, and identifiers reserved to the implementation."""
    for i, token in enumerate(tokens):
        if token.text in _FORBIDDEN:
            yield token.line, f"{token.text!r} is {_FORBIDDEN[token.text]}"
        elif _RESERVED.fullmatch(token.text):
            yield token.line, f"{token.text!r} is a reserved identifier"
        elif token.text == "long" and i and tokens[i - 1].text == "long":
            yield token.line, "'long long' is not in Metal"


def _lambdas(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """A `[` that follows no expression begins a lambda; Metal has none before version 4."""
    for before, token in pairwise(tokens):
        if token.text == "[" and before.text in ("=", "(", ",", "{", ";", "return"):
            yield token.line, "lambda expression"


def _pointers(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """Every pointer and reference names its address space; clang would choose one silently."""
    types = set(_TYPES)
    for before, token in pairwise(tokens):
        if before.text in ("struct", "class", "enum", "typename", "using") and token.is_name:
            types.add(token.text)
    specifiers = types | ADDRESS_SPACES | {"const", "volatile", "::", "metal", "auto"}
    for i, token in enumerate(tokens):
        if token.text not in ("*", "&", "&&"):
            continue
        start = i
        while start and tokens[start - 1].text in specifiers:
            start -= 1
        words = {t.text for t in tokens[start:i]}
        if words & types and not words & ADDRESS_SPACES:
            text = " ".join(t.text for t in tokens[start : i + 1])
            yield token.line, f"pointer or reference without address space: {text!r}"


def _vector_literals(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """`(float4)(a, b, c, d)` builds a vector in OpenCL; in Metal it is a cast of `d`."""
    for i in range(3, len(tokens)):
        opening, type_, close, value = (t.text for t in tokens[i - 3 : i + 1])
        if (opening, close, value) == ("(", ")", "(") and type_ in _VECTORS:
            yield tokens[i].line, f"OpenCL vector literal ({type_})(...)"


def _swizzles(tokens: list[Token]) -> Iterator[tuple[int, str]]:
    """OpenCL's `.lo`, `.hi`, `.even`, `.odd`, `.s0`: not in Metal. Members of that name have a declaration."""
    declared = {t.text for before, t in pairwise(tokens) if before.text not in (".", "->")}
    for before, token in pairwise(tokens):
        if before.text == "." and _OPENCL_SWIZZLE.fullmatch(token.text) and token.text not in declared:
            yield token.line, f"OpenCL swizzle .{token.text}"


_RULES: tuple[_Rule, ...] = (_words, _lambdas, _pointers, _vector_literals, _swizzles)


def lint(source: str) -> None:
    """Raises MetalLintError, with every finding, when `source` breaks one of the rules above."""
    tokens = tokenize(source)
    found = [(d.line, f"preprocessor directive #{d.text}") for d in directives(source) if d.text not in _DIRECTIVES]
    for rule in _RULES:
        found += rule(tokens)
    if found:
        raise MetalLintError("\n".join(f"kernel.metal:{line}: {text}" for line, text in sorted(set(found))))
