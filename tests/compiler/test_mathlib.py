"""The float32 functions of mathlib: evaluated by NumPy against float64 references, and compiled by LLVM into loops.

Both evaluations implement the scalar builder that mathlib is written against. Errors are in units in the last place
(ulp) of the exact result; below the smallest normal number the unit is 2**-149.
"""

import ctypes
import math
import operator
import re

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir
from scipy import special

from mlxir.compiler.lower import mathlib

INF, NAN = math.inf, math.nan
TINY = 2.0**-149


# ---- two scalar builders --------------------------------------------------------------------------------------------


class Scalar:
    """A handle: its builder, the builder's value and the dtype. Python numbers take the dtype of the other side."""

    __hash__ = None

    def __init__(self, k, value, dtype):
        self.k, self.value, self.dtype = k, value, dtype

    def __neg__(self):
        return self.k.negative(self)


def _operator(name, reflected=False):
    def method(self, other):
        other = other if isinstance(other, Scalar) else self.k.const(other, self.dtype)
        assert other.dtype == self.dtype, f"{name} of {self.dtype} and {other.dtype}"
        return self.k.binary(name, *((other, self) if reflected else (self, other)))

    return method


COMPARISONS = ("lt", "le", "gt", "ge", "eq", "ne")
for _name in ("add", "sub", "mul", "truediv", "and", "or", "xor", "lshift", "rshift", *COMPARISONS):
    setattr(Scalar, f"__{_name}__", _operator(_name))
    if _name not in COMPARISONS:
        setattr(Scalar, f"__r{_name}__", _operator(_name, reflected=True))


class NumpyScalars:
    """The builder that computes at once, on arrays.

    fma is emulated: float32 in float64 (rounded twice, which is rarely off by one float32 ulp), float64 by an
    error-free product and sum.
    """

    def _unary(self, function, x):
        return Scalar(self, function(x.value), x.dtype)

    def const(self, value, dtype):
        return Scalar(self, np.asarray(value, dtype), dtype)

    def binary(self, name, a, b):
        function = getattr(operator, {"and": "and_", "or": "or_"}.get(name, name))
        return Scalar(self, function(a.value, b.value), "bool" if name in COMPARISONS else a.dtype)

    def negative(self, x):
        return self._unary(np.negative, x)

    def abs(self, x):
        return self._unary(np.abs, x)

    def floor(self, x):
        return self._unary(np.floor, x)

    def sqrt(self, x):
        return self._unary(np.sqrt, x)

    def copysign(self, magnitude, sign):
        return Scalar(self, np.copysign(magnitude.value, sign.value), magnitude.dtype)

    def select(self, condition, a, b):
        assert condition.dtype == "bool" and a.dtype == b.dtype
        return Scalar(self, np.where(condition.value, a.value, b.value), a.dtype)

    def min(self, a, b):
        return self.select(a < b, a, b)

    def max(self, a, b):
        return self.select(a > b, a, b)

    def fma(self, a, b, c):
        assert a.dtype == b.dtype == c.dtype
        if a.dtype == "float32":
            a, b, c = (np.asarray(v.value, np.float64) for v in (a, b, c))
            return Scalar(self, (a * b + c).astype(np.float32), "float32")
        a, b, c = a.value, b.value, c.value
        product, (a_high, a_low), (b_high, b_low) = a * b, self._halves(a), self._halves(b)
        product_error = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
        total = product + c
        rest = total - product
        error = ((product - (total - rest)) + (c - rest)) + product_error
        # without an error the sum stands as it is: adding 0.0 would lose the sign of a negative zero
        return Scalar(self, np.where(np.isfinite(error) & (error != 0), total + error, total), "float64")

    @staticmethod
    def _halves(a):
        """a as the sum of two numbers of 26 bits (Veltkamp), so that their products are exact."""
        scaled = a * (2.0**27 + 1.0)
        high = scaled - (scaled - a)
        return high, a - high

    def bitcast(self, x, dtype):
        return Scalar(self, np.asarray(x.value).view(dtype), dtype)

    def cast(self, x, dtype):
        return Scalar(self, np.asarray(x.value).astype(dtype), dtype)


