"""Where a case may differ from MLX, and why: what docs/differences.md says, as patterns on the text of a case.

An entry says what may differ. `errors` is a pattern of what MLX raises: then anything may stand here. Everywhere else it
says what must: an error (`raises`), what MLX gives for another text (`instead`, a replacement for what the pattern
matched), or the same up to a `share` of the largest element, or `through` a function that both outcomes are put into.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

import mlx.core as real
from differential.compare import difference, outcome

import mlxir


class Deliberate(NamedTuple):
    """Cases matching `case` may differ: where MLX raises `errors`, or in what the other fields leave open."""

    case: str
    reason: str
    errors: str = ""
    raises: str = ""
    instead: str = ""
    through: str = ""
    share: float = 0.0


ANYWHERE = ""
ARRAY = r"a\('\w+', \([\d, ]*\), '[\w ]+', '\w+'\)"
HALF = 0.02  # of the largest element: MLX rounds to half precision on the way
SINGLE = 1e-5  # the same: MLX computes in float32
LIST = [
    # MLX raises, or dies, by accident.
    Deliberate(ANYWHERE, "what MLX's CPU backend does not implement",
               r"(?i)only supports? float|NYI|unsupported type|unsupported data type|must have type float32|floating types are supported|not.*supported on the CPU"),
    Deliberate(ANYWHERE, "overflow inside MLX", r"SmallVector|std::vector"),
    Deliberate(r"m\.median\(.*\(\), ", "the median over no axes is the array", r"\[flatten\]"),
    Deliberate(r"m\.(take|partition|argpartition).*, -\d", "a negative index counts from the end", r"\[squeeze\]"),
    Deliberate(r"m\.linalg\.solve\(", "batches broadcast, integers and half precision are cast", r"\[take_along_axis\]|must have type|\[linalg::"),
    Deliberate(r"m\.linalg\.solve_triangular\(", "batches broadcast, integers and half precision are cast", r"\[linalg::|broadcast|matmul"),
    Deliberate(r"m\.vecdot\(", "arrays of different ranks broadcast", r"\[vecdot\] axis is out of bounds"),
    Deliberate(r"m\.addmm\(", "a vector as c broadcasts to the rows of a batch of products", "Cannot broadcast array of shape"),
    Deliberate(r"np\.", "NumPy's numbers and arrays are taken wherever numbers and arrays are: as sizes, in lists, reversed, of any byte order",
               r"incompatible function arguments|std::bad_cast|Invalid type|negative strides"),
    Deliberate(r"\.(reshape|transpose)\(None\)|2\*\*(31|63)|meshgrid.*sparse=None|zeros_like\(1|\(None\)", "None and large integers", r"bad_cast|incompatible function"),
    Deliberate(r"copy=False", "data is shared where MLX always copies", "Cannot import a CPU array without a copy|Unable to avoid copy"),
    Deliberate(r"scaled_dot_product_attention\(", "the shape of a mask is checked before its dtype", "Mask type must promote"),
    Deliberate(r"m\.linalg\.cross\(a\('bool_'", "differences of bool", r"\[negative\]"),
    # MLX gives something; here it raises.
    Deliberate(r"(m\.floor_divide|operator\.i?floordiv)\(.*(complex64|1j)", "the floor of a complex number raises", raises=r"ValueError: \[floor_divide\] Complex"),
    Deliberate(r"m\.as_strided\(.*\(2,\), \(1, 1\)", "a stride too many raises", raises=r"ValueError: \[as_strided\] 2 strides for shape \(2\)"),
    Deliberate(r"m\.pad\(.*m\.array\(\[1, 2\]\)", "a constant that is no scalar raises", raises=r"ValueError: \[pad\] constant_values must be a scalar"),
    Deliberate(r"m\.pad\(.*\(0, 3\).*('edge'|'reflect'|'symmetric')", "extending an empty axis raises", raises=r"ValueError: \[pad\]"),
    Deliberate(r"m\.slice\(.*-1", "a negative size raises", raises=r"ValueError: \[slice\] Invalid slice size \("),
    Deliberate(r"(take|put)_along_axis\(a\('\w+', \(0, 3\)", "indices into an empty axis raise", raises=r"(Index|Axis|Shape|Value)Error: \[(broadcast_shapes|take_along_axis|put_along_axis|take)\]"),
    Deliberate(r"m\.linalg\.norm\(a\('\w+', \(5,\).*\[-1, -2\]", "a vector has no two axes", raises=r"AxisError: \[linalg.norm\] Invalid axis -2"),
    Deliberate(r"m\.linalg\.eig(vals)?h\(.*'x'", "UPLO is checked", raises="ValueError: .*UPLO must be 'L' or 'U'"),
    Deliberate(r"m\.conv\w*\(.*complex64", "complex weights raise: MLX drops their imaginary parts", raises=r"ValueError: \[conv\] Invalid (weight|input) array with type complex64"),
    Deliberate(r"\(0, 3\).*(\.at\[0\]|, 0, 1\))", "a static index out of range raises", raises=r"AxisError: \[take\] Cannot do a non-empty take from an empty axis"),
    Deliberate(r"m\.logsumexp\(a\('\w+', \(1?,?\)", "axes are checked where there is one element, too", raises=r"(Axis|Value)Error: \[logsumexp\] (Invalid|Duplicate) ax"),
    Deliberate(r"m\.softmax\(a\('\w+', \((1?,?|(2, )?0, 3)\)", "axes are checked where there is one element or none, too", raises=r"(Axis|Value)Error: \[softmax\] (Invalid|Duplicate) ax"),
    Deliberate(r"m\.take\(a\('\w+', \(\), '\w+', '\w+'\), 1", "a static index out of range raises", raises="IndexError: .*out of bounds"),
    Deliberate(r"m\.quantize\(a\('float64'", "float64 is no format to quantise", raises=r"(Type|Value)Error: \[quantize\]"),
    # MLX gives something else.
    Deliberate(rf"m\.(mean|var|std)\((?=a\('u?int)({ARRAY})", "integers are summed in float32: no overflow", instead=r"m.\1(\2.astype(m.float32)"),
    Deliberate(rf"m\.logsumexp\((?=a\('(?:u?int|bool))({ARRAY})", "of integers the exponentials do not overflow", instead=r"m.logsumexp(\1.astype(m.float32)"),
    Deliberate(rf"(?=a\('(?:u?int|bool))({ARRAY})\.logsumexp\(", "of integers the exponentials do not overflow", instead=r"\1.astype(m.float32).logsumexp("),
    Deliberate(r"^m\.(cummax|cummin)\((a\('(b?float16)'[^']*'[^']*', '\w+'\))(.*)$", "NaN win", instead=r"m.\1(\2.astype(m.float32)\4.astype(m.\3)"),
    Deliberate(r"^m\.(cumsum|cumprod|logcumsumexp)\((a\('(b?float16)'[^']*'[^']*', '\w+'\))(.*)$", "half precision is accumulated in float32",
               instead=r"m.\1(\2.astype(m.float32)\4.astype(m.\3)"),
    Deliberate(r"^m\.(var|std)\((a\('float16', \([\d, ]*\), 'special', '\w+'\))(.*)$", "half precision stays float32 inside a compiled kernel: squares do not overflow",
               instead=r"m.\1(\2.astype(m.float32)\3.astype(m.float16)"),
    Deliberate(rf"m\.floor_divide\((a\('float16', \(33,\), 'special'.*?), ({ARRAY})\)$", "quotients of half precision do not underflow before the floor",
               instead=r"m.floor_divide(\1.astype(m.float32), \2.astype(m.float32)).astype(m.float16)"),
    Deliberate(rf"m\.divmod\((a\('float16', \(33,\), 'special'.*?), ({ARRAY})\)$", "quotients of half precision do not underflow before the floor",
               instead=r"[m.floor_divide(\1.astype(m.float32), \2.astype(m.float32)).astype(m.float16), m.remainder(\1, \2)]"),
    Deliberate(r"^(m\.full\(.*, m\.)(\w+)\)$", "full honours dtype", instead=r"\1\2).astype(m.\2)"),
    Deliberate(r"a\('bool_'.*\.at\[\.\.\.\]\.subtract\(True", "differences of bool", raises=r"ValueError: \[negative\] Not supported for bool"),
    Deliberate(r"\.at\[\.\.\.\]", "x.at[...] keeps the dtype of x, as x.at[:] does", instead=".at[:]"),
    Deliberate(r"^(m\.hadamard_transform\(a\('int32', \(1?,?\).*)$", "integers become float32", instead=r"\1.astype(m.float32)"),
    Deliberate(rf"^m\.segmented_mm\((?=a\('(b?float16)')({ARRAY}), ({ARRAY})(.*)$", "MLX adds the segments of half precision up",
               instead=r"m.segmented_mm(\2.astype(m.float32), \3.astype(m.float32)\4.astype(m.\1)"),
    Deliberate(rf"(m\.take(?:_along_axis)?\(a\('\w+', \(\), '\w+', '\w+'\), )({ARRAY})", "indices out of bounds are clamped, where MLX reads what lies there",
               instead=r"\1m.zeros_like(\2)"),
    Deliberate(r"^(m\.linalg\.norm\(a\('complex64'.*)$", "norms are real", instead=r"m.real(\1)"),
    Deliberate(r"m\.conv\w*\(.*float64", "float64 is computed in float64", share=SINGLE),
    Deliberate(r"m\.fast\.rope\(a\('float64'", "float64 is computed in float64", share=SINGLE),
    Deliberate(r"(quantized_matmul|gather_qmm)\(a\('bfloat16'", "half precision is accumulated in float32, by MLX in eight bits", share=0.15),
    Deliberate(r"(quantized_matmul|gather_qmm|scaled_dot_product_attention|gated_delta_update|cross_entropy)\(.*float16", "half precision is accumulated in float32", share=HALF),
    Deliberate(r"m\.(vecdot|linalg\.cross)\(.*float16", "half precision stays float32 inside a compiled kernel", share=HALF),
    Deliberate(r"m\.addmm\(a\('(complex64|float16)'", "half precision is accumulated in float32", share=HALF),
    Deliberate(r"m\.dequantize\(.*dtype=", "half precision stays float32 inside a compiled kernel", share=HALF),
    Deliberate(r"m\.log(addexp|cumsumexp)\(.*complex64", "imaginary parts count up to 2 pi", through="exp"),
    Deliberate(rf"m\.(isclose|allclose)\((?=a\('(?:u?int|bool))({ARRAY}), (?=a\('(?:u?int|bool))({ARRAY})", "integers are compared in float32: no overflow",
               instead=r"m.\1(\2.astype(m.float32), \3.astype(m.float32)"),
    Deliberate(rf"m\.(isclose|allclose)\((?=a\('(\w+)')({ARRAY}), (?=a\('u?int)({ARRAY})", "integers are compared in floats: no overflow", instead=r"m.\1(\3, \4.astype(m.\2)"),
    Deliberate(rf"m\.(isclose|allclose)\((?=a\('u?int)({ARRAY}), (?=a\('(\w+)')({ARRAY})", "integers are compared in floats: no overflow", instead=r"m.\1(\2.astype(m.\3), \4"),
    Deliberate(rf"m\.isclose\((?=.*float64)(?=.*complex64)({ARRAY}), ({ARRAY})", "a float64 beyond the range of complex64 is infinite there",
               instead=r"m.isclose(\1.astype(m.complex64), \2.astype(m.complex64)"),
    Deliberate(rf"(?:m|operator)\.(?:divide|i?truediv)\(((?=a\('complex64'){ARRAY}), ({ARRAY})\)$", "complex quotients are NumPy's where zero divides",
               instead=r"m.array(np.divide(np.array(\1), np.array(\2.astype(m.complex64))))"),
    Deliberate(rf"(?:m|operator)\.(?:i?pow|power)\((?=.*complex64)({ARRAY}), ({ARRAY})\)$", "complex powers are NumPy's where they are infinite",
               instead=r"m.array(np.power(np.array(\1.astype(m.complex64)), np.array(\2.astype(m.complex64))))"),
    Deliberate(r"m\.prod\((a\('float\d+', \(2, 3, 4\), 'special', '\w+'\)), (\([^()]*\)|\[[^]]*\]|-?\d|None), (\w+)\)", "the order of factors decides where they overflow",
               instead=r"m.array(np.prod(np.array(\1), axis=tuple(np.ravel(\2)) if \2 is not None else None, keepdims=\3))"),
    Deliberate(r"m\.prod\((a\('bfloat16', \(2, 3, 4\), 'special', '\w+'\)), (\([^()]*\)|\[[^]]*\]|-?\d|None), (\w+)\)", "the order of factors decides where they overflow",
               instead=r"m.prod(\1.astype(m.float64), \2, \3).astype(m.bfloat16)"),
    Deliberate(r"(m\.(?:as)?array\(.*1j.*), m\.bool_\)", "a complex number is true unless it is 0", instead=r"\1) != 0"),
    Deliberate(rf"m\.round\((?=a\('u?int)({ARRAY}), (?:decimals=)?\d+\)", "digits behind the point of an integer leave it alone", instead=r"\1"),
    Deliberate(r"(repr\(m\.array\(\[(?:1?1e|1234|nan).*)(\.astype\(m\.u?int)", "floats out of an integer's range go by way of 64 bits", instead=r"\1.astype(m.int64)\2"),
    Deliberate(rf"m\.quantize\((?=a\('float16')({ARRAY})(?=.*global_scale)", "scales of half precision are computed in float32: other codes", instead=r"m.quantize(\1.astype(m.float32)"),
    Deliberate(r"gather_qmm\(.*64, 5, 'affine'", "sums of 128 products that cancel, in another order", share=HALF),
    Deliberate(r"pickle\.loads\(pickle\.dumps\((a\('float64'.*)\)\)$", "float64 stays float64", instead=r"\1"),
]  # fmt: skip
COMPILED = [(re.compile(d.case), re.compile(d.errors) if d.errors else None, d) for d in LIST]
assert all(d.errors or d.raises or d.instead or d.through or d.share for d in LIST), "an entry that excuses whatever there is"


def excuse(case: str, theirs: Any, mine: Any) -> Deliberate | None:
    """The entry that allows a case to differ from the outcome `theirs`."""
    for pattern, errors, entry in COMPILED:
        if pattern.search(case) and (errors is None or isinstance(theirs, Exception) and errors.search(str(theirs))):
            if errors is not None or _allowed(pattern, entry, case, theirs, mine):
                return entry
    return None


def _allowed(pattern: re.Pattern, entry: Deliberate, case: str, theirs: Any, mine: Any) -> bool:
    if entry.raises:
        return isinstance(mine, Exception) and re.match(entry.raises, f"{type(mine).__name__}: {mine}") is not None
    if isinstance(mine, Exception):
        return False
    if entry.instead:
        theirs = outcome(pattern.sub(entry.instead, case), real)
    if entry.through and not isinstance(theirs, Exception):
        theirs, mine = getattr(real, entry.through)(theirs), getattr(mlxir, entry.through)(mine)
    return difference(theirs, mine, entry.share) is None
