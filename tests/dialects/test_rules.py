"""Laws of the derivative and batching rules, for every primitive of the table, on the reference evaluator.

forward     jvp equals central finite differences, in float64
transpose   <ct, J t> = <J^T ct, t>, in float64 and float32
second      jvp of vjp equals finite differences of vjp; vjp of vjp is the transpose of jvp of vjp
batched     vmap equals loop and stack for every choice of mapped operands; so do vmap of vjp and vjp of vmap
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from math import prod

import laws
import numpy as np
import pytest

from mlxir.compiler.graph import Value, apply_transform, cut
from mlxir.compiler.pipeline import transformed_program
from mlxir.compiler.program import Program
from mlxir.dialects.mx import RECORDS, Aval, Primitive
from mlxir.runtime import dtypes

UNMAPPED = -1


# -- transforms of programs ------------------------------------------------------------------------------------------
def _transform(
    name: str, program: Program, inputs: Sequence[Aval], attrs: dict, avals: Sequence[Aval], skip: int = 0
) -> Program:
    """The program that applies one transform to `program`, without the first `skip` of its results."""
    values = [Value(*a) for a in inputs]
    outs = apply_transform(RECORDS[name], values, {"callee": program, **attrs}, avals)
    return cut(outs[skip:], values).program


def vjp(program: Program, wrt: Sequence[int]) -> Program:
    """`(*operands, *cotangents) -> gradients of the operands in wrt`."""
    outs = program.avals
    avals = [*outs, *[program.parameters[i] for i in wrt]]
    attrs = {"wrt": tuple(wrt), "seeded": tuple(range(len(outs)))}
    return _transform("vjp", program, [*program.parameters, *outs], attrs, avals, skip=len(outs))


def jvp(program: Program, wrt: Sequence[int]) -> Program:
    """`(*operands, *tangents of the operands in wrt) -> tangents`."""
    outs, tangents = program.avals, [program.parameters[i] for i in wrt]
    return _transform(
        "jvp", program, [*program.parameters, *tangents], {"wrt": tuple(wrt)}, [*outs, *outs], skip=len(outs)
    )


def _inserted(aval: Aval, axis: int, size: int) -> Aval:
    return aval if axis == UNMAPPED else Aval((*aval.shape[:axis], size, *aval.shape[axis:]), aval.dtype)


def vmap(program: Program, in_axes: Sequence[int], out_axes: Sequence[int], size: int) -> Program:
    inputs = [_inserted(a, axis, size) for a, axis in zip(program.parameters, in_axes, strict=True)]
    outs = [_inserted(a, axis, size) for a, axis in zip(program.avals, out_axes, strict=True)]
    return _transform(
        "vmap", program, inputs, {"in_axes": tuple(in_axes), "out_axes": tuple(out_axes), "size": size}, outs
    )


def expanded(program: Program) -> Program:
    return transformed_program(program) if program.has_transforms else program


# -- rows and data ---------------------------------------------------------------------------------------------------
ROWS = [r for r in laws.TABLE if r.operands]
STEP = {"float64": 2e-4, "complex64": 2e-2}
FORWARD = {"float64": 2e-7, "complex64": 2e-3}  # tolerances of finite differences
SECOND = {"float64": 1e-6, "complex64": 1e-2}
TRANSPOSE = {"float64": 1e-12, "float32": 2e-5, "complex64": 2e-5}


def _wide(array: np.ndarray) -> np.ndarray:
    return array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)


def _inexact(operand: tuple, dtype: str) -> bool:
    return dtypes.from_name(operand[1] or dtype).is_inexact


def _differentiable(row: laws.Row, dtype: str) -> bool:
    """Whether the record has derivative rules (a flat one has: zero) and the row is about this kind of numbers."""
    coverage = RECORDS[row.name].coverage()
    ruled = all(coverage[rule] in ("yes", "composite", "flat") for rule in ("jvp", "vjp"))
    wanted = (dtype,) if dtype == "complex64" else laws.FLOATS
    # astype to an integer or bool passes derivatives through by convention: no law of finite differences.
    rounds = row.name == "astype" and not row.attrs["dtype"].is_inexact
    return (
        ruled
        and not rounds
        and not set(wanted).isdisjoint(row.dtypes)
        and any(_inexact(o, dtype) for o in row.operands)
    )


def cases(*names: str) -> list:
    return [pytest.param(r, d, id=f"{r}-{n}-{d}") for n, r in enumerate(ROWS) for d in names if _differentiable(r, d)]


def _rng(row: laws.Row, *more: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr((str(row), row.attrs, more)).encode()))


def _direction(rng: np.random.Generator, like: np.ndarray | Aval) -> np.ndarray:
    dtype = like.dtype if isinstance(like, np.ndarray) else like.dtype.numpy
    x = rng.standard_normal(like.shape)
    return np.asarray(x + 1j * rng.standard_normal(like.shape) if dtype.kind == "c" else x, dtype)


def _case(row: laws.Row, dtype: str) -> tuple[list[np.ndarray], Program, list[int]]:
    """(operands, the program of the primitive, the operands to differentiate)."""
    operands = laws.arrays(row, dtype)
    program = laws.traced(row, operands).program
    wrt = [i for i, o in enumerate(row.operands) if _inexact(o, dtype)]
    if row.name == "power" and row.operands[1][2] == "counts":
        wrt = [0]  # negative bases: a power only where the exponent is whole
    return operands, program, wrt


def inner(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> float:
    """The inner product of (real and imaginary) components."""
    return float(sum(np.sum(np.conj(_wide(x)) * _wide(y)).real for x, y in zip(a, b, strict=True)))


def shifted(
    arguments: Sequence[np.ndarray], wrt: Sequence[int], tangents: Sequence[np.ndarray], h: float
) -> list[np.ndarray]:
    out = list(arguments)
    for i, t in zip(wrt, tangents, strict=True):
        out[i] = (arguments[i] + h * t).astype(arguments[i].dtype)
    return out


def differences(program: Program, arguments: list, wrt: Sequence[int], tangents: list, h: float) -> list[np.ndarray]:
    """Central finite differences of fourth order. An infinite result that stays has derivative zero."""
    at = {
        k: [_wide(r) for r in program.run_reference(shifted(arguments, wrt, tangents, k * h))] for k in (-2, -1, 1, 2)
    }
    found = []
    for a, b, c, d in zip(at[-1], at[1], at[-2], at[2], strict=True):
        a, b, c, d = (np.where((a == b) & np.isinf(a), 0, r) for r in (a, b, c, d))
        found.append((8 * (b - a) - (d - c)) / (12 * h))
    return found


def assert_near(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        scale = max(float(np.max(np.abs(e), initial=0)), 1.0)
        np.testing.assert_allclose(_wide(a), e, rtol=tolerance, atol=tolerance * scale)


def assert_transposed(
    cts: Sequence, forward: Sequence, backward: Sequence, tangents: Sequence, tolerance: float
) -> None:
    """<ct, J t> = <J^T ct, t>."""
    left, right = inner(cts, forward), inner(backward, tangents)
    scale = sum(np.sum(np.abs(c * f)) for c, f in zip(cts, forward, strict=True)) + 1
    assert abs(left - right) <= tolerance * scale, (left, right)


# -- forward and reverse ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "dtype"), cases("float64", "complex64"))
def test_jvp_equals_finite_differences(row: laws.Row, dtype: str) -> None:
    operands, program, wrt = _case(row, dtype)
    rng = _rng(row, dtype)
    tangents = [_direction(rng, operands[i]) for i in wrt]
    actual = expanded(jvp(program, wrt)).run_reference([*operands, *tangents])
    assert [a.dtype for a in actual] == [a.dtype.numpy for a in program.avals]
    if row.name == "astype":
        return assert_near(actual, program.run_reference(tangents), 0)
    if RECORDS[row.name].no_jvp == "flat" or row.name == "stop_gradient":
        return assert_near(actual, [np.zeros_like(a) for a in actual], 0)
    assert_near(actual, differences(program, operands, wrt, tangents, STEP[dtype]), FORWARD[dtype])


@pytest.mark.parametrize(("row", "dtype"), cases("float32", "float64", "complex64"))
def test_vjp_is_the_transpose_of_jvp(row: laws.Row, dtype: str) -> None:
    operands, program, active = _case(row, dtype)
    rng = _rng(row, dtype)
    tolerance = max(TRANSPOSE[dtype], TRANSPOSE["float32"] if row.name == "astype" else 0)
    # Each operand alone, then all together: a rule may depend on which operands are active.
    for wrt in dict.fromkeys([*[(i,) for i in active], tuple(active)]):
        tangents = [_direction(rng, operands[i]) for i in wrt]
        cts = [_direction(rng, a) for a in program.avals]
        forward = expanded(jvp(program, wrt)).run_reference([*operands, *tangents])
        backward = expanded(vjp(program, wrt)).run_reference([*operands, *cts])
        assert [(g.shape, g.dtype) for g in backward] == [(operands[i].shape, operands[i].dtype) for i in wrt]
        if row.name == "astype" and row.attrs["dtype"].size == 2:
            assert_near(backward, cts, 0)
        else:
            assert_transposed(cts, forward, backward, tangents, tolerance)


def _holomorphic(row: laws.Row) -> bool:
    record = RECORDS[row.name]
    if record.kind != "elementwise" or len(row.operands) != 1 or "complex64" not in row.dtypes:
        return False
    return not record.real_linear and record.result is None


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r}-{n}") for n, r in enumerate(ROWS) if _holomorphic(r)])
def test_cotangents_of_holomorphic_functions_meet_the_conjugate(row: laws.Row) -> None:
    """jvp = f'(z) t and vjp = conj(f'(z)) ct, with f' by differences in complex128."""
    (z,), program, _ = _case(row, "complex64")
    f, h = RECORDS[row.name].reference, 1e-4
    z = z.astype(np.complex128)
    ((a,), (b,)) = f(z - h, **row.attrs), f(z + h, **row.attrs)
    slope = (b - a) / (2 * h)
    t = _direction(_rng(row), program.parameters[0])
    (forward,) = expanded(jvp(program, [0])).run_reference([z.astype(np.complex64), t])
    (backward,) = expanded(vjp(program, [0])).run_reference([z.astype(np.complex64), t])
    np.testing.assert_allclose(forward, slope * t, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(backward, np.conj(slope) * t, rtol=1e-4, atol=1e-4)


# -- second order ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("row", "dtype"), [c for c in cases("float64", "complex64") if c.values[0].name != "astype"])
def test_second_order(row: laws.Row, dtype: str) -> None:
    operands, program, wrt = _case(row, dtype)
    rng = _rng(row, dtype, "second")
    first = vjp(program, wrt)
    arguments = [*operands, *[_direction(rng, a) for a in program.avals]]
    active = [i for i, a in enumerate(arguments) if i in wrt or (i >= len(operands) and a.dtype.kind in "fc")]
    tangents = [_direction(rng, arguments[i]) for i in active]
    forward = expanded(jvp(first, active)).run_reference([*arguments, *tangents])
    assert_near(forward, differences(expanded(first), arguments, active, tangents, STEP[dtype]), SECOND[dtype])
    seeds = [_direction(rng, f) for f in forward]
    backward = expanded(vjp(first, active)).run_reference([*arguments, *seeds])
    assert_transposed(seeds, forward, backward, tangents, {"float64": 1e-11, "complex64": 2e-4}[dtype])


@pytest.mark.parametrize(
    ("row", "dtype"),
    [c for c in cases("float64") if RECORDS[c.values[0].name].no_jvp != "flat" and c.values[0].name != "astype"],
)
def test_forward_over_forward(row: laws.Row, dtype: str) -> None:
    operands, program, wrt = _case(row, dtype)
    rng = _rng(row, dtype, "forward")
    first = jvp(program, wrt)
    arguments = [*operands, *[_direction(rng, operands[i]) for i in wrt]]
    active = [*wrt, *range(len(operands), len(arguments))]
    tangents = [_direction(rng, arguments[i]) for i in active]
    forward = expanded(jvp(first, active)).run_reference([*arguments, *tangents])
    assert_near(forward, differences(expanded(first), arguments, active, tangents, STEP[dtype]), SECOND[dtype])


# -- batching --------------------------------------------------------------------------------------------------------
SIZE = 3


def _mapped(
    row: laws.Row, dtype: str, operands: list[np.ndarray], chosen: Sequence[int], axes: dict[int, int]
) -> list[np.ndarray]:
    """Operands of which the chosen ones are stacked along their axis, each example different."""
    lanes = [
        [laws.sample(s, d or dtype, domain, 100 * lane + i) for i, (s, d, domain) in enumerate(row.operands)]
        for lane in range(SIZE)
    ]
    return [np.stack([lane[i] for lane in lanes], axes[i]) if i in chosen else x for i, x in enumerate(operands)]


def example(arguments: Sequence[np.ndarray], in_axes: Sequence[int], lane: int) -> list[np.ndarray]:
    return [a if axis == UNMAPPED else np.take(a, lane, axis) for a, axis in zip(arguments, in_axes, strict=True)]


def assert_stacked(
    program: Program, arguments: Sequence[np.ndarray], in_axes: Sequence[int], out_axes: Sequence[int]
) -> None:
    """vmap of `program` equals running it per example and stacking."""
    actual = expanded(vmap(program, in_axes, out_axes, SIZE)).run_reference(arguments)
    single = expanded(program)
    lanes = [single.run_reference(example(arguments, in_axes, lane)) for lane in range(SIZE)]
    for j, (a, axis) in enumerate(zip(actual, out_axes, strict=True)):
        laws.assert_close(a, np.stack([lane[j] for lane in lanes], axis), factor=20)


def _choices(row: laws.Row) -> list[tuple[int, ...]]:
    """Every choice of operands; of many operands each one, each pair and all."""
    every, count = range(len(row.operands)), len(row.operands)
    sizes = range(1, count + 1) if count <= 5 else (1, 2, count)
    return [c for n in sizes for c in itertools.combinations(every, n)]


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r}-{i}") for i, r in enumerate(ROWS)])
def test_vmap_equals_loop_and_stack(row: laws.Row) -> None:
    dtype = row.dtypes[0]
    operands = laws.arrays(row, dtype)
    program = laws.traced(row, operands).program
    for n, chosen in enumerate(_choices(row)):
        for last in (False, True):
            # Alternate, so that the axes of operands and results are also mixed.
            axes = {i: operands[i].ndim if last ^ (i % 2 == 1 and n % 2 == 1) else 0 for i in chosen}
            in_axes = [axes.get(i, UNMAPPED) for i in range(len(operands))]
            out_axes = [a.ndim if last else 0 for a in program.avals]
            assert_stacked(program, _mapped(row, dtype, operands, chosen, axes), in_axes, out_axes)


