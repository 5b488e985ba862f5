"""The coverage table: every public callable of MLX, every argument of its signature, over dtypes, shapes and layouts."""

from __future__ import annotations

from .cases import EVERY, INEXACT, INTS, Row, arrays

DENSE, TRANSPOSED, STRIDED, REVERSED, BROADCAST = "dense", "transposed", "strided", "reversed", "broadcast"
# (shape, layout) of operands
PLAIN = [((3, 4), DENSE)]
FORMS = [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((3, 4), STRIDED), ((3, 4), REVERSED), ((3, 4), BROADCAST), ((), DENSE),
         ((0, 3), DENSE), ((1,), DENSE), ((33,), DENSE), ((2, 3, 4), TRANSPOSED)]  # fmt: skip
CUBES = [((2, 3, 4), DENSE), ((2, 3, 4), TRANSPOSED), ((2, 3, 4), STRIDED), ((2, 3, 4), REVERSED), ((2, 3, 4), BROADCAST)]
SHORT = ("float32", "int32", "bool_", "complex64", "uint8", "bfloat16")
AXES = ["None", "0", "1", "-1", "-2", "(0,)", "(0, 1)", "(-1, 0)", "[1]", "()", "!7", "!-8", "!(0, 0)", "(0, -3)", "!(0, 9)", "!1.0"]
AXIS = ["None", "0", "1", "-1", "-3", "!7", "!-8", "!(0,)", "!1.5"]
INT_AXIS = ["0", "1", "-1", "-3", "!7", "!-8"]
BOOL = ["False", "True"]
SCALARS = ["0", "1", "2", "-3", "2.5", "-0.5", "True", "1j", "300", "inf", "nan", "np.float64(2.5)", "np.array([1, 2, 3, 4])",
           "np.ones((1, 4), np.float16)"]  # fmt: skip
PYTHON = [s for s in SCALARS if "np." not in s]
BAD = ["!None", "!'x'", "![1, 2]", "!(1.0,)", "!object()", "!m.float32"]

ANY = arrays(EVERY, FORMS, "mixed", "special")
EDGE = arrays(EVERY, [((33,), DENSE)], "special")  # every special value
FEW = arrays(EVERY, PLAIN, "mixed")

UNARY = ["abs", "arccos", "arccosh", "arcsin", "arcsinh", "arctan", "arctanh", "bitwise_invert", "ceil", "conj", "conjugate", "cos", "cosh", "degrees", "erf", "erfinv", "exp", "expm1", "floor", "imag", "isfinite", "isinf", "isnan", "isneginf", "isposinf", "log", "log10", "log1p", "log2", "logical_not", "negative", "positive", "radians", "real", "reciprocal", "rsqrt", "sigmoid", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "tan", "tanh", "trunc"]
BINARY = ["add", "arctan2", "bitwise_and", "bitwise_or", "bitwise_xor", "divide", "equal", "greater", "greater_equal", "less", "less_equal", "logaddexp", "logical_and", "logical_or", "logical_xor", "maximum", "minimum", "multiply", "not_equal", "power", "subtract"]
UNARY_METHODS = ["abs", "square", "sqrt", "rsqrt", "reciprocal", "exp", "log", "log2", "log10", "sin", "cos", "log1p", "conj", "__abs__", "__neg__", "__pos__", "__invert__"]
OPERATORS = ["add", "sub", "mul", "truediv", "pow", "and_", "or_", "xor", "eq", "ne", "lt", "le", "gt", "ge", "iadd", "isub", "imul", "itruediv", "ipow", "iand", "ior", "ixor"]
# The process of MLX dies of SIGFPE when an integer is divided by zero.
DIVISIONS = ["floor_divide", "remainder", "divmod"]
DIVISION_OPERATORS = ["floordiv", "mod", "ifloordiv", "imod"]
NUMBERS = [s for s in SCALARS if s not in ("0", "True")]


