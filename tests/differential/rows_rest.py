"""The coverage table, the end: aliases, dtypes, conversions of arrays, transforms, files, devices and memory."""

from __future__ import annotations

from .cases import EVERY, FLOATS, INTS, Row, arrays
from .rows import DENSE, FEW, FORMS, REVERSED, STRIDED, TRANSPOSED

ALIASES = {"acos": "arccos", "acosh": "arccosh", "asin": "arcsin", "asinh": "arcsinh", "atan": "arctan", "atanh": "arctanh",
           "cumulative_sum": "cumsum", "cumulative_prod": "cumprod"}  # fmt: skip
DTYPES = [f"m.{d}" for d in EVERY]
CATEGORIES = ["m.complexfloating", "m.floating", "m.inexact", "m.signedinteger", "m.unsignedinteger", "m.integer", "m.number", "m.generic"]
KINDS = ["'bool'", "'signed integer'", "'unsigned integer'", "'integral'", "'real floating'", "'complex floating'", "'numeric'"]


def dtypes() -> list[Row]:
    any_dtype = [*DTYPES, *CATEGORIES]
    rows = [
        Row("Dtype", "{d}", {"d": DTYPES}), Row("Dtype", "{d}.size", {"d": DTYPES}), Row("Dtype", "{d} == {e}", {"d": DTYPES, "e": [*DTYPES, "1"]}, 60), Row("Dtype", "hash({d}) == hash({d})", {"d": DTYPES}),
        Row("Dtype", "m.Dtype()"), Row("DtypeCategory", "{c}", {"c": CATEGORIES}), Row("DtypeCategory", "[c.name for c in m.DtypeCategory]"), Row("DtypeCategory", "m.DtypeCategory({n})", {"n": ["0", "7", "!9"]}),
        Row("issubdtype", "m.issubdtype({a}, {b})", {"a": [*any_dtype, "!1", "!None", "!'float32'"], "b": [*any_dtype, "!1"]}, 500),
        Row("can_cast", "m.can_cast({a}, {b})", {"a": [*DTYPES, *FEW, "!1", "!None"], "b": [*DTYPES, "!1"]}, 400), Row("result_type", "m.result_type({a}, {b})", {"a": [*DTYPES, *FEW, "1", "2.5"], "b": [*DTYPES, "True", "1", "1.5", "1j"]}, 400),
        Row("result_type", "m.result_type({a})", {"a": ["", "m.int8", "1", "m.array(1), m.float16, 2.5", "None", "'a'"]}),
        Row("isdtype", "m.isdtype({a}, {b})", {"a": [*DTYPES, "!1"], "b": [*KINDS, *DTYPES, "('bool', 'real floating')", "(m.int8, 'integral')", "()", "!'x'", "!1", "!None"]}, 400),
        *[Row("finfo", f"m.finfo({{d}}).{n}", {"d": ["m.float16", "m.bfloat16", "m.float32", "m.float64", "m.complex64", "!m.int32", "!1"]}, compiled=False) for n in ("min", "max", "eps", "bits", "smallest_normal", "dtype")],
        *[Row("iinfo", f"m.iinfo({{d}}).{n}", {"d": [*[f"m.{d}" for d in INTS], "!m.float32", "!m.bool_", "!1"]}, compiled=False) for n in ("min", "max", "dtype")],
        Row("finfo", "repr(m.finfo({d}))", {"d": ["m.float16", "m.float32"]}), Row("iinfo", "repr(m.iinfo({d}))", {"d": ["m.int8", "m.uint64"]}),
        *[Row(n, f"m.{n}({{x}})", {"x": FEW}) for n in ALIASES],
        Row("atan2", "m.atan2({x}, {x})", {"x": FEW}), Row("pow", "m.pow({x}, {x})", {"x": FEW}), Row("empty", "m.empty({s}{d}).shape", {"s": ["3", "(2, 3)", "()"], "d": ["", ", m.int8"]}), Row("empty_like", "m.empty_like({x}).dtype", {"x": FEW}),
        *[Row(f"bitwise_{n}", f"m.bitwise_{n}({{x}}, 1)", {"x": FEW}) for n in ("left_shift", "right_shift")],
    ]  # fmt: skip
    for row in rows:
        row.compiled = False
    return rows


