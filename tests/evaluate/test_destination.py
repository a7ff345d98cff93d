"""Where forgotten images go, on a map small enough to be read by hand."""

import pytest
import torch

from hacore.data.tree import Tree
from hacore.errors import HacoreError
from hacore.evaluate.destination import PLACES, destination, places, relations, traversal
from hacore.geometry import space

HYPERBOLIC = ["lorentz", "poincare"]
TREE = Tree(
    ("thing", "polygon", "curve", "square", "hexagon", "circle", "spiral"), (-1, 0, 0, 1, 1, 2, 2)
)  # fmt: skip
POLYGON, SQUARE = 1, 3
# The root a little to the left; squares to the right behind the polygon, hexagons up, curves and circles down.
MAP = [(-0.3, 0.0), (0.5, 0.0), (0.0, -0.5), (2.0, 0.0), (0.0, 2.0), (0.0, -2.0), (-2.0, -2.0)]
IMAGES = [
    (
        1.9,
        0.0,
    ),  # nearest to the square's text, but on the way to it from the polygon's: seen from there straight on
    (0.02, -3.0),  # behind the circle
    (-3.0, 0.0),  # behind the root
    (0.0, 0.1),  # near the origin, to which all cones turn their back
    (0.0, 3.0),  # behind the hexagon
]


def at(where, points):
    return where.exp0(torch.tensor(points))


def shares(measure, **values):
    return {f"destination_{measure}_{name}": values.get(name, 0) for name in PLACES}


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_destinations_by_hand(name):
    where = space(name)
    found = destination(at(where, IMAGES), torch.full((5,), SQUARE), at(where, MAP), TREE, where)
    assert found == (
        shares("distance", own=20, elsewhere=20, root=40, sibling=20)
        | shares("angle", parent=20, elsewhere=20, root=40, sibling=20)
        | shares("cone", parent=20, elsewhere=20, root=20, nowhere=20, sibling=20)
    )


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_a_subtree_is_one_concept(name):
    # Asked for polygons, squares and hexagons are the concept's own, circles and curves are siblings.
    where = space(name)
    found = destination(at(where, IMAGES), torch.full((5,), POLYGON), at(where, MAP), TREE, where)
    assert found == (
        shares("distance", own=40, sibling=20, root=40)
        | shares("angle", own=40, sibling=20, root=40)
        | shares("cone", own=40, sibling=20, root=20, nowhere=20)
    )


def test_relations_by_hand():
    tree = Tree(("thing", "animal", "bird", "robin", "wren", "cat", "stone"), (-1, 0, 1, 2, 2, 1, 0))
    table = relations(tree)
    named = {a: {b: PLACES[table[tree.node(a), tree.node(b)]] for b in tree.names} for a in tree.names}
    assert named["robin"] == {
        "robin": "own", "wren": "sibling", "bird": "parent", "animal": "ancestor", "thing": "root",
        "cat": "elsewhere", "stone": "elsewhere",
    }  # fmt: skip
    assert named["cat"] == {
        "cat": "own", "bird": "sibling", "robin": "sibling", "wren": "sibling", "animal": "parent",
        "thing": "root", "stone": "elsewhere",
    }  # fmt: skip
    assert named["animal"] == {
        "animal": "own", "bird": "own", "robin": "own", "wren": "own", "cat": "own", "thing": "root",
        "stone": "sibling",
    }  # fmt: skip
    assert set(named["thing"].values()) == {"own"}


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_places_are_those_of_a_slow_loop(name):
    where = space(name)
    stream = torch.Generator().manual_seed(1)
    images = where.random(60, 2, max_radius=3.0, generator=stream)
    concepts = where.random(len(TREE), 2, max_radius=1.0, generator=stream)
    found = places(images, concepts, TREE, where)
    for number, image in enumerate(images):
        near = [where.dist(image, text).item() for text in concepts]
        angle = [where.exterior_angle(text, image).item() for text in concepts]
        holding = [n for n, text in enumerate(concepts) if angle[n] <= where.half_aperture(text).item()]
        holding.sort(key=lambda n: (-TREE.depths[n], angle[n]))
        expected = (near.index(min(near)), angle.index(min(angle)), holding[0] if holding else -1)
        assert tuple(found[measure][number].item() for measure in ("distance", "angle", "cone")) == expected
    assert (found["cone"] == -1).any()
    assert (found["cone"] != found["angle"]).any()


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_a_text_at_the_origin_has_no_direction(name):
    # Its exterior angle is 0 by convention, and it would win every time; its cone is all space.
    where = space(name)
    texts = at(where, [(0.0, 0.0), *MAP[1:]])
    found = places(at(where, [(-3.0, 0.5)]), texts, TREE, where)
    assert found["angle"].item() != 0
    assert found["cone"].item() == 0
    lost = places(at(where, IMAGES), torch.zeros_like(texts), TREE, where)
    assert lost["angle"].tolist() == [-1] * 5


