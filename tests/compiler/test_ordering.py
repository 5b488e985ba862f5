"""`depends`, and what checkpoints make of it: kernels in the order asked for, and a smaller arena."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import random_programs

import mlxir as mx
from mlxir.compilation import traced
from mlxir.compiler import evaluate, pipeline
from mlxir.compiler.passes.fuse import Fused, Group, _ordered
from mlxir.compiler.pipeline import Loops
from mlxir.compiler.program import Instruction, Program
from mlxir.dialects.mx import RECORDS
from mlxir.runtime.buffers import Buffer
from mlxir.runtime.errors import CompileError
from mlxir.runtime.knobs import knobs


@pytest.fixture(autouse=True)
def _verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs of this file are compiled here and now, with all IR verified."""
    monkeypatch.setattr(knobs, "cache_dir", None)
    monkeypatch.setattr(knobs, "verify", True)


def lowered(fun: Callable, *args: Any) -> Loops:
    return pipeline.lowered(traced(fun, args, {})[0], lambda stage, text: None)


# -- order -----------------------------------------------------------------------------------------------------------
def kernels(fused: Fused) -> list[list[str]]:
    """The primitives of each step in the order of execution."""
    return [[op.record.name for op in fused.module.find(launch.name).read()[0]] for launch in fused.launches]


def step_of(fused: Fused, primitive: str) -> int:
    (step,) = [n for n, names in enumerate(kernels(fused)) if primitive in names]
    return step


SPACES = {
    "element and reduction": (lambda x, y: mx.sum(mx.exp(y), axis=1), lambda x: mx.sum(mx.sin(x), axis=0)),
    "equal spaces": (lambda x, y: mx.exp(x), lambda x: mx.sin(x)),
    "scan": (lambda x, y: mx.cumsum(mx.exp(y), axis=0), lambda x: mx.sin(x)),
    "matmul": (lambda x, y: mx.exp(x) @ y.T, lambda x: mx.sin(x)),
    "epilogue": (lambda x, y: mx.exp(x @ y.T), lambda x: mx.sin(x)),
    "behind the matmul": (lambda x, y: mx.exp(y), lambda x: mx.sin(x @ x.T)),
}


@pytest.mark.parametrize("space", SPACES)
def test_what_depends_runs_later(space: str) -> None:
    first, second = SPACES[space]
    x, y = mx.zeros((6, 5)), mx.zeros((6, 5))

    def ordered(x: Any, y: Any) -> Any:
        before = first(x, y)
        return second(mx.depends(x, before)), before

    fused = lowered(ordered, x, y).fused
    assert step_of(fused, "exp") < step_of(fused, "sin")
    reverse = lowered(lambda x, y: (first(mx.depends(x, second(x)), mx.depends(y, second(x))), second(x)), x, y).fused
    assert step_of(reverse, "sin") < step_of(reverse, "exp")


def test_an_update_runs_as_soon_as_its_gradient_and_frees_what_it_reads() -> None:
    """Twelve layers, activations of 32 KB: without that, all of them and all their cotangents live until the end."""
    weights, x = [mx.zeros((64, 64))] * 12, mx.zeros((128, 64))

    def step(weights: Any, x: Any, rate: Any) -> Any:
        def loss(weights: Any) -> Any:
            h = x
            for w in weights:
                h = mx.tanh(h @ w)
            return mx.sum(h)

        return [w - (1 - 0.9**rate) * g for w, g in zip(weights, mx.grad(loss)(weights), strict=True)]

    assert lowered(step, weights, x, mx.array(1.0)).plan.arena <= (12 + 4) * 128 * 64 * 4


def test_a_chain_of_dependencies() -> None:
    def chained(x: Any) -> Any:
        a = mx.exp(x)
        b = mx.sin(mx.depends(x, a))
        c = mx.cos(mx.depends(mx.depends(x, x), b))
        return c, b, a

    fused = lowered(chained, mx.zeros((7,))).fused
    assert [step_of(fused, n) for n in ("exp", "sin", "cos")] == [0, 1, 2]


def test_what_is_only_waited_for_is_not_computed() -> None:
    def waits(x: Any, y: Any) -> Any:
        return mx.sin(mx.depends(x, mx.cos(mx.exp(y)))), mx.sum(mx.exp(y))

    fused = lowered(waits, mx.zeros((7,)), mx.zeros((70, 90))).fused
    assert not any("cos" in names for names in kernels(fused))
    assert not lowered(lambda x, y: mx.depends(x, mx.exp(y)), mx.zeros((7,)), mx.zeros((3,))).fused.launches


def test_an_operation_of_several_kernels_waits_in_each() -> None:
    """The broadcast is computed inside its two readers, which cannot be one kernel."""

    def shared(x: Any, y: Any) -> Any:
        late = mx.depends(x, mx.exp(y)) * 2
        return mx.exp(y), mx.sin(late).sum(axis=0), mx.cumsum(mx.tanh(late), axis=1)

    fused = lowered(shared, mx.zeros((9, 8)), mx.zeros((70,))).fused
    assert max(step_of(fused, "sin"), step_of(fused, "tanh")) > step_of(fused, "exp") == 0


def test_a_circle_is_reported() -> None:
    a, b = Group("loops", (3,), members={0}), Group("loops", (3,), members={1})
    a.after.add(b)
    assert _ordered([a, b]) == [b, a]
    b.after.add(a)
    with pytest.raises(CompileError, match="circle"):
        _ordered([a, b])


