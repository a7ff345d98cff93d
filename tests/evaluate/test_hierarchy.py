"""Errors by the tree counted by hand, and tree-likeness of distances that are known."""

import math

import pytest
import torch

from hacore.data.tree import Tree
from hacore.errors import HacoreError
from hacore.evaluate import hierarchy
from hacore.geometry import Euclidean, space

# 0 thing; 1 polygon, 2 curve; 3 square, 4 hexagon (polygons), 5 circle (a curve).
TREE = Tree(("thing", "polygon", "curve", "square", "hexagon", "circle"), (-1, 0, 0, 1, 1, 2))
SQUARE, HEXAGON, CIRCLE, POLYGON = 3, 4, 5, 1


def errors(predicted, true, **options):
    return hierarchy.hierarchy_errors(torch.tensor([predicted]), torch.tensor([true]), TREE, **options)


def scores(*values):
    names = ("tie", "lca_error", "jaccard", "hierarchical_precision", "hierarchical_recall")
    return pytest.approx(dict(zip(names, values, strict=True)))


def test_errors_by_hand():
    assert errors(SQUARE, SQUARE) == scores(0, 0, 100, 100, 100)
    # {hexagon, polygon, thing} and {square, polygon, thing} share two of four.
    assert errors(HEXAGON, SQUARE) == scores(2, 1, 50, 200 / 3, 200 / 3)
    # {circle, curve, thing} shares only the thing, one of five.
    assert errors(CIRCLE, SQUARE) == scores(4, 2, 20, 100 / 3, 100 / 3)
    # {polygon, thing} is all right, but not all there is.
    assert errors(POLYGON, SQUARE) == scores(1, 0, 200 / 3, 100, 200 / 3)
    mean = hierarchy.hierarchy_errors(torch.tensor([SQUARE, CIRCLE]), torch.tensor([SQUARE, SQUARE]), TREE)
    assert mean == scores(2, 1, 60, 200 / 3, 200 / 3)


def test_published_errors_by_hand():
    # Without the class itself: {polygon, thing} for both squares and hexagons, {curve, thing} for circles.
    assert errors(SQUARE, SQUARE, published=True) == scores(0, 1, 100, 100, 100)
    assert errors(HEXAGON, SQUARE, published=True) == scores(2, 1, 100, 100, 100)
    assert errors(CIRCLE, SQUARE, published=True) == scores(4, 2, 100 / 3, 50, 50)
    # {thing} of polygon, {polygon, thing} of square.
    assert errors(POLYGON, SQUARE, published=True) == scores(1, 1, 50, 100, 50)


@pytest.mark.parametrize("published", [False, True])
def test_errors_are_those_of_sets_in_a_slow_loop(published):
    for predicted in range(1, len(TREE)):
        for true in range(1, len(TREE)):
            mine, theirs = (set(TREE.ancestors(node)[published:]) for node in (predicted, true))
            both = len(mine & theirs)
            found = errors(predicted, true, published=published)
            lca = TREE.depths[predicted] - TREE.depths[TREE.lca(predicted, true)]
            assert found == scores(
                TREE.distance(predicted, true),
                len(mine) - both + 1 if published else lca,
                100 * both / len(mine | theirs),
                100 * both / len(mine),
                100 * both / len(theirs),
            )


def test_tree_distances_are_those_of_the_tree():
    table = hierarchy.tree_distances(TREE)
    assert all(table[a, b] == TREE.distance(a, b) for a in range(len(TREE)) for b in range(len(TREE)))


@pytest.mark.parametrize("base", [0, 2, 5])
def test_a_tree_is_a_tree(base):
    assert hierarchy.gromov(hierarchy.tree_distances(TREE), base) == {
        "delta": 0,
        "delta_relative": 0,
    }


def test_a_cycle_by_hand():
    # Base 0 of the cycle 0-1-2-3: (1|3) = (1 + 1 - 2) / 2 = 0, but (1|2) = (2|3) = (1 + 2 - 1) / 2 = 1.
    cycle = torch.tensor([[0, 1, 2, 1], [1, 0, 1, 2], [2, 1, 0, 1], [1, 2, 1, 0]]).double()
    assert hierarchy.gromov(cycle) == {"delta": 1, "delta_relative": 1}
    assert hierarchy.gromov(3 * cycle) == {"delta": 3, "delta_relative": 1}


def test_delta_is_that_of_a_slow_loop():
    points = torch.randn(hierarchy.ROWS + 7, 3, generator=torch.Generator().manual_seed(0)).double()
    d = torch.cdist(points, points)
    products = (d[4, :, None] + d[4] - d) / 2
    expected = max(
        (torch.minimum(products[x], products[:, z]).max() - products[x, z]).item()
        for x in range(len(d))
        for z in range(len(d))
    )
    assert hierarchy.gromov(d, base=4)["delta"] == pytest.approx(expected, abs=1e-12)


