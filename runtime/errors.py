"""The exceptions of mlxir and where in the user's program something happened.

Every message starts with the operation in brackets (`[matmul] ...`) and, where it is known, names the user's file and
line.
"""

from __future__ import annotations

import os
import sys
from types import CodeType


class AxisError(ValueError, IndexError):
    """An axis is out of range. MLX raises ValueError in some releases and IndexError in others: this is both."""


class RuleNotImplementedError(NotImplementedError, ValueError):
    """A primitive has no rule for the transform asked of it (NotImplementedError is a RuntimeError)."""


class FormatError(RuntimeError, ValueError):
    """A file is not what its format demands. MLX raises RuntimeError in some places and ValueError in others."""


class ShapeError(ValueError):
    """Shapes do not fit the operation."""


class CompileError(RuntimeError):
    """The compiler met IR that it cannot lower: a defect of mlxir, or an operation the target does not support."""


Where = tuple[CodeType, int] | None
"""A code object, and a line or (negative) the complement of an instruction's offset, which is cheaper to record."""

_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# A source checkout keeps the package in four folders, an installed package in one.
_FOLDERS = ("",) if os.path.basename(_HOME) == "mlxir" else ("api", "compiler", "dialects", "runtime")
_ROOTS = tuple(os.path.join(_HOME, folder, "") for folder in _FOLDERS)
_is_ours: dict[str, bool] = {}  # by file: hashing a code object is slow


_getframe = sys._getframe


def user_frame(depth: int = 1) -> Where:
    """The nearest caller outside mlxir. Cheap: no line is looked up and nothing is formatted here."""
    frame = _getframe(depth)
    while frame is not None:
        code = frame.f_code
        ours = _is_ours.get(code.co_filename)
        if ours is None:
            ours = _is_ours[code.co_filename] = code.co_filename.startswith(_ROOTS)
        if not ours:
            return code, ~frame.f_lasti
        frame = frame.f_back  # type: ignore[assignment]
    return None


def location(where: Where) -> tuple[str, int]:
    """(file name, line) of a recorded place."""
    return (where[0].co_filename, _line(*where)) if where else ("<unknown>", 0)


def _line(code: CodeType, at: int) -> int:
    if at >= 0:
        return at
    return next((line for start, end, line in code.co_lines() if start <= ~at < end and line), code.co_firstlineno)


def at(where: Where) -> str:
    """` (model.py:31)`, to be put behind the operation's name in a message; empty if the place is unknown."""
    if where is None:
        return ""
    file, line = location(where)
    return f" ({os.path.basename(file)}:{line})"
