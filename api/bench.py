"""`mlxir bench`: hands its options to the benchmark harness, which lives in the repository and not in the package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

HARNESS = Path(__file__).resolve().parents[1] / "benchmarks"


def run(arguments: Sequence[str]) -> int:
    """Run the comparison, or with `--profile` the profile of one function's kernels; its exit code.

    Raises FileNotFoundError where mlxir is not installed from a checkout.
    """
    profile = any(a == "--profile" or a.startswith("--profile=") for a in arguments)
    script = HARNESS / ("kernels.py" if profile else "run.py")
    if not script.is_file():
        raise FileNotFoundError(
            "bench: the harness is not part of the installed package; clone the repository and `pip install -e .`"
        )
    return subprocess.run([sys.executable, str(script), *arguments], check=False).returncode
