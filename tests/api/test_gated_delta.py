"""`fast.gated_delta_update` against MLX, which takes the steps one by one."""

import mlx.core as real
import numpy as np
import pytest
from oracle import numpy_of, outcome

import mlxir
from mlxir.testing import check_grads

B, HK, HV, DK, DV = 2, 2, 4, 3, 5


def operands(m, steps, dtype="float32", state=False, mask=False):
    rng = np.random.default_rng(steps)

    def normal(*shape):
        return m.array(rng.standard_normal(shape).astype(np.float32)).astype(getattr(m, dtype))

    q, k, v = normal(B, steps, HK, DK), normal(B, steps, HK, DK) * 0.5, normal(B, steps, HV, DV)
    gamma, beta = m.sigmoid(normal(B, steps, HV)), m.sigmoid(normal(B, steps, HV))
    s = m.array(rng.standard_normal((B, HV, DV, DK)).astype(np.float32)) if state else None
    kept = m.array(rng.integers(0, 2, (B, steps)).astype(bool)) if mask else None
    return q, k, v, gamma, beta, s, kept


@pytest.mark.parametrize("steps", [1, 2, 7, 130])
@pytest.mark.parametrize("state, mask", [(False, False), (True, False), (True, True)])
def test_agrees(steps, state, mask):
    mine = mlxir.fast.gated_delta_update(*operands(mlxir, steps, state=state, mask=mask))
    theirs = real.fast.gated_delta_update(*operands(real, steps, state=state, mask=mask))
    for a, b in zip(mine, theirs, strict=True):
        assert (a.shape, str(a.dtype)) == (b.shape, str(b.dtype))
    np.testing.assert_allclose(np.array(mine[1]), np.array(theirs[1]), rtol=1e-4, atol=1e-5)
    outputs, wanted = np.array(mine[0]), np.array(theirs[0])
    if mask:  # MLX gives the output of the step that it then forgets; we give zeros
        kept = np.array(operands(real, steps, mask=True, state=True)[6])
        assert not outputs[~kept].any()
        outputs, wanted = outputs[kept], wanted[kept]
    np.testing.assert_allclose(outputs, wanted, rtol=1e-4, atol=1e-5)


def test_half_precision_and_zero_decay():
    mine, theirs = (m.fast.gated_delta_update(*operands(m, 5, "float16")) for m in (mlxir, real))
    assert mine[0].dtype == mlxir.float16 and mine[1].dtype == mlxir.float32
    np.testing.assert_allclose(numpy_of(mine[0]), numpy_of(theirs[0]), rtol=5e-3, atol=5e-3)
    q, k, v, gamma, beta, *_ = operands(mlxir, 3)
    forgets = mlxir.fast.gated_delta_update(q, k, v, gamma * 0, beta)[0]
    alone = [mlxir.fast.gated_delta_update(*[x[:, t : t + 1] for x in (q, k, v, gamma, beta)])[0] for t in range(3)]
    np.testing.assert_allclose(np.array(forgets), np.array(mlxir.concatenate(alone, 1)), rtol=1e-5, atol=1e-6)


def test_errors():
    q, k, v, gamma, beta, *_ = operands(mlxir, 3)
    for bad in [(q[0], k, v, gamma, beta), (q, k, v, gamma[:, :1], beta), (q, k, v[:, :, :3], gamma, beta)]:
        with pytest.raises(ValueError, match="gated_delta_update"):
            mlxir.fast.gated_delta_update(*bad)
    assert isinstance(outcome(lambda m: m.fast.gated_delta_update(1, 2, 3, 4, 5), mlxir), TypeError)


def test_gradient():
    q, k, v, gamma, beta, *_ = operands(mlxir, 3)
    check_grads(lambda *a: mlxir.fast.gated_delta_update(*a)[0], (q, k, v, gamma, beta), modes=["rev"])
