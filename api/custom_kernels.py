"""Kernels given as source code of a GPU language. mlxir evaluates on the CPU: they can be made, and say so when called.

`mlxir dump --target metal` shows the shaders that the compiler writes by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .devices import StreamOrDevice
from .ndarray import array
from .ops.common import failure

__all__ = ["cuda_kernel", "metal_kernel", "precompiled_cuda_kernel"]


def _kernel(function: str, backend: str, name: str) -> Callable[..., list[array]]:
    def call(**arguments: Any) -> list[array]:
        raise failure(
            RuntimeError,
            f"[{function}] No {backend} back-end: mlxir evaluates on the CPU, so the kernel {name!r} cannot run. Write"
            " it with array operations and mx.compile.",
        )

    return call


def metal_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    atomic_outputs: bool = False,
    compile_options: dict[str, Any] | None = None,
) -> Callable[..., list[array]]:
    """A kernel from Metal source. Calling it raises RuntimeError: there is no Metal device."""
    return _kernel("metal_kernel", "Metal", name)


def cuda_kernel(
    name: str,
    input_names: Sequence[str],
    output_names: Sequence[str],
    source: str,
    header: str = "",
    ensure_row_contiguous: bool = True,
    shared_memory: int = 0,
) -> Callable[..., list[array]]:
    """A kernel from CUDA source. Raises RuntimeError: there is no CUDA target (MLX raises here, too)."""
    raise failure(RuntimeError, f"[cuda_kernel] No CUDA back-end: the kernel {name!r} cannot be made.")


def precompiled_cuda_kernel(
    *,
    name: str,
    compiled_source: bytes,
    inputs: Sequence[Any],
    output_shapes: Sequence[Sequence[int]],
    output_dtypes: Sequence[Any],
    scalars: Sequence[Any],
    grid: tuple[int, int, int],
    threadgroup: tuple[int, int, int],
    shared_memory: int = 0,
    init_value: float | None = None,
    ensure_row_contiguous: bool = False,
    stream: StreamOrDevice = None,
) -> list[array]:
    """Run a kernel given as PTX or cubin. Raises RuntimeError: there is no CUDA target."""
    raise failure(RuntimeError, f"[precompiled_cuda_kernel] No CUDA back-end: the kernel {name!r} cannot run.")
