"""MLX programs run unchanged: `mlxir run` and real MLX print the same numbers (the programs lie in tests/programs)."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

PROGRAMS = Path(__file__).parents[1] / "programs"


def printed(program, *arguments, mlxir, tier="reference"):
    """What a program prints, as JSON, on mlxir or on real MLX."""
    # The reference tier by default: compiling what a program evaluates once or twice would take most of the time.
    env = {**os.environ, "MLXIR_TIER": tier}
    command = [sys.executable, *(["-m", "mlxir", "run"] if mlxir else []), str(PROGRAMS / program), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd="/")
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout)


@pytest.mark.parametrize("network", ["mlp", "cnn", "transformer"])
def test_training_has_the_losses_of_mlx(network):
    """20 steps from the same seed, eager and compiled; MLX compiled computes what MLX eager does."""
    theirs = printed("training.py", network, "eager", mlxir=False)
    assert len(theirs) == 20 and theirs[-1] < 0.9 * theirs[0]
    for mode in ("eager", "compiled"):
        mine = printed("training.py", network, mode, mlxir=True, tier="auto" if mode == "compiled" else "reference")
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, err_msg=mode)


has_mlx_lm = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="pip install mlx-lm")


@has_mlx_lm
@pytest.mark.parametrize("quantised", ["0", "1"], ids=["plain", "quantised"])
def test_mlx_lm_generates_the_tokens_of_mlx(quantised):
    theirs = printed("llama.py", "generate", quantised, mlxir=False)
    assert len(set(theirs)) > 3
    assert printed("llama.py", "generate", quantised, mlxir=True, tier="auto") == theirs


@has_mlx_lm
def test_mlx_lm_fine_tunes_with_the_losses_of_mlx():
    theirs = printed("llama.py", "tune", "0", mlxir=False)
    assert theirs[-1] < 0.5 * theirs[0]
    for mode, tier in (("0", "reference"), ("1", "auto")):
        np.testing.assert_allclose(printed("llama.py", "tune", mode, mlxir=True, tier=tier), theirs, rtol=1e-4)
