"""From a buffer plan to the schedule that runs it on the CPU: plain data from plain data, without MLIR."""

from __future__ import annotations

from mlxir.compiler.lower.plan import LibraryLaunch, NativeLaunch, Place, Plan
from mlxir.runtime.launch import Launch, Schedule, Segment

GRAIN = 1 << 18  # simple operations that are worth another thread, about 14 us: one that sleeps wakes within 30
AWAKE = 1 << 17  # where threads have just worked, and look for more: sharing a step costs 1 us then
SLEEPY = 1 << 18  # operations on one thread during which the others go to sleep


def schedule_of(plan: Plan) -> Schedule:
    """How the kernels and library steps of a plan are called."""
    segments: list[Segment] = []
    alone: float = SLEEPY  # operations since threads worked together
    for launch in plan.launches:
        if isinstance(launch, LibraryLaunch):
            operands = tuple((p.kind, p.at, a.shape, a.dtype) for p, a in launch.operands)
            results = tuple((p.kind, p.at, a.shape, a.dtype) for p, a in launch.results)
            segments.append(Segment((), launch.primitive, launch.attrs, operands, results))
            alone = SLEEPY
            continue
        made = launch_of(launch, GRAIN if alone >= SLEEPY else AWAKE)
        alone = 0 if made.useful > 1 else alone + launch.step.extent * launch.step.work
        if segments and segments[-1].launches:
            segments[-1] = Segment((*segments[-1].launches, made))
        else:
            segments.append(Segment((made,)))
    parameters = [(a.shape, a.dtype) for a in plan.parameters]
    written = [(a.shape, a.dtype) for a in plan.results]
    copies = [(parameter, result) for parameter, result in plan.copies]
    return Schedule(parameters, written, plan.outputs, plan.arena, segments, len(plan.launches), copies)


def launch_of(launch: NativeLaunch, grain: int = GRAIN) -> Launch:
    """What the launcher needs to know of a step: how it is shared among threads, and its buffers."""
    step = launch.step
    useful = max(1, min(step.extent, int(step.extent * step.work / grain), 1 << 20))
    align = 64 if step.extent >= 1 << 14 else 16 if step.extent >= 1024 else 1  # pieces of whole vectors
    return Launch(step.symbol, step.extent, align, useful, tuple(map(_encoded, launch.places)))


def _encoded(place: Place) -> int:
    """An offset in the arena, or the complement of an entry of the table."""
    return place.at if place.kind == "arena" else ~place.at
