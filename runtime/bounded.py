"""A table of bounded size."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any


class Bounded(OrderedDict):
    """A dict that forgets its least recently used entries beyond `bound`."""

    def __init__(self, bound: int):
        super().__init__()
        self.bound = bound

    def recall(self, key: Any) -> Any:
        """The value of a key, which counts as a use of it, or None."""
        found = self.get(key)
        if found is not None:
            self.move_to_end(key)
        return found

    def keep(self, key: Any, value: Any) -> None:
        self[key] = value
        if len(self) > self.bound:
            self.popitem(last=False)
