"""The coverage table, continued: indexing functions, sorting, products, convolutions, quantisation, and the submodules."""

from __future__ import annotations

from .cases import EVERY, FLOATS, INTS, Row, arrays
from .rows import CUBES, DENSE, FEW, FORMS, REVERSED, SHORT, STRIDED, TRANSPOSED

HALF = ("float32", "float16", "bfloat16")


def of(dtypes: str | tuple[str, ...], *forms: tuple[int, ...], domain: str = "mixed", layout: str = DENSE) -> list[str]:
    """Operands by shape alone."""
    return arrays((dtypes,) if isinstance(dtypes, str) else dtypes, [(f, layout) for f in forms], domain)


def indexing() -> list[Row]:
    some = arrays(SHORT, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((3, 4), STRIDED), ((3, 3, 4), REVERSED), ((5,), DENSE), ((), DENSE), ((0, 3), DENSE)], "mixed")
    index = arrays(("int32", "uint8", "int64", "uint32", "int8"), [((2,), DENSE), ((), DENSE), ((2, 3), DENSE), ((2, 3), TRANSPOSED), ((0,), DENSE)], "index")
    negative = arrays(("int32", "int64", "int8"), [((2,), DENSE), ((2, 3), DENSE)], "negative index")
    along = arrays(("int32", "uint32", "int64", "uint8"), [((3, 2), DENSE), ((1, 4), DENSE), ((3, 4), TRANSPOSED), ((2, 4), DENSE), ((4,), DENSE), ((3, 3, 4), DENSE), ((0, 4), DENSE), ((5,), DENSE)], "index")
    wrong = ["![0, 1]", "!None", "!1.5"]
    rows = [
        *[Row(n, f"m.{n}(m.ones((3, 4)), {{i}}, 0)", {"i": ["m.array([0.5])", "m.array([True])"]}, compiled=False) for n in ("take",)],
        Row("take", "m.take({x}, {i}{o})", {"x": some, "i": [*index, *negative, "0", "1", "-1", *wrong], "o": ["", ", 0", ", -1", ", axis=1", ", None", "!, 7"]}, 300),
        Row("take_along_axis", "m.take_along_axis({x}, {i}{o})", {"x": some, "i": [*along, *wrong], "o": ["", ", 0", ", -1", ", axis=1", ", None", "!, 7"]}, 300),
        # MLX writes where an index out of bounds points to, and dies of it later.
        Row("put_along_axis", "m.put_along_axis({x}, {i}, {v}{o})", {"x": [x for x in some if "()" not in x and "(0, 3)" not in x], "i": [*along, *wrong], "v": [*of("float32", (3, 2), (1, 4), (3, 1), (), (3, 4)), *of("int32", (3, 4), (12,)), "!1.0"], "o": ["", ", 0", ", -1", ", axis=1", ", None", "!, 7"]}, 400),
        Row("slice", "m.slice({x}, {s}, {axes}, {n})", {"x": some, "s": ["m.array([1, 0])", "m.array([0])", "m.array(1)", "m.array([1, 1, 1])", "!m.array([0.5])", "!1", "m.array([0, 0])"], "axes": ["(0, 1)", "(0,)", "[1]", "(-1,)", "()", "!(5,)", "(0, 0)"], "n": ["(2, 3)", "(1, 3)", "(2,)", "!(9, 9)", "(2, 2, 2)", "(0, 2)", "!(-1, 2)"]}, 300),
        # MLX's process dies of updates that reach outside, or have more axes than the array.
        Row("slice_update", "m.slice_update({x}, {v}, {s}, {axes})", {"x": [x for x in some if "4)" in x], "v": [*of("float32", (2, 3), (1, 3), (2,), ()), *of("int32", (2, 2)), *of("bool_", (1, 1))], "s": ["m.array([1, 0])", "m.array([0])", "m.array(1)", "m.array([0, 1])", "!m.array([0.5])", "!1"], "axes": ["(0, 1)", "(0,)", "[1]", "(-1,)", "()", "!(5,)"]}, 300),
        Row("sort", "m.sort({x}{o})", {"x": [*arrays(EVERY, [*FORMS, *CUBES, ((257,), DENSE)], "mixed", "few", "special"), "!1", "![1]"], "o": ["", ", 0", ", -1", ", axis=1", ", None", "!, 7", "!, -8"]}, 300),
        Row("argsort", "m.argsort({x}{o})", {"x": arrays(EVERY, [*FORMS, *CUBES, ((257,), DENSE)], "mixed", "few", "special"), "o": ["", ", 0", ", -1", ", axis=1", ", None", "!, 7"]}, 300),
        # The order beside the k-th element is anybody's choice.
        Row("partition", "m.take(m.partition({x}, {k}{o}), {k}{o})", {"x": arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((5,), REVERSED), ((2, 3, 4), STRIDED)], "mixed", "few"), "k": ["0", "1", "-1", "2", "!9", "!-9", "!1.5"], "o": [", 0", ", -1", ", None", ", axis=0", "!, 7"]}, 150),
        Row("argpartition", "m.take(m.take_along_axis({x}, m.argpartition({x}, {k}, {o}), {o}), {k}, {o})", {"x": arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((5,), REVERSED), ((2, 3, 4), STRIDED)], "mixed", "few"), "k": ["0", "1", "-1", "2", "!9", "!-9"], "o": ["0", "-1", "axis=0", "!7"]}, 150),
        Row("topk", "m.sort(m.topk({x}, {k}{o}){s})", {"x": arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((5,), REVERSED)], "mixed", "few"), "k": ["1", "2", "3", "0", "!9", "!-1"], "o": ["", ", -1"], "s": [""]}, 100),
        Row("topk", "m.topk({x}, {k}{o}).shape", {"x": arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((5,), REVERSED)], "mixed", "few"), "k": ["1", "2", "0", "!9", "!-1"], "o": ["", ", 0", ", axis=None", "!, 7"]}, 80),
        Row("searchsorted", "m.searchsorted(m.sort({x}), {v}{o})", {"x": arrays(EVERY, [((7,), DENSE), ((0,), DENSE), ((1,), DENSE), ((2, 3), DENSE), ((), DENSE)], "mixed", "few", "special"), "v": arrays(EVERY, [((3, 4), DENSE), ((), DENSE), ((5,), STRIDED)], "mixed", "few", "special"), "o": ["", ", side='right'", "!, side='middle'"]}, 300),
        Row("unique", "m.unique({x}, {n}{o})", {"x": arrays([d for d in EVERY], [((3, 4), DENSE), ((12,), REVERSED), ((), DENSE), ((0,), DENSE)], "few", "mixed"), "n": ["3", "12", "1", "20", "0", "!-1"], "o": ["", ", True", ", return_inverse=True", ", return_counts=True", ", True, True, True", ", fill_value=7", ", False, False, True, 1.5", ", fill_value=m.array(2)"]}, 300),
        Row("einsum_path", "m.einsum_path({s})", {"s": ["'ij,jk->ik', m.ones((2, 3)), m.ones((3, 4))", "'ij,jk,kl->il', m.ones((2, 3)), m.ones((3, 4)), m.ones((4, 5))", "'ij->ji', m.ones((2, 3))", "'i,j,k->ijk', m.ones(2), m.ones(3), m.ones(4)", "'ij,jk', m.ones((2, 3))", "'ij,kj,il,ml->km', m.ones((2, 3)), m.ones((4, 3)), m.ones((2, 5)), m.ones((6, 5))"]}, compiled=False),
        Row("ArrayAt", "type(m.ones(2).at[0]).__name__"), Row("ArrayIterator", "type(iter(m.ones(2))).__name__"), Row("ArrayIterator", "list(iter({x}))", {"x": some}),
    ]  # fmt: skip
    for n in ("add", "subtract", "multiply", "divide", "maximum", "minimum"):
        at = ["0", "-1", ":2", "::2", "::-1", "m.array([0, 1, 0])", "m.array([[0, 1], [1, 0]])", "..., 0", "None, 0", "m.array([0, 0]), m.array([1, 1])", "1, m.array([0, 0])", "...", "()"]
        rows += [Row(f"ArrayAt.{n}", f"{{x}}.at[{{i}}].{n}({{v}})", {"x": arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((4, 4), STRIDED)], "mixed"), "i": at, "v": ["1", "2.5", "m.array(2)", "m.array([1.5, 2, 3, 4])", "m.array([1, 2])", *of("float16", (3, 4)), "True", "!'a'", "!None", "np.array([1, 2, 3, 4])"]}, 200)]
    return rows