class LLVMScalars:
    """The builder that emits LLVM IR, without fast-math flags."""

    TYPES = {"float32": ir.FloatType(), "float64": ir.DoubleType(), "bool": ir.IntType(1)} | {
        f"{sign}int{bits}": ir.IntType(bits) for sign in ("", "u") for bits in (32, 64)
    }
    INTEGER = {"and": "and_", "or": "or_", "lshift": "shl"}
    SYMBOLS = dict(zip(COMPARISONS, ("<", "<=", ">", ">=", "==", "!="), strict=True))

    def __init__(self, builder):
        self.builder = builder

    def const(self, value, dtype):
        value = float(np.dtype(dtype).type(value)) if dtype.startswith("float") else int(value)
        return Scalar(self, ir.Constant(self.TYPES[dtype], value), dtype)

    def binary(self, name, a, b):
        is_float, unsigned = a.dtype.startswith("float"), a.dtype.startswith("u")
        if name in COMPARISONS:
            if is_float:
                kind = "fcmp_unordered" if name == "ne" else "fcmp_ordered"
            else:
                kind = "icmp_unsigned" if unsigned else "icmp_signed"
            return Scalar(self, getattr(self.builder, kind)(self.SYMBOLS[name], a.value, b.value), "bool")
        if is_float:
            name = {"truediv": "fdiv"}.get(name, f"f{name}")
        elif name == "rshift":
            name = "lshr" if unsigned else "ashr"
        else:
            name = self.INTEGER.get(name, name)
        return Scalar(self, getattr(self.builder, name)(a.value, b.value), a.dtype)

    def negative(self, x):
        return Scalar(self, (self.builder.fneg if x.dtype.startswith("float") else self.builder.neg)(x.value), x.dtype)

    def _intrinsic(self, name, *args):
        kind = self.TYPES[args[0].dtype]
        function = self.builder.module.declare_intrinsic(name, [kind], ir.FunctionType(kind, [kind] * len(args)))
        return Scalar(self, self.builder.call(function, [a.value for a in args]), args[0].dtype)

    def abs(self, x):
        return self._intrinsic("llvm.fabs", x)

    def floor(self, x):
        return self._intrinsic("llvm.floor", x)

    def sqrt(self, x):
        return self._intrinsic("llvm.sqrt", x)

    def copysign(self, magnitude, sign):
        return self._intrinsic("llvm.copysign", magnitude, sign)

    def fma(self, a, b, c):
        return self._intrinsic("llvm.fma", a, b, c)

    def select(self, condition, a, b):
        return Scalar(self, self.builder.select(condition.value, a.value, b.value), a.dtype)

    def min(self, a, b):
        return self.select(a < b, a, b)

    def max(self, a, b):
        return self.select(a > b, a, b)

    def bitcast(self, x, dtype):
        return Scalar(self, self.builder.bitcast(x.value, self.TYPES[dtype]), dtype)

    def cast(self, x, dtype):
        old, new = x.dtype, self.TYPES[dtype]
        if old.startswith("float") and dtype.startswith("float"):
            name = "fpext" if dtype == "float64" else "fptrunc"
        elif dtype.startswith("float"):
            name = "uitofp" if old.startswith("u") else "sitofp"
        else:
            assert (old, dtype) == ("int64", "int32"), "the only other conversion in use"
            name = "trunc"
        return Scalar(self, getattr(self.builder, name)(x.value, new), dtype)


FUNCTIONS = {
    name: 1
    for name in (
        "exp", "exp2", "expm1", "sigmoid", "tanh", "sinh", "cosh", "log", "log2", "log10", "log1p", "arcsinh",
        "arccosh", "arctanh", "erf", "erfinv", "sin", "cos", "tan", "arcsin", "arccos", "arctan",
    )
} | {"arctan2": 2, "pow": 2}  # fmt: skip


