"""Where a case may differ from MLX, and why: what docs/differences.md says, as patterns on the text of a case.

`errors` is a pattern of what MLX raises: only that may differ.
"""

from __future__ import annotations

import math
import re
from typing import NamedTuple

from differential.compare import difference


class Deliberate(NamedTuple):
    """Cases matching `case` may differ: where MLX raises `errors` if that is given, by a `share` of the largest element
    if that is.
    """

    case: str
    reason: str
    errors: str = ""
    share: float = math.inf


ANYWHERE = ""
HALF = 0.02  # of the largest element: MLX rounds to half precision on the way
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
    # MLX gives something else.
    Deliberate(r"m\.(mean|var|std)\(a\('u?int", "integers are summed in float32: no overflow"),
    Deliberate(r"m\.logsumexp\(a\('(u?int|bool)|a\('u?int.*\.logsumexp\(", "of integers the exponentials do not overflow"),
    Deliberate(r"m\.cum(max|min)\(a\('(b?float16|complex64)'", "NaN win; the first of an exclusive complex scan is real"),
    Deliberate(r"m\.cum(sum|prod)\(a\('b?float16', \(257,\)", "half precision is accumulated in float32", share=HALF),
    Deliberate(r"(m\.floor_divide|operator\.i?floordiv)\(.*(complex64|1j)", "the floor of a complex number raises"),
    Deliberate(r"(divmod|floor_divide)\(a\('float16', \(33,\), 'special'", "quotients of half precision do not underflow before the floor"),
    Deliberate(r"m\.full\(.*m\.bool_|m\.full\(.*m\.\w+\)$", "full honours dtype"),
    Deliberate(r"\.at\[\.\.\.\]", "x.at[...] keeps the dtype of x"),
    Deliberate(r"m\.(hadamard_transform)\(a\('int32', \(1,\)", "integers become float32"),
    Deliberate(r"m\.segmented_mm\(a\('b?float16", "MLX adds the segments of half precision up"),
    Deliberate(r"m\.as_strided\(.*\(2,\), \(1, 1\)", "a stride too many raises"),
    Deliberate(r"m\.pad\(.*(m\.array\(\[1, 2\]\)|'edge'|'reflect'|'symmetric')", "a constant that is no scalar raises; so does extending an empty axis"),
    Deliberate(r"m\.slice\(.*-1", "a negative size raises"),
    Deliberate(r"m\.take(_along_axis)?\(a\('\w+', \(\),", "indices out of bounds are clamped, where MLX reads what lies there"),
    Deliberate(r"(take|put)_along_axis\(a\('\w+', \(0, 3\)", "indices into an empty axis raise"),
    Deliberate(r"m\.linalg\.norm\(a\('complex64'", "norms are real"),
    Deliberate(r"m\.linalg\.norm\(a\('\w+', \(5,\).*\[-1, -2\]", "a vector has no two axes"),
    Deliberate(r"m\.linalg\.eig(vals)?h\(.*'x'", "UPLO is checked"),
    Deliberate(r"m\.conv\w*\(.*complex64", "complex weights raise: MLX drops their imaginary parts"),
    Deliberate(r"m\.conv\w*\(.*float64", "float64 is computed in float64"),
    Deliberate(r"m\.fast\.rope\(a\('float64'", "float64 is computed in float64"),
    Deliberate(r"(quantized_matmul|gather_qmm)\(a\('bfloat16'", "half precision is accumulated in float32, by MLX in eight bits", share=0.15),
    Deliberate(r"scaled_dot_product_attention\(", "the shape of a mask is checked before its dtype", "Mask type must promote"),
    Deliberate(r"(quantized_matmul|gather_qmm|scaled_dot_product_attention|gated_delta_update|cross_entropy)\(.*float16", "half precision is accumulated in float32", share=HALF),
    Deliberate(r"m\.addmm\(a\('(complex64|float16)'", "half precision is accumulated in float32", share=HALF),
    Deliberate(r"m\.dequantize\(.*dtype=", "half precision stays float32 inside a compiled kernel", share=HALF),
    Deliberate(r"m\.quantize\(.*float16.*global_scale", "scales of half precision are computed in float32: other codes"),
    Deliberate(r"m\.log(addexp|cumsumexp)\(.*complex64", "imaginary parts count up to 2 pi"),
    Deliberate(r"m\.arctan\(a\('complex64'", "the pole at i"),
    Deliberate(r"m\.isclose\(a\('int", "integers are compared in float32: no overflow"),
    Deliberate(r"m\.round\(a\('u?int", "digits behind the point of an integer leave it alone"),
    Deliberate(r"array\(.*1j.*m\.bool_\)", "a complex number is true unless it is 0"),
    Deliberate(r"m\.linalg\.cross\(a\('bool_'", "differences of bool", r"\[negative\]"),
    Deliberate(r"repr\(m\.array\(\[1?(1e|1234).*astype\(m\.u?int", "floats out of an integer's range go by way of 64 bits"),
    Deliberate(r"gather_qmm\(.*64, 5, 'affine'", "sums of 128 products that cancel, in another order", share=HALF),
    Deliberate(r"pickle.*float64", "float64 stays float64"),
    Deliberate(r"\(0, 3\).*(\.at\[0\]|, 0, 1\))", "a static index out of range raises"),
    Deliberate(r"m\.softmax\(.*1\.0", "the axis of an empty array is checked"),
    Deliberate(r"m\.quantize\(a\('float64'", "float64 is no format to quantise"),
]  # fmt: skip
COMPILED = [(re.compile(d.case), re.compile(d.errors) if d.errors else None, d) for d in LIST]


def excuse(case: str, theirs: object, mine: object) -> Deliberate | None:
    """The entry that allows a case to differ from the outcome `theirs`."""
    for pattern, errors, entry in COMPILED:
        if not pattern.search(case) or (entry.share < math.inf and difference(theirs, mine, entry.share) is not None):
            continue
        if errors is None or (isinstance(theirs, Exception) and errors.search(str(theirs))):
            return entry
    return None