def products() -> list[Row]:
    matrices = arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((3, 4), STRIDED), ((2, 3, 4), DENSE), ((2, 3, 4), TRANSPOSED), ((4,), DENSE), ((), DENSE), ((0, 4), DENSE), ((5, 1, 3, 4), REVERSED)], "mixed")
    others = arrays(EVERY, [((4, 3), DENSE), ((4, 3), TRANSPOSED), ((4,), STRIDED), ((2, 4, 3), DENSE), ((4, 0), DENSE), ((1, 4, 2), TRANSPOSED), ((5, 2, 4, 2), DENSE)], "mixed")
    wrong = of("float32", (5, 5), (3,)) + ["!1", "![1]", "!None"]
    real = ("float32", "float16", "bfloat16", "float64", "complex64")
    rows = [
        Row("matmul", "m.matmul({x}, {y})", {"x": matrices, "y": [*others, *wrong]}, 400), Row("array.__matmul__", "{x} @ {y}", {"x": matrices, "y": [*others, "!np.ones((4, 3))", "!2"]}, 60),
        Row("array.__imatmul__", "operator.imatmul({x}, {y})", {"x": matrices, "y": others}, 40, False),
        Row("addmm", "m.addmm({c}, {x}, {y}{o})", {"c": of(real, (3, 3), (3,), (3, 1), ()), "x": of(real, (3, 4), (2, 3, 4), (4,)) + arrays(real, [((3, 4), TRANSPOSED)], "mixed"), "y": of(real, (4, 3), (2, 4, 3), (4,)), "o": ["", ", 2.0", ", alpha=0.5, beta=2.0", ", beta=0.0", ", alpha=0"]}, 300),
        Row("addmm", "m.addmm({c}, {x}, {y})", {"c": of(INTS, (3, 3)), "x": of((*INTS, "bool_"), (3, 4)), "y": of(INTS, (4, 3))}, 20),
        Row("inner", "m.inner({x}, {y})", {"x": matrices, "y": of(EVERY, (4,), (3, 4), (2, 2, 4), (3,), ())}, 120), Row("outer", "m.outer({x}, {y})", {"x": matrices, "y": of(EVERY, (4,), (2, 2), ())}, 80),
        Row("vecdot", "m.vecdot({x}, {y}{o})", {"x": matrices, "y": of(EVERY, (4,), (3, 4), (2, 3, 4), (3,), ()), "o": ["", ", axis=0", ", axis=-2", "!, axis=7"]}, 200),
        Row("tensordot", "m.tensordot({x}, {y}{o})", {"x": of(EVERY, (3, 4), (2, 3, 4), (4, 3)), "y": of(EVERY, (4, 3), (3, 4), (4, 3, 2), (4,)), "o": ["", ", 1", ", axes=0", ", 3", ", [[1], [0]]", ", ((0,), (1,))", ", [[-1], [-2]]", ", [[0, 1], [1, 0]]", ", [[], []]", "!, -1", "!, [[0], [0, 1]]", "!, [[9], [0]]"]}, 250),
        Row("einsum", "m.einsum({s}, {x}, {y})", {"s": ["'ij,jk->ik'", "'ij,jk'", "'ij,kj->ik'", "'ij,ji->'", "'ij,jk->ki'", "'i...,...k->ik...'", "'ab,bc->ac'", "'ij , jk -> ik'", "'ij,kl->ijkl'", "'ij,jk->j'", "!'ij'", "!'ijk,jk'", "'...j,jk->...k'"], "x": of(EVERY, (3, 4), (4, 4)), "y": of(EVERY, (4, 3), (4, 4))}, 200),
        Row("einsum", "m.einsum({s}, {x})", {"s": ["'ii'", "'ii->i'", "'ij->ji'", "'ij->'", "'ij->i'", "'ij'", "'...i->i...'", "'i...'", "'ji'", "!'iii'", "!'i!'"], "x": of(EVERY, (4, 4), (3, 4), (4,), (2, 2, 2))}, 150),
        Row("einsum", "m.einsum({s})", {"s": ["'bhqd,bhkd->bhqk', m.ones((2, 1, 3, 4)), m.ones((2, 1, 5, 4))", "'ij,jk,kl->il', m.ones((2, 3)), m.ones((3, 4)), m.ones((4, 5))", "'i,i,i->i', m.arange(3), m.arange(3), m.ones(3)", "'i,j,k->kji', m.arange(2), m.arange(3), m.arange(4)", "'ijk,ijl,ijm->klm', m.ones((2, 3, 4)), m.ones((2, 3, 5)), m.ones((2, 3, 6))", "'', m.array(2)", "'ij,j->i', m.ones((2, 3)), m.ones(1)", "", "'i'", "'ij,ij->ij', m.ones((2, 1)), m.ones((2, 3))", "'abc,cd,def->abef', m.ones((2, 3, 4)), m.ones((4, 5)), m.ones((5, 2, 3))", "'aij,ajk->aik', m.ones((2, 3, 4)), m.ones((2, 4, 5))", "'...a,...b->...ab', m.ones((2, 3)), m.ones((4, 2, 5))"]}),
        Row("gather_mm", "m.gather_mm({x}, {y}{o})", {"x": of((*real, "int32"), (3, 2, 4), (1, 2, 4), (2, 4)), "y": of((*real, "int32"), (3, 4, 2), (1, 4, 5), (4, 2)), "o": ["", ", m.array([0])", ", rhs_indices=m.array([0, 0])", ", None, m.array([[0], [0]])", ", m.array([0, 0]), m.array([0, 0]), sorted_indices=True"]}, 200),
        Row("gather_mm", "m.gather_mm({x}, {y}, {i}, {j})", {"x": of(HALF, (3, 2, 4)), "y": of(HALF, (3, 4, 5)), "i": ["None", "m.array([0, 2, 1])", "m.array([[2], [0]])", "m.array([2], m.uint8)"], "j": ["None", "m.array([2, 0, 0])", "m.array([1])", "m.array([1.0])"]}, 60),
        Row("block_masked_mm", "m.block_masked_mm({x}, {y}, {b}{o})", {"x": of(("float32", "float64"), (64, 64)), "y": of("float32", (64, 32)), "b": ["32", "64"], "o": ["", ", mask_out=m.array([[True], [False]])", ", None, m.array([[True, False], [False, True]])", ", mask_rhs=m.array([[0.5], [2.0]])", ", m.array([[2.0], [1.0]]), m.ones((2, 2)), m.ones((2, 1))"]}, 30),
        Row("segmented_mm", "m.segmented_mm({x}, {y}, {s})", {"x": of(HALF, (3, 8)), "y": of(HALF, (8, 5)), "s": ["m.array([[0, 4], [4, 8]])", "m.array([[[0, 2]], [[1, 8]]])", "m.array([[0, 0]])", "m.array([0, 4])", "m.array([[0.0, 1.0]])"]}, 45),
        Row("hadamard_transform", "m.hadamard_transform({x}{o})", {"x": of((*FLOATS, "int32"), (8,), (3, 4), (1,), (2, 12), (2, 20), (28,), (3, 3), ()), "o": ["", ", 0.5", ", scale=1.0", ", None"]}, 80),
        Row("convolve", "m.convolve({x}, {y}{o})", {"x": of(("float32", "float16", "int32"), (5,), (2,), (2, 2), (0,)), "y": of(("float32", "float16"), (3,), (5,), (1,), (2, 2)), "o": ["", ", 'full'", ", mode='valid'", ", 'same'", "!, 'none'"]}, 100),
    ]  # fmt: skip
    return rows


