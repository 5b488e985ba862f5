"""How many threads a launch is worth."""

from __future__ import annotations

import pytest

from mlxir.compiler.lower.plan import LibraryLaunch, NativeLaunch, Plan
from mlxir.compiler.lower.steps import Step
from mlxir.compiler.schedule import AWAKE, GRAIN, SLEEPY, schedule_of

LARGE, SMALL = 8 * GRAIN, 2 * AWAKE  # operations
LIBRARY = LibraryLaunch("svd", {}, [], [])


@pytest.mark.parametrize(
    "work, useful",
    [
        ([SMALL, LARGE, SMALL, SMALL], [1, 8, 2, 2]),  # after a large step, threads are awake
        ([LARGE, AWAKE, SMALL], [8, 1, 2]),  # and stay so for a while
        ([LARGE, *[AWAKE] * (SLEEPY // AWAKE), SMALL], [8, *[1] * (SLEEPY // AWAKE), 1]),  # but not for long
        ([LARGE, None, SMALL], [8, 1]),  # nor beside a step of the host
    ],
)
def test_small_steps_are_shared_while_threads_are_awake(work: list[int | None], useful: list[int]) -> None:
    launches = [LIBRARY if w is None else NativeLaunch(Step("x", 64, w / 64, (), ()), []) for w in work]
    schedule = schedule_of(Plan(launches, [], [], [], 0))
    assert [k.useful for s in schedule.segments for k in s.launches] == useful