MOST_AXES = 8  # combinations of axes per row; where there are more, each axis of each operand and result is among them


def _axis_combinations(ranks: list[int]) -> list[tuple[int, ...]]:
    """Choices of one axis in 0..rank for each rank: all of them if they are few, else one that cycles through each."""
    if prod(rank + 1 for rank in ranks) <= MOST_AXES:
        return list(itertools.product(*[range(rank + 1) for rank in ranks]))
    return [tuple((k + i) % (rank + 1) for i, rank in enumerate(ranks)) for k in range(max(ranks) + 1)]


@pytest.mark.parametrize("row", [pytest.param(r, id=f"{r}-{i}") for i, r in enumerate(ROWS)])
def test_vmap_on_every_axis(row: laws.Row) -> None:
    """All operands mapped, each on each of its axes, and the results on each of theirs."""
    dtype = row.dtypes[0]
    operands = laws.arrays(row, dtype)
    program = laws.traced(row, operands).program
    every = range(len(operands))
    for axes in _axis_combinations([*[x.ndim for x in operands], *[a.ndim for a in program.avals]]):
        in_axes, out_axes = list(axes[: len(operands)]), list(axes[len(operands) :])
        mapped = _mapped(row, dtype, operands, every, dict(enumerate(in_axes)))
        if operands:
            assert_stacked(program, mapped, in_axes, out_axes)


