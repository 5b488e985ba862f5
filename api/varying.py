"""Python numbers beside arrays that keep changing are data; as constants, each would make a graph of its own.

    while time < end:
        step = min(step * factor, 0.02)         a new number each time
        state = state + step * slope(state)     key: [f32[3], f32[], (multiply, f32, 1, 0), ...] at each time

A place in the user's code that gave a number which nobody had met, in `SETTLED` evaluations, gives data from then on.
What was met before stays a constant, and so does everything that `compile` traces.
"""

from __future__ import annotations

from types import CodeType

from mlxir.compiler.evaluate import evaluations
from mlxir.compiler.graph import Value, constant, running, scalar_buffer
from mlxir.runtime.dtypes import Dtype
from mlxir.runtime.errors import user_frame

SETTLED = 4
MOST = 4096

_met: set[tuple[type, float]] = set()
_places: dict[tuple[int, int], tuple[CodeType, int, int]] = {}
"""By the place: its code (so that its id stays its own), its last evaluation, and how many gave something new."""
_TRACED_EACH_TIME = frozenset(["vjp", "jvp", "vmap", "linearize"])


def traced_each_time() -> bool:
    """Whether what runs now, runs again before its results are computed again: no trace is on whose program stays."""
    return all(t.kind in _TRACED_EACH_TIME for t in running.traces)


def number_data(x: float, dtype: Dtype) -> Value | None:
    """A number, other than 0, as data where it is to be data, else None."""
    key = type(x), x
    if key in _met or x != x or not traced_each_time():
        return None
    where = user_frame(3)
    if where is None:
        return None
    now = evaluations()
    place = id(where[0]), where[1]
    _, last, count = _places.get(place, (where[0], -1, 0))
    if count >= SETTLED and last != now:
        return constant(scalar_buffer(x, dtype))
    if last != now:
        if len(_places) >= MOST:
            _places.clear()
        _places[place] = where[0], now, count + 1
    if len(_met) >= MOST:
        _met.clear()
    _met.add(key)
    return None
