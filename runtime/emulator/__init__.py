"""Metal shaders compiled by clang and executed in emulation on x86-64 Linux, under a checker.

tests/metal/README.md says what is seen this way, and what is not. `device.EmulatedMetal` is a device whose shaders run
so, for the runtime that drives Metal.
"""

from .build import cache_dir, unavailable_reason
from .errors import (
    MetalCheckError,
    MetalCompileError,
    MetalError,
    MetalLaunchError,
    MetalLintError,
    ToolchainUnavailable,
)
from .launch import MetalLibrary, Report
from .reflect import Kernel, Kind, Parameter, parse_kernels

__all__ = [
    "Kernel",
    "Kind",
    "MetalCheckError",
    "MetalCompileError",
    "MetalError",
    "MetalLaunchError",
    "MetalLibrary",
    "MetalLintError",
    "Parameter",
    "Report",
    "ToolchainUnavailable",
    "cache_dir",
    "parse_kernels",
    "unavailable_reason",
]