@pytest.mark.parametrize(("row", "dtype"), cases("float64"))
def test_vmap_of_vjp_and_vjp_of_vmap(row: laws.Row, dtype: str) -> None:
    operands, program, wrt = _case(row, dtype)
    rng = _rng(row, "vmap")
    single = vjp(program, wrt)
    loop = expanded(single)
    for n, chosen in enumerate(_choices(row)):
        axes = {i: operands[i].ndim if (i + n) % 2 else 0 for i in chosen}
        in_axes = [axes.get(i, UNMAPPED) for i in range(len(operands))]
        arguments = _mapped(row, dtype, operands, chosen, axes)
        outs = [_inserted(a, 0, SIZE) for a in program.avals]
        cts = [np.asarray(rng.standard_normal(a.shape), a.dtype.numpy) for a in outs]
        assert_stacked(single, [*arguments, *cts], [*in_axes, *[0] * len(cts)], [0] * len(wrt))
        # The gradient of an operand that all examples share is the sum over the examples.
        mapped = vmap(program, in_axes, [0] * len(cts), SIZE)
        actual = expanded(vjp(mapped, wrt)).run_reference([*arguments, *cts])
        lanes = [loop.run_reference([*example(arguments, in_axes, k), *[c[k] for c in cts]]) for k in range(SIZE)]
        for j, i in enumerate(wrt):
            parts = [lane[j] for lane in lanes]
            expected = np.sum(parts, 0) if in_axes[i] == UNMAPPED else np.stack(parts, in_axes[i])
            laws.assert_close(actual[j], expected.astype(actual[j].dtype), factor=100)


