"""Trees: one worked by hand, laws on random ones, and every list that is no tree."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hacore.data.tree import Tree
from hacore.errors import HacoreError

#            thing(0)
#        animal(1)        vehicle(2)
#   pet(3)     bird(4)       car(5)
# cat(6) dog(7)
HAND = Tree(("thing", "animal", "vehicle", "pet", "bird", "car", "cat", "dog"), (-1, 0, 0, 1, 1, 2, 3, 3))


def from_numbers(numbers):
    """A tree from any numbers: each says which of the nodes before it is a node's parent."""
    parents = (-1, *(number % node for node, number in enumerate(numbers, start=1)))
    return Tree(tuple(f"node {k}" for k in range(len(parents))), parents)


def test_a_tree_worked_by_hand():
    assert len(HAND) == 8
    assert HAND.depths == (0, 1, 1, 2, 2, 2, 3, 3)
    assert HAND.leaves == (4, 5, 6, 7)
    assert HAND.children(1) == (3, 4)
    assert HAND.children(7) == ()
    assert HAND.siblings(6) == (7,)
    assert HAND.siblings(3) == (4,)
    assert HAND.siblings(5) == HAND.siblings(0) == ()
    assert HAND.ancestors(7) == (7, 3, 1, 0)
    assert HAND.subtree(1) == (1, 3, 4, 6, 7)
    assert HAND.leaves_of(1) == (4, 6, 7)
    assert HAND.leaves_of(5) == (5,)
    assert (HAND.lca(6, 7), HAND.lca(6, 4), HAND.lca(6, 5), HAND.lca(3, 7)) == (3, 1, 0, 3)
    assert (HAND.distance(6, 7), HAND.distance(6, 4), HAND.distance(6, 5), HAND.distance(3, 7)) == (
        2,
        3,
        5,
        1,
    )
    assert HAND.is_ancestor(1, 7)
    assert HAND.is_ancestor(7, 7)
    assert not HAND.is_ancestor(7, 1)


@pytest.mark.parametrize(
    ("leaves", "nodes"),
    [
        ((), ()),
        ((6,), (6,)),
        ((6, 7), (3,)),
        ((7, 4, 6), (1,)),
        ((6, 4), (4, 6)),
        ((5,), (2,)),  # the only car is all vehicles there are
        ((4, 5, 6, 7), (0,)),
    ],
)
def test_the_cover_is_made_of_whole_groups(leaves, nodes):
    assert HAND.cover(leaves) == nodes


def test_nested_names_are_numbered_level_by_level():
    below = {"animal": {"pet": ["cat", "dog"], "bird": []}, "vehicle": ["car"]}
    assert Tree.nested("thing", below) == HAND
    assert Tree.nested("thing", {"b": ["y"], "a": ["x"]}).names == ("thing", "b", "a", "y", "x")


def test_names_are_found_and_near_ones_offered():
    assert [HAND.node(name) for name in HAND.names] == list(range(8))
    with pytest.raises(HacoreError, match="no concept 'dogs'; did you mean one of: dog"):
        HAND.node("dogs")
    with pytest.raises(HacoreError, match="no concept 'xyz'; did you mean one of: thing, animal"):
        HAND.node("xyz")


@given(numbers=st.lists(st.integers(0, 99), max_size=11), data=st.data())
def test_laws(numbers, data):
    tree = from_numbers(numbers)
    nodes = st.integers(0, len(tree) - 1)
    a, b, c = data.draw(nodes), data.draw(nodes), data.draw(nodes)
    assert tree.distance(a, b) == tree.distance(b, a) <= tree.distance(a, c) + tree.distance(c, b)
    assert (tree.distance(a, b) == 0) == (a == b)
    assert tree.lca(a, b) == tree.lca(b, a)
    assert tree.is_ancestor(tree.lca(a, b), a)
    assert tree.is_ancestor(a, b) == (b in tree.subtree(a)) == (tree.lca(a, b) == a)
    assert len(tree.ancestors(a)) == tree.depths[a] + 1 == tree.distance(a, 0) + 1
    assert set(tree.leaves_of(0)) == set(tree.leaves)
    leaves = data.draw(st.sets(st.sampled_from(tree.leaves)))
    cover = tree.cover(leaves)
    # The cover divides the leaves, and no node of it could be replaced by its parent.
    assert sorted(leaf for node in cover for leaf in tree.leaves_of(node)) == sorted(leaves)
    assert all(not leaves.issuperset(tree.leaves_of(tree.parents[node])) for node in cover if node)


@pytest.mark.parametrize(
    ("names", "parents", "message"),
    [
        ((), (), "at least a root"),
        (("a", "b"), (-1,), "2 names and 1 parents"),
        (("a", "b"), (0, 0), "with parent -1, not 0"),
        (("a", "b", "c"), (-1, 2, 0), "node 1 (b) of the tree has parent 2"),
        (("a", "b"), (-1, -1), "node 1 (b) of the tree has parent -1"),
        (("a", "b", "b"), (-1, 0, 0), "the name 'b'"),
        (("a", " "), (-1, 0), "the name ' '"),
    ],
)
def test_what_is_no_tree_is_refused(names, parents, message):
    with pytest.raises(HacoreError, match=re.escape(message)):
        Tree(names, parents)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: HAND.ancestors(8), "no node 8; choose one of 0..7"),
        (lambda: HAND.children(-1), "no node -1"),
        (lambda: HAND.siblings(-1), "no node -1"),
        (lambda: HAND.subtree(99), "no node 99"),
        (lambda: HAND.is_ancestor(9, 0), "no node 9"),
        (lambda: HAND.lca(0, 9), "no node 9"),
        (lambda: HAND.distance(0, 9), "no node 9"),
        (lambda: HAND.cover([3]), "'pet' is not a leaf"),
        (lambda: HAND.cover([8]), "no node 8"),
    ],
)
def test_nodes_that_are_not_there_are_refused(call, message):
    with pytest.raises(HacoreError, match=re.escape(message)):
        call()
