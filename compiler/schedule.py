"""From a buffer plan to the schedule that runs it on the CPU: plain data from plain data, without MLIR."""

from __future__ import annotations

from mlxir.compiler.lower.plan import LibraryLaunch, NativeLaunch, Place, Plan
from mlxir.runtime.launch import Launch, Schedule, Segment

GRAIN = 1 << 18  # simple operations that are worth another thread: waking one takes about 5 us


def schedule_of(plan: Plan) -> Schedule:
    """How the kernels and library steps of a plan are called."""
    segments: list[Segment] = []
    for launch in plan.launches:
        if isinstance(launch, LibraryLaunch):
            operands = tuple((p.kind, p.at, a.shape, a.dtype) for p, a in launch.operands)
            results = tuple((p.kind, p.at, a.shape, a.dtype) for p, a in launch.results)
            segments.append(Segment((), launch.primitive, launch.attrs, operands, results))
        elif segments and segments[-1].launches:
            segments[-1] = Segment((*segments[-1].launches, launch_of(launch)))
        else:
            segments.append(Segment((launch_of(launch),)))
    parameters = [(a.shape, a.dtype) for a in plan.parameters]
    written = [(a.shape, a.dtype) for a in plan.results]
    return Schedule(parameters, written, plan.outputs, plan.arena, segments, len(plan.launches))


def launch_of(launch: NativeLaunch) -> Launch:
    """What the launcher needs to know of a step: how it is shared among threads, and its buffers."""
    step = launch.step
    useful = max(1, min(step.extent, int(step.extent * step.work / GRAIN), 1 << 20))
    align = 64 if step.extent >= 1 << 14 else 16 if step.extent >= 1024 else 1  # pieces of whole vectors
    return Launch(step.symbol, step.extent, align, useful, tuple(map(_encoded, launch.places)))


def _encoded(place: Place) -> int:
    """An offset in the arena, or the complement of an entry of the table."""
    return place.at if place.kind == "arena" else ~place.at
