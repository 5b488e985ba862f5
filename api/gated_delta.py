"""The gated delta rule of linear attention, `fast.gated_delta_update`."""

from __future__ import annotations

from .devices import StreamOrDevice, check_stream
from .linalg import solve_triangular
from .ndarray import array
from .ops.common import check_array, failure
from .ops.contract import matmul
from .ops.creation import eye, tri, zeros
from .ops.elementwise import exp, log, maximum, where
from .ops.reduce import cumsum
from .ops.shape import concatenate, expand_dims, repeat, swapaxes
from .runtime.dtypes import bool_, float32

__all__ = ["gated_delta_update"]

_CHUNK = 64
_TINY = 1e-37  # a decay of zero, whose logarithm is finite


def gated_delta_update(
    q: array,
    k: array,
    v: array,
    gamma: array,
    beta: array,
    initial_state: array | None = None,
    mask: array | None = None,
    stream: StreamOrDevice = None,
) -> list[array]:
    """For each step t of a sequence, with a state S of shape (B, Hv, Dv, Dk):

        S = gamma_t S;  S = S + beta_t (v_t - S k_t) k_t^T;  output_t = S q_t

    q, k: (B, T, Hk, Dk); v: (B, T, Hv, Dv), Hv a multiple of Hk; gamma, beta: (B, T, Hv). Steps where `mask` (B, T)
    is False leave the state alone and give zeros. Returns [outputs (B, T, Hv, Dv) in the dtype of q, final state in
    float32]. Raises ValueError for shapes that do not fit.
    """
    check_stream("gated_delta_update", stream)
    for x in (q, k, v, gamma, beta):
        check_array("gated_delta_update", x)
    groups = _groups(q, k, v, gamma, beta)
    queries, keys = (repeat(swapaxes(x.astype(float32), 1, 2), groups, 1) for x in (q, k))
    values, decay, rate = (swapaxes(x.astype(float32), 1, 2) for x in (v, gamma, beta))
    if mask is not None:
        kept = expand_dims(check_array("gated_delta_update", mask).astype(bool_), 1)
        decay, rate = where(kept, decay, 1.0), where(kept, rate, 0.0)
    batch, heads, steps, size = values.shape
    state = zeros((batch, heads, size, q.shape[-1])) if initial_state is None else initial_state.astype(float32)
    outputs = []
    for start in range(0, steps, _CHUNK):
        part = (slice(None), slice(None), slice(start, start + _CHUNK))
        output, state = _chunk(queries[part], keys[part], values[part], decay[part], rate[part], state)
        outputs.append(output)
    out = swapaxes(concatenate(outputs, 2), 1, 2)
    if mask is not None:
        out = where(expand_dims(mask.astype(bool_), (2, 3)), out, 0.0)
    return [out.astype(q.dtype), state]


def _groups(q: array, k: array, v: array, gamma: array, beta: array) -> int:
    """How many value heads share a key head. Raises ValueError for shapes that do not fit."""
    fits = (
        q.ndim == v.ndim == 4
        and q.shape == k.shape
        and q.shape[:2] == v.shape[:2]
        and gamma.shape == beta.shape == v.shape[:3]
        and q.shape[2] > 0
        and v.shape[2] % q.shape[2] == 0
        and q.shape[1] > 0
    )
    if not fits:
        shapes = ", ".join(str(x.shape) for x in (q, k, v, gamma, beta))
        raise failure(ValueError, f"[gated_delta_update] q, k, v, gamma, beta have shapes that do not fit: {shapes}.")
    return v.shape[2] // q.shape[2]


def _chunk(q: array, k: array, v: array, gamma: array, beta: array, state: array) -> tuple[array, array]:
    """(outputs, state) after some steps, all at once; q, k, v: (B, H, C, D).

    The updates u_t = beta_t (v_t - S k_t) depend on each other through S, which is the decayed sum of earlier
    u_i k_i^T: a unit lower triangular system.
    """
    steps = q.shape[2]
    passed = cumsum(log(maximum(gamma, _TINY)), axis=-1)  # the logarithm of the decay since the chunk began
    before = tri(steps, dtype=bool_)
    between = exp(where(before, expand_dims(passed, 3) - expand_dims(passed, 2), -float("inf")))
    since = expand_dims(exp(passed), 3)
    rate, keys = expand_dims(beta, 3), swapaxes(k, 2, 3)
    updates = rate * (v - since * matmul(k, swapaxes(state, 2, 3)))
    if steps > 1:
        system = where(tri(steps, k=-1, dtype=bool_), rate * between * matmul(k, keys), 0.0) + eye(steps)
        updates = solve_triangular(system, updates)
    output = since * matmul(q, swapaxes(state, 2, 3)) + matmul(between * matmul(q, keys), updates)
    rest = swapaxes(between[:, :, -1:, :], 2, 3)
    return output, since[:, :, -1:] * state + matmul(swapaxes(updates * rest, 2, 3), k)