def conversions() -> list[Row]:
    some = arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((4,), STRIDED), ((), DENSE), ((1,), DENSE), ((1, 1), DENSE), ((0, 3), DENSE), ((2, 3, 4), REVERSED)], "few", "special")
    exact = [x for x in some if "bfloat16" not in x]  # MLX's buffers have no bfloat16
    attributes = ["size", "ndim", "itemsize", "nbytes", "shape", "dtype"]
    calls = ["bool({x})", "int({x})", "float({x})", "complex({x})", "len({x})", "{x}.item()", "{x}.tolist()", "operator.index({x})", "repr({x})", "str({x})", "'{{}}'.format({x})", "list({x})", "list({x}.shape)", "[r.shape for r in {x}]",
             "range(9)[{x}]", "'%s' % {x}", "{x}.__copy__()", "copy.copy({x})", "copy.deepcopy({x})", "{x}.__dlpack_device__()[0]", "pickle.loads(pickle.dumps({x}))", "{x} is {x}", "isinstance({x}, m.array)", "type({x}.__array_namespace__()).__name__"]  # fmt: skip
    names = {"__len__": 4, "item": 5, "tolist": 6, "__index__": 7, "__repr__": 8, "__format__": 10, "__iter__": 11, "__bool__": 0, "__int__": 1, "__float__": 2, "__complex__": 3}
    named = {i: n for n, i in names.items()}
    rows = [Row(f"array.{named.get(i, 'conversions')}", c, {"x": some}, 120, False) for i, c in enumerate(calls)]
    rows += [Row(f"array.{a}", f"{{x}}.{a}", {"x": some}, 40, False) for a in attributes]
    rows += [
        Row("array.__array__", "np.array({x})", {"x": exact}, 150, False), Row("array.__array__", "np.asarray({x}, dtype=np.float64)", {"x": exact}, 40, False), Row("array.__bytes__", "bytes({x})", {"x": exact}, 80, False),
        Row("array.__array__", "np.array({x}) + 1", {"x": exact}, 20, False), Row("array.__array__", "memoryview({x}).format", {"x": exact}, 100, False), Row("array.__array__", "memoryview({x}).shape", {"x": exact}, 40, False),
        Row("array.__dlpack__", "np.from_dlpack({x})", {"x": exact}, 100, False), Row("array.__format__", "format({x}, {s})", {"x": some, "s": ["''", "'.2f'", "'>8'", "'.3e'"]}, 150, False),
        Row("array.__getitem__", "{x}[0]", {"x": some}, 40, False), Row("array.__setitem__", "put({x}, 0, 1)", {"x": some}, 40, False),
        Row("array.at", "{x}.at[0].add(1)", {"x": some}, 40, False), Row("array.at", "{x}.at.add(1)", {"x": FEW[:2]}, 40, False),
        Row("array.__eq__", "{x} == {o}", {"x": FEW, "o": ["'a'", "[1, 2]", "(1,)", "object()", "{{}}", "m", "1.5", "np.ones(4)", "b'a'"]}, 60, False), Row("array.__ne__", "{x} != {o}", {"x": FEW, "o": ["'a'", "[1, 2]", "(1,)", "object()", "{{}}", "1.5"]}, 60, False),
        Row("array.__hash__", "len({{{x}, {x}}})", {"x": FEW[:3]}, 5, False), Row("array.__hash__", "{x} in [1, 'a']", {"x": FEW[:3]}, 5, False),
    ]  # fmt: skip
    # printing
    values = ["1e-5", "123456789.0", "[1e10, 1.0]", "[0.1, 100000.0]", "[1e-8, 1.0]", "[nan, inf, -inf, 0.0, -0.0]", "[1.5, 2.25, 1000000.0]", "[[1, 20], [300, 4]]", "[True, False]", "[1j, 2.5 - 1e-7j]", "[[[1.0]]]", "[]", "[[], []]", "2**40", "[-1.0, 1e-40]", "3.14159265358979", "[1e38]", "[123456.0, 1234567.0]"]
    rows += [
        Row("array.__repr__", "repr(m.array({v}))", {"v": values}, 40, False), Row("array.__repr__", "repr(m.array({v}).astype({d}))", {"v": values, "d": DTYPES}, 120, False),
        Row("array.__repr__", "repr(m.{f}.reshape({s}).astype({d}))", {"f": ["arange(24)"], "s": ["24", "(4, 6)", "(2, 3, 4)", "(2, 2, 2, 3)"], "d": DTYPES}, 40, False),
        Row("array.__repr__", "repr(m.arange({n}).reshape({s}))", {"n": ["2000"], "s": ["2000", "(1000, 2)", "(2, 1000)", "(20, 100)", "(10, 10, 20)", "(200, 10)", "(7, 285 + 0 * 1)[:0] + (2000,)"]}, 20, False),
        Row("printoptions", "[(m.set_printoptions(precision={p}), repr(m.array({v})), m.get_printoptions().precision, m.set_printoptions(precision=-1))[1:3]]", {"p": ["1", "2", "8", "0", "-1", "!'a'"], "v": ["[1 / 3, 2.0]", "[1e-5, 100.0]", "[1, 2]", "[1j / 3]", "0.123456789"]}, 40, False),
        Row("set_printoptions", "m.set_printoptions({p})", {"p": ["-1", "", "!None"]}, 5, False), Row("get_printoptions", "m.get_printoptions().precision"), Row("PrintOptions", "m.PrintOptions(3).precision"),
        Row("printoptions", "[m.printoptions(precision=2).__enter__() is None, repr(m.array(1 / 3)), m.set_printoptions(precision=-1)][1]"),
    ]  # fmt: skip
    return rows