def elementwise() -> list[Row]:
    rows = []
    for n in UNARY:
        rows += [Row(n, f"m.{n}({{x}})", {"x": ANY}, 60), Row(n, f"m.{n}({{x}})", {"x": EDGE}, 20)]
        rows += [Row(n, f"m.{n}({{x}})", {"x": ["2", "0.5", "True", "1j", "np.float64(0.25)", "np.ones(2)", *BAD]}, compiled=False)]
        rows += [Row(n, f"m.{n}({{x}}, stream=m.cpu)", {"x": FEW[:1]})]
    for n in UNARY_METHODS:
        rows += [Row(f"array.{n}", f"{{x}}.{n}()", {"x": FEW}, 20)]
    two = ["({x}, {y})"]
    others = arrays(EVERY, [((3, 4), DENSE), ((4,), STRIDED), ((3, 1), REVERSED), ((), DENSE), ((1, 4), DENSE)], "mixed", "special")
    wrong = arrays(("float32",), [((5,), DENSE), ((2, 1, 5), DENSE)], "mixed")
    for n in BINARY:
        for pattern in two:
            rows += [Row(n, f"m.{n}{pattern}", {"x": ANY, "y": others}, 160)]
        pairs = [f"{x}, {y}" for x, y in zip(EDGE, arrays(EVERY, [((33, 1), DENSE)], "special"), strict=True)]
        rows += [Row(n, f"m.{n}({{xy}})", {"xy": pairs}, 20)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": FEW, "y": SCALARS + wrong + BAD}, 60, compiled=False)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": SCALARS, "y": FEW}, 60, compiled=False)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": PYTHON, "y": PYTHON}, 30, compiled=False)]
    safe = arrays(EVERY, [((3, 4), DENSE), ((4,), STRIDED), ((), DENSE)], "nonzero")
    mixed = arrays(EVERY, FORMS, "mixed")
    for n in DIVISIONS:
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": mixed, "y": safe}, 160)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": FEW, "y": NUMBERS + wrong + BAD}, 60, compiled=False)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": SCALARS, "y": safe[::3]}, 60, compiled=False)]
        edge = [x for x in EDGE if "int" not in x and "bool" not in x]
        pairs = [f"{x}, {y}" for x, y in zip(edge, arrays(INEXACT, [((33, 1), DENSE)], "special"), strict=True)]
        rows += [Row(n, f"m.{n}({{xy}})", {"xy": pairs})]
    for n in ("left_shift", "right_shift"):
        counts = arrays((*INTS, "bool_"), [((3, 4), DENSE), ((4,), STRIDED), ((), DENSE)], "few")
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": ANY, "y": counts}, 120)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": FEW, "y": ["0", "2", "True", "1.5", *BAD]}, 60, compiled=False)]
        rows += [Row(n, f"m.{n}({{x}}, {{y}})", {"x": ["0", "5", "True", "1.5"], "y": counts}, 40, compiled=False)]
    for n in OPERATORS:
        bad = [b for b in BAD if b != "!None" or n not in ("eq", "ne")]  # docs/differences.md
        rows += [Row(f"array.{n}", f"operator.{n}({{x}}, {{y}})", {"x": ANY, "y": others + SCALARS + wrong + bad}, 160, compiled=False)]
        rows += [Row(f"array.r{n}", f"operator.{n}({{y}}, {{x}})", {"x": FEW, "y": PYTHON + bad}, 60, compiled=False)]
    for n in DIVISION_OPERATORS:
        rows += [Row(f"array.{n}", f"operator.{n}({{x}}, {{y}})", {"x": mixed, "y": safe + NUMBERS + wrong + BAD}, 160, compiled=False)]
        rows += [Row(f"array.r{n}", f"operator.{n}({{y}}, {{x}})", {"x": safe[::3], "y": PYTHON + BAD}, 60, compiled=False)]
    for n in ("lshift", "rshift", "ilshift", "irshift"):
        rows += [Row(f"array.{n}", f"operator.{n}({{x}}, {{y}})", {"x": FEW, "y": ["0", "2", "True", "1.5", *BAD, *counts]}, 100, compiled=False)]
        rows += [Row(f"array.r{n}", f"operator.{n}({{y}}, {{x}})", {"x": counts, "y": ["0", "2", "True", "1.5", *BAD]}, 60, compiled=False)]
    rows += [Row("array.__div__", "{x}.__div__({y})", {"x": FEW, "y": SCALARS}, 30, compiled=False),
             Row("array.__rdiv__", "{x}.__rdiv__({y})", {"x": FEW, "y": PYTHON[1:]}, 30, compiled=False)]  # fmt: skip
    rows += [
        Row("round", "m.round({x}, {d})", {"x": ANY, "d": ["0", "1", "2", "-1", "decimals=3", "1.5", "None"]}, 120),
        Row("array.round", "{x}.round({d})", {"x": FEW, "d": ["", "1", "decimals=-1"]}),
        Row("nan_to_num", "m.nan_to_num({x}{n})", {"x": ANY + EDGE, "n": ["", ", 1.5", ", nan=2", ", posinf=3.0", ", neginf=-1.0", ", 1, 2, 3", ", posinf=inf"]}, 150),
        Row("clip", "m.clip({x}, {low}, {high})", {"x": ANY, "low": ["None", "0", "-1.5", "1", "nan", *FEW], "high": ["None", "2", "0.5", "inf", "-1", *FEW]}, 200),
        Row("where", "m.where({c}, {x}, {y})", {"c": [*ANY, "True", "0", "1.5", "None"], "x": [*FEW, *SCALARS[:9]], "y": [*FEW, *SCALARS[:9], *wrong, "None"]}, 300),
        Row("isclose", "m.isclose({x}, {y}{o})", {"x": EDGE + FEW, "y": EDGE + FEW + ["!0.5", "!1"], "o": ["", ", 0.1", ", atol=1.0", ", equal_nan=True", ", rtol=0.0, atol=0.0", ", rtol=inf"]}, 200),
        Row("allclose", "m.allclose({x}, {y}{o})", {"x": FEW, "y": FEW + ["!0.5", "!1"], "o": ["", ", 0.1", ", atol=10.0", ", equal_nan=True"]}, 100),
        Row("array_equal", "m.array_equal({x}, {y}{o})", {"x": EDGE + FEW, "y": EDGE + FEW + ["0.5", "1"], "o": ["", ", equal_nan=True"]}, 150),
        Row("array_equal", "m.array_equal({x}, {x}{o})", {"x": EDGE + FEW, "o": ["", ", equal_nan=True"]}, 60),
        Row("astype", "m.astype({x}, {d})", {"x": arrays(EVERY, FORMS, "mixed"), "d": [f"m.{d}" for d in EVERY]}, 400),
        Row("array.astype", "{x}.astype({d})", {"x": arrays(EVERY, FORMS, "few"), "d": [f"m.{d}" for d in EVERY] + ["None", "'float32'", "np.float32", "float", "bool"]}, 200),
        Row("view", "m.view({x}, {d})", {"x": arrays(EVERY, FORMS, "mixed"), "d": [f"m.{d}" for d in EVERY]}, 300),
        Row("array.view", "{x}.view({d})", {"x": FEW, "d": [f"m.{d}" for d in EVERY]}, 60),
        Row("from_fp8", "m.from_fp8({x}{d})", {"x": arrays(("uint8", "int8", "float32"), FORMS, "mixed", "special"), "d": ["", ", m.float32", ", dtype=m.float16", ", m.int32"]}),
        Row("to_fp8", "m.to_fp8({x})", {"x": arrays(("float32", "float16", "bfloat16", "int32"), FORMS, "mixed", "positive")}),
    ]  # fmt: skip
    return rows