def convolutions() -> list[Row]:
    d = ("float32", "float16", "bfloat16", "float64")
    strides = ["", ", 2", ", stride=2, padding=1", ", padding=2, dilation=2", ", 1, 1, 1", ", stride=3", "!, 0", "!, groups=5"]
    rows = [
        Row("conv1d", "m.conv1d({x}, {w}{o})", {"x": of((*d, "int32", "complex64"), (2, 7, 4), (1, 5, 4)) + arrays(d, [((2, 7, 4), TRANSPOSED), ((2, 8, 4), STRIDED)], "mixed"), "w": of((*d, "complex64"), (6, 3, 4), (2, 1, 4)), "o": strides}, 200),
        Row("conv1d", "m.conv1d({x}, {w}, groups={g}, padding={p})", {"x": of(d, (2, 7, 4)), "w": of(d, (4, 3, 2), (4, 3, 1), (4, 3, 4)), "g": ["1", "2", "4", "!3"], "p": ["0", "1", "2"]}, 80),
        Row("conv2d", "m.conv2d({x}, {w}{o})", {"x": of((*d, "complex64"), (2, 7, 6, 4)) + arrays(d, [((2, 7, 6, 4), TRANSPOSED)], "mixed"), "w": of(d, (6, 3, 2, 4), (2, 1, 1, 4)), "o": [*strides, ", (2, 1)", ", padding=(1, 0)", ", 1, (2, 1), (1, 2)", ", stride=[1, 2]", "!, stride=(1, 2, 3)"]}, 150),
        Row("conv2d", "m.conv2d({x}, {w}, groups={g}, padding={p})", {"x": of(d, (2, 5, 5, 4)), "w": of(d, (4, 3, 3, 2), (4, 3, 3, 1), (4, 3, 3, 4)), "g": ["1", "2", "4"], "p": ["0", "1"]}, 40),
        Row("conv3d", "m.conv3d({x}, {w}{o})", {"x": of(d, (1, 4, 5, 4, 2)), "w": of(d, (3, 2, 3, 2, 2), (2, 1, 1, 1, 2)), "o": ["", ", 2", ", padding=1", ", (1, 2, 1)", ", 1, (1, 0, 1), (2, 1, 1)"]}, 30),
        Row("conv_transpose1d", "m.conv_transpose1d({x}, {w}{o})", {"x": of((*d, "int32"), (2, 7, 4)), "w": of(d, (6, 3, 4)), "o": ["", ", 2", ", 2, 1", ", padding=1", ", 2, 1, 2", ", stride=2, output_padding=1", ", 3, 0, 1, 2"]}, 60),
        Row("conv_transpose1d", "m.conv_transpose1d({x}, {w}, groups={g}{o})", {"x": of(d, (2, 5, 4)), "w": of(d, (6, 3, 2), (4, 3, 1)), "g": ["2", "4"], "o": ["", ", stride=2", ", padding=1"]}, 40),
        Row("conv_transpose2d", "m.conv_transpose2d({x}, {w}{o})", {"x": of(d, (2, 4, 5, 4)), "w": of(d, (6, 3, 2, 4)), "o": ["", ", 2", ", (2, 1), (1, 0)", ", padding=1", ", 2, 0, 2", ", stride=2, output_padding=(1, 0)"]}, 60),
        Row("conv_transpose3d", "m.conv_transpose3d({x}, {w}{o})", {"x": of("float32", (1, 3, 4, 3, 2)), "w": of("float32", (3, 2, 2, 2, 2)), "o": ["", ", 2", ", (2, 1, 1), (1, 0, 0)", ", output_padding=1, stride=2"]}, 20),
        Row("conv_general", "m.conv_general({x}, {w}{o})", {"x": of((*d, "complex64"), (2, 9, 4)), "w": of(d, (6, 3, 4)), "o": ["", ", 2", ", padding=2", ", padding=([1], [2])", ", kernel_dilation=2", ", input_dilation=2", ", 2, 1, 2, 3", ", flip=True", ", padding=([0], [3]), input_dilation=2, flip=True", "!, stride=[1, 1]"]}, 80),
        Row("conv_general", "m.conv_general({x}, {w}{o})", {"x": of(d, (2, 6, 5, 4)), "w": of(d, (6, 3, 2, 4)), "o": ["", ", (2, 1)", ", padding=([1, 0], [0, 2])", ", kernel_dilation=(1, 2)", ", input_dilation=(2, 1), flip=True", ", groups=1, flip=False"]}, 60),
        Row("conv1d", "m.conv1d({x}, {w})", {"x": of("float32", (7, 4), (2, 7, 3), (2, 2, 4), (0, 7, 4)), "w": of("float32", (6, 3, 4), (6, 4))}, compiled=False),
    ]  # fmt: skip
    return rows