NESTED_NAMES = (
    "add", "matmul", "gather", "scatter", "sum", "softmax", "cumprod", "pad", "slice_update", "take_along_axis",
)  # fmt: skip
NESTED = [
    pytest.param(row, id=f"{row}-{n}")
    for n, row in enumerate(ROWS)
    if row.name in NESTED_NAMES and row.dtypes[0] == "float32" and all(0 not in s for s, _, _ in row.operands)
]


@pytest.mark.parametrize("row", NESTED)
def test_nested_vmap(row: laws.Row) -> None:
    """Every second operand mapped by the outer map only, the others by both; the inner axis last."""
    program = laws.traced(row, laws.arrays(row, "float32")).program
    outer, count = 2, len(row.operands)
    in_inner = [program.parameters[i].ndim if i % 2 == 0 else UNMAPPED for i in range(count)]
    inner_map = vmap(program, in_inner, [0], SIZE)
    both = vmap(inner_map, [0] * count, [0], outer)
    arguments = [laws.sample(a.shape, a.dtype.name, row.operands[i][2], i) for i, a in enumerate(both.parameters)]
    (actual,) = expanded(both).run_reference(arguments)
    lanes = [expanded(inner_map).run_reference(example(arguments, [0] * count, k))[0] for k in range(outer)]
    laws.assert_close(actual, np.stack(lanes), factor=20)


