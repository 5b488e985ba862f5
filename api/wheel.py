"""`mlxir.nn`, `mlxir.optimizers`, `mlxir.utils`: the Python part of an installed MLX wheel, bound to mlxir.

The wheel's sources are loaded under names of our own, with the imports in them redirected:

    import mlx.core as mx                      ->   import mlxir as mx
    from mlx.nn.layers.base import Module      ->   from mlxir.nn.layers.base import Module

Nothing of the `mlx` package itself is imported, so real MLX may live in the same process. `pip install mlx` brings
the sources; without them the import of these modules, and only that, raises ModuleNotFoundError.
"""

from __future__ import annotations

import ast
import importlib
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

NAMES = ("nn", "optimizers", "utils")
_PACKAGE = "mlxir"
_CORE = "mlx.core"


def folder() -> str | None:
    """The wheel's folder `mlx`, found without importing anything; None where there is none."""
    spec = PathFinder.find_spec("mlx")
    for path in (spec.submodule_search_locations or ()) if spec else ():
        if os.path.isfile(os.path.join(path, "nn", "__init__.py")):
            return path
    return None


def _ours(module: str) -> str:
    """The name under which `mlx.nn.x` is loaded here; `mlx.core` is mlxir itself."""
    if module == _CORE or module.startswith(f"{_CORE}."):
        return _PACKAGE + module[len(_CORE) :]
    return _PACKAGE + module[len("mlx") :]


class _Redirect(ast.NodeTransformer):
    """Redirects the imports of a module of the wheel; see the docstring of this file."""

    def visit_Import(self, node: ast.Import) -> ast.Import:
        for alias in node.names:
            if alias.name.startswith("mlx."):
                if alias.asname is None:
                    raise ImportError(f"[wheel] `import {alias.name}` (line {node.lineno}) has no `as`: not expected")
                alias.name = _ours(alias.name)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        if node.level == 0 and node.module is not None and node.module.startswith("mlx."):
            node.module = _ours(node.module)
        return node


class _Loader(SourceFileLoader):
    """Loads a source file of the wheel with its imports redirected. Its bytecode is not kept: the file has another."""

    def source_to_code(self, data: Any, path: Any, *, _optimize: int = -1) -> CodeType:  # type: ignore[override]
        tree = _Redirect().visit(ast.parse(data, path))
        return compile(tree, path, "exec", dont_inherit=True, optimize=_optimize)

    def path_stats(self, path: Any) -> Any:
        raise OSError("no bytecode is kept")

    def set_data(self, path: Any, data: Any, *, _mode: int = 0o666) -> None:
        """Keeps nothing."""


class _Finder:
    """Finds `mlxir.nn` and the others, and what lies in them, in the wheel's folder."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        package, _, rest = name.partition(".")
        if package != _PACKAGE or rest.partition(".")[0] not in NAMES:
            return None
        root = folder()
        if root is None:
            raise ModuleNotFoundError(
                f"{name} is the Python part of MLX, which is not installed: pip install mlx", name=name
            )
        at = os.path.join(root, *rest.split("."))
        is_package = os.path.isdir(at)
        file = os.path.join(at, "__init__.py") if is_package else f"{at}.py"
        if not os.path.isfile(file):
            return None
        spec = ModuleSpec(name, _Loader(name, file), origin=file, is_package=is_package)
        spec.has_location = True
        if is_package:
            spec.submodule_search_locations = [at]
        return spec


def load(name: str) -> ModuleType:
    """The module `mlxir.<name>` of the wheel (or the drop-in). Raises ModuleNotFoundError without the wheel."""
    return importlib.import_module(f"{_PACKAGE}.{name}")  # lazy: 0.1 s, at the first use of mlxir.nn and the like


def register() -> None:
    """Let `import mlxir.nn` find the wheel. Nothing is loaded now."""
    if _Finder not in sys.meta_path:
        # Before the path finder, which would find `mlxir.nn.layers` in the wheel's folder and load it as it is.
        sys.meta_path.insert(0, _Finder)
