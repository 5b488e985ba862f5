"""The surface of MLX: every public name is there, takes the arguments of MLX's signature, and accepts `stream=`."""

import ast
import functools
import inspect
import re
import types
from pathlib import Path

import mlx.core as real
import pytest

import mlxir

# What is not there yet, and why. Empty is the aim.
MISSING: dict[str, str] = {}
SUBMODULES = ("random", "linalg", "fft", "fast", "metal", "cuda", "distributed")
# Names that the compiled module shows beside its documented interface.
UNDOCUMENTED = {"matrix_norm": "the binding of linalg.norm under a second name"}


def listed():
    """The names of mlx_names.txt, dotted: "abs", "random.seed", "array.shape"."""
    found, group = [], ""
    for line in (Path(__file__).parent / "mlx_names.txt").read_text().splitlines():
        if line.endswith(":"):
            group = "" if line == "core:" else f"{line[:-1]}."
        elif line.startswith("  "):
            found += [group + name for name in line.split()]
    return found


def has(library, name):
    try:
        functools.reduce(getattr, name.split("."), library)
    except AttributeError:
        return False
    return True


def test_every_listed_name_is_there():
    names = listed()
    assert len(names) == len(set(names)) == 497
    assert [name for name in names if not has(real, name)] == [], "the list is not that of MLX"
    assert [name for name in names if not has(mlxir, name) and name not in MISSING] == []
    assert [name for name in MISSING if has(mlxir, name)] == [], "there now: strike it from MISSING"


@pytest.mark.parametrize("module", ["", *SUBMODULES])
def test_every_name_of_mlx_is_there(module):
    """Also what the list leaves out: aliases, and what a newer MLX has."""
    theirs, ours = (getattr(m, module) if module else m for m in (real, mlxir))
    public = {name for name in dir(theirs) if not name.startswith("_")}
    assert public - set(dir(ours)) - set(MISSING) - set(UNDOCUMENTED) == set()


def test_every_member_of_the_array_class_is_there():
    assert [n for n in dir(real.array) if not hasattr(mlxir.array, n)] == []


def functions():
    for module in ("", *SUBMODULES):
        theirs = getattr(real, module) if module else real
        for name in dir(theirs):
            full = f"{module}.{name}" if module else name
            found = getattr(theirs, name)
            if name.startswith("_") or isinstance(found, (type, types.ModuleType)) or not callable(found):
                continue
            if full not in MISSING and name not in UNDOCUMENTED:
                yield full


def signatures_of_mlx(function):
    """The signatures in the docstring of a compiled function, as `ast.arguments`."""
    found = []
    for line in (function.__doc__ or "").splitlines():
        match = re.match(rf"(?:\d+\. ``)?({re.escape(function.__name__)}\(.*\))(?: -> .*)?$", line.strip().rstrip("`"))
        if match:
            text = re.sub(r"<[^>]*>", "None", match[1]).replace("ndarray[writable=False]", "ndarray")
            try:
                arguments = ast.parse(f"def {text}: pass").body[0].args
            except SyntaxError:  # an example of its use
                continue
            if arguments.args and arguments.args[0].arg == "self":
                arguments.posonlyargs.append(arguments.args.pop(0))
            found.append(arguments)
    return found


def default_of(node):
    """A default value; constants such as float32 are those of mlxir."""
    return eval(ast.unparse(node), {**vars(mlxir)}) if node is not None else inspect.Parameter.empty


def differences(theirs, ours):
    """How a signature of ours falls short of MLX's: what it does not accept, or takes to mean something else."""
    parameters = ours.parameters.values()
    places = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keywords = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    any_place = any(p.kind is p.VAR_POSITIONAL for p in parameters)
    any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
    by_place = [a.arg for a in theirs.posonlyargs + theirs.args]
    by_name = [a.arg for a in theirs.args + theirs.kwonlyargs]
    found = [f"no keyword {name}" for name in by_name if name not in keywords and not any_keyword]
    for i, name in enumerate(by_place):
        if i >= len(places):
            found += [] if any_place else [f"no place for {name}"]
        elif i >= len(theirs.posonlyargs) and places[i].name != name:
            found.append(f"{places[i].name} in the place of {name}")
    optional = dict(zip(by_place[len(by_place) - len(theirs.defaults) :], theirs.defaults, strict=True))
    optional |= {a.arg: d for a, d in zip(theirs.kwonlyargs, theirs.kw_defaults, strict=True) if d is not None}
    for name, node in optional.items():
        wanted, own = default_of(node), ours.parameters.get(name)
        wanted = tuple(wanted) if isinstance(wanted, list) else wanted
        if own is not None and own.default != wanted and (name, own.default) not in SAME_AS_DEFAULT:
            found.append(f"{name} is {own.default!r} by default, not {wanted!r}")
    for i, p in enumerate(places):
        if p.default is p.empty and i >= len(by_place) - len(theirs.defaults) and p.name not in by_name:
            found.append(f"needs {p.name}")
    return found