# -- cases beyond the table ------------------------------------------------------------------------------------------
def _row(name: str, *operands: np.ndarray, **attrs: object) -> Program:
    row = laws.Row(name, [], (), attrs)
    return laws.traced(row, list(operands)).program


@pytest.mark.parametrize("rule", ["jvp", "vjp", "vmap"])
@pytest.mark.parametrize("name", ["softmax", "logsumexp"])
def test_what_a_composite_does_not_write_is_derived(name: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x = laws.sample((4, 5), "float64", "any")
    program = _row(name, x, axes=(1,))
    (out,) = program.avals
    t = laws.sample((4, 5) if rule == "jvp" else out.shape, "float64", "any", 1)
    derive = {"jvp": lambda: (jvp(program, [0]), [x, t]), "vjp": lambda: (vjp(program, [0]), [x, t]),
              "vmap": lambda: (vmap(program, [1], [1], 6), [np.stack([x + k for k in range(6)], 1)])}[rule]  # fmt: skip
    transformed, arguments = derive()
    written = expanded(transformed).run_reference(arguments)
    monkeypatch.setattr(type(RECORDS[name]), rule, getattr(Primitive, rule))
    derived = expanded(transformed)
    assert name not in {i.record.name for i in derived.instructions}
    laws.assert_close(derived.run_reference(arguments)[0], written[0], factor=10)


@pytest.mark.parametrize(
    ("name", "count"), [("arctan", 1), ("arcsinh", 1), ("arccosh", 1), ("arctan2", 2), ("log10", 1), ("log2", 1)]
)
def test_float16_derivatives_do_not_overflow(name: str, count: int) -> None:
    """Large operands whose square is beyond float16, where the derivative is not 0."""
    operands = [np.array([3.0, 300.0, 2000.0, 60000.0], np.float16)] * count
    ct = np.full(4, 100, np.float16)
    wrt = list(range(count))
    actual = expanded(vjp(_row(name, *operands), wrt)).run_reference([*operands, ct])
    wide = [o.astype(np.float64) for o in operands]
    expected = expanded(vjp(_row(name, *wide), wrt)).run_reference([*wide, ct.astype(np.float64)])
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a.astype(np.float64), e, rtol=4e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32"])
def test_more_examples_than_an_index_dtype_can_count(dtype: str) -> None:
    size = 300
    x = laws.sample((size, 3), "float32", "any")
    index = np.arange(size).reshape(size, 1).astype(dtype) % 3
    taken = _row("take_along_axis", x[0], index[0], axis=0)
    gathered = _row("gather", x[0], index[0], axes=(0,), slice_sizes=(1,))
    written = _row("scatter", x[0], index[0], np.ones((1, 1), np.float32), axes=(0,), mode="add")
    lanes = np.arange(size)
    expected = x[lanes, index[:, 0]]
    for program, arguments, shape in ((taken, [x, index], (size, 1)), (gathered, [x, index], (size, 1, 1))):
        (actual,) = expanded(vmap(program, [0, 0], [0], size)).run_reference(arguments)
        np.testing.assert_array_equal(actual, expected.reshape(shape))
    (actual,) = expanded(vmap(written, [0, 0, UNMAPPED], [0], size)).run_reference(
        [x, index, np.ones((1, 1), np.float32)]
    )
    plus = x.copy()
    plus[lanes, index[:, 0]] += 1
    np.testing.assert_array_equal(actual, plus)
    # The gradient of take_along_axis numbers the other axes in the dtype of the index.
    wide = _row("take_along_axis", x, index, axis=1)
    (actual,) = expanded(vjp(wide, [0])).run_reference([x, index, np.ones((size, 1), np.float32)])
    np.testing.assert_array_equal(actual, plus - x.copy() > 0.5)


@pytest.mark.parametrize("dtype", ["int32", "uint8", "int64", "bool"])
@pytest.mark.parametrize(
    "name", ["max", "min", "prod", "sum", "square", "abs", "subtract", "multiply", "remainder", "power", "maximum"]
)
def test_integer_operands_have_integer_derivatives(name: str, dtype: str) -> None:
    """Arithmetic in the dtype itself; the derivative of an extremum with ties is shared by whole numbers."""
    kind = dtypes.from_name(dtype).numpy
    x, y = (np.array(v).astype(kind) for v in ([3, 1, 0, 2], [1, 2, 3, 1]))
    reduction = RECORDS[name].kind == "reduction"
    operands = [x] if reduction or RECORDS[name].arity == 1 else [x, y]
    program = _row(name, *operands, **({"axes": (0,)} if reduction else {}))
    wrt = list(range(len(operands)))
    cts = [np.ones(a.shape, kind) for a in program.avals]
    gradients = expanded(vjp(program, wrt)).run_reference([*operands, *cts])
    assert [g.dtype for g in gradients] == [kind] * len(operands)
    tangents = expanded(jvp(program, wrt)).run_reference([*operands, *[np.ones(4, kind)] * len(operands)])
    assert [t.dtype for t in tangents] == [a.dtype.numpy for a in program.avals]
    if dtype == "int32":
        expected = {
            "max": [[1, 0, 0, 0]], "min": [[0, 0, 1, 0]], "prod": [[0, 0, 6, 0]], "sum": [[1, 1, 1, 1]],
            "square": [[6, 2, 0, 4]],
            "abs": [[1, 1, 0, 1]], "subtract": [[1] * 4, [-1] * 4], "multiply": [[1, 2, 3, 1], [3, 1, 0, 2]],
            "remainder": [[1] * 4, [-3, 0, 0, -2]], "power": [[1, 2, 0, 1], [0] * 4],
            "maximum": [[1, 0, 0, 1], [0, 1, 1, 0]],
        }[name]  # fmt: skip
        assert [g.tolist() for g in gradients] == expected