def quantised() -> list[Row]:
    modes = [(g, b, "affine") for g in (32, 64, 128) for b in (2, 3, 4, 5, 6, 8)] + [(32, 4, "mxfp4"), (32, 8, "mxfp8"), (16, 4, "nvfp4")]
    options = [f"{g}, {b}, {m!r}" for g, b, m in modes]
    wrong = ["!48, 4, 'affine'", "!32, 7, 'affine'", "!32, 4, 'none'", "!16, 4, 'affine'", "!64, 4, 'mxfp4'", "!32, 4, 'nvfp4'", "!32, 4, 'mxfp8'"]
    w = of(HALF, (8, 128), (2, 8, 128)) + arrays(HALF, [((8, 128), TRANSPOSED)], "mixed")
    rows = [
        Row("quantize", "m.quantize({w}, {o})", {"w": [*w, *of("float32", (8, 48), (128,)), *of("int32", (8, 128)), *of("float32", (4, 128), domain="zeros")], "o": [*options, *wrong]}, 250),
        Row("quantize", "m.quantize({w}{o})", {"w": w, "o": ["", ", bits=8", ", group_size=32", ", mode='mxfp4'", ", mode='mxfp8'", ", mode='nvfp4'", ", mode='nvfp4', global_scale=m.array(100.0)"]}, 60),
        Row("dequantize", "m.dequantize(*m.quantize({w}, {o}), {o2})", {"w": w, "o": ["32, 4"], "o2": ["32, 4", "group_size=32", "32, 4, 'affine'", "32, 4, dtype=m.float32", "!64, 4", "!32, 8"]}, 60),
        *[Row("dequantize", f"m.dequantize(*m.quantize({{w}}, {o}), {'group_size' if m == 'affine' else 'biases=None, group_size'}={g}, bits={b}, mode={m!r}{{d}})", {"w": w, "d": ["", ", dtype=m.float16"]}, 12) for o, (g, b, m) in zip(options, modes, strict=True)],
        *[Row("quantized_matmul", f"m.quantized_matmul({{x}}, *m.quantize({{w}}, {o}){'' if m == 'affine' else ', None'}, True, {o})", {"x": of(HALF, (3, 128), (128,), (2, 3, 128)), "w": of(HALF, (8, 128))}, 12) for o, (g, b, m) in zip(options, modes, strict=True)],
        *[Row("quantized_matmul", f"m.quantized_matmul({{x}}, *m.quantize({{w}}, {o}){'' if m == 'affine' else ', None'}, transpose=False, group_size={g}, bits={b}, mode={m!r})", {"x": of(HALF, (3, 8), (2, 1, 8)), "w": of(HALF, (8, 128))}, 12) for o, (g, b, m) in zip(options, modes, strict=True)],
        *[Row("gather_qmm", f"m.gather_qmm({{x}}, *m.quantize({{w}}, {o}){'' if m == 'affine' else ', None'}, {{i}}, {{j}}, True, {o})", {"x": of(HALF, (3, 2, 128)), "w": of(HALF, (3, 8, 128)), "i": ["None", "m.array([0, 2])"], "j": ["m.array([1, 1])", "m.array([[2], [0]])"]}, 8) for o, (g, b, m) in zip(options, modes, strict=True)],
        Row("quantized_matmul", "m.quantized_matmul({x}, *m.quantize({w}))", {"x": of((*HALF, "float64", "int32"), (3, 128), (3, 64), ()), "w": of(HALF, (8, 128))}, 40),
        Row("qqmm", "m.qqmm({x}, *m.quantize({w}, mode={mode}), mode={mode})", {"x": of(HALF, (3, 128)), "w": of(HALF, (8, 128)), "mode": ["'nvfp4'", "'mxfp8'", "'mxfp4'"]}, 20, False),
        Row("gather_qqmm", "m.gather_qqmm({x}, *m.quantize({w}, mode={mode}), None, m.array([0, 1]), mode={mode})", {"x": of(HALF, (2, 3, 128)), "w": of(HALF, (2, 8, 128)), "mode": ["'nvfp4'", "'mxfp8'"]}, 12, False),
    ]  # fmt: skip
    return rows