def numpy_evaluate(name, *args):
    k = NumpyScalars()
    with np.errstate(all="ignore"):
        handles = [Scalar(k, np.asarray(a, np.float32), "float32") for a in args]
        return getattr(mathlib, name)(k, *handles).value


def loops_module():
    """LLVM IR with one loop `out[i] = f(x[i], ...)` for each function of mathlib."""
    module, pointer, index = ir.Module(), ir.FloatType().as_pointer(), ir.IntType(64)
    for name, arity in FUNCTIONS.items():
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [index] + [pointer] * (arity + 1)), name)
        for argument in function.args[1:]:
            argument.add_attribute("noalias")
        entry, body, done = (function.append_basic_block(b) for b in ("entry", "body", "done"))
        ir.IRBuilder(entry).branch(body)
        builder = ir.IRBuilder(body)
        i = builder.phi(index)
        k = LLVMScalars(builder)
        args = [Scalar(k, builder.load(builder.gep(x, [i])), "float32") for x in function.args[1:-1]]
        builder.store(getattr(mathlib, name)(k, *args).value, builder.gep(function.args[-1], [i]))
        following = builder.add(i, ir.Constant(index, 1))
        i.add_incoming(ir.Constant(index, 0), entry)
        i.add_incoming(following, body)
        builder.cbranch(builder.icmp_signed("<", following, function.args[0]), body, done)
        ir.IRBuilder(done).ret_void()
    return str(module)


def optimise(text, triple, cpu, features=""):
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=features, opt=3, jit=True)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module, machine


