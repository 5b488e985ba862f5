"""Evaluations that write over arrays which nobody else can see.

    x[i] = v        x is a new value now, computed from the one before
    mx.eval(x)      only the graph leads to that one: its memory becomes x's, and x[i] is all that is written

While memory is written over, the values to be computed have neither graph nor data, so that no other thread gets to it;
who reads them waits (`graph.Turn`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from mlxir.compiler.graph import Node, Turn, Value
from mlxir.compiler.program import Program
from mlxir.runtime.buffers import Buffer, Spare
from mlxir.runtime.references import references

LEAST = 1 << 16  # bytes of an array; to copy fewer takes no longer than to look who sees them

Pair = tuple[int, int]


def updated(program: Program) -> list[int]:
    """The parameters that a program computes an updated copy of."""
    firsts = {i.operands[0] for i in program.instructions if i.record.updates}
    return [n for n in sorted(firsts) if n < len(program.parameters)]


def run_over(
    run: Callable[[list[Buffer]], list[Buffer]],
    arguments: list[Buffer],
    candidates: list[int],
    wanted: list[Value],
    walk: list[Pair],
    leaves: list[Pair],
    held: int,
) -> list[Buffer]:
    """What `run` gives, for which those large candidates are `Spare` that only the wanted values lead to; these get it.

    `walk` and `leaves` are those of a plan (`plans.Plan`). Lists of the caller's hold each node and leaf so many times.
    """
    large = [n for n in candidates if arguments[n].nbytes >= LEAST]
    if not large:
        return run(arguments)
    turn = Turn()
    made: Sequence[Buffer | None] = [None] * len(wanted)
    with turn.lock:
        nodes = [v.node for v in wanted]
        for v in wanted:
            v.owner, v.offset, v.node = turn, 0, None
        for v in {id(v): v for v in wanted}.values():
            del v.buffer
        try:
            chains = {n: _chain(leaves[n], walk, len(nodes)) for n in large}
            spare = [n for n in large if _unseen(nodes, chains[n], arguments, n, held)]
            made = results = run([Spare.of(b) if n in spare else b for n, b in enumerate(arguments)])
            return results
        finally:
            for v, node, buffer in zip(wanted, nodes, made[: len(wanted)], strict=True):
                v.node, v.buffer = node, buffer
            for v in {id(v): v for v in wanted}.values():
                del v.owner, v.offset


def _chain(leaf: Pair, walk: list[Pair], count: int) -> list[Pair]:
    """The pairs from a wanted value to a leaf."""
    chain = [leaf]
    while chain[-1][0] >= count:
        chain.append(walk[chain[-1][0] - count])
    return chain[::-1]


def _unseen(nodes: list[Node | None], chain: list[Pair], arguments: list[Buffer], n: int, held: int) -> bool:
    """Whether nothing but a chain of inputs leads to argument n, and nothing else to the nodes on it.

    Only items and attributes are looked at (`references`).
    """
    first = chain[0][0]
    if references(nodes[first]) != 1 + held:
        return False
    node: Any = nodes[first]
    if node is None or references(node.inputs) != 1:
        return False
    for _, i in chain[:-1]:
        if references(node.inputs[i]) != 1 or node.inputs[i].node is None:
            return False
        if references(node.inputs[i].node) != 1 + held or references(node.inputs[i].node.inputs) != 1:
            return False
        node = node.inputs[i].node
    i = chain[-1][1]
    if references(node.inputs[i]) != 1 + held or node.inputs[i].trace is not None or node.inputs[i].alias is not None:
        return False
    if node.inputs[i].node is not None or references(node.inputs[i].buffer) != 2:
        return False
    twice = getattr(node.inputs[i], "owner", None) is arguments[n].owner
    return type(arguments[n]) is Buffer and arguments[n].is_unseen(2 if twice else 1)
