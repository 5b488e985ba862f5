"""Forks: the child has the one thread that forked, and all locks as they were.

A lock that another thread held would be held there for ever, over a table or a library in the middle of something. So
a fork waits until no other thread is in such a place: until the worker has done its jobs, and nobody compiles, links or
changes a table.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, Protocol


class Place(Protocol):
    """A lock, or what is waited for like one."""

    def acquire(self) -> Any:
        """Wait until no other thread is here, and keep others out."""

    def release(self) -> Any:
        """Let others in."""


_forking = threading.RLock()
_first: list[Place] = []
_locks: list[Place] = []
_taken: list[Place] = []


def guarded(lock: Any) -> Any:
    """The same lock, which a forking thread takes; the latest first, for modules take locks of those they import."""
    _locks.append(lock)
    return lock


def waited_for(place: Place) -> None:
    """A forking thread waits for this before it takes any lock: threads that are there may take all of them."""
    _first.append(place)


def in_child(action: Callable[[], object]) -> Callable[[], object]:
    """A forked child does this first. May be used as a decorator."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=action)
    return action


def freed(lock: Any) -> None:
    """In the child: free a lock that a thread held which is not there."""
    if lock.acquire(blocking=False):
        lock.release()
    else:
        lock._at_fork_reinit()


def _before() -> None:
    _forking.acquire()
    for place in [*_first, *reversed(_locks)]:
        place.acquire()
        _taken.append(place)


def _after() -> None:
    while _taken:
        _taken.pop().release()
    _forking.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
