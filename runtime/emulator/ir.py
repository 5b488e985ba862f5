"""Two looks at the LLVM IR between clang's front end and its optimizer."""

from __future__ import annotations

import re

# Room after each threadgroup variable, so that running over its end does not land in the next one.
PADDING_BYTES = 64 << 10

_DEFINITION = re.compile(r"^define .*?@([\w.$]+)\(")
_CALL = re.compile(r"\bcall\b.*?@([\w.$]+)\(")
_VARIABLE = re.compile(r"^@(_ZZ[\w.$]+) = internal (?:unnamed_addr )?global (.*)$", re.MULTILINE)


def recursive_functions(ir: str) -> list[str]:
    """Functions of an LLVM module (text) that can reach themselves by calls; Metal has no recursion."""
    calls: dict[str, set[str]] = {}
    function = None
    for line in ir.splitlines():
        if match := _DEFINITION.match(line):
            function = calls.setdefault(match[1], set())
        elif line == "}":
            function = None
        elif function is not None and (match := _CALL.search(line)):
            function.add(match[1])

    def reaches_itself(name: str) -> bool:
        seen: set[str] = set()
        todo = list(calls[name])
        while todo:
            callee = todo.pop()
            if callee == name:
                return True
            if callee in calls and callee not in seen:
                seen.add(callee)
                todo += calls[callee]
        return False

    return sorted(name for name in calls if reaches_itself(name))


def expose_threadgroup_variables(ir: str) -> str:
    """Makes the threadgroup variables of an LLVM module external, each with unused space after it.

    clang makes them function-local statics, internal to the module. The optimizer knows of one thread only: it could
    split such a variable, drop stores that this thread does not read back, or turn it into a register.
    """
    padding = f"[{PADDING_BYTES} x i8] zeroinitializer, align 16"
    return _VARIABLE.sub(lambda m: f"@{m[1]} = hidden global {m[2]}\n@msl_padding.{m[1]} = hidden global {padding}", ir)