def linalg() -> list[Row]:
    real = ("float32", "float64", "complex64", "int32", "float16")
    square = of(real, (3, 3), (2, 4, 4), (1, 1)) + arrays(real, [((4, 4), TRANSPOSED)], "mixed")
    any_shape = of(real, (3, 5), (5, 3), (2, 3, 4), (4, 4)) + arrays(real, [((3, 4), STRIDED)], "mixed")
    wrong = of("float32", (3,), (), (3, 4))
    definite = [f"(lambda x: x @ x.swapaxes(-1, -2) + m.eye(x.shape[-1]).astype(x.dtype))({x})" for x in of(("float32", "float64"), (3, 3), (2, 4, 4))]
    orders = ["", ", None", ", 2", ", 1", ", 0", ", -1", ", inf", ", -inf", ", 3", ", 2.5", ", 'fro'", ", 'nuc'", "!, 'x'", ", -2", ", ord=2.0"]
    axes = ["", ", axis=0", ", axis=-1", ", axis=(0, 1)", ", axis=[-1, -2]", ", axis=None", "!, axis=(0, 1, 2)", "!, axis=7", ", axis=(0,)"]
    rows = [
        Row("linalg.norm", "m.linalg.norm({x}{o}{axis}{k})", {"x": [*arrays(EVERY, [((3, 4), DENSE), ((3, 4), TRANSPOSED), ((5,), DENSE), ((2, 3, 4), STRIDED), ((), DENSE)], "mixed")], "o": orders, "axis": axes, "k": ["", ", keepdims=True"]}, 500),
        Row("linalg.qr", "[abs(x) for x in m.linalg.qr({x})]", {"x": [*any_shape, *wrong]}, 30), Row("linalg.svd", "[abs(x) if x.ndim == 1 else x.shape for x in m.linalg.svd({x})]", {"x": [*any_shape, *wrong]}, 30, False),
        Row("linalg.svd", "m.linalg.svd({x}, False)", {"x": [*any_shape, *wrong]}, 30), Row("linalg.svd", "m.linalg.svd({x}, compute_uv=False)", {"x": any_shape}, 10),
        *[Row(f"linalg.{n}", f"m.linalg.{n}({{x}})", {"x": [*square, *wrong, "!1", "!None"]}, 40) for n in ("inv", "pinv", "det", "slogdet", "lu", "lu_factor")],
        *[Row(f"linalg.{n}", f"m.linalg.{n}({{x}})", {"x": any_shape}, 40) for n in ("pinv", "lu", "lu_factor")],
        Row("linalg.tri_inv", "m.linalg.tri_inv(m.{t}({x}){o})", {"x": square, "t": ["tril", "triu"], "o": ["", ", True", ", upper=False"]}, 40),
        Row("linalg.cholesky", "m.linalg.cholesky({x}{o})", {"x": [*definite, *wrong], "o": ["", ", True", ", upper=True"]}, 40), Row("linalg.cholesky_inv", "m.linalg.cholesky_inv(m.linalg.cholesky({x}{o}){o})", {"x": definite, "o": ["", ", True"]}, 40),
        Row("linalg.cross", "m.linalg.cross({x}, {y}{o})", {"x": of(EVERY, (3,), (4, 3), (2,), (3, 4)), "y": of(EVERY, (3,), (4, 3), (2,), (4,), (3, 4)), "o": ["", ", 0", ", axis=-1", "!, 7"]}, 200),
        Row("linalg.eigvals", "m.sort(abs(m.linalg.eigvals({x})))", {"x": [*square, *wrong]}, 30), Row("linalg.eig", "m.sort(abs(m.linalg.eig({x})[0]))", {"x": [*square, *wrong]}, 30),
        Row("linalg.eigvalsh", "m.linalg.eigvalsh({x}{o})", {"x": [*square, *definite, *wrong], "o": ["", ", 'L'", ", UPLO='U'", "!, 'x'"]}, 60),
        Row("linalg.eigh", "[abs(x) for x in m.linalg.eigh({x}{o})]", {"x": [*definite, *wrong], "o": ["", ", 'L'", ", UPLO='U'"]}, 40),
        Row("linalg.solve", "m.linalg.solve({x}, {y})", {"x": [*square, *wrong], "y": of(real, (3,), (3, 2), (2, 4, 1), (4, 2), (2, 4))}, 120),
        Row("linalg.solve_triangular", "m.linalg.solve_triangular({x}, {y}{o})", {"x": [f"m.tril({x}) + 3 * m.eye({x}.shape[-1]).astype({x}.dtype)" for x in square if "int" not in x], "y": of(real, (3,), (3, 2), (2, 4, 1), (4, 2)), "o": ["", ", upper=False"]}, 80),
    ]  # fmt: skip
    return rows