def with_dependencies(program: Program, rng: np.random.Generator) -> Program:
    """The program with some operands made to wait for some earlier values."""
    avals = dict(enumerate(program.parameters))
    slots = {i: i for i in avals}
    instructions: list[Instruction] = []

    def add(i: Instruction, operands: list[int]) -> list[int]:
        first = len(program.parameters) + sum(len(j.results) for j in instructions)
        results = list(range(first, first + len(i.results)))
        instructions.append(i._replace(operands=tuple(operands), results=tuple(results)))
        return results

    known = list(slots)
    for i in program.instructions:
        operands = []
        for slot in i.operands:
            operand = slots[slot]
            while rng.random() < 0.4:
                (operand,) = add(
                    Instruction(RECORDS["depends"], {}, (), (0,), [avals[slot]]), [operand, slots[rng.choice(known)]]
                )
            operands.append(operand)
        for old, aval, new in zip(i.results, i.avals, add(i, operands), strict=True):
            slots[old], avals[old] = new, aval
            known.append(old)
    return Program(program.parameters, instructions, [slots[s] for s in program.outputs], program.name)


@pytest.mark.parametrize("seed", range(12))
def test_random_dependencies_change_no_value(seed: int) -> None:
    program, arguments = random_programs.random_program(5000 + seed, "float64", 14)
    ordered = with_dependencies(program, np.random.default_rng(seed))
    assert any(i.record.name == "depends" for i in ordered.instructions)
    expected = program.run_reference(arguments)
    actual = evaluate.executable(ordered).run([Buffer.from_numpy(a) for a in arguments])
    for a, r, e in zip(actual, ordered.run_reference(arguments), expected, strict=True):
        np.testing.assert_array_equal(r, e)
        np.testing.assert_allclose(a.numpy(), e, rtol=1e-9, atol=1e-9)


# -- memory ----------------------------------------------------------------------------------------------------------
def chain(block: Callable, segment: int, wrap: Callable) -> Callable:
    """The gradient of a chain of blocks, of which `segment` at a time are wrapped."""

    def piece(x: Any, weights: list) -> Any:
        for w in weights:
            x = block(x, w)
        return x

    def loss(weights: list, x: Any) -> Any:
        for i in range(0, len(weights), segment):
            x = wrap(piece)(x, weights[i : i + segment])
        return (x * x).mean()

    return mx.value_and_grad(loss)


def mlp(x: Any, w: Any) -> Any:
    """Two products, so that each block has two activations to keep."""
    return mx.tanh(mx.tanh(x @ w) @ w)


def deep(x: Any, w: Any) -> Any:
    return x + mx.tanh(mx.sin(mx.tanh(x @ w) @ w) @ w)


@pytest.mark.parametrize(("block", "segment", "count"), [(mlp, 6, 48), (deep, 1, 32)])
def test_the_arena_of_many_blocks_is_a_quarter(
    block: Callable, segment: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Width 1024, activations of 8 MB: the plan alone, nothing is run."""
    monkeypatch.setattr(knobs, "verify", False)
    shapes = [mx.zeros((1024, 1024))] * count, mx.zeros((2048, 1024))
    plain = lowered(chain(block, segment, lambda f: f), *shapes).plan.arena
    checkpointed = lowered(chain(block, segment, mx.checkpoint), *shapes).plan.arena
    assert plain >= count * 8 * 2**20  # it does keep an activation per block
    assert checkpointed <= plain / 4, (checkpointed / 2**20, plain / 2**20)


@pytest.mark.parametrize("segment", [1, 4])
def test_gradients_are_equal_and_memory_is_saved(segment: int) -> None:
    rng = np.random.default_rng(0)
    weights = [mx.array(rng.standard_normal((24, 24)).astype(np.float32) / 5) for _ in range(16)]
    x = mx.array(rng.standard_normal((160, 24)).astype(np.float32))
    results, arenas = [], []
    for wrap in (lambda f: f, mx.checkpoint):
        gradient = chain(deep, segment, wrap)
        results.append(mx.compile(gradient)(weights, x))
        arenas.append(evaluate.executable(traced(gradient, (weights, x), {})[0]).schedule.arena)
    assert arenas[1] < 0.5 * arenas[0]
    (plain_loss, plain), (loss, checkpointed) = results
    assert np.array(loss) == np.array(plain_loss)
    for a, b in zip(checkpointed, plain, strict=True):
        np.testing.assert_allclose(np.array(a), np.array(b), rtol=1e-5, atol=1e-6)


def test_recomputation_survives_cse(tmp_path: Any) -> None:
    """Each sine of the forward pass is computed again; without a checkpoint it is not."""
    counts = []
    for wrap in (lambda f: f, mx.checkpoint):
        gradient = chain(deep, 1, wrap)
        directory = tmp_path / str(len(counts))
        folder = mx.dump(gradient, ["f32[4,4]"] * 3, "f32[6,4]", directory=directory, stages=["transformed"])
        counts.append(next(folder.iterdir()).read_text().count("mx.sin"))
    assert counts == [3, 6]


def test_recomputation_waits_for_the_backward_pass() -> None:
    """At most one block's own values are alive beside the inputs of the blocks, in the order of execution."""
    loops = lowered(chain(deep, 1, mx.checkpoint), [mx.zeros((8, 8))] * 6, mx.zeros((100, 8)))
    steps = kernels(loops.fused)
    sines = [n for n, names in enumerate(steps) if "sin" in names]
    cosines = [n for n, names in enumerate(steps) if "cos" in names]
    assert len(sines) == 12 and len(cosines) == 6
    # forward, forward, ...; then recompute, backward, recompute, backward, ...
    for again, backward, following in zip(sines[6:], cosines, [*sines[7:], len(steps)], strict=True):
        assert again < backward < following
