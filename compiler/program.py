"""Programs: straight-line functions as plain data, between the trace and the module, and what the reference tier runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mlxir.compiler.reference import Written, compute, update
from mlxir.dialects.mx import Aval, Primitive
from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import Where


class Instruction(NamedTuple):
    """One primitive; slots number the values of its program, the parameters first, then every result in order."""

    record: Primitive
    attrs: dict[str, Any]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    avals: Sequence[Aval]
    where: Where = None


class Program:
    """A traced function. `key` identifies its structure: primitives, attributes, edges, shapes and dtypes, not names or
    lines.
    """

    def __init__(
        self, parameters: Sequence[Aval], instructions: Sequence[Instruction], outputs: Sequence[int], name: str
    ):
        self.parameters, self.instructions, self.outputs, self.name = (
            list(parameters),
            instructions,
            list(outputs),
            name,
        )
        self._key: tuple | None = None
        self._dead: list[list[int]] | None = None

    def __repr__(self) -> str:
        return f"<program {self.name}: {len(self.parameters)} parameters, {len(self.instructions)} instructions>"

    @property
    def avals(self) -> list[Aval]:
        """The types of the outputs."""
        known: dict[int, Aval] = dict(enumerate(self.parameters))
        for i in self.instructions:
            known.update(zip(i.results, i.avals, strict=True))
        return [known[slot] for slot in self.outputs]

    @property
    def has_transforms(self) -> bool:
        return any(i.record.kind == "transform" for i in self.instructions)

    @property
    def key(self) -> tuple:
        if self._key is None:
            body = tuple([
                (i.record.name, tuple([attr_key(a) for a in i.attrs.values()]) if i.attrs else (), i.operands)
                for i in self.instructions
            ])  # fmt: skip
            self._key = tuple([(a.shape, a.dtype.name) for a in self.parameters]), body, tuple(self.outputs)
        return self._key

    def run_reference(self, arguments: Sequence[np.ndarray], spare: Iterable[int] = ()) -> list[np.ndarray]:
        """The outputs by the reference evaluator; each intermediate is let go after its last use.

        The `spare` arguments may be written over, and be outputs then; if an operation raises, they are as they were.
        """
        if self._dead is None:
            last: dict[int, int] = {}
            for n, i in enumerate(self.instructions):
                last.update(dict.fromkeys((*i.operands, *i.results), n))
            self._dead = [[] for _ in self.instructions]
            for slot, n in last.items():
                if slot not in self.outputs:
                    self._dead[n].append(slot)
        values: dict[int, np.ndarray] = dict(enumerate(arguments))
        own, written = set(spare), Written()
        try:
            for i, dead in zip(self.instructions, self._dead, strict=True):
                operands = [values[s] for s in i.operands]
                first = i.operands[0] if i.record.updates else -1
                if first in own and first in dead and self._unseen(operands[0], values, dead):
                    done = update(i.record, operands, i.attrs, written)
                else:
                    done = False
                values.update(
                    zip(i.results, operands[:1] if done else compute(i.record, operands, i.attrs, i.avals), strict=True)
                )
                if i.record.updates:
                    own.update(i.results)
                for slot in dead:
                    del values[slot]
        except BaseException:
            for x, where, old in reversed(written):
                x[where] = old
            raise
        return [values[slot] for slot in self.outputs]

    @staticmethod
    def _unseen(x: np.ndarray, values: dict[int, np.ndarray], dead: list[int]) -> bool:
        """Whether no value that is still needed is a view of an array."""
        return not any([np.may_share_memory(x, v) for slot, v in values.items() if slot not in dead])


def attr_key(value: Any) -> Any:
    """An attribute as part of a key: 1, True and 1.0 differ, and so do 0.0 and -0.0."""
    if isinstance(value, Program):
        return value.key
    if isinstance(value, Dtype):
        return value.name
    if isinstance(value, (float, complex, bool)):
        return type(value).__name__, repr(value)
    return value
