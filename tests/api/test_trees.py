"""Pytrees: flattening, rebuilding, prefixes (BEHAVIOUR section 1)."""

from collections import OrderedDict, defaultdict, namedtuple

import numpy as np
import pytest

from mlxir.runtime import trees

Point = namedtuple("Point", "x y")


class Pair(tuple):
    pass


class Leaf:
    """Stands for an array: this module knows no array class."""


A, B, C, D = Leaf(), Leaf(), Leaf(), Leaf()
TREES = [
    A, [], (), {}, [A], (A,), {"k": A}, [A, (B, {"x": C, "y": [D]})], Point(A, [B]), Pair([A, B]), {"b": A, "a": B},
    [[], (), {}], {"x": {"y": {"z": (A, [B, {"w": C}])}}}, [1, "s", None, 2.5, A],
]  # fmt: skip


@pytest.mark.parametrize("tree", TREES, ids=range(len(TREES)))
def test_flatten_and_unflatten_are_inverse(tree):
    leaves, structure = trees.flatten(tree)
    again = trees.unflatten(structure, leaves)
    assert again == tree and type(again) is type(tree)
    assert structure.count == len(leaves) and leaves == trees.leaves(tree)
    assert trees.tree_map(lambda x: x, tree) == tree


def test_subclasses_of_list_and_dict_come_back_plain():
    class Numbers(list):
        pass

    for tree, plain in (
        (OrderedDict(b=A, a=B), {"b": A, "a": B}),
        (defaultdict(list, k=A), {"k": A}),
        (Numbers([A]), [A]),
    ):
        leaves, structure = trees.flatten(tree)
        again = trees.unflatten(structure, leaves)
        assert type(again) is type(plain) and again == plain
        assert list(again) == list(plain)


def test_everything_else_is_a_leaf():
    others = [{A}, np.zeros(3), (i for i in ()), "text", range(3), frozenset((1,)), memoryview(b"ab")]
    assert all(x is y for x, y in zip(trees.leaves(others), others, strict=True))


def test_structures_compare_by_types_keys_and_nesting():
    def structure(tree):
        return trees.flatten(tree)[1]

    assert structure([A, B]) == structure([C, D]) and hash(structure([A])) == hash(structure([B]))
    for other in ((A, B), [A], [A, [B]], {"k": A, "l": B}, Point(A, B), A):
        assert structure([A, B]) != structure(other)
    assert structure({"a": A, "b": B}) != structure({"b": A, "a": B})
    assert repr(structure({"a": [A, (B,)]})) == "{'a': [*, (*,)]}"


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unflatten_needs_the_right_number_of_leaves(count):
    with pytest.raises(ValueError, match="tree_unflatten"):
        trees.unflatten(trees.flatten([A, B])[1], [A] * count)


@pytest.mark.parametrize("bad", [None, 1.0, "s", np.zeros(2), {A}])
def test_strict_leaves_reject_what_is_no_array(bad):
    assert trees.strict_leaves([A, {"k": B}, []], Leaf) == [A, B]
    with pytest.raises(
        ValueError, match=r"^\[tree_flatten\] The argument should contain only arrays.*" + type(bad).__name__
    ):
        trees.strict_leaves([A, bad], Leaf)


def test_update_works_in_place_and_touches_changed_slots_only():
    inner = {"k": A, "n": 3}
    point = Point(B, C)
    tree = [inner, point, A]
    assert trees.update(lambda x: D if x is A else x, tree) is tree
    assert tree[0] is inner and inner == {"k": D, "n": 3} and tree[1] is point and tree[2] is D
    trees.update(lambda x: A if x is B else x, tree)
    assert tree[1] == Point(A, C) and type(tree[1]) is Point
    assert trees.update(lambda x: B, A) is B


@pytest.mark.parametrize(
    ("prefix", "tree", "expected"),
    [
        (0, [A, (B, C)], [0, 0, 0]),
        (None, {"k": A}, [None]),
        ((0, 1), (A, [B, C]), [0, 1, 1]),
        ([0, {"k": None}], [A, {"k": B}], [0, None]),
        ({"a": 1, "b": 2}, {"b": A, "a": B}, [2, 1]),
        ((), (), []),
    ],
)
def test_prefix(prefix, tree, expected):
    assert trees.broadcast_prefix(prefix, tree, "axes") == expected


@pytest.mark.parametrize(
    ("prefix", "tree"),
    [([0], (A,)), ((0,), [A]), ((0, 1), (A,)), ((0,), (A, B)), ({"a": 0}, {"b": A}), ({"a": 0}, {"a": A, "b": B}),
     ((0,), A), ({"a": 0}, [A])],
)  # fmt: skip
def test_what_is_no_prefix(prefix, tree):
    with pytest.raises(ValueError, match="not a valid prefix"):
        trees.broadcast_prefix(prefix, tree, "axes")
