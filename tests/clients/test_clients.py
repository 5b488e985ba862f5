"""Client programs in the styles that people write print the same on mlxir and on real MLX.

Each program is an ordinary MLX program in a process of its own, which prints one JSON object. Real MLX runs them
uncompiled (its compiler takes a minute for what it then computes equally).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
PROGRAMS = sorted(path.name for path in HERE.glob("*.py") if not path.name.startswith("test_"))
TOLERANCE = {
    "gaussian_process.py": 1e-4,  # solves ill-conditioned systems
    "transformer_lm.py": 2e-4,  # AdamW makes much of rounding where gradients are almost 0
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A disk cache for the programs of this module."""
    return str(tmp_path_factory.mktemp("cache"))


def printed(program, mlxir, cache):
    """The object that a program prints, and nothing else."""
    command = [sys.executable, *(["-m", "mlxir", "run"] if mlxir else []), str(HERE / program)]
    env = {**os.environ, **({"MLXIR_CACHE_DIR": cache} if mlxir else {"MLX_DISABLE_COMPILE": "1"})}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd="/")
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


def assert_same(mine, theirs, where, tolerance):
    """Equal structure and words; numbers close to each other, beside the largest of their list."""
    if isinstance(theirs, dict):
        assert list(mine) == list(theirs), where
        for key in theirs:
            assert_same(mine[key], theirs[key], f"{where}[{key!r}]", tolerance)
    elif isinstance(theirs, list) and not _is_numeric(theirs):
        assert isinstance(mine, list) and len(mine) == len(theirs), where
        for i, (a, b) in enumerate(zip(mine, theirs, strict=True)):
            assert_same(a, b, f"{where}[{i}]", tolerance)
    elif isinstance(theirs, (str, bool, type(None))):
        assert type(mine) is type(theirs) and mine == theirs, where
    else:
        a, b = np.array(mine, float), np.array(theirs, float)
        assert a.shape == b.shape, where
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=1e-2), err_msg=where)


def _is_numeric(tree):
    """Whether a list holds numbers alone, in lists of equal lengths."""
    try:
        return np.array(tree).dtype.kind in "fi"
    except ValueError:
        return False


def test_there_are_programs():
    assert len(PROGRAMS) >= 25


@pytest.mark.parametrize("program", PROGRAMS)
def test_prints_what_mlx_prints(program, cache):
    assert_same(printed(program, True, cache), printed(program, False, cache), program, TOLERANCE.get(program, 2e-5))