def test_the_hyperbolic_plane_is_thin():
    # Its delta is log 2 / √c, however far the points; that of the plane grows with them.
    stream = torch.Generator().manual_seed(0)
    where = space("lorentz", curv=4.0)
    points = where.random(200, 2, max_radius=5.0, generator=stream)
    delta = hierarchy.gromov(hierarchy.distances(points, where))["delta"]
    assert 0.8 * math.log(2) / 2 < delta < math.log(2) / 2 + 1e-4
    flat = Euclidean(similarity="distance")
    found = hierarchy.gromov(hierarchy.distances(where.log0(points), flat))
    assert found["delta"] > 1.5
    assert found["delta_relative"] > 0.3


def test_one_point_has_no_relative_delta():
    assert hierarchy.gromov(torch.zeros(5, 5)) == {"delta": 0}


def test_distances_are_of_what_is_compared():
    points = torch.tensor([[2.0, 0.0], [0.0, 5.0], [1.0, 0.0]])
    root2 = math.sqrt(2)
    # The cosine does not see length: the first and the last are one point.
    expected = torch.tensor([[0, root2, 0], [root2, 0, root2], [0, root2, 0]]).double()
    torch.testing.assert_close(hierarchy.distances(points, space("euclidean")), expected, rtol=0, atol=1e-6)
    flat = hierarchy.distances(points, Euclidean(similarity="distance"))
    assert flat[0, 2].item() == pytest.approx(1)
    # On a ray from the origin distances are differences of radii.
    where = space("poincare")
    ray = where.exp0(torch.tensor([[2.0, 0.0], [0.5, 0.0]]))
    assert hierarchy.distances(ray, where)[0, 1].item() == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize("name", ["euclidean", "lorentz", "poincare"])
def test_depth_radius_correlation_by_hand(name):
    where = space(name)
    points = where.exp0(torch.tensor([[1.0, 0.0], [0.0, 2.0], [-3.0, 0.0]]))
    # Ranks 1, 2, 3 of the radii, 1, 2.5, 2.5 of the levels; centred (-1, 0, 1) and (-1, .5, .5): 1.5 / √(2 · 1.5).
    found = hierarchy.depth_radius_correlation(points, torch.tensor([0, 1, 1]), where)
    assert found == pytest.approx(math.sqrt(3) / 2)
    inward = hierarchy.depth_radius_correlation(points, torch.tensor([2, 1, 0]), where)
    assert inward == pytest.approx(-1)
    assert hierarchy.depth_radius_correlation(points, torch.tensor([1, 1, 1]), where) is None
    # One radius for all, but for rounding, is no order.
    circle = torch.arange(50).double()
    around = where.exp0(torch.stack([circle.cos(), circle.sin()], dim=1).float())
    assert hierarchy.depth_radius_correlation(around, torch.arange(50), where) is None


def test_ordered_levels_reach_the_stated_ceiling():
    where = space("lorentz")
    radius = torch.linspace(0.1, 3, 400)[:, None]
    found = hierarchy.depth_radius_correlation(where.exp0(radius), torch.arange(400) // 100, where)
    assert found == pytest.approx(math.sqrt(1 - 1 / 16), abs=1e-4)


def test_tree_distance_correlation_by_hand():
    tree = Tree(("thing", "left", "right"), (-1, 0, 0))
    nodes = torch.tensor([0, 1, 2])
    line = torch.tensor([0.0, -1.0, 1.0])
    # Edges 1, 1, 2 of the pairs (0, 1), (0, 2), (1, 2), and distances 1, 1, 2.
    d = (line[:, None] - line).abs()
    found = hierarchy.tree_distance_correlation(d, nodes, tree)
    assert found == pytest.approx(1)
    # Distances 2, 1, 1: centred (2, -1, -1) / 3 with (-1, -1, 2) / 3 is -3 / 6.
    line = torch.tensor([0.0, 2.0, 1.0])
    d = (line[:, None] - line).abs()
    found = hierarchy.tree_distance_correlation(d, nodes, tree)
    assert found == pytest.approx(-0.5)
    assert hierarchy.tree_distance_correlation(torch.zeros(3, 3), nodes, tree) is None
    assert hierarchy.tree_distance_correlation(d, torch.tensor([0, 0, 0]), tree) is None


def test_bad_input():
    with pytest.raises(HacoreError, match=r"predictions are nodes 6\.\.6, but the tree has 0\.\.5"):
        errors(6, 3)
    with pytest.raises(HacoreError, match="below the root"):
        errors(0, 3, published=True)
    none = torch.tensor([], dtype=torch.long)
    with pytest.raises(HacoreError, match="no predictions"):
        hierarchy.hierarchy_errors(none, none, TREE)
    with pytest.raises(HacoreError, match="no base point 4"):
        hierarchy.gromov(torch.zeros(4, 4), base=4)
    with pytest.raises(HacoreError, match="finite and not negative"):
        hierarchy.gromov(torch.full((2, 2), torch.nan))
