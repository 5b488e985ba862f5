"""Compiling and linking with the clang and lld of PyPI's `ziglang`, cached by content; no system compiler is used.

A Metal source becomes a shared object in four steps: clang's front end (C++ for OpenCL, against include/) to LLVM IR;
ir.py on that IR; clang's optimizer and code generator with -fsanitize=thread; lld. Beside the third, a second front-end
run without generic address space finds pointers that change their address space. The calls that the instrumentation
puts into the kernels are answered by runtime/, which is built in the same way once per machine.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import MetalCompileError, MetalLintError, ToolchainUnavailable
from .ir import expose_threadgroup_variables, recursive_functions
from .reflect import BUILTINS, Kernel, Kind, Parameter

_HERE = Path(__file__).resolve().parent
_INCLUDE = _HERE / "include"
_RUNTIME = _HERE / "runtime"
SOURCE_NAME = "kernel.metal"

_TARGET = ["-target", "x86_64-linux-gnu", "-march=x86-64-v3"]
_EXTENSIONS, _GENERIC = "-cl-ext=-all,+cl_khr_fp16", ",+__opencl_c_generic_address_space"
_LANGUAGE = [
    "-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-cl-single-precision-constant",
    "-isystem", str(_INCLUDE),
    "-ffp-contract=on", "-fno-math-errno",
    "-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-fbfloat16-excess-precision=none",
]  # fmt: skip
_WARNINGS = [
    "-Wall", "-Wno-unknown-attributes", "-fshow-overloads=best",
    # Metal 3 is C++14.
    "-Werror=c++17-extensions", "-Werror=pre-c++17-compat",
    # Metal converts float to half and bfloat only when told to; clang would do it silently.
    "-Werror=implicit-float-conversion", "-Wno-implicit-int-float-conversion",
    "-Werror=uninitialized", "-Werror=sometimes-uninitialized", "-Werror=conditional-uninitialized",
    "-Werror=return-type",
]  # fmt: skip
_UNDEFINED = "integer-divide-by-zero,signed-integer-overflow,float-cast-overflow,bounds,bool"
_FRONT_END = [
    "-O1", "-fPIC", "-gdwarf-4", "-gline-tables-only", "-Xclang", "-disable-llvm-passes", "-S", "-emit-llvm",
    f"-fsanitize=thread,{_UNDEFINED}", f"-fsanitize-recover={_UNDEFINED}",
    # C++ lets the optimizer assume that loops end; one that does not is to be found, not removed.
    "-fno-finite-loops",
]  # fmt: skip
_BACK_END = [
    *_TARGET, "-x", "ir", "-O1", "-fPIC", "-gdwarf-4", "-fsanitize=thread", "-Wno-override-module",
    # `b[i] += x` also reads b[i]; by default only the write is reported.
    "-mllvm", "-tsan-instrument-read-before-write=1", "-mllvm", "-tsan-instrument-func-entry-exit=0",
]  # fmt: skip
_RUNTIME_FLAGS = ["-target", "x86_64-linux-gnu.2.17", "-march=x86_64_v3", "-std=c++17", "-O2", "-fPIC",
                  "-fno-exceptions", "-fno-rtti", "-Wall", "-Wextra", "-Werror"]  # fmt: skip
# What the run without generic address space may complain about. (It cannot copy a struct at all.)
_ADDRESS_SPACE_ERROR = re.compile(r"cannot initialize|address space|incompatible|no matching function")


@dataclass(frozen=True)
class Built:
    """A linked kernel library and the compiler's warnings."""

    path: Path
    warnings: str


@functools.cache
def unavailable_reason() -> str | None:
    """Why kernels cannot be compiled and run here; None when they can."""
    if platform.system() != "Linux" or platform.machine() != "x86_64" or platform.libc_ver()[0] != "glibc":
        return "the Metal verifier runs on x86-64 Linux with glibc only"
    if "avx2" not in Path("/proc/cpuinfo").read_text():
        return "the Metal verifier needs a processor with AVX2"
    if importlib.util.find_spec("ziglang") is None:
        return "the Metal verifier needs the Python package ziglang (pip install ziglang)"
    return None


