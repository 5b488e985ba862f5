"""Random programs of nested transforms: mlxir against real MLX and JAX, eager and compiled (tests/nested_programs.py).

The seeds are fixed and few; `python tests/nested_programs.py FIRST LAST` runs any range. Programs that failed once are
kept below, cut down to what made them fail.
"""

import nested_programs
import numpy as np
import pytest

import mlxir as mx

SEEDS = range(900, 924)


@pytest.mark.parametrize("seed", SEEDS)
def test_against_mlx(seed):
    generator = nested_programs.Generator(seed)
    outcome = nested_programs.verdict(generator.source(), generator.inputs(), with_jax=False, whole=seed % 4 == 0)
    assert outcome.startswith(nested_programs.FINE) or outcome.startswith("nobody else"), generator.source()


@pytest.mark.skipif(nested_programs.jax is None, reason="JAX is not installed; pip install 'mlxir[test]' has it")
@pytest.mark.parametrize("seed", SEEDS[:4])
def test_against_jax(seed):
    generator = nested_programs.Generator(seed)
    outcome = nested_programs.verdict(generator.source(), generator.inputs(), whole=False)
    assert outcome.startswith(("agree with", "not finite")), generator.source()


def test_generator_is_reproducible_and_varied():
    assert nested_programs.Generator(3).source() == nested_programs.Generator(3).source()
    text = "".join(nested_programs.Generator(seed).source() for seed in range(60))
    for transform in ("grad", "value_and_grad", "vjp_of", "jvp_of", "vmap", "compile", "checkpoint"):
        assert text.count(f"m.{transform}(") > 10


# -- programs that failed --------------------------------------------------------------------------------------------
KEPT = {
    # The operands of a transform were read before the transform in front of it was inlined: use after free.
    "one transform feeds another": """
def program(m, inputs):
    def f(x):
        (y,) = m.jvp_of(m.sin, [x], [x])
        (z,) = m.jvp_of(m.cos, [y], [x])
        return m.vjp_of(lambda u: u * z, [y], [z])[0]
    return [m.grad(lambda x: m.sum(f(x)))(inputs[0]), m.vmap(f)(inputs[0])]
""",
    # An argument that is not differentiated counted as the array that was captured, too.
    "argument and captured array": """
def program(m, inputs):
    def f(x, y):
        return m.compile(lambda z: m.sin(z) * inputs[1])(y) * x
    return [m.grad(lambda x, y: m.sum(f(x, y)))(inputs[0], inputs[1])]
""",
    "gradients of scans": """
def program(m, inputs):
    def f(x):
        y = m.cumprod(x, axis=0, reverse=True, inclusive=False)
        return m.sum(y * m.logcumsumexp(x, axis=0) * m.cummax(x, axis=0))
    return [m.grad(f)(inputs[0]), m.grad(lambda x: m.sum(m.sin(m.grad(f)(x))))(inputs[0])]
""",
}  # fmt: skip


@pytest.mark.parametrize("name", KEPT)
def test_programs_that_failed(name):
    inputs = [np.random.default_rng(i).standard_normal(5) for i in range(2)]
    outcome = nested_programs.verdict(KEPT[name], inputs)
    assert outcome.startswith("agree with"), outcome


def test_one_transform_feeds_another_compiled():
    x = mx.array([0.5, -1.0])
    step = lambda x: mx.grad(lambda y: mx.sum(mx.sin(y)))(mx.grad(lambda y: mx.sum(y * y * y))(x))  # noqa: E731
    np.testing.assert_allclose(np.array(mx.compile(step)(x)), np.cos(3 * np.array(x) ** 2), rtol=1e-5)
