"""Rewrites the float literals of LLVM 24 text (MLIR's) to those that LLVM 22 (llvmlite's) reads.

    fadd float %x, -8.73e+01    ->  fadd float %x, 0xC055D33340000000    (float is written as the double of equal value)
    fmul float %x, f0x3FB8AA3B  ->  fmul float %x, 0x3FF7154760000000
    store half -inf, ptr %p     ->  store half 0xHFC00, ptr %p           (half 0xH, bfloat 0xR: their own bits)
    ret double +snan(0x1)       ->  ret double 0x7FF0000000000001        (nan is quiet, snan signals; then the payload)

It is the one difference between the two that this compiler's output meets.
"""

from __future__ import annotations

import re
import struct

import ml_dtypes
import numpy as np

_TOKEN = re.compile(
    r"""(?P<type>\b(?:half|bfloat|float|double)\b)
      | (?P<bits>\bf0x[0-9A-Fa-f]+)
      | (?P<number>(?<![\w.%@#"$])[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|inf\b|[qs]?nan\b(?:\(0x[0-9A-Fa-f]+\))?))""",
    re.VERBOSE,
)
_WORTH_A_LOOK = re.compile(r"f0x|\d\.\d|[ (<][-+]?(?:inf|[qs]?nan)\b")
_FORMATS = {"half": (5, 10), "bfloat": (8, 7), "float": (8, 23), "double": (11, 52)}  # bits of exponent and mantissa
_SPELLING = {"half": "0xH%04X", "bfloat": "0xR%04X", "double": "0x%016X"}


def _double_bits(value: float) -> str:
    return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"


def literal(kind: str, token: str) -> str:
    """One literal of type `kind` (half, bfloat, float, double) in the old spelling."""
    if token.startswith("f0x"):
        bits = int(token[3:], 16)
        if kind == "float":
            return _double_bits(float(np.uint32(bits).view(np.float32)))
        return _SPELLING[kind] % bits
    if "nan" in token:
        return _nan(kind, token)
    value = float(token)
    if kind == "half":
        return _SPELLING[kind] % int(np.float16(value).view(np.uint16))
    if kind == "bfloat":
        return _SPELLING[kind] % int(np.array(value, ml_dtypes.bfloat16).view(np.uint16))
    return _double_bits(float(np.float32(value)) if kind == "float" else value)


def _nan(kind: str, token: str) -> str:
    """`-nan(0x3)`, `+qnan`, `snan(0x1)`: made of bits, because converting a signalling NaN would make it quiet."""
    exponent, mantissa = _FORMATS[kind]
    _, _, payload = token.rstrip(")").partition("(")
    bits = int(payload or "0", 16) | (0 if "snan" in token else 1 << (mantissa - 1))
    if kind == "float":
        kind, exponent, mantissa, bits = "double", 11, 52, bits << (52 - mantissa)
    sign = token.startswith("-") << exponent
    return _SPELLING[kind] % ((sign | ((1 << exponent) - 1)) << mantissa | bits)


def _rewrite(line: str) -> str:
    kind, out, at = None, [], 0
    for match in _TOKEN.finditer(line):
        if match["type"]:
            kind = match["type"]
        elif kind is not None:
            out += [line[at : match.start()], literal(kind, match[0])]
            at = match.end()
    return "".join(out) + line[at:]


def to_llvmlite(text: str) -> str:
    """The module with every float literal rewritten."""
    skip = ("source_filename", ";", "target ")
    return "\n".join([_rewrite(s) if _may_hold_one(s) and not s.startswith(skip) else s for s in text.split("\n")])


def _may_hold_one(line: str) -> bool:
    """Substrings are found twenty times faster than the expression that they stand for."""
    return ("." in line or "f0x" in line or "inf" in line or "nan" in line) and bool(_WORTH_A_LOOK.search(line))