@pytest.fixture(scope="module")
def compiled():
    """Evaluate a function of mathlib by machine code for this machine."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    module, machine = optimise(loops_module(), llvm.get_default_triple(), llvm.get_host_cpu_name(), features)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()

    def evaluate(name, *args):
        args = [np.ascontiguousarray(a, np.float32) for a in args]
        out = np.empty_like(args[0])
        signature = ctypes.CFUNCTYPE(None, ctypes.c_int64, *[ctypes.c_void_p] * (len(args) + 1))
        signature(engine.get_function_address(name))(out.size, *[a.ctypes.data for a in (*args, out)])
        return out

    return evaluate


# ---- accuracy -------------------------------------------------------------------------------------------------------


def sigmoid(x):
    return np.where(x < 0, np.exp(np.minimum(x, 0)), 1.0) / (1.0 + np.exp(-np.abs(x)))


# function: reference, largest error in ulp over all float32 arguments, interval that is sampled most
ACCURACY = {
    "exp": (np.exp, 0.9, (-104, 89)),
    "exp2": (np.exp2, 0.9, (-150, 129)),
    "expm1": (np.expm1, 2.1, (-20, 89)),
    "sigmoid": (sigmoid, 2.5, (-104, 20)),
    "tanh": (np.tanh, 2.6, (-10, 10)),
    "sinh": (np.sinh, 1.6, (-90, 90)),
    "cosh": (np.cosh, 2.1, (-90, 90)),
    "log": (np.log, 1.1, (0, 4)),
    "log2": (np.log2, 1.9, (0, 4)),
    "log10": (np.log10, 1.9, (0, 4)),
    "log1p": (np.log1p, 1.3, (-1, 4)),
    "arcsinh": (np.arcsinh, 2.0, (-10, 10)),
    "arccosh": (np.arccosh, 2.3, (1, 4)),
    "arctanh": (np.arctanh, 2.3, (-1, 1)),
    "erf": (special.erf, 2.51, (-4, 4)),
    "erfinv": (special.erfinv, 3.1, (-1, 1)),
    "sin": (np.sin, 2.1, (-100, 100)),
    "cos": (np.cos, 2.1, (-100, 100)),
    "tan": (np.tan, 2.7, (-100, 100)),
    "arcsin": (np.arcsin, 2.0, (-1, 1)),
    "arccos": (np.arccos, 1.4, (-1, 1)),
    "arctan": (np.arctan, 1.5, (-10, 10)),
}
BINARY_ACCURACY = {"arctan2": (np.arctan2, 1.8), "pow": (np.power, 1.5)}


def ulp_error(actual, exact):
    """|actual - exact| in ulp of exact (float64); infinite where one is NaN or infinite and the other is not equal."""
    with np.errstate(all="ignore"):
        actual = actual.astype(np.float64)
        rounded = exact.astype(np.float32).astype(np.float64)
        same = (actual == rounded) | (np.isnan(actual) & np.isnan(rounded))
        _, exponent = np.frexp(np.where(np.isfinite(exact), exact, 1.0))
        unit = np.ldexp(1.0, np.maximum(exponent - 24, -149))
        finite = np.isfinite(actual) & np.isfinite(rounded)
        return np.where(finite, np.abs(actual - exact) / unit, np.where(same, 0.0, np.inf))


def assert_accurate(name, reference, bound, *args):
    args = [np.asarray(a, np.float32) for a in args]
    actual = numpy_evaluate(name, *args)
    with np.errstate(all="ignore"):
        exact = reference(*[a.astype(np.float64) for a in args])
    error = ulp_error(actual, exact)
    worst = int(error.argmax())
    at = ", ".join(f"{a[worst]!r}" for a in args)
    assert error[worst] <= bound, f"{name}({at}) = {actual[worst]!r}, exactly {exact[worst]!r}: {error[worst]:.2f} ulp"


def bit_patterns(rng, count):
    return rng.integers(0, 2**32, count, dtype=np.uint64).astype(np.uint32).view(np.float32)


def neighbours(points, reach=40):
    """The floats around `points`, in both signs."""
    bits = np.abs(np.asarray(points, np.float32)).view(np.int32)[:, None] + np.arange(-reach, reach + 1, dtype=np.int32)
    near = np.clip(bits, 0, 0x7F800000).astype(np.int32).view(np.float32).ravel()
    return np.concatenate([near, -near])


SPECIAL_POINTS = [
    0, 1, 2, 10, 0.5, 1 / 3, 2 / 3, 0.75, 4 / 3, 1.5, math.pi, 2.0**-126, 2.0**-24, 2.0**-12, 2.0**28, 2.0**49, 2.0**75,
    2.0**102, 3.4e38, 88.72284, 103.972, 89.416, 128, 149, 150, 17.3, 9.01, 3.92, math.log(2), math.log(2) / 2, INF,
    *(i * math.pi / 4 for i in range(1, 200)),
]  # fmt: skip


@pytest.mark.parametrize("name", ACCURACY)
def test_accuracy_over_all_floats(name):
    reference, bound, interval = ACCURACY[name]
    rng = np.random.default_rng(0)
    x = [bit_patterns(rng, 200_000), rng.uniform(*interval, 200_000), neighbours(SPECIAL_POINTS)]
    assert_accurate(name, reference, bound, np.concatenate([np.asarray(part, np.float32) for part in x]))


@pytest.mark.parametrize("name", BINARY_ACCURACY)
def test_accuracy_of_binary_functions(name):
    reference, bound = BINARY_ACCURACY[name]
    rng = np.random.default_rng(0)
    count = 200_000
    assert_accurate(name, reference, bound, bit_patterns(rng, count), bit_patterns(rng, count))
    assert_accurate(name, reference, bound, rng.normal(size=count), rng.normal(size=count))
    assert_accurate(name, reference, bound, rng.uniform(-30, 30, count), rng.integers(-30, 30, count))
    scale = np.exp(rng.uniform(-80, 80, (2, count)))
    assert_accurate(name, reference, bound, *(rng.normal(size=(2, count)) * scale))


def test_pow_over_the_whole_range_of_results():
    rng = np.random.default_rng(1)
    x = np.abs(bit_patterns(rng, 200_000))
    x = x[np.isfinite(x) & (x > 0) & (x != 1)]
    near_one = 1.0 + rng.uniform(-1, 1, x.size) * 2.0 ** -rng.uniform(1, 24, x.size)
    for base in (x, np.float32(near_one[np.float32(near_one) != 1])):
        exponent = rng.uniform(-151, 129, base.size) / np.log2(base.astype(np.float64))
        assert_accurate("pow", np.power, 1.5, base, exponent)


# ---- special values -------------------------------------------------------------------------------------------------

ODD = [(0.0, 0.0), (-0.0, -0.0), (TINY, TINY), (-TINY, -TINY)]
EVEN_ONE = [(0.0, 1), (-0.0, 1)]
LOG = [(0.0, -INF), (-0.0, -INF), (-TINY, NAN), (-1, NAN), (-INF, NAN), (INF, INF), (1, 0.0)]
NAN_BEYOND_ONE = [(1.0 + 2.0**-23, NAN), (-1.0 - 2.0**-23, NAN), (2, NAN), (-2, NAN), (INF, NAN), (-INF, NAN)]
NAN_AT_INFINITY = [(INF, NAN), (-INF, NAN)]
HALF_PI = math.pi / 2
# function: pairs of an argument and the float32 result, to the sign of zero; NaN gives NaN everywhere
SPECIAL_VALUES = {
    "exp": [*EVEN_ONE, (INF, INF), (-INF, 0.0), (88.72284, INF), (-104, 0.0), (-103.27893, TINY)],
    "exp2": [*EVEN_ONE, (INF, INF), (-INF, 0.0), (128, INF), (-149, TINY), (-150, 0.0), (-3e38, 0.0)],
    "expm1": [(0.0, 0.0), (-0.0, -0.0), (INF, INF), (-INF, -1), (-100, -1), (88.72284, INF), (2 * TINY, 2 * TINY)],
    "sigmoid": [(0.0, 0.5), (-0.0, 0.5), (INF, 1), (-INF, 0.0), (30, 1), (3e38, 1), (-104, 0.0), (-103.27893, TINY)],
    "tanh": [*ODD, (INF, 1), (-INF, -1), (9.02, 1), (-3e38, -1)],
    "sinh": [(0.0, 0.0), (-0.0, -0.0), (2 * TINY, 2 * TINY), (INF, INF), (-INF, -INF), (89.416, INF), (-89.416, -INF)],
    "cosh": [*EVEN_ONE, (INF, INF), (-INF, INF), (89.416, INF), (-89.416, INF)],
    "log": LOG,
    "log2": [*LOG, (TINY, -149), (2.0**127, 127)],
    "log10": [*LOG, (10, 1), (1000, 3)],
    "log1p": [*ODD, (-1, -INF), (-1.0 - 2.0**-23, NAN), (-2, NAN), (-INF, NAN), (INF, INF)],
    "arcsinh": [*ODD, (INF, INF), (-INF, -INF)],
    "arccosh": [(1, 0.0), (1.0 - 2.0**-24, NAN), (0.0, NAN), (-1, NAN), (-5, NAN), (-INF, NAN), (INF, INF)],
    "arctanh": [*ODD, *NAN_BEYOND_ONE, (1, INF), (-1, -INF)],
    "erf": [(0.0, 0.0), (-0.0, -0.0), (2 * TINY, 2 * TINY), (INF, 1), (-INF, -1), (4, 1), (-3e38, -1)],
    "erfinv": [*ODD, *NAN_BEYOND_ONE, (1, INF), (-1, -INF)],
    "sin": [*ODD, *NAN_AT_INFINITY],
    "cos": [*EVEN_ONE, *NAN_AT_INFINITY, (TINY, 1)],
    "tan": [*ODD, *NAN_AT_INFINITY],
    "arcsin": [*ODD, *NAN_BEYOND_ONE, (1, HALF_PI), (-1, -HALF_PI)],
    "arccos": [*NAN_BEYOND_ONE, (1, 0.0), (-1, math.pi), (0.0, HALF_PI), (-0.0, HALF_PI)],
    "arctan": [*ODD, (INF, HALF_PI), (-INF, -HALF_PI)],
}


def assert_identical(actual, expected, *args):
    """Equal as float32, zeros with their signs, NaN to NaN."""
    same = (actual == expected) & (np.signbit(actual) == np.signbit(expected))
    wrong = ~np.where(np.isnan(expected), np.isnan(actual), same)
    assert not wrong.any(), [values.tolist() for values in (*(a[wrong] for a in args), actual[wrong], expected[wrong])]


@pytest.mark.parametrize("name", SPECIAL_VALUES)
def test_special_values(name, compiled):
    x, expected = np.float32([*SPECIAL_VALUES[name], (NAN, NAN)]).T
    assert_identical(numpy_evaluate(name, x), expected, x)
    assert_identical(compiled(name, x), expected, x)


@pytest.mark.parametrize("name", ["arctan2", "pow"])
def test_special_pairs_follow_c99(name, compiled):
    near_one, even = (1.0 - 2.0**-24, 1.0, 1.0 + 2.0**-23), 2.0**24
    positive = [0.0, TINY, 1e-30, 0.5, *near_one, 2.0, 2.5, 3.0, even - 1, even, 3e38, INF]
    values = np.float32([*positive, *(-v for v in positive), NAN])
    a, b = (v.ravel() for v in np.meshgrid(values, values))
    reference, bound = BINARY_ACCURACY[name]
    assert_accurate(name, reference, bound, a, b)
    with np.errstate(all="ignore"):
        exact = reference(a.astype(np.float64), b.astype(np.float64)).astype(np.float32)
    special_result = (exact == 0) | ~np.isfinite(exact)
    a, b, exact = a[special_result], b[special_result], exact[special_result]
    assert_identical(numpy_evaluate(name, a, b), exact, a, b)
    assert_identical(compiled(name, a, b), exact, a, b)


def test_powers_of_two_are_exact():
    n = np.arange(-149, 128)
    powers = np.ldexp(1.0, n).astype(np.float32)
    np.testing.assert_array_equal(numpy_evaluate("exp2", n), powers)
    np.testing.assert_array_equal(numpy_evaluate("log2", powers), n.astype(np.float32))
    np.testing.assert_array_equal(numpy_evaluate("pow", np.full(n.shape, 2.0), n), powers)


@pytest.mark.parametrize("name", ["sin", "cos", "tanh", "erf", "sigmoid"])
def test_bounded_functions_stay_within_one(name):
    rng = np.random.default_rng(2)
    near_extremum = rng.uniform(-0.02, 0.02, 400_000) + rng.integers(-20, 20, 400_000) * (math.pi / 2)
    assert np.abs(numpy_evaluate(name, near_extremum)).max() <= 1.0


# ---- compiled -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FUNCTIONS)
def test_compiled_code_agrees(name, compiled):
    rng = np.random.default_rng(3)
    uniform = rng.uniform(-4, 4, 100_000).astype(np.float32)
    x = np.concatenate([bit_patterns(rng, 100_000), uniform, neighbours(SPECIAL_POINTS, 4)])
    args = [x, rng.permutation(x)][: FUNCTIONS[name]]
    expected = numpy_evaluate(name, *args)
    with np.errstate(invalid="ignore"):  # a signalling NaN
        error = ulp_error(compiled(name, *args), expected.astype(np.float64))
    assert error.max() <= 1.0, [a[error.argmax()] for a in args]


LINUX, MACOS = "x86_64-unknown-linux-gnu", "arm64-apple-macosx"


@pytest.mark.parametrize(("triple", "cpu"), [(LINUX, "znver4"), (LINUX, "haswell"), (MACOS, "apple-m1")])
def test_loops_are_vectorised(triple, cpu):
    """Every loop's optimised form loads vectors, and calls nothing."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    module, machine = optimise(loops_module(), triple, cpu)
    scalar = [f.name for f in module.functions if not f.is_declaration and not re.search(r"load <\d+ x float>", str(f))]
    assert scalar == []
    calls = re.findall(r"^\s+(?:callq?|bl)\s.*$", machine.emit_assembly(module), re.MULTILINE)
    assert calls == []
