"""What the verifier raises."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .launch import Report


class MetalError(Exception):
    """Base of everything that the verifier has to say against a shader or its launch."""


class MetalLintError(MetalError):
    """The source breaks a rule of Metal that clang's C++ for OpenCL mode would let pass."""


class MetalCompileError(MetalError):
    """clang rejects the source; the message is clang's."""


class MetalLaunchError(MetalError, ValueError):
    """The launch does not fit the kernel: wrong buffers, dtypes, sizes or grid."""


class MetalCheckError(MetalError):
    """The kernel ran and broke a rule; `report` holds what was found."""

    def __init__(self, kernel: str, report: Report):
        super().__init__(f"{len(report.errors)} error(s) in kernel {kernel}:\n" + "\n".join(report.errors))
        self.report = report


class ToolchainUnavailable(Exception):
    """clang (PyPI ziglang) cannot be used on this machine; the message says why."""
