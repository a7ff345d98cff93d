"""Cones whose apertures and angles follow from triangles that are solved by hand."""

import math

import pytest
import torch

from hacore.data.tree import Tree
from hacore.errors import HacoreError
from hacore.evaluate import cones
from hacore.geometry import space

HYPERBOLIC = ["lorentz", "poincare"]
TREE = Tree(("thing", "polygon", "curve", "square", "hexagon", "circle"), (-1, 0, 0, 1, 1, 2))
SQUARE, HEXAGON, CIRCLE = 3, 4, 5
LEAF = math.asinh(0.4)  # the radius of a cone of 30 degrees: sin 30° = 2 · 0.1 / 0.4
GROUP = math.asinh(0.2 / math.sin(math.radians(60)))  # of 60 degrees


def at(where, *points):
    """Points of the space at these tangent vectors: in two dimensions, their direction and radius."""
    return where.exp0(torch.tensor(points))


def concepts(where):
    """Squares to the right, hexagons up, circles to the left; polygons between, curves with the circles."""
    diagonal = GROUP / math.sqrt(2)
    return at(where, (0.01, 0.0), (diagonal, diagonal), (-GROUP, 0.0), (LEAF, 0.0), (0.0, LEAF), (-LEAF, 0.0))


@pytest.mark.parametrize("name", ["euclidean", *HYPERBOLIC])
def test_radii_by_level_by_hand(name):
    where = space(name)
    texts = at(where, (0.5, 0.0), (0.0, 1.0), (0.0, 3.0), (-2.0, 0.0))
    found = cones.radii_by_level(texts, torch.tensor([0, 2, 2, 2]), at(where, (4.0, 0.0)), where)
    assert found == pytest.approx(
        {
            "radius_text_0_median": 0.5, "radius_text_0_q05": 0.5, "radius_text_0_q95": 0.5,
            # Of 1, 2, 3: a twentieth of the way from the first to the last.
            "radius_text_2_median": 2, "radius_text_2_q05": 1.1, "radius_text_2_q95": 2.9,
            "radius_image_median": 4, "radius_image_q05": 4, "radius_image_q95": 4,
        },
        abs=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_apertures_by_hand(name):
    where = space(name)
    found = cones.apertures_by_level(concepts(where), torch.tensor(TREE.depths), where)
    assert {key: found[key] for key in found if key.endswith("median")} == pytest.approx(
        {"aperture_0_median": 90, "aperture_1_median": 60, "aperture_2_median": 30}, abs=1e-3
    )
    # Twice the K, twice the sine: a half-space.
    assert cones.apertures_by_level(at(where, (LEAF, 0.0)), torch.tensor([0]), where, 0.2)[
        "aperture_0_median"
    ] == pytest.approx(90, abs=0.1)


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_cones_by_hand(name):
    where = space(name)
    # Squares: two straight behind their text, and one up, where the hexagons are. Seen from the square's text the
    # last one makes a triangle with a right angle at the origin: tan(angle there) = tanh 2 / sinh(LEAF).
    images = at(where, (0.6, 0.0), (2.0, 0.0), (0.0, 2.0))
    away = 180 - math.degrees(math.atan(math.tanh(2) / 0.4))
    found = cones.cones(images, torch.tensor([SQUARE] * 3), concepts(where), TREE, where)
    assert found == pytest.approx(
        {
            "exterior_angle_own_median": 0, "exterior_angle_own_q05": 0, "exterior_angle_own_q95": 0.9 * away,
            "in_cone_own": 200 / 3,
            # One image of three in one of two other cones.
            "in_cone_others": 100 / 6,
            # All are 45 degrees off the axis of the polygons; the nearest is seen under 67 degrees from there.
            "in_cone_parent": 200 / 3, "in_cone_group": 200 / 3,
        },
        abs=1e-3,
    )  # fmt: skip
    # Images along the axis of the polygons are in their cone and in no leaf's.
    found = cones.cones(at(where, (2.0, 2.0)), torch.tensor([HEXAGON]), concepts(where), TREE, where)
    assert (found["in_cone_own"], found["in_cone_others"]) == (0, 0)
    assert (found["in_cone_parent"], found["in_cone_group"]) == (100, 100)


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_parent_and_group_are_two_where_the_tree_is_deep(name):
    # Along one ray outward: animal 0.5, bird 1, robin 1.5; an image behind the bird is in the cone of the group alone.
    where = space(name)
    tree = Tree(("thing", "animal", "bird", "robin"), (-1, 0, 1, 2))
    points = at(where, (0.01, 0.0), (0.5, 0.0), (1.0, 0.0), (1.5, 0.0))
    found = cones.cones(at(where, (0.8, 0.0)), torch.tensor([3]), points, tree, where)
    assert (found["in_cone_own"], found["in_cone_parent"], found["in_cone_group"]) == (0, 0, 100)
    assert "in_cone_others" not in found


@pytest.mark.parametrize("name", HYPERBOLIC)
def test_inside_is_angle_by_angle(name):
    where = space(name)
    stream = torch.Generator().manual_seed(0)
    images = where.random(40, 2, generator=stream)
    texts = where.random(12, 2, max_radius=0.6, generator=stream)
    within = cones.inside(images, texts, where)
    for text in range(12):
        one = texts[text]
        expected = where.exterior_angle(one.expand(40, -1), images) <= where.half_aperture(one)
        assert torch.equal(within[:, text], expected)
    assert 0.05 < within.double().mean() < 0.95


def test_groups_by_hand():
    assert cones.groups(TREE).tolist() == [0, 1, 2, 1, 1, 2]


def test_flat_space_has_no_cones():
    flat = space("euclidean")
    points = concepts(flat)
    assert cones.cones(points[3:4], torch.tensor([SQUARE]), points, TREE, flat) == {}
    assert cones.apertures_by_level(points, torch.tensor(TREE.depths), flat) == {}
    with pytest.raises(HacoreError, match="no entailment cones"):
        cones.inside(points, points, flat)


def test_bad_input():
    where = space("lorentz")
    points = concepts(where)
    none = torch.tensor([], dtype=torch.long)
    with pytest.raises(HacoreError, match="must be a leaf"):
        cones.cones(points[:1], torch.tensor([1]), points, TREE, where)
    with pytest.raises(HacoreError, match="5 concept points for a tree of 6 nodes"):
        cones.cones(points[:1], torch.tensor([SQUARE]), points[:5], TREE, where)
    with pytest.raises(HacoreError, match="no images"):
        cones.cones(points[:0], none, points, TREE, where)
    with pytest.raises(HacoreError, match="no texts"):
        cones.apertures_by_level(points[:0], none, where)
    with pytest.raises(HacoreError, match="no images"):
        cones.radii_by_level(points, torch.tensor(TREE.depths), points[:0], where)
    with pytest.raises(HacoreError, match="root alone"):
        cones.cones(points[:1], torch.tensor([0]), points[:1], Tree(("thing",), (-1,)), where)
