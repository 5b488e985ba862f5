"""Full derivatives of array-valued functions: Jacobians by either mode, and the Hessian."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from mlxir.dialects.mx import RECORDS
from mlxir.runtime.dtypes import bool_, int32
from mlxir.runtime.errors import at

from . import values
from .ndarray import array, wrap
from .transforms import array_list, check_callable, describe, jvp, vjp, vmap

__all__ = ["hessian", "jacfwd", "jacrev"]


def _basis(like: array) -> array:
    """The unit vectors of an array's space, stacked along a new first axis."""
    n = like.size
    ramp = values.emit(RECORDS["arange"], start=0, step=1, length=n, dtype=int32)
    eye = values.binary(RECORDS["equal"], values.reshape(ramp, (n, 1)), values.reshape(ramp, (1, n)), bool_)
    return wrap(values.reshape(values.cast(eye, like.dtype), (n, *like.shape)))


def _jacobian(tag: str, fun: Callable, argnums: int | Sequence[int], product: Callable[..., Any]) -> Callable[..., Any]:
    check_callable(tag, fun)
    indices = [argnums] if isinstance(argnums, int) else list(argnums)

    @functools.wraps(fun, updated=())
    def jacobian(*args: Any, **kwargs: Any) -> Any:
        primals = array_list(tag, "differentiated arguments", [args[i] for i in indices])

        def selected(*chosen: array) -> array:
            full = list(args)
            for i, x in zip(indices, chosen, strict=True):
                full[i] = x
            result = fun(*full, **kwargs)
            if not isinstance(result, array):
                name, where = describe(fun)
                raise ValueError(
                    f"[{tag}] {name}{at(where)} must return one array; but {type(result).__name__} was returned."
                )
            return result

        found = product(selected, primals)
        return found[0] if isinstance(argnums, int) else tuple(found)

    return jacobian


def jacrev(fun: Callable, argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The Jacobian of an array-valued function by reverse mode: shape `output shape + input shape`.

    `argnums` selects one argument, or several for a tuple of Jacobians. Raises TypeError unless they are arrays.
    """

    def product(selected: Callable, primals: list[array]) -> list[array]:
        out = selected(*primals)
        rows = vmap(lambda ct: vjp(selected, primals, [ct])[1])(_basis(out))
        return [wrap(values.reshape(r._value, (*out.shape, *p.shape))) for r, p in zip(rows, primals, strict=True)]

    return _jacobian("jacrev", fun, argnums, product)


def jacfwd(fun: Callable, argnums: int | Sequence[int] = 0) -> Callable[..., Any]:
    """The Jacobian of an array-valued function by forward mode: shape `output shape + input shape`.

    `argnums` selects one argument, or several for a tuple of Jacobians. Raises TypeError unless they are arrays.
    """

    def product(selected: Callable, primals: list[array]) -> list[array]:
        found = []
        for i, primal in enumerate(primals):

            def column(tangent: array, i: int = i, primal: array = primal) -> array:
                return jvp(lambda x: selected(*primals[:i], x, *primals[i + 1 :]), [primal], [tangent])[1][0]

            columns = vmap(column, out_axes=-1)(_basis(primal))
            found.append(wrap(values.reshape(columns._value, (*columns.shape[:-1], *primal.shape))))
        return found

    return _jacobian("jacfwd", fun, argnums, product)


def hessian(fun: Callable, argnums: int = 0) -> Callable[..., Any]:
    """The matrix of second derivatives of a scalar function: forward over reverse mode."""
    return jacfwd(jacrev(fun, argnums), argnums)
