"""Plans: how an evaluation that was seen before is repeated, without cutting a graph or making a program.

What a thread has recorded since its last evaluation (`Tape`) is the key. A `Plan` serves an equal tape; a `SharedPlan`
all tapes that differ from one in numbers, as programs do that share their code (`shared.py`):

    [f32[4,17], f32[4,1], (concatenate, f32, 0, 1, (1,))]     the first entry must be f32[4,s0] for some s0
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from mlxir.compiler.donation import updated
from mlxir.compiler.graph import Cut, Results, Tape, Value
from mlxir.compiler.shared import Hole, Shared, Writer
from mlxir.dialects.symbolic import SYMBOLIC
from mlxir.runtime.buffers import Buffer


class Plan(NamedTuple):
    """`walk`, `leaves` and `kept` are (node, input) pairs; the nodes are those of the wanted values, then those that
    `walk` leads to. The leaves are the arguments; what is kept are results behind the wanted ones, or (node, ~number of
    the result) beside them.
    """

    run: Callable[[list[Buffer]], list[Buffer]]
    walk: list[tuple[int, int]]
    leaves: list[tuple[int, int]]
    words: tuple[Any, ...] | None = None  # the same for native code
    kept: Sequence[tuple[int, int]] = ()


def places(tape: Tape, wanted: list[Value]) -> tuple[int, ...] | None:
    """Where values stand on a tape, None where one was recorded elsewhere or depends on such values."""
    if tape.open:
        return None
    found = []
    for v in wanted:
        mark = v.mark
        if mark is None or mark[0] is not tape or v.node is None:
            return None
        found.append(mark[1])
    return tuple(found)


def route(wanted: list[Value], parameters: list[Value], kept: list[Value]) -> dict[str, Any] | None:
    """`walk`, `leaves` and `kept` of a plan; None where the walk does not come by all of them."""
    nodes = [v.node for v in wanted if v.node is not None]
    spots = {id(n) for n in nodes}
    walk: list[tuple[int, int]] = []
    found: dict[int, tuple[int, int]] = {}
    sought = {id(v) for v in [*parameters, *kept]}
    for number, node in enumerate(nodes):  # it grows meanwhile
        if type(node.avals) is Results:
            for i, reference in enumerate(node.avals.values):
                if id(reference()) in sought:
                    found.setdefault(id(reference()), (number, ~i))
        for i, x in enumerate(node.inputs):
            if id(x) in sought:
                found.setdefault(id(x), (number, i))
            if x.node is not None and x.buffer is None and id(x.node) not in spots:
                spots.add(id(x.node))
                walk.append((number, i))
                nodes.append(x.node)
    if len(found) < len(sought):
        return None
    while walk and len(wanted) + len(walk) - 1 > max((number for number, _ in found.values()), default=-1):
        walk.pop()  # leads to no leaf
    return {"walk": walk, "leaves": [found[id(v)] for v in parameters], "kept": [found[id(v)] for v in kept]}


def follow(plan: Plan | SharedPlan, wanted: list[Value]) -> tuple[list[Buffer], list[Value | None]] | None:
    """The arguments of a plan and what it keeps, as far as it is there; None where a value on the way was evaluated
    meanwhile.
    """
    nodes: Any = [v.node for v in wanted]
    for number, i in plan.walk:
        node = nodes[number].inputs[i].node
        if node is None:
            return None
        nodes.append(node)
    arguments = []
    for number, i in plan.leaves:
        buffer = nodes[number].inputs[i].buffer
        if buffer is None:
            return None
        arguments.append(buffer)
    return arguments, [
        nodes[number].inputs[i] if i >= 0 else nodes[number].avals.values[~i]() for number, i in plan.kept
    ]


class SharedPlan:
    """How evaluations are repeated whose programs share their code; see `Plan` for `walk`, `leaves` and `kept`.

    `fixed` is the key of the tape with None for the entries at `varying`, which `predicted` says, and for what the
    program does not use.
    """

    def __init__(self, shared: Shared, fixed: list[Any], varying: dict[int, str], writer: Writer, paths: list[str]):
        self.shared, self.fixed = shared, fixed
        self.free = [n for n, entry in enumerate(fixed) if entry is None]
        self.varying = list(varying)
        self.predicted = writer.function(shared.arguments, "".join([f"{text}, " for text in varying.values()]))
        self.read = writer.function(["k"], "".join([f"k{path}, " for path in paths]))
        self.updated = updated(shared.program)
        self.walk: list[tuple[int, int]] = []
        self.leaves: list[tuple[int, int]] = []
        self.kept: Sequence[tuple[int, int]] = ()

    def numbers(self, key: list[Any]) -> tuple | None:
        """The symbols and constants of a tape, if this plan serves it."""
        fixed = key.copy()
        for n in self.free:
            fixed[n] = None
        if fixed != self.fixed:
            return None
        try:
            found: tuple = self.read(key)
        except (IndexError, TypeError):
            return None
        serves = self.shared.serves(found) and self.predicted(*found) == tuple([key[n] for n in self.varying])
        return found if serves else None


def shared_plan(tape: Tape, wanted: list[Value], piece: Cut, kept: list[Value], shared: Shared) -> SharedPlan | None:
    """The plan for evaluations like this one, of a program that is one of `shared`."""
    if places(tape, wanted) is None or (found := route(wanted, piece.parameters, kept)) is None:
        return None
    first: dict[int, int] = {}  # the place of a node's first result
    for value in [*wanted, *kept, *[v for node in piece.nodes for v in node.inputs]]:
        if value.node is not None and value.mark is not None and value.mark[0] is tape:
            first[id(value.node)] = value.mark[1] - value.index
    marks = [v.mark for v in piece.parameters]
    if any(mark is None or mark[0] is not tape for mark in marks) or any(id(n) not in first for n in piece.nodes):
        return None
    parameters = [mark[1] for mark in marks if mark is not None]
    nodes = [first[id(n)] for n in piece.nodes]
    fixed: list[Any] = [None] * len(tape.key)
    varying: dict[int, str] = {}
    writer = Writer()
    for place, aval in zip(parameters, shared.program.parameters, strict=True):
        if _varies(aval.shape):
            varying[place] = writer.tuple([writer.value(aval.shape), writer.constant(aval.dtype)])
        else:
            fixed[place] = tape.key[place]
    for place, i in zip(nodes, shared.program.instructions, strict=True):
        if _varies(tuple(i.attrs.values())):
            varying[place] = f"(*{writer.constant(tape.key[place][:-1])}, {writer.attributes(i)})"
        else:
            fixed[place] = tape.key[place]

    def on_tape(path: str) -> str:
        kind, at, rest = re.fullmatch(r"\[(\d)\]\[(\d+)\]\[\d\](.*)", path).groups()  # type: ignore[union-attr]
        return f"[{nodes[int(at)]}][-1]{rest}" if kind == "1" else f"[{parameters[int(at)]}][0]{rest}"

    plan = SharedPlan(shared, fixed, varying, writer, [on_tape(path) for path in shared.paths])
    plan.walk, plan.leaves, plan.kept = found["walk"], found["leaves"], found["kept"]
    return plan


def _varies(value: Any) -> bool:
    """Whether an attribute holds a number that varies."""
    kind = type(value)
    if kind is tuple:
        return any(map(_varies, value))
    if kind in SYMBOLIC or kind is Hole:
        return True
    instructions = getattr(value, "instructions", None)
    if instructions is None:
        return False
    return any(map(_varies, [*[a.shape for a in value.parameters], *[tuple(i.attrs.values()) for i in instructions]]))