@functools.cache
def _zig() -> tuple[str, str]:
    """The path of ziglang's binary, and its version."""
    if reason := unavailable_reason():
        raise ToolchainUnavailable(reason)
    spec = importlib.util.find_spec("ziglang")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).with_name("zig")), importlib.metadata.version("ziglang")


@functools.cache
def cache_dir() -> Path:
    """Where built libraries are kept: $MLXIR_METAL_VERIFIER_CACHE, or a folder in the user's cache. Safe to delete."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(os.environ.get("MLXIR_METAL_VERIFIER_CACHE") or Path(base) / "mlxir-metal-verifier")
    path.mkdir(parents=True, exist_ok=True)
    return path


def _start(*arguments: str) -> subprocess.Popen[str]:
    """Starts zig, with its own cache inside of ours."""
    zig_cache = str(cache_dir() / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig_cache, "ZIG_LOCAL_CACHE_DIR": zig_cache}
    return subprocess.Popen([_zig()[0], *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            stdin=subprocess.DEVNULL, env=environment)  # fmt: skip


def _finish(process: subprocess.Popen[str], what: str) -> str:
    """Waits; returns standard output and raises RuntimeError on failure of a step that no source can make fail."""
    output, messages = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{what} failed:\n{messages[-4000:]}")
    return output


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256(_zig()[1].encode())
    for part in parts:
        digest.update(b"\0" + (part if isinstance(part, bytes) else part.encode()))
    return digest.hexdigest()[:32]


def _link(objects: Iterable[Path], target: Path, scratch: Path) -> None:
    """Links to a new file and moves it into place in one step: other processes see all of it or nothing."""
    linked = scratch / "linked.so"
    _finish(_start("ld.lld", "-shared", *map(str, objects), "-o", str(linked)), "linking")
    linked.replace(target)


# ---- the run-time library


@functools.cache
def runtime() -> ctypes.CDLL:
    """The emulator (runtime/), built if need be, its symbols visible to the kernel libraries."""
    sources = sorted(_RUNTIME.glob("*.cpp"))
    contents = [p.read_bytes() for p in sorted(_RUNTIME.iterdir())]
    path = cache_dir() / f"runtime-{_digest(*contents, repr(_RUNTIME_FLAGS))}.so"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
            objects = [Path(folder) / f"{s.stem}.o" for s in sources]
            jobs = zip(sources, objects, strict=True)
            for run in [_start("c++", *_RUNTIME_FLAGS, "-c", str(s), "-o", str(o)) for s, o in jobs]:
                _finish(run, "building the Metal emulator")
            _link(objects, path, Path(folder))
    ctypes.CDLL("libm.so.6", mode=ctypes.RTLD_GLOBAL)  # the kernels' math functions
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.msl_map.restype = ctypes.c_uint64
    library.msl_map.argtypes = [ctypes.c_uint64]
    library.msl_add_region.argtypes = [ctypes.c_uint64, ctypes.c_uint64, ctypes.c_int, ctypes.c_int, ctypes.c_char_p]
    library.msl_set_image.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
    library.msl_run.argtypes = [
        ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_int,
        ctypes.c_double,
    ]  # fmt: skip
    library.msl_run.restype = None
    library.msl_records.restype = library.msl_statistics.restype = ctypes.c_void_p
    return library


# ---- kernels


def _argument(position: int, p: Parameter) -> str:
    """The expression for one kernel argument: `a[i]` is a buffer's address, `c` the thread's context."""
    if p.kind is Kind.BUILTIN:
        offset = BUILTINS[p.builtin][0]
        scalar = p.type.rstrip("23")
        values = ", ".join(f"({scalar})c[{offset + k}]" for k in range(p.components))
        return values if p.components == 1 else f"metal::vec<{scalar}, {p.components}>{{{values}}}"
    const = "const " if p.read_only and p.space != "constant" else ""
    return f"{'*' if p.reference else ''}({p.space} {const}{p.type}*)a[{position}]"


def thunk_name(kernel: str) -> str:
    """The symbol of the function that calls `kernel` with arguments from the emulator."""
    return f"msl_thunk_{kernel}"


def _thunk(kernel: Kernel) -> str:
    arguments = ", ".join(_argument(i, p) for i, p in enumerate(kernel.parameters))
    return (
        f'extern "C" void {thunk_name(kernel.name)}(const unsigned long* a, const unsigned* c) '
        f"{{ {kernel.name}({arguments}); }}\n"
    )


def _without_notes_on_headers(messages: str) -> str:
    """clang's messages less the notes that point into include/ (overloads, macros)."""
    parts = re.split(r"^(?=\S+:\d+:\d+: )", messages, flags=re.MULTILINE)
    return "".join(p for p in parts if not re.match(rf"{re.escape(str(_INCLUDE))}\S+ note: ", p)).strip()