def fft() -> list[Row]:
    x = arrays(("float32", "complex64", "int32", "float16", "bool_", "float64"), [((6,), DENSE), ((3, 8), DENSE), ((3, 5), TRANSPOSED), ((2, 4, 6), STRIDED), ((1,), DENSE), ((), DENSE), ((2, 7), REVERSED)], "mixed")
    norms = ["", ", norm='backward'", ", norm='ortho'", ", norm='forward'", "!, norm='x'"]
    rows = []
    for n in ("fft", "ifft", "rfft", "irfft"):
        rows += [Row(f"fft.{n}", f"m.fft.{n}({{x}}{{n}}{{a}}{{o}})", {"x": x, "n": ["", ", 4", ", n=9", ", n=1", ", n=None", "!, n=0", "!, n=-2"], "a": ["", ", axis=0", ", axis=-1", ", axis=1", "!, axis=7"], "o": norms}, 250)]
    for n in ("fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"):
        rows += [Row(f"fft.{n}", f"m.fft.{n}({{x}}{{n}}{{a}}{{o}})", {"x": x, "n": ["", ", s=(4, 4)", ", s=[3, 7]", ", s=(5,)", "!, s=(0, 2)"], "a": ["", ", axes=(0, 1)", ", axes=[-1, 0]", ", axes=(0,)", ", axes=(-2, -1)", "!, axes=(0, 7)", "!, axes=(0, 0)", ", axes=()", ", axes=None"], "o": norms}, 250)]
    rows += [
        Row("fft.fftfreq", "m.fft.fftfreq({n})", {"n": ["1", "4", "5", "8, 0.5", "5, d=2.0", "!0", "!-1", "!2.5"]}), Row("fft.rfftfreq", "m.fft.rfftfreq({n})", {"n": ["1", "4", "5", "8, 0.5", "5, d=2.0", "!0", "!-1"]}),
        Row("fft.fftshift", "m.fft.fftshift({x}{a})", {"x": x, "a": ["", ", 0", ", axes=(0, 1)", ", [-1]", ", axes=None", "!, 7"]}, 80), Row("fft.ifftshift", "m.fft.ifftshift({x}{a})", {"x": x, "a": ["", ", 0", ", axes=(0, 1)", ", [-1]", ", axes=None", "!, 7"]}, 80),
        Row("fft.stft", "m.fft.stft({x}{o})", {"x": of(("float32", "complex64", "float16"), (40,), (2, 40)), "o": [", 8", ", n_fft=16, hop_length=4", ", 8, 4, 6", ", 8, window=m.hanning(8)", ", 8, center=False", ", 8, pad_mode='constant'", ", 8, norm='ortho'", ", 8, onesided=False", ", 8, onesided=True", "!, 0", "!, 8, 0", "!, 8, window=m.ones(9)", ", 8, pad_mode='edge'"]}, 120),
        Row("fft.istft", "m.fft.istft(m.fft.stft({x}, 8, 2{c}){o})", {"x": of("float32", (40,), (2, 40)), "c": ["", ", center=False", ", onesided=False"], "o": [", 8, 2", ", n_fft=8, hop_length=2, length=40", ", hop_length=2", ", 8, 2, center=False", ", 8, 2, window=m.hanning(8)", ", 8, 2, norm='ortho'", ", 8, 2, onesided=False"]}, 60),
    ]  # fmt: skip
    return rows