def system() -> list[Row]:
    x = arrays(("float32",), [((3, 4), DENSE), ((3, 4), TRANSPOSED)], "mixed")
    rows = [
        Row("grad", "m.grad(lambda t: (t * t * t).sum())({x})", {"x": arrays(FLOATS, FORMS, "mixed")}, 30), Row("grad", "m.grad({f})", {"f": ["None", "1", "abs, argnums=None", "abs, argnums='a'", "abs, argnums=-1", "abs, argnums=(0, 0)"]}),
        Row("value_and_grad", "m.value_and_grad(lambda t: m.sin(t).sum())({x})", {"x": arrays(FLOATS, FORMS, "mixed")}, 30), Row("vjp", "m.vjp(lambda t: t * t, [{x}], [{x}])", {"x": x}), Row("jvp", "m.jvp(lambda t: t * t, [{x}], [{x}])", {"x": x}),
        Row("vmap", "m.vmap(lambda t: t.sum(), {i})({x})", {"i": ["0", "1", "-1"], "x": x}), Row("checkpoint", "m.checkpoint(lambda t: t * 2)({x})", {"x": x}), Row("custom_function", "m.custom_function(lambda t: t * 2)({x})", {"x": x}),
        Row("compile", "m.compile(lambda t: t * 2)({x})", {"x": x}), Row("compile", "m.compile({f})", {"f": ["None", "1", "abs, 1, 2, 3, 4"]}), Row("disable_compile", "(m.disable_compile(), m.enable_compile(), 1)[2]"), Row("enable_compile", "(m.enable_compile(), 1)[1]"),
        Row("eval", "m.eval({x})", {"x": [*x, "", "[m.array(1)], {{'a': m.array(2)}}"]}), Row("async_eval", "m.async_eval({x})", {"x": [*x, ""]}),
        *[Row(s, f"(m.{s}('FOLDER/{s}.{e}', {{x}}), m.load('FOLDER/{s}.{e}'))[1]", {"x": c}) for s, e, c in (("save", "npy", FEW), ("savez", "npz", x), ("savez_compressed", "npz", x))],
        Row("save_safetensors", "(m.save_safetensors('FOLDER/a.safetensors', {{'x': {x}}}), m.load('FOLDER/a.safetensors'))[1]", {"x": [f for f in FEW if "float64" not in f]}),
        Row("save_safetensors", "(m.save_safetensors('FOLDER/a.safetensors', {{'x': {x}}}, {{'k': 'v'}}), m.load('FOLDER/a.safetensors', return_metadata=True))[1]", {"x": x}),
        Row("save_gguf", "(m.save_gguf('FOLDER/a.gguf', {{'x': {x}}}, {{'k': 'v', 'n': m.array(3)}}), m.load('FOLDER/a.gguf', return_metadata=True))[1]", {"x": x}), Row("load", "m.load({f})", {"f": ["'FOLDER/none.npy'", "1", "'FOLDER/a'", "'FOLDER/a.xyz'"]}),
        Row("export_function", "(m.export_function('FOLDER/f.mlxfn', lambda t: t * 2, m.ones(2)), m.import_function('FOLDER/f.mlxfn')(m.ones(2)))[1]"), Row("import_function", "m.import_function('FOLDER/none.mlxfn')"),
        Row("exporter", "type(m.exporter('FOLDER/g.mlxfn', lambda t: t * 2)).__name__"), Row("FunctionExporter", "m.FunctionExporter.__name__"), Row("export_to_dot", "m.export_to_dot(io.StringIO(), m.ones(2) + 1)"),
        *[Row(n, f"m.{n}({{d}})", {"d": ["m.cpu", "m.Device(m.cpu)", "!'a'", "!None"]}) for n in ("is_available", "default_stream")], *[Row(n, f"m.{n}({{d}}).device", {"d": ["m.cpu", "m.Device(m.cpu)", "!'a'", "!None"]}) for n in ("new_stream", "new_thread_unsafe_stream", "new_thread_local_stream")], Row("device_count", "m.device_count({d})", {"d": ["m.cpu", "!'a'"]}),
        Row("device_info", "type(m.device_info({d})).__name__", {"d": ["", "m.cpu"]}), Row("Device", "m.Device({d})", {"d": ["m.cpu", "m.cpu, 0", "!'a'"]}), Row("Device", "m.Device(m.cpu) == {d}", {"d": ["m.cpu", "m.Device(m.cpu)", "1"]}), Row("DeviceType", "m.DeviceType.cpu"), Row("DeviceType", "m.DeviceType.cpu == m.cpu"),
        Row("default_device", "m.default_device()"), Row("set_default_device", "m.set_default_device({d})", {"d": ["m.cpu", "m.Device(m.cpu)", "!'a'"]}), Row("Stream", "m.default_stream(m.cpu).device"), Row("Stream", "m.default_stream(m.cpu) == m.default_stream(m.cpu)"), Row("ThreadLocalStream", "m.new_thread_local_stream(m.cpu).device"),
        Row("set_default_stream", "m.set_default_stream(m.default_stream(m.cpu))"), Row("stream", "type(m.stream({d})).__name__", {"d": ["m.cpu", "m.default_stream(m.cpu)", "!'a'"]}), Row("StreamContext", "type(m.StreamContext(m.cpu)).__name__"), Row("synchronize", "m.synchronize({d})", {"d": ["", "m.cpu", "m.default_stream(m.cpu)"]}), Row("clear_streams", "m.clear_streams.__name__"),
        *[Row(f"{p}{n}", f"type(m.{p}{n}()).__name__") for p in ("", "metal.") for n in ("get_active_memory", "get_peak_memory", "reset_peak_memory", "get_cache_memory", "clear_cache")], Row("get_memory_limit", "type(m.get_memory_limit()).__name__"), Row("get_array_buffer_size", "m.get_array_buffer_size(m.zeros((0,)))"),
        *[Row(f"{p}{n}", f"int is type(m.{p}{n}({{v}}))", {"v": ["2**40", "!'a'"]}) for p in ("", "metal.") for n in ("set_memory_limit", "set_cache_limit")], *[Row(f"{p}set_wired_limit", f"callable(m.{p}set_wired_limit)") for p in ("", "metal.")],
        Row("metal.is_available", "m.metal.is_available()"), Row("cuda.is_available", "m.cuda.is_available()"), Row("metal.device_info", "callable(m.metal.device_info)"), Row("metal.start_capture", "callable(m.metal.start_capture)"), Row("metal.stop_capture", "callable(m.metal.stop_capture)"),
        *[Row(f"fast.{n}", f"callable(m.fast.{n})") for n in ("metal_kernel", "cuda_kernel", "precompiled_cuda_kernel")],
        Row("distributed.init", "m.distributed.init().size()"), Row("distributed.init", "m.distributed.init().rank()"), Row("distributed.Group", "m.distributed.Group.__name__"), Row("distributed.is_available", "type(m.distributed.is_available()).__name__"),
        *[Row(f"distributed.{n}", f"m.distributed.{n}({{x}})", {"x": x}) for n in ("all_sum", "all_max", "all_min", "all_gather", "sum_scatter")], *[Row(f"distributed.{n}", f"m.distributed.{n}({a})") for n, a in (("send", "m.ones(2), 0"), ("recv", "(2,), m.float32, 0"), ("recv_like", "m.ones(2), 0"))],
    ]  # fmt: skip
    for row in rows:
        row.compiled = False
    return rows