def _compile(text: str, scratch: Path, target: Path) -> str:
    """Compiles Metal `text` to the shared object `target`; returns clang's warnings.

    Raises:
        MetalCompileError, MetalLintError: as of compile_kernels.
    """
    source, ir_file, object_file = scratch / SOURCE_NAME, scratch / "kernel.ll", scratch / "kernel.o"
    source.write_text(text)
    language = ["clang", *_TARGET, *_LANGUAGE, "-Xclang"]
    front_end = _start(*language, _EXTENSIONS + _GENERIC, *_WARNINGS, *_FRONT_END, str(source), "-o", str(ir_file))
    messages = _without_notes_on_headers(front_end.communicate()[1])
    if front_end.returncode:
        raise MetalCompileError(messages)
    ir = ir_file.read_text()
    if recursive := recursive_functions(ir):
        raise MetalLintError(f"recursion, which Metal does not have: {', '.join(recursive)}")
    ir_file.write_text(expose_threadgroup_variables(ir))

    back_end = _start("clang", *_BACK_END, "-c", str(ir_file), "-o", str(object_file))
    strict = _start(*language, _EXTENSIONS, "-w", "-fsyntax-only", "-ferror-limit=0", str(source))
    strict_messages = strict.communicate()[1]
    _finish(back_end, "code generation")
    for match in re.finditer(rf"^{SOURCE_NAME}:\d+:\d+: error: (.*)", strict_messages, re.MULTILINE):
        if _ADDRESS_SPACE_ERROR.search(match[1]) and "constructor" not in match[1]:
            raise MetalCompileError(f"{match[0]} (Metal has no generic address space)")
    _link([object_file], target, scratch)
    return messages


def compile_kernels(source: str, kernels: dict[str, Kernel]) -> Built:
    """Compiles a Metal source whose kernels are `kernels`, or finds it in the cache (also a rejection).

    Raises:
        MetalCompileError: clang rejects the source.
        MetalLintError: the source is recursive.
        ToolchainUnavailable: see unavailable_reason.
    """
    thunks = "".join(_thunk(k) for k in kernels.values())
    source = source.replace("#pragma METAL fp ", "#pragma clang fp ")
    text = f'#line 1 "{SOURCE_NAME}"\n{source}\n#line 1 "thunks"\n{thunks}'
    headers = [p.read_bytes() for p in sorted(_INCLUDE.iterdir())]
    flags = repr((_TARGET, _LANGUAGE, _WARNINGS, _FRONT_END, _BACK_END))
    base = cache_dir() / _digest(text, *headers, Path(__file__).read_bytes(), (_HERE / "ir.py").read_bytes(), flags)
    library, log, rejection = (base.with_suffix(s) for s in (".so", ".log", ".rejected"))
    if rejection.exists():
        kind, _, message = rejection.read_text().partition("\n")
        raise {e.__name__: e for e in (MetalCompileError, MetalLintError)}[kind](message)
    if not (library.exists() and log.exists()):
        with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
            scratch = Path(folder)
            try:
                warnings = _compile(text, scratch, library)
            except (MetalCompileError, MetalLintError) as error:
                (scratch / "rejection").write_text(f"{type(error).__name__}\n{error}")
                (scratch / "rejection").replace(rejection)
                raise
            (scratch / "log").write_text(warnings)
            (scratch / "log").replace(log)
    return Built(library, log.read_text())
