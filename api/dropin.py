"""MLX programs run unchanged: after `import mlxir.dropin`, `mlx.core` is mlxir.

    import mlxir.dropin            # before anything imports mlx
    import mlx.core as mx          # mlxir
    import mlx.nn as nn            # the wheel's Python code on mlxir: the same module as mlxir.nn

`mlxir run script.py` does the same for a script that is not to be edited. The compiled core of an installed MLX is
never loaded; its Python part (`mlx.nn`, `mlx.optimizers`, `mlx.utils`) is used as it is, and needed only by programs
that import it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

from . import cuda, distributed, fast, fft, linalg, metal, random, wheel

__all__ = ["install"]

_CORE_MODULES = (cuda, distributed, fast, fft, linalg, metal, random)


class _Alias:
    """The loader of `mlx.nn` and the like: it gives the module `mlxir.nn`."""

    def __init__(self, name: str):
        self._name = name
        self._spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = wheel.load(self._name)
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec  # the import system has put that of the alias in its place


class _Finder:
    """Finds `mlx.nn`, `mlx.optimizers`, `mlx.utils` and what lies in them."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != "mlx" or rest.partition(".")[0] not in wheel.NAMES:
            return None
        return ModuleSpec(name, _Alias(rest))  # type: ignore[arg-type]


def install() -> None:
    """Make `import mlx.core` give mlxir in this process. Calling it again does nothing.

    Raises RuntimeError where the real `mlx.core` has been imported before: its arrays and ours cannot be mixed.
    """
    core = sys.modules[__package__]
    found = sys.modules.get("mlx.core")
    if found is core:
        return
    if found is not None:
        raise RuntimeError("[dropin] the real mlx.core is imported already: import mlxir.dropin before anything of mlx")
    package = ModuleType("mlx", "MLX on mlxir; see mlxir.dropin.")
    place = wheel.folder()
    spec = ModuleSpec("mlx", None, is_package=True)
    spec.submodule_search_locations = package.__path__ = [place] if place else []
    package.__spec__, package.core = spec, core  # type: ignore[attr-defined]
    sys.modules.update({"mlx": package, "mlx.core": core})
    for module in _CORE_MODULES:
        sys.modules[f"mlx.core.{module.__name__.rpartition('.')[2]}"] = module
    sys.meta_path.insert(0, _Finder)


install()