def reductions() -> list[Row]:
    rows = []
    shapes = [*FORMS, *CUBES, ((2, 0, 3), DENSE), ((257,), DENSE)]
    some = arrays(EVERY, shapes, "mixed", "special", "few")
    solid = [x for x in some if "(2, 0, 3)" not in x]  # over an empty axis before others MLX reads elsewhere, or hangs
    for n in ("sum", "prod", "max", "min", "mean", "all", "any", "logsumexp", "median", "minmax"):
        operands = solid if n in ("all", "any", "sum", "prod", "mean") else some
        rows += [Row(n, f"m.{n}({{x}}, {{axis}}, {{k}})", {"x": operands, "axis": AXES, "k": BOOL}, 260)]
        rows += [Row(n, f"m.{n}({{x}}, keepdims=True)", {"x": some}, 40), Row(n, f"m.{n}({{x}})", {"x": ["1", "2.5", "[1, 2]", "np.ones(2)", "None"]}, compiled=False)]
        if n not in ("median", "minmax"):
            rows += [Row(f"array.{n}", f"{{x}}.{n}({{o}})", {"x": FEW, "o": ["", "0", "axis=1", "(0, 1), True", "axis=-1, keepdims=True"]}, 30)]
    rows += [Row("count_nonzero", "m.count_nonzero({x}, axis={axis}, keepdims={k})", {"x": some, "axis": AXES, "k": BOOL}, 120)]
    filled = [x for x in solid if "(0, 3)" not in x]
    for n in ("var", "std"):
        fields = {"x": filled, "axis": AXES, "o": ["", ", True", ", ddof=1", ", False, 2", ", ddof=100", ", ddof=-1", ", ddof=1, correction=None"]}
        rows += [Row(n, f"m.{n}({{x}}, {{axis}}{{o}})", fields, 200)]
        rows += [Row(f"array.{n}", f"{{x}}.{n}({{o}})", {"x": FEW, "o": ["", "0", "axis=1, ddof=1", "1, True", "correction=1"]}, 30)]
    for n in ("argmax", "argmin"):
        rows += [Row(n, f"m.{n}({{x}}, {{axis}}, {{k}})", {"x": some, "axis": AXIS, "k": BOOL}, 200)]
        rows += [Row(f"array.{n}", f"{{x}}.{n}({{o}})", {"x": FEW, "o": ["", "0", "axis=1", "-1, True"]}, 30)]
    for n in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp"):
        more = [", dtype=m.float32", ", dtype=m.int8"] if n in ("cumsum", "cumprod") else []
        options = ["", ", reverse=True", ", inclusive=False", ", reverse=True, inclusive=False", *more]
        finite = [x for x in some if n != "cumprod" or "complex64', (257,)" not in x]  # infinities: C or NumPy?
        rows += [Row(n, f"m.{n}({{x}}, {{axis}}{{o}})", {"x": finite, "axis": AXIS, "o": options}, 200)]
        rows += [Row(f"array.{n}", f"{{x}}.{n}({{o}})", {"x": FEW, "o": ["", "0", "axis=1, reverse=True", "-1, inclusive=False"]}, 30)]
    rows += [
        # MLX casts the softmax of integers back to them over other axes than the last one.
        Row("softmax", "m.softmax({x}, -1)", {"x": arrays((*INTS, "bool_"), shapes, "mixed")}),
        Row("softmax", "m.softmax({x}, {axis}{o})", {"x": arrays(INEXACT, shapes, "mixed", "few"), "axis": AXES, "o": ["", ", precise=True"]}, 200),
        Row("diff", "m.diff({x}, {n}, {axis})", {"x": some, "n": ["0", "1", "2", "n=3", "-1", "9"], "axis": ["axis=0", "axis=1", "axis=-1", "axis=-3", "!axis=7", "!axis=-8"]}, 120),
        Row("trace", "m.trace({x}{o})", {"x": solid, "o": ["", ", 1", ", -1", ", 0, 1, 0", ", offset=1, axis1=-1, axis2=0", ", dtype=m.float32", ", 0, 0, 0", ", 0, 0, 5"]}, 150),
    ]  # fmt: skip
    return rows


