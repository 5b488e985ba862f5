"""Writes abi_sources.json: what two published descriptions of Metal say about the messages that the runtime sends.

    pip download --no-deps --only-binary :all: --platform macosx_11_0_universal2 pyobjc-framework-Metal
    pip download --no-deps --only-binary :all: --platform macosx_14_0_arm64 mlx-metal
    unzip both, then: python tests/metal/abi_sources.py PYOBJC_FOLDER MLX_METAL_FOLDER

pyobjc's metadata have Objective-C type codes for methods of protocols; metal-cpp (headers that the mlx-metal wheel
carries) has C++ declarations, also of classes and of Foundation.
"""

from __future__ import annotations

import json
import re
import sys
import types
from pathlib import Path
from typing import Any

from mlxir.runtime.metal.abi import CONSTANTS, FUNCTIONS, MESSAGES

SIGNATURE = re.compile(
    r"^(?:template <[^>]*>\s*)?_(?:NS|MTL)_INLINE\s+(?P<returns>[^;{}()]*?[\s*])(?P<scope>NS|MTL)::(?P<owner>\w+)"
    r"(?:<[^>]*>)?::\w+\((?P<arguments>[^{]*)\)(?: const)?\s*\{(?P<body>[^}]*)\}",
    re.MULTILINE,
)


def pyobjc(folder: Path) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """(selector -> its signatures, constants, functions) of pyobjc's metadata, which are Python code for `objc`."""
    found: dict[str, list[Any]] = {}
    objc = types.ModuleType("objc")
    objc.__dict__.update(
        arch="arm64", createStructType=lambda *a, **k: None,
        registerMetaDataForSelector=lambda owner, s, m: found.setdefault(s.decode(), []).append(m),
        __getattr__=lambda name: lambda *a, **k: None,
    )  # fmt: skip
    sys.modules["objc"] = objc
    names: dict[str, Any] = {}
    exec((folder / "Metal" / "_metadata.py").read_text(), names)
    enums = dict(e.split("@") for e in names["enums"].strip("$").split("$") if "@" in e)
    signatures = {
        s: [[_code(m.get("retval")), [_code(a) for _, a in sorted(m.get("arguments", {}).items())]] for m in found[s]]
        for s in MESSAGES
        if s in found
    }
    return signatures, {c: int(enums[c]) for c in CONSTANTS}, [f for f in FUNCTIONS if f in names["functions"]]


def _code(entry: dict[str, Any] | None) -> str | None:
    return entry["type"].decode() if entry and "type" in entry else None


def metal_cpp(folder: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """(selector -> [owner, C++ type it returns, C++ arguments], enumeration -> its integer type) of the headers."""
    root = folder / "mlx" / "include" / "metal_cpp"
    text = "\n".join(p.read_text() for part in ("Foundation", "Metal") for p in sorted((root / part).glob("*.hpp")))
    accessors = {a: s for a, s in re.findall(r'_(?:NS|MTL)_PRIVATE_DEF_SEL\(\s*(\w+),\s*"([^"]+)"', text)}
    found: dict[str, list[list[str]]] = {}
    for m in SIGNATURE.finditer(text):
        for accessor in re.findall(r"_(?:NS|MTL)_PRIVATE_SEL\((\w+)\)", m["body"]):
            selector = accessors.get(accessor)
            if selector in MESSAGES:
                entry = [m["scope"] + m["owner"], m["returns"].strip(), m["arguments"].strip()]
                found.setdefault(selector, []).append(entry)
    used = json.dumps(found)
    enums = re.findall(r"_MTL_(?:ENUM|OPTIONS)\(([\w:]+),\s*(\w+)\)", text)
    return found, {name: type_ for type_, name in enums if f"MTL::{name}" in used}


def main() -> None:
    signatures, constants, functions = pyobjc(Path(sys.argv[1]))
    declarations, enums = metal_cpp(Path(sys.argv[2]))
    table = {
        "sources": {
            "pyobjc": "pyobjc-framework-Metal 12.2.2, Metal/_metadata.py (PyPI wheel, MIT licence)",
            "metal_cpp": "metal-cpp of mlx-metal 0.32.4, mlx/include/metal_cpp (PyPI wheel, Apache licence 2.0)",
        },
        "pyobjc": {"messages": signatures, "constants": constants, "functions": functions},
        "metal_cpp": {"messages": declarations, "enums": enums},
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
