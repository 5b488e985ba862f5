"""The benchmark harness, on tiny turns: it runs, checks results before it counts them, and profiles kernels."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from mlxir import bench
from mlxir.cli import main

TINY = ["--rounds", "1", "--burst", "0.001", "--peak", "100", "--peers-python", sys.executable]


def test_it_times_a_workload_in_mlxir_and_numpy(tmp_path: Path) -> None:
    files = [tmp_path / f"bench.{kind}" for kind in ("json", "md", "html")]
    files[1].write_text("before\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nafter\n")
    options = [f"--{file.suffix[1:]}={file}" for file in files]
    assert main(["bench", "--suite", "dispatch,conv_net_grad,jacobian", "--peers", "numpy", *TINY, *options]) == 0
    table = json.loads(files[0].read_text())["runs"]["default"]
    for name in ("dispatch", "jacobian"):
        for framework in ("mlxir", "numpy"):
            result = table[name]["results"][framework]
            assert result["agrees"] and result["referee"] == "numpy" and result["median"] > 0, (name, framework, result)
    assert table["conv_net_grad"]["results"]["mlxir"]["referee"] == "mlxir"  # nobody to agree with
    text = files[1].read_text()
    assert text.startswith("before") and text.endswith("after\n") and "old" not in text
    assert "| jacobian |" in text and "Unchecked, no peer to agree with: conv_net_grad" in text
    assert "<td>jacobian</td>" in files[2].read_text() and "<svg" in files[2].read_text()


def test_wrong_results_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(bench.HARNESS)
    run, report = (importlib.import_module(name) for name in ("run", "report"))
    ones = [np.ones(3)]
    assert run.relative_error([np.full(3, 1.5)], ones) == 0.5
    for wrong in ([], [np.ones(4)], [np.array([1, np.nan, 1])]):
        assert run.relative_error(wrong, ones) == math.inf

    right, wrong = {"agrees": True, "median": 2.0}, {"agrees": False, "median": 1.0}
    entry = {"results": {"mlxir": right, "jax": wrong, "torch": {"error": "it died"}, "mlx": right}, "limit": 1.0}
    assert report.best_peer(entry["results"]) == ("mlx", 2.0)
    assert report.ratio(entry) == 1 and report.share(entry) == 0.5
    assert report.ratio({"results": {"mlxir": wrong, "mlx": right}, "limit": 1.0}) is None


def test_it_profiles_the_kernels_of_a_function(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "f.py"
    file.write_text("import mlxir as mx\ndef f(a, b):\n    return mx.exp(a @ b), mx.sum(a, axis=1)\n")
    spec = ["--arg", "f32[64,32]", "--arg", "f32[32,16]"]
    assert main(["bench", "--profile", f"{file}:f", *spec, "--times", "2", "--peak", "100"]) == 0
    lines = capfd.readouterr().out.splitlines()
    product = next(line for line in lines if line.startswith("mx_matmul")).split()
    assert "exp" in product
    # 2 * 64 * 32 * 16 for the product, and one for each exp.
    assert f"{(2 * 64 * 32 * 16 + 64 * 16) / 1e6:.1f}" in product
    assert any(line.startswith("mx_sum") for line in lines) and lines[-1].startswith("all")


def test_without_a_checkout_it_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "HARNESS", tmp_path)
    assert main(["bench"]) == 2
    assert "clone the repository" in capsys.readouterr().err