def shapes() -> list[Row]:
    some = arrays(SHORT, [*FORMS, *CUBES], "mixed")
    sizes = ["(12,)", "[3, 4]", "(4, 3)", "(-1,)", "(2, -1)", "(2, 3, 4)", "(1, -1, 1)", "(0, -1)", "()", "!(5, 5)", "!(-1, -1)", "!(-2, 6)", "12", "!None", "!(2.0, 6)"]
    rows = [
        Row("reshape", "m.reshape({x}, {s})", {"x": some, "s": sizes}, 150),
        Row("array.reshape", "{x}.reshape({s})", {"x": some, "s": [*sizes, "4, 3", "-1", "2, -1"]}, 100),
        Row("flatten", "m.flatten({x}{o})", {"x": some, "o": ["", ", 1", ", 0, 1", ", -2, -1", ", 1, 0", ", start_axis=1, end_axis=5", ", -9", ", 9", ", 0, -9"]}, 100),
        Row("array.flatten", "{x}.flatten({o})", {"x": some, "o": ["", "1", "0, 1", "start_axis=-1"]}, 40),
        Row("unflatten", "m.unflatten({x}, {axis}, {s})", {"x": some, "axis": INT_AXIS, "s": ["(2, 2)", "(-1, 2)", "(1, -1)", "()", "(3, 3)", "[4]", "!(-1, -1)", "!2"]}, 120),
        Row("squeeze", "m.squeeze({x}{o})", {"x": [*some, *arrays(SHORT, [((1, 3, 1), DENSE), ((1, 1), DENSE), ((1, 1, 4), TRANSPOSED)], "mixed")], "o": [f"!, {a[1:]}" if a[0] == "!" else f", {a}" for a in AXES] + [""]}, 150),
        Row("array.squeeze", "{x}.squeeze({o})", {"x": arrays(SHORT, [((1, 3, 1), DENSE)], "mixed"), "o": ["", "0", "(0, -1)", "1", "axis=2"]}),
        Row("expand_dims", "m.expand_dims({x}, {axis})", {"x": some, "axis": AXES}, 120),
        Row("flip", "m.flip({x}, {axis})", {"x": some, "axis": AXES}, 120), Row("flip", "m.flip({x})", {"x": some}),
        Row("unstack", "m.unstack({x}{o})", {"x": some, "o": ["", ", axis=0", ", axis=-1", ", axis=1", ", axis=5"]}, 60),
        Row("transpose", "m.transpose({x}{o})", {"x": some, "o": ["", ", (1, 0)", ", [0, 1]", ", (-1, 0)", ", (2, 0, 1)", ", axes=(0, 2, 1)", ", (0, 0)", ", (0,)", ", ()", ", (0, 5)", ", 1", ", None"]}, 120),
        Row("permute_dims", "m.permute_dims({x}{o})", {"x": some, "o": ["", ", (1, 0)", ", (2, 0, 1)"]}, 30),
        Row("array.transpose", "{x}.transpose({o})", {"x": some, "o": ["", "1, 0", "(1, 0)", "2, 0, 1", "[0, 2, 1]", "-1, 0", "0", "0, 0", "None"]}, 60),
        Row("array.T", "{x}.T", {"x": some}, 30), Row("array.mT", "{x}.mT", {"x": some}, 30),
        Row("array.real", "{x}.real", {"x": FEW}, 30), Row("array.imag", "{x}.imag", {"x": FEW}, 30),
        Row("matrix_transpose", "m.matrix_transpose({x})", {"x": some}),
        Row("swapaxes", "m.swapaxes({x}, {i}, {j})", {"x": some, "i": INT_AXIS, "j": INT_AXIS}, 80),
        Row("array.swapaxes", "{x}.swapaxes({i}, {j})", {"x": some, "i": INT_AXIS, "j": INT_AXIS}, 20),
        Row("moveaxis", "m.moveaxis({x}, {i}, {j})", {"x": some, "i": INT_AXIS, "j": INT_AXIS}, 80),
        Row("array.moveaxis", "{x}.moveaxis({i}, {j})", {"x": some, "i": INT_AXIS, "j": INT_AXIS}, 20),
        Row("broadcast_to", "m.broadcast_to({x}, {s})", {"x": [*some, "2", "1.5", "True"], "s": ["(3, 4)", "(2, 3, 4)", "[5, 3, 4]", "(0, 3)", "(33,)", "()", "(1,)", "(4, 4)", "(-1, 4)", "3", "(3,)"]}, 150),
        Row("broadcast_arrays", "m.broadcast_arrays({x}, {y})", {"x": some, "y": some}, 60), Row("broadcast_arrays", "m.broadcast_arrays({x})", {"x": some}, 5),
        Row("broadcast_shapes", "m.broadcast_shapes({s})", {"s": ["(1,)", "(2, 1), (3,)", "(2,), (3,)", "(), (4,), (2, 1)", "", "[1, 2], (2, 2)", "(0,), (1,)", "3"]}, compiled=False),
        Row("concatenate", "m.concatenate([{x}, {y}]{o})", {"x": some, "y": some, "o": ["", ", 0", ", axis=-1", ", 1", ", None", ", 7"]}, 200),
        Row("concatenate", "m.concatenate([{x}, {x}, {x}]{o})", {"x": ANY, "o": ["", ", -1", ", 1", ", None"]}, 100),
        Row("concat", "m.concat([{x}, {x}]{o})", {"x": some, "o": ["", ", -1", ", axis=None"]}, 20),
        Row("stack", "m.stack([{x}, {x}]{o})", {"x": ANY, "o": ["", ", -1", ", 1", ", None", ", axis=2", ", 7", ", -9"]}, 100),
        Row("stack", "m.stack([{x}, {y}])", {"x": some, "y": some}, 40), Row("stack", "m.stack({x})", {"x": ["[]", "None", "[1, 2]", "m.zeros((2, 3))", "m.zeros((2, 3)), 1"]}, compiled=False),
        Row("concatenate", "m.concatenate({x})", {"x": ["[]", "None", "[1, 2]", "m.zeros((2, 3))", "m.zeros((2, 3, 1)), 1", "(m.zeros(2), m.zeros(3))"]}, compiled=False),
        Row("split", "m.split({x}, {n}{o})", {"x": some, "n": ["1", "2", "3", "[1]", "[1, 2]", "(2, 1)", "[]", "[-1]", "[9]", "!0", "!-1", "!1.5"], "o": ["", ", 0", ", -1", ", axis=1", "!, 7"]}, 150),
        Row("array.split", "{x}.split({n})", {"x": some, "n": ["1", "3", "[1], 0", "2, axis=-1", "[1, 2]"]}, 40),
        Row("tile", "m.tile({x}, {n})", {"x": some, "n": ["2", "(2,)", "[1, 2]", "(2, 1, 2)", "0", "()", "(1, 1, 1, 2)", "-1", "(0, 2)"]}, 100),
        Row("repeat", "m.repeat({x}, {n}{o})", {"x": some, "n": ["0", "1", "3", "!-1", "!2.5"], "o": ["", ", 0", ", -1", ", axis=1", ", None", "!, 7"]}, 100),
        Row("roll", "m.roll({x}, {n}{o})", {"x": some, "n": ["0", "1", "-5", "100", "(1, 2)", "(1,)", "[1, -1]"], "o": ["", ", 0", ", -1", ", (0, 1)", ", None", ", (0, 0)", ", 7", ", (1,)", ", axis=1"]}, 200),
        Row("pad", "m.pad({x}, {w}{o})", {"x": some, "w": ["1", "0", "(1, 2)", "(1,)", "[(1, 2)]", "((0, 1), (2, 0))", "[(1, 1), (0, 0), (2, 1)]", "!-1", "!((1, -1), (0, 0))", "!(1, 2, 3)", "!((1,), (2,))"],
            "o": ["", ", constant_values=3", ", 'edge'", ", mode='reflect'", ", 'symmetric'", ", 'constant', 2.5", ", constant_values=m.array(1)", "!, 'wrap'", "!, 'constant', m.array([1, 2])"]}, 300),
        Row("diag", "m.diag({x}{o})", {"x": some, "o": ["", ", 1", ", -2", ", k=9"]}, 80), Row("array.diag", "{x}.diag({o})", {"x": some, "o": ["", "1"]}, 20),
        Row("diagonal", "m.diagonal({x}{o})", {"x": some, "o": ["", ", 1", ", -1, 0, 1", ", 0, 1, 0", ", offset=1, axis1=-1, axis2=0", ", 9", ", 0, 0, 0", ", 0, 0, 7"]}, 100),
        Row("array.diagonal", "{x}.diagonal({o})", {"x": some, "o": ["", "1", "0, 1, 0", "-1, axis1=0, axis2=1"]}, 30),
        Row("tril", "m.tril({x}{o})", {"x": ANY, "o": ["", ", 1", ", -2", ", k=9"]}, 80), Row("triu", "m.triu({x}{o})", {"x": ANY, "o": ["", ", 1", ", -2", ", k=-9"]}, 80),
        Row("atleast_1d", "m.atleast_1d({x})", {"x": some}, 30), Row("atleast_2d", "m.atleast_2d({x})", {"x": some}, 30), Row("atleast_3d", "m.atleast_3d({x})", {"x": some}, 30),
        Row("atleast_1d", "m.atleast_1d({x})", {"x": ["", "1", "[1]", "m.array(1), m.array([2])", "1, 2.5"]}, compiled=False), Row("atleast_2d", "m.atleast_2d({x})", {"x": ["", "1", "m.array(1), m.array([2])"]}, compiled=False),
        Row("atleast_3d", "m.atleast_3d({x})", {"x": ["", "1", "m.array(1), m.array([2])"]}, compiled=False),
        Row("as_strided", "m.as_strided({x}, {o})", {"x": arrays(SHORT, CUBES[:4], "mixed"), "o": ["(2, 2), (1, 2)", "(3, 3), (0, 1)", "(4,), (2,), 3", "(2, 3), (-1, 2), 5", "None, None, 0", "(4, 6)", "shape=(2,), strides=(1,), offset=1", "(0,), (1,)", "(2,), (1, 1)"]}, 60),
        Row("contiguous", "m.contiguous({x}{o})", {"x": ANY, "o": ["", ", True", ", allow_col_major=True"]}, 40),
        Row("meshgrid", "m.meshgrid({x}{o})", {"x": [*arrays(SHORT, [((3,), DENSE), ((), DENSE), ((2, 2), DENSE)], "mixed"), "m.arange(2), m.arange(3)", "m.arange(2), m.arange(3), m.zeros(2)"], "o": ["", ", sparse=True", ", indexing='ij'", ", indexing='xx'", ", sparse=None, indexing='xy'"]}, 60),
        Row("kron", "m.kron({x}, {y})", {"x": arrays(EVERY, [((3,), DENSE), ((2, 2), TRANSPOSED), ((), DENSE), ((0,), DENSE)], "mixed"), "y": arrays(EVERY, [((2,), DENSE), ((2, 3), STRIDED)], "mixed")}, 80),
    ]  # fmt: skip
    return rows