def test_flat_space_knows_similarity_alone():
    flat = space("euclidean")
    # By cosine: (1, 1) is nearest to what lies on the diagonal, however far.
    texts = torch.tensor(
        [[-1.0, 0.0], [1.0, 0.1], [0.0, -1.0], [1.0, 0.0], [9.0, 8.0], [-1.0, -1.0], [0.1, -1.0]]
    )
    images = torch.tensor([[1.0, 1.0], [3.0, 0.0], [-5.0, 0.1], [0.5, 0.05]])
    found = destination(images, torch.full((4,), SQUARE), texts, TREE, flat)
    assert found == shares("distance", sibling=25, own=25, root=25, parent=25)


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_traversal_by_hand(name):
    where = space(name)
    texts = at(where, [(0.1, 0.0), (1.0, 0.0), (2.0, 0.0), (2.8, 0.0), (3.02, 0.0), (0.0, 1.0)])
    names = ["thing", "polygon", "star", "red star", "a red star on a wall", "circle"]
    image, origin = at(where, [(3.0, 0.0), (0.0, 0.0)])
    # Down the ray, each text from halfway to the one before to halfway to the next.
    assert traversal(image, origin, where, texts, names, steps=61) == names[4::-1]
    # No cone holds what lies before its apex: the sentence farther out than the image cannot be said of it.
    assert traversal(image, origin, where, texts, names, steps=61, min_radius=0.1) == names[3::-1]
    # With few steps texts are jumped over: at 3, 1.5 + and 0.
    assert traversal(image, origin, where, texts, names, steps=2) == [names[4], "thing"]
    assert traversal(origin, origin, where, texts[1:3], names[1:3], min_radius=0.1) == []


def test_traversal_in_flat_space_turns_to_the_root():
    flat = space("euclidean")
    texts = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    way = traversal(torch.tensor([5.0, 0.0]), torch.tensor([0.0, 5.0]), flat, texts, ["a", "b", "c"], steps=9)
    assert way == ["a", "b", "c"]
    with pytest.raises(HacoreError, match="no entailment cones"):
        traversal(texts[0], texts[2], flat, texts, ["a", "b", "c"], min_radius=0.1)


def test_bad_input():
    where = space("lorentz")
    images, texts = at(where, IMAGES), at(where, MAP)
    own = torch.full((5,), SQUARE)
    with pytest.raises(HacoreError, match="belongs to the root"):
        destination(images, torch.zeros_like(own), texts, TREE, where)
    with pytest.raises(HacoreError, match=r"the tree has 0\.\.6"):
        destination(images, own + 4, texts, TREE, where)
    with pytest.raises(HacoreError, match="4 concept points for a tree of 7"):
        destination(images, own, texts[:4], TREE, where)
    with pytest.raises(HacoreError, match="no images"):
        places(images[:0], texts, TREE, where)
    for steps, names in ((1, TREE.names), (5, TREE.names[:3])):
        with pytest.raises(HacoreError, match="cannot be told"):
            traversal(images[0], texts[0], where, texts, names, steps=steps)