def random() -> list[Row]:
    key = ["", ", key=m.random.key(3)", ", key=m.random.split(m.random.key(5))[1]", "!, key=m.array([1.0, 2.0])", "!, key=m.array([1, 2, 3], m.uint32)"]
    shape = ["(3, 4)", "[5]", "()", "(0, 2)", "(7,)", "(2, 3, 5)", "(1001,)", "!(-1,)", "!3"]
    kinds = ["", *[f", dtype=m.{d}" for d in FLOATS], "!, dtype=m.int32", ", dtype=None"]
    seeded = "(m.random.seed({s}), {call})[1]"

    def row(name: str, arguments: str, fields: dict, limit: int = 150) -> Row:
        return Row(f"random.{name}", seeded.format(s="{seed}", call=f"m.random.{name}({arguments})"), {"seed": ["0", "7"], **fields}, limit, False)

    numbers = ["0", "1.5", "-2", "m.array([0.5, 1, 2, 3])", "m.array(2)", "True"]
    return [
        row("uniform", "{low}, {high}, {shape}{kind}{key}", {"low": numbers, "high": [*numbers, "10"], "shape": ["(3, 4)", "[5, 4]", "!()", "(2, 3, 4)"], "kind": kinds, "key": key}, 300),
        row("uniform", "shape={shape}{kind}{key}", {"shape": shape, "kind": kinds, "key": key}), row("normal", "{shape}{kind}{key}", {"shape": shape, "kind": kinds, "key": key}),
        row("normal", "(3, 4){kind}{o}", {"kind": kinds, "o": ["", ", loc=1.0", ", loc=2, scale=0.5", ", scale=m.array([1.0, 2, 3, 4])", ", loc=m.array([1, 2, 3, 4], m.float16)", ", loc=m.ones((3, 1)), scale=2"]}, 80),
        row("multivariate_normal", "m.zeros(3), m.eye(3){o}", {"o": ["", ", (4,)", ", [2, 3]", ", (2,), m.float32", "!, (2,), m.float16", ", key=m.random.key(1)"]}), row("multivariate_normal", "{o}", {"o": ["m.ones((2, 3)), m.eye(3)", "m.ones((2, 3)), m.eye(3), (4, 2)", "!m.ones(2), m.eye(3)", "!m.array(1.0), m.eye(3)", "!m.ones(3), m.ones(3)", "m.ones(2), m.array([[2.0, 0.5], [0.5, 1.0]]), (5,)"]}),
        row("randint", "{low}, {high}, {shape}{kind}{key}", {"low": ["0", "-5", "m.array([0, 1, 2, 3])", "2.5", "True"], "high": ["10", "1", "2**31 - 1", "m.array([5, 6, 7, 8])", "7.9"], "shape": ["(3, 4)", "[4]", "(2, 3, 4)"], "kind": ["", *[f", m.{d}" for d in INTS], "!, m.float32", "!, m.bool_", ", dtype=None"], "key": key}, 300),
        row("bernoulli", "{p}{shape}{key}", {"p": ["", "0.3", "m.array([0.1, 0.5, 0.9])", "p=0", "1", "m.array([0.5, 0.2], m.float16)", "!m.array([1])", "True"], "shape": [""], "key": [""]}), row("bernoulli", "{p}{shape}{key}", {"p": ["0.3", "m.array([0.1, 0.5, 0.9])", "1"], "shape": ["", ", (3,)", ", shape=(2, 3)", ", None", "!, (2,)"], "key": key}, 60),
        row("truncated_normal", "{low}, {high}{shape}{kind}{key}", {"low": ["-1", "0", "m.array([-1.0, 0, 1])", "-2.5"], "high": ["1", "2", "m.array([2.0, 3, 4])"], "shape": ["", ", (3,)", ", shape=(2, 3)", ", None", "!, (2,)"], "kind": kinds, "key": key}, 200),
        row("gumbel", "{shape}{kind}{key}", {"shape": shape, "kind": kinds, "key": key}), row("laplace", "{shape}{kind}{o}{key}", {"shape": shape, "kind": kinds, "o": ["", ", loc=1.0", ", scale=2", ", loc=-1, scale=0.5"], "key": key}),
        row("categorical", "{x}{o}{key}", {"x": [*arrays(FLOATS, [((3, 5), DENSE), ((5,), DENSE), ((2, 3, 4), TRANSPOSED)], "mixed"), "!1", *of("int32", (3, 5))], "o": ["", ", 0", ", axis=-1", ", shape=(3,)", ", shape=(4, 3)", ", num_samples=4", "!, 7", "!, shape=(2, 2), num_samples=3", "!, shape=(2,)"], "key": key}, 250),
        row("permutation", "{x}{o}{key}", {"x": ["7", "1", "0", "!-1", "!2.5", *FEW, *arrays(SHORT, [((3, 5), TRANSPOSED), ((2, 3, 4), DENSE), ((6,), REVERSED), ((), DENSE), ((0, 2), DENSE)], "mixed")], "o": ["", ", 0", ", axis=1", ", -1", "!, 7"], "key": key}, 200),
        row("key", "{s}", {"s": ["0", "1", "2**32", "2**64 - 1", "!-1", "!1.5", "2**40 + 7"]}), row("split", "{k}{o}", {"k": ["m.random.key(0)", "m.random.key(12345678901)", "!m.array([1.0, 2.0])", "!m.array([1], m.uint32)"], "o": ["", ", 3", ", num=1", ", 0", "!, -1"]}),
        Row("random.seed", "[m.random.seed({s}), m.random.uniform(), m.random.normal((2,)), m.random.randint(0, 9, (3,)), m.random.state[0]][1:]", {"s": ["0", "1", "2**40", "2**64 - 1", "!-1", "!1.5", "!None"]}, compiled=False),
    ]  # fmt: skip