SAME_AS_DEFAULT = [("loc", None), ("scale", None)]  # of laplace: None stands for 0 and 1


@pytest.mark.parametrize("name", list(functions()))
def test_signature_accepts_what_that_of_mlx_accepts(name):
    theirs = functools.reduce(getattr, name.split("."), real)
    ours = inspect.signature(functools.reduce(getattr, name.split("."), mlxir))
    found = [differences(arguments, ours) for arguments in signatures_of_mlx(theirs)]
    assert not found or [] in found, found


def test_the_signatures_are_read():
    """The comparison sees something: most functions of MLX document a signature, and a wrong one is told."""
    documented = [n for n in functions() if signatures_of_mlx(functools.reduce(getattr, n.split("."), real))]
    assert len(documented) > 300
    arguments = signatures_of_mlx(real.sum)[0]
    assert differences(arguments, inspect.signature(mlxir.sum)) == []
    assert differences(arguments, inspect.signature(lambda a, axes=None, keepdims=True: None))


def test_stream_is_accepted_wherever_mlx_accepts_it():
    missing = []
    for name in functions():
        arguments = signatures_of_mlx(functools.reduce(getattr, name.split("."), real))
        if any(a.arg == "stream" for sig in arguments for a in sig.args + sig.kwonlyargs):
            parameter = inspect.signature(functools.reduce(getattr, name.split("."), mlxir)).parameters.get("stream")
            if parameter is None or parameter.default is not None:
                missing.append(name)
    assert missing == ["set_default_stream"]  # which needs it


def test_every_stream_is_looked_at():
    """Each function and method that takes a stream refuses what is none, and one of a device that is not there."""
    public = {name: functools.reduce(getattr, name.split("."), mlxir) for name in functions()}
    public |= {f"array.{name}": getattr(mlxir.array, name) for name in METHODS}
    takers = {}
    for name, function in public.items():
        parameters = inspect.signature(function).parameters
        if "stream" in parameters:
            required = [p for p in parameters.values() if p.default is p.empty and p.name != "stream"]
            takers[name] = (function, [None for p in required if p.kind <= p.POSITIONAL_OR_KEYWORD],
                            {p.name: None for p in required if p.kind is p.KEYWORD_ONLY})  # fmt: skip
    assert len(takers) > 250 and "array.astype" in takers
    silent = []
    for stream, expected in (("cpu", "expected a|stream must be"), (3, "expected a|stream must be"),
                             (mlxir.gpu, "without gpu backend|expected a Stream"),
                             (mlxir.Device(mlxir.gpu), "without gpu backend|expected a Stream")):  # fmt: skip
        for name, (function, args, kwargs) in takers.items():
            with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
                function(*args, **kwargs, stream=stream)
            if not re.search(expected, str(error.value)):
                silent.append((name, stream, str(error.value)))
    assert {name for name, _, _ in silent} == {"fast.precompiled_cuda_kernel"}, silent  # says that there is no CUDA


METHODS = [n for n in dir(real.array) if not n.startswith("_") and callable(getattr(real.array, n))]


@pytest.mark.parametrize("name", METHODS)
def test_method_accepts_what_that_of_mlx_accepts(name):
    ours = inspect.signature(getattr(mlxir.array, name))
    found = [differences(arguments, ours) for arguments in signatures_of_mlx(getattr(real.array, name))]
    assert not found or [] in found, found


@pytest.mark.parametrize("stream", ["cpu", "Device(cpu)", "default_stream(cpu)", "new_stream(cpu)",
                                    "new_thread_local_stream(cpu)", "new_thread_unsafe_stream(cpu)"])  # fmt: skip
def test_kinds_of_streams(stream):
    s = eval(f"m.{stream.replace('(cpu', '(m.cpu')}", {"m": mlxir})
    x = mlxir.array([3.0, 1.0, 2.0])
    for result in (mlxir.add(x, 1, stream=s), x.sum(stream=s), mlxir.sort(x, stream=s), mlxir.zeros((2,), stream=s),
                   mlxir.random.normal((2,), stream=s), mlxir.fast.rms_norm(x, None, 1e-5, stream=s)):  # fmt: skip
        mlxir.eval(result)
    with mlxir.stream(s):
        assert mlxir.default_device() == mlxir.cpu
    mlxir.synchronize(s)
