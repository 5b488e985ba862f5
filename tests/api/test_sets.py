"""`unique`: values, indices, inverse and counts are those of MLX."""

import mlx.core as real
import numpy as np
import pytest
from oracle import assert_agree

import mlxir

DATA = {
    "ints": [3, 1, 2, 1, 3, 5],
    "one": [7],
    "equal": [2, 2, 2],
    "floats": [0.5, -1.0, 0.5, float("inf"), -0.0, 0.0],
    "nan": [float("nan"), 1.0, float("nan")],
    "bools": [True, False, True],
}


@pytest.mark.parametrize("size", [0, 1, 3, 8])
@pytest.mark.parametrize("data", DATA)
def test_unique(data, size):
    with real.stream(real.cpu):
        assert_agree(lambda m: m.unique(m.array(DATA[data]), size))
        assert_agree(lambda m: m.unique(m.array(DATA[data]), size=size, fill_value=1))
        # The inverse means nothing for size 0, as MLX says.
        everything = {"return_index": True, "return_inverse": size > 0, "return_counts": True}
        assert_agree(lambda m: m.unique(m.array(DATA[data]), size, **everything))


def test_shape_of_the_inverse_and_dtypes():
    for dtype in ["int8", "uint64", "float16", "bfloat16", "bool_"]:
        assert_agree(lambda m, d=dtype: m.unique(m.array([[1, 0], [1, 2]]).astype(getattr(m, d)), 3, True, True, True))


@pytest.mark.parametrize(
    "build",
    [
        lambda m: m.unique(m.zeros((0,)), 2),
        lambda m: m.unique(m.zeros((0, 2)), 2, True, True, True, 7),
        lambda m: m.unique(m.zeros((0,)), 0),
        lambda m: m.unique(m.array([1]), -1),
        lambda m: m.unique([1, 2], 1),
        lambda m: m.unique(m.array([1])),
    ],
)
def test_edges(build):
    assert_agree(build)


def test_compiled_and_mapped():
    x = mlxir.array([[3, 1, 3, 2], [0, 0, 0, 1]])
    want = [[1, 2, 3], [0, 1, 0]]
    assert mlxir.compile(lambda r: mlxir.unique(r, 3))(x[0]).tolist() == want[0]
    assert mlxir.vmap(lambda r: mlxir.unique(r, 3))(x).tolist() == want


def test_inverse_rebuilds_the_array():
    x = mlxir.random.randint(0, 9, (4, 5))
    values, inverse = mlxir.unique(x, 9, return_inverse=True)
    np.testing.assert_array_equal(np.array(values[inverse]), np.array(x))