def fast() -> list[Row]:
    x = arrays((*FLOATS,), [((3, 8), DENSE), ((2, 3, 8), TRANSPOSED), ((4, 8), STRIDED), ((8,), DENSE), ((0, 8), DENSE)], "mixed")
    weight = ["None", *of(FLOATS, (8,)), "!m.ones(7)", "!m.ones((2, 8))"]
    q = of(HALF, (1, 4, 6, 8), (2, 4, 1, 8))
    attend = "m.fast.scaled_dot_product_attention"
    masks = ["", ", mask='causal'", ", mask=None", ", mask=m.ones((6, 7)) > 0", ", mask=m.tri(6, 7, 1) > 0", ", mask=m.tri(6, 7)", ", mask=m.ones((4, 6, 7), m.bool_)", "!, mask='x'", "!, mask=m.ones((5, 5))", ", sinks=m.ones(4)", ", force_fused=False"]
    rows = [
        Row("fast.rms_norm", "m.fast.rms_norm({x}, {w}, {e})", {"x": [*x, *of("int32", (3, 8)), *of("float32", ())], "w": weight, "e": ["1e-5", "eps=1e-3", "0.0"]}, 100),
        Row("fast.layer_norm", "m.fast.layer_norm({x}, {w}, {b}, {e})", {"x": [*x, *of("int32", (3, 8)), *of("float32", ())], "w": weight, "b": weight, "e": ["1e-5", "eps=1e-3"]}, 150),
        Row("fast.cross_entropy", "m.fast.cross_entropy({x}, {t})", {"x": x, "t": ["m.array([0, 2, 7])", "m.array([[0, 2, 7], [1, 1, 1]])", "m.array([0, 2, 7, 1], m.uint8)", "m.array(3)", "m.array([1.0, 2.0, 3.0])", "m.zeros((0,), m.int32)"]}, 80),
        Row("fast.rope", "m.fast.rope({x}, {d}, traditional={t}, base={b}, scale={s}, offset={o}{f})", {"x": arrays(FLOATS, [((1, 2, 5, 8), DENSE), ((2, 3, 8), DENSE), ((2, 5, 3, 8), TRANSPOSED), ((4, 8), DENSE), ((2, 2, 1, 8), STRIDED)], "mixed"), "d": ["8", "4", "!7", "!10"], "t": ["True", "False"], "b": ["10000.0", "500.0"], "s": ["1.0", "0.5"], "o": ["0", "3", "m.array(2)", "m.array([1, 4])", "!1.5"], "f": [""]}, 250),
        Row("fast.rope", "m.fast.rope({x}, {d}, traditional={t}, base={b}, scale=1.0, offset={o}, freqs={f})", {"x": of(HALF, (1, 2, 5, 8)), "d": ["8"], "t": ["True", "False"], "b": ["None", "!10.0"], "o": ["0", "m.array(3)"], "f": ["m.array([1.0, 2, 3, 4])", "None", "!m.array([1.0, 2.0])"]}, 60),
        Row("fast.scaled_dot_product_attention", f"{attend}({{q}}, {{k}}, {{k}}, scale={{s}}{{o}})", {"q": of(HALF, (1, 4, 6, 8), (1, 2, 6, 8)), "k": of(HALF, (1, 2, 7, 8), (1, 1, 7, 8)), "s": ["0.35", "1.0"], "o": masks}, 250),
        Row("fast.scaled_dot_product_attention", f"{attend}({{q}}, {{k}}, {{v}}, scale=0.5{{o}})", {"q": [*q, *of("float32", (4, 6, 8), (1, 3, 6, 8)), *of("float64", (1, 4, 6, 8))], "k": of(HALF, (1, 4, 7, 8), (2, 4, 3, 8)), "v": of(HALF, (1, 4, 7, 5), (2, 4, 3, 8)), "o": ["", ", mask='causal'"]}, 120),
        Row("fast.gated_delta_update", "m.fast.gated_delta_update({q}, {q}, {v}, {g}, {g}{o})", {"q": of(HALF, (1, 5, 2, 8), domain="unit"), "v": of(HALF, (1, 5, 2, 8), domain="unit"), "g": of(HALF, (1, 5, 2), domain="positive"), "o": [""]}, 20),
    ]  # fmt: skip
    return rows