def creation() -> list[Row]:
    dtypes = ["", *[f", m.{d}" for d in EVERY]]
    numbers = ["0", "3", "-2", "2.5", "0.1", "1e10", "True", "nan", "inf", "np.int32(3)", "np.float32(2.5)", "2**40", "!None", "!m.array(3)"]
    values = [*SCALARS, "m.array([1, 2])", "m.array(2.5)", "[1, 2]", "None", "'a'", "m.array([1, 2, 3])"]
    lists = ["[]", "[[]]", "[[], []]", "()", "[1, 2.5]", "[True, 2]", "[True, False]", "[1, 1j]", "[[1, 2], [3, 4]]", "[[1], [2, 3]]", "[1, [2]]", "((1, 2), [3, 4])", "[2**31]", "[-2**31]", "[2**63]", "[2**40, 1.5]",
             "[None]", "['a']", "'abc'", "b'abc'", "None", "object()", "range(3)", "{1: 2}", "[m.array(1), 2.5]", "[m.array([1, 2]), m.array([3.0, 4])]", "[m.array([1, 2]), [3, 4]]", "[m.array([1]), m.array([1, 2])]",
             "[np.array([1, 2]), np.array([3, 4])]", "[np.float32(1), np.int64(2)]", "np.float64(3)", "np.int64(3)", "np.int8(3)", "np.uint64(2**64 - 1)", "np.bool_(True)", "np.complex128(1j)", "np.array(2)", "np.array([1.5, 2])",
             "np.array([1, 2], np.int16)", "np.array([1j])", "np.array(['a'])", "np.array([None])", "np.zeros((0, 2))", "np.ones((2, 3))[:, ::2]", "np.ones((2, 3)).T", "np.arange(4)[::-1]", "np.array([1, 2], '>i4')", "memoryview(b'abc')", "bytearray(b'abc')",
             "True", "1", "2**31", "2**63", "2**64", "-2**63", "-2**63 - 1", "1.5", "1e300", "inf", "-inf", "nan", "1 + 2j", "m.array([1, 2])", "m.array(1.5)", "np.array([1.5], np.float16)", "np.array([2**63], np.uint64)",
             "np.array([(1, 2)], 'i4,i4')"]  # fmt: skip
    rows = [
        Row("arange", "m.arange({a}{d})", {"a": numbers, "d": ["", ", dtype=m.float16", ", dtype=m.int8", ", dtype=m.uint64", "!, dtype=m.bool_", ", dtype=m.complex64"]}, 100, False),
        Row("arange", "m.arange({a}, {b}{d})", {"a": numbers, "b": ["5", "0", "-3.5", "7.25", "10", "None"], "d": ["", ", 2", ", 0.5", ", -1", ", 0", ", step=3", ", None", "!, 1, m.bool_", *[f", 1, m.{d}" for d in EVERY if d != "bool_"]]}, 300, False),
        Row("arange", "m.arange({o})", {"o": ["stop=3", "start=1, stop=3", "3, step=2", "3, None, 2", "", "0, 1, 1e-12", "0, 2**33, 2**31", "-0.0, 1.0", "0, 10, nan", "0, 1, 0.1", "0, 1, 0.1, m.float64", "1, 4, 0.7, m.int32", "250, 260, dtype=m.uint8", "0, 300, 100, m.int8"]}, compiled=False),
        Row("linspace", "m.linspace({a}, {b}{o})", {"a": ["0", "1.5", "-3", "True", "!1j", "!m.array(1)", "!None"], "b": ["1", "10", "-2.5", "0"], "o": ["", ", 5", ", 1", ", 0", ", 2, False", ", num=7, endpoint=False", "!, -1", ", 1, False", *[f", 5, dtype=m.{d}" for d in EVERY]]}, 150, False),
        Row("zeros", "m.zeros({s}{d})", {"s": ["3", "()", "(2, 3)", "[2]", "0", "(0, 2)", "-1", "(2, -1)", "2.5", "None", "np.int64(2)", "(np.int64(2), 3)", "m.array(2)"], "d": [*dtypes, ", None", ", dtype=np.float32"]}, 80, False),
        Row("ones", "m.ones({s}{d})", {"s": ["3", "()", "(2, 3)", "[2]", "0", "-1"], "d": [*dtypes, ", None"]}, 50, False),
        Row("full", "m.full({s}, {v})", {"s": ["3", "()", "(2, 2)", "[0, 2]", "(3, 1)"], "v": values}, 120, False),
        Row("full", "m.full({s}, {v}{d})", {"s": ["2", "(2, 2)"], "v": ["1", "True", "0", "3"], "d": dtypes[1:]}, 60, False),
        Row("full_like", "m.full_like({x}, {v}{d})", {"x": FEW, "v": ["2", "2.5", "True", "m.array([1, 2, 3, 4])", "[1]", "m.array([1, 2, 3])"], "d": [*dtypes, ", None"]}, 100, False),
        Row("zeros_like", "m.zeros_like({x}{d})", {"x": [*ANY, "1", "np.ones(2)"], "d": [*dtypes, ", None"]}, 60, False), Row("ones_like", "m.ones_like({x}{d})", {"x": [*ANY, "1"], "d": [*dtypes, ", None"]}, 60, False),
        Row("eye", "m.eye({n}{o})", {"n": ["3", "0", "1", "!-1", "!2.5"], "o": ["", ", 2", ", 4, 1", ", k=-1", ", None, 9", ", m=2, k=0", "!, -1", *[f", dtype=m.{d}" for d in EVERY], ", dtype=None"]}, 80, False),
        Row("identity", "m.identity({n}{o})", {"n": ["3", "0", "-1"], "o": dtypes}, 40, False),
        Row("tri", "m.tri({n}{o})", {"n": ["3", "0", "1", "-1"], "o": ["", ", 2", ", 4, 1", ", k=-1", ", None, 9", *[f", dtype=m.{d}" for d in EVERY], ", dtype=None"]}, 80, False),
        *[Row(n, f"m.{n}({{n}})", {"n": ["0", "1", "2", "5", "8", "-1", "2.5", "M=3"]}, compiled=False) for n in ("bartlett", "hanning", "hamming", "blackman")],
        Row("array", "m.array({v}{d})", {"v": lists, "d": ["", *[f", m.{d}" for d in EVERY], ", dtype=None", ", dtype='float32'"]}, 500, False), Row("array", "m.array({v})", {"v": lists}, 100, False),
        Row("asarray", "m.asarray({v}{d})", {"v": lists, "d": ["", *[f", m.{d}" for d in EVERY], ", copy=True", ", copy=False", ", m.float32, copy=False", ", dtype=m.float16, copy=True"]}, 300, False), Row("asarray", "m.asarray({v})", {"v": lists}, 100, False),
        Row("from_dlpack", "m.from_dlpack({v}{o})", {"v": [*FEW, "np.ones(3)", "np.arange(4)[::2]", "1", "[1]", "None"], "o": ["", ", copy=True", ", copy=False", ", copy=None"]}, 60, False),
        Row("ArrayLike", "callable(m.ArrayLike)", compiled=False),
        Row("depends", "m.depends({x}, {x})", {"x": FEW}, 5, False), Row("depends", "m.depends([{x}, {x}], [{x}])", {"x": FEW}, 5, False),
    ]  # fmt: skip
    return rows
