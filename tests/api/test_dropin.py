"""The drop-in and the wheel's Python part under names of ours, in processes of their own."""

import sys
import textwrap

import processes
import pytest


def run(code):
    """Run code in a new interpreter. Fails if it raises."""
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = processes.run(command)
    assert done.returncode == 0, done.stderr[-2000:]


def test_nn_under_our_name_leaves_mlx_alone():
    run("""
        import sys, mlxir as mx
        assert not any(name.startswith("mlxir.nn") for name in sys.modules)
        import mlxir.nn as nn, mlxir.optimizers as optim
        from mlxir.nn.layers.linear import Linear
        from mlxir.utils import tree_flatten
        assert mx.nn is nn and mx.optimizers is optim and Linear is nn.Linear
        assert not any(name == "mlx" or name.startswith("mlx.") for name in sys.modules)
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        assert isinstance(model.layers[0].weight, mx.array) and model(mx.ones((2, 3))).shape == (2, 4)
        assert [name for name, _ in tree_flatten(model.parameters())] == ["layers.0.weight", "layers.0.bias"]

        import mlx.core as real, mlx.nn as real_nn  # real MLX in the same process, with modules of its own
        assert real_nn is not nn and real_nn.Linear is not nn.Linear
        assert isinstance(real_nn.Linear(3, 4)(real.ones((1, 3))), real.array)
    """)


@pytest.mark.parametrize("how", ["import mlxir.dropin", "import mlxir; mlxir.dropin.install()"])
def test_install(how):
    run(f"""
        {how}
        import sys, importlib.util, pickle
        import mlx.core as mx, mlx.core.random, mlx.core.fast as fast, mlx.nn as nn, mlx.optimizers, mlx.utils, mlx
        from mlx.core import linalg
        from mlx.nn.layers.base import Module
        import mlxir
        assert mx is mlxir and mlx.core is mlxir and fast is mlxir.fast and linalg is mlxir.linalg
        assert nn is mlxir.nn is mlx.nn and Module is nn.Module and mlx.optimizers is mlxir.optimizers
        assert nn.__spec__.name == "mlxir.nn" and importlib.util.find_spec("mlx").name == "mlx"
        assert not any("mlx/core" in str(getattr(m, "__file__", "")) for m in list(sys.modules.values()))
        assert isinstance(mx.random.normal((2,)), mx.array) and isinstance(mx.distributed.init(), mx.distributed.Group)
        layer = nn.Linear(2, 3)
        assert pickle.loads(pickle.dumps(layer))(mx.ones((1, 2))).tolist() == layer(mx.ones((1, 2))).tolist()
        def annotated(x: mx.array | None, d: mx.Dtype = mx.float32, s: mx.Stream | mx.Device = mx.cpu) -> mx.array: ...
        mlxir.dropin.install()
        assert sys.modules["mlx.core"] is mlxir
    """)


def test_install_refuses_beside_the_real_core():
    run("""
        import mlx.core
        try:
            import mlxir.dropin
        except RuntimeError as error:
            assert "imported already" in str(error)
        else:
            raise AssertionError("it was installed")
    """)


def test_without_the_wheel_only_its_modules_are_missing():
    """The path finder is made blind for `mlx`, as if no wheel were installed."""
    run("""
        import sys
        from importlib.machinery import PathFinder
        find = PathFinder.find_spec
        PathFinder.find_spec = lambda name, *rest: None if name == "mlx" else find(name, *rest)
        import mlxir.dropin
        import mlx.core as mx
        assert mx.ones(2).sum().item() == 2
        for name in ("mlxir.nn", "mlxir.utils", "mlx.optimizers"):
            try:
                __import__(name)
            except ModuleNotFoundError as error:
                assert "pip install mlx" in str(error), error
            else:
                raise AssertionError(name)
    """)


def test_run_gives_a_script_its_arguments_and_exit_code(tmp_path):
    (tmp_path / "beside.py").write_text("value = 7\n")
    (tmp_path / "script.py").write_text(
        "import sys, beside, mlx.core as mx\n"
        "print(sys.argv[1:], __name__, mx.__name__, beside.value, sys.path[0])\n"
        "sys.exit(3)\n"
    )
    for target in (["script.py"], ["-m", "script"]):
        command = [sys.executable, "-m", "mlxir", "run", *target, "a", "--b", "-m"]
        done = processes.run(command, cwd=tmp_path)
        assert done.returncode == 3, done.stderr
        assert done.stdout == f"['a', '--b', '-m'] __main__ mlxir 7 {tmp_path}\n"


@pytest.mark.parametrize("arguments, told", [([], "name a script"), (["none.py"], "no file none.py")])
def test_run_tells_what_is_wrong(arguments, told, tmp_path):
    command = [sys.executable, "-m", "mlxir", "run", *arguments]
    done = processes.run(command, cwd=tmp_path)
    assert done.returncode == 2 and told in done.stderr and "Traceback" not in done.stderr


def test_an_error_of_the_script_keeps_its_traceback(tmp_path):
    (tmp_path / "script.py").write_text("import mlx.core as mx\nmx.ones(2) + mx.ones(3)\n")
    command = [sys.executable, "-m", "mlxir", "run", "script.py"]
    done = processes.run(command, cwd=tmp_path)
    assert done.returncode == 1 and "script.py:2" in done.stderr and "ShapeError" in done.stderr
