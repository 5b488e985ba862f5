"""The text of arrays: exactly that of real MLX."""

import mlx.core as real
import pytest

import mlxir as mx

INF = float("inf")
EXPRESSIONS = """
m.arange(6)
m.arange(7)
m.arange(1000)
m.arange(1600).reshape(40, 40)
m.zeros((3, 20, 20))
m.zeros((2, 1, 600))
m.zeros((2, 6, 100))
m.zeros((2, 7, 3))
m.zeros((0,))
m.zeros((0, 3))
m.zeros((2, 0))
m.zeros((2, 0, 3))
m.zeros((1, 2, 1, 2))
m.array([1e10, 1.5, -0.0, INF, -INF, 1e-10])
m.array([123456789.0, 0.1, 1e-5, 1e-4, NAN])
m.array([1e10, 1.5, -0.0, 0.1, 1 / 3], m.float16)
m.array([1e10, 1.5, -0.0, 0.1, 1 / 3], m.bfloat16)
m.array([1 / 3, 1e300], m.float64)
m.array([1 + 2j, -0.0 - 1j, 1e10 + 0.1j, complex(INF, -INF)])
m.array([complex(NAN, 1), complex(1, NAN), complex(1, -0.0)])
m.array(3 + 4j)
m.array([True, False])
m.array(True)
m.array([-1, 200], m.int8)
m.array([-1, 2], m.uint8)
m.array([100, 1, -5])
m.array([[1.5, 2], [3, 4.25]])
m.array([1e5, 1e6, 1e7, 123456.7])
m.array(1e-5)
m.array(-0.0)
m.array([2**63 - 1])
[m.array(1), m.array(2.5)]
""".strip().splitlines()


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_repr(text):
    mine, theirs = (eval(text, {"m": m, "INF": INF, "NAN": float("nan")}) for m in (mx, real))
    assert repr(mine) == repr(theirs) and str(mine) == str(theirs)


@pytest.fixture(params=[0, 1, 3, 10, 20, -1, -5])
def precision(request):
    for m in (mx, real):
        m.set_printoptions(precision=request.param)
    yield request.param
    for m in (mx, real):
        m.set_printoptions()


@pytest.mark.parametrize(
    "text",
    ["m.array([1 / 3, 1e-10, 1e10, 123456, 2.5])", "m.array([1 / 3 + 1j])", "m.array([1, 2])",
     "m.array([1 / 3], m.float16)", "m.array([INF, -INF, -0.0, 0.5])"],
)  # fmt: skip
def test_precision(precision, text):
    mine, theirs = (eval(text, {"m": m, "INF": INF}) for m in (mx, real))
    assert repr(mine) == repr(theirs)
    assert mx.get_printoptions().precision == precision


def test_printoptions_context():
    with mx.printoptions(precision=2):
        assert str(mx.array(1 / 3)) == "array(0.33, dtype=float32)"
        with mx.printoptions(4):
            assert str(mx.array(1 / 3)) == "array(0.3333, dtype=float32)"
        assert mx.get_printoptions().precision == 2
    assert str(mx.array(1 / 3)) == "array(0.333333, dtype=float32)"
    with pytest.raises(TypeError):
        mx.set_printoptions(3.5)
    assert mx.PrintOptions(3).precision == 3
