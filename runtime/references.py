"""How many references there are to an object, as CPython counts them."""

from __future__ import annotations

import sys


def references(x: object) -> int:
    """The references to `x` besides those of this call, whose argument must be an item or an attribute of something:
    whether a variable that is passed counts depends on the interpreter.
    """
    return sys.getrefcount(x) - _of_the_call


_probe = [object()]
_of_the_call = 0
_of_the_call = references(_probe[0]) - 1
