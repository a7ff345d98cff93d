r"""Hierarchy: how far in a tree of concepts errors go, and how tree-like the points of a model lie."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from scipy.stats import spearmanr
from torch import Tensor

from hacore.data.tree import Tree
from hacore.errors import HacoreError
from hacore.evaluate.outputs import wide
from hacore.geometry import Euclidean, Space

ROWS = 64  # of the matrix of Gromov products at a time: they stay in the processor's cache
CONSTANT = 1e-6  # relative spread below which values differ by rounding only


def ancestor_table(tree: Tree) -> Bool[Tensor, "nodes nodes"]:
    """Entry (i, j): whether node j is an ancestor of node i; a node is its own."""
    table = torch.zeros(len(tree.names), len(tree.names), dtype=torch.bool)
    for node in range(len(tree.names)):
        table[node, list(tree.ancestors(node))] = True
    return table


def tree_distances(tree: Tree) -> Float[Tensor, "nodes nodes"]:
    """The number of edges between any two nodes: both depths less twice that of their lowest common ancestor."""
    table = ancestor_table(tree).double()
    depth = torch.tensor(tree.depths).double()
    # Nodes share the ancestors of their lowest common one, itself included: its depth and one.
    return depth[:, None] + depth - 2 * (table @ table.T - 1)


def check_nodes(tree: Tree, nodes: Tensor, name: str) -> Tensor:
    """Return ``nodes`` on the CPU if there are any and the tree has all of them, else raise HacoreError."""
    nodes = nodes.cpu()
    if not len(nodes):
        raise HacoreError(f"there are no {name} to measure; check the split")
    if nodes.min() < 0 or nodes.max() >= len(tree.names):
        raise HacoreError(
            f"{name} are nodes {nodes.min()}..{nodes.max()}, but the tree has 0..{len(tree.names) - 1}; "
            "use the data set's own tree"
        )
    return nodes


def hierarchy_errors(
    predicted: Int[Tensor, "n"], true: Int[Tensor, "n"], tree: Tree, published: bool = False
) -> dict[str, float]:
    r"""How wrong predictions are, by the tree: the five measures of :cite:t:`pal2025hycoclip`, means over images.

    With :math:`A(v)` the ancestors of a node v, itself among them, :math:`\hat y` predicted and y true:

    - ``tie``, the tree-induced error: edges between the two, 0 where it is right;
    - ``lca_error``: edges from :math:`\hat y` up to the lowest common ancestor, 0 where it is right;
    - ``jaccard``: :math:`|A(\hat y) \cap A(y)| \,/\, |A(\hat y) \cup A(y)|`, in percent;
    - ``hierarchical_precision``: :math:`|A(\hat y) \cap A(y)| \,/\, |A(\hat y)|`, in percent;
    - ``hierarchical_recall``: :math:`|A(\hat y) \cap A(y)| \,/\, |A(y)|`, in percent.

    Their code leaves a class out of its own ancestors, so that to take a class for its sibling is no error in
    the last three, and gives a right answer the LCA error 1. ``published=True`` counts like that.

    Args:
        predicted, true: nodes of the tree; usually leaves.
        tree: of the concepts.
        published: count as the authors' code does.

    Raises:
        HacoreError: if there are no predictions, the tree has no such node, or, with ``published``, one is the
            root, which has no ancestors then.
    """
    predicted, true = check_nodes(tree, predicted, "predictions"), check_nodes(tree, true, "true concepts")
    depth = torch.tensor(tree.depths)
    table = ancestor_table(tree)
    shared = (table[predicted] & table[true]).sum(1)
    mine, theirs = depth[predicted] + 1, depth[true] + 1
    tie, lca_error = mine + theirs - 2 * shared, mine - shared
    if published:
        if min(mine.min(), theirs.min()) == 1:
            raise HacoreError("the published measures are of classes below the root; leave out the root")
        # Without itself a class has one ancestor less, and one less is shared where either is above the other.
        within = table[predicted, true].int() | table[true, predicted].int()
        shared, mine, theirs = shared - within, mine - 1, theirs - 1
        lca_error = mine - shared + 1
    scores = {
        "tie": tie,
        "lca_error": lca_error,
        "jaccard": 100 * shared.double() / (mine + theirs - shared),
        "hierarchical_precision": 100 * shared.double() / mine,
        "hierarchical_recall": 100 * shared.double() / theirs,
    }
    return {name: values.double().mean().item() for name, values in scores.items()}


def distances(points: Float[Tensor, "n d"], space: Space) -> Float[Tensor, "n n"]:
    """All distances between points, by what the space compares with, in float64 on the CPU.

    Geodesic distances; where the similarity is the cosine, which does not see length, chords between the points
    normalised to the unit sphere.
    """
    if isinstance(space, Euclidean) and space.kind == "cosine":
        points = F.normalize(space.exp0(points), dim=1)
    return wide(space.pairwise(points, points, refine=True))


def gromov(distances: Float[Tensor, "n n"], base: int = 0) -> dict[str, float]:
    r"""Gromov's :math:`\delta`-hyperbolicity: how far the points are from lying on a tree, 0 for one that does.

    With the Gromov products :math:`(x|y) = \tfrac12 (d_{xw} + d_{yw} - d_{xy})` at a base point w, the
    four-point condition asks :math:`(x|z) \ge \min\{(x|y), (y|z)\} - \delta` for all x, y, z:

    .. math:: \delta = \max_{x, z} \Big( \max_y \min\{(x|y), (y|z)\} - (x|z) \Big)

    (:cite:t:`khrulkov2020`, Sec. 3.2). Over all base points the maximum is at most twice that of one. Work grows
    with n³: one second for a thousand points.

    Args:
        distances: of all points; those of :func:`distances` and :func:`tree_distances` are fit.
        base: number of the point w.

    Returns:
        ``delta`` in units of the distance, and ``delta_relative``, :math:`2 \delta` over the largest
        distance, from 0 (a tree) to 1; the latter is absent where all points are one.

    Raises:
        HacoreError: if there is no such base point, or a distance is negative or not finite.
    """
    if not 0 <= base < len(distances):
        raise HacoreError(f"there is no base point {base} among {len(distances)} points; use one of them")
    d = wide(distances)
    if not (d >= 0).all() or not d.isfinite().all():
        raise HacoreError("distances must be finite and not negative; check the points")
    d = (d + d.T) / 2  # equal up to rounding
    products = (d[base, :, None] + d[base] - d) / 2
    delta = 0.0
    for start in range(0, len(d), ROWS):
        # Both sides are symmetric: columns left of the block were rows of an earlier one.
        rows, columns = products[start : start + ROWS], products[:, start:]
        best = torch.full_like(rows[:, start:], -torch.inf)
        smaller = torch.empty_like(best)
        for y in range(len(d)):
            torch.minimum(rows[:, y, None], columns[y], out=smaller)
            torch.maximum(best, smaller, out=best)
        delta = max(delta, (best - rows[:, start:]).max().item())
    largest = d.max().item()
    return {"delta": delta} | ({"delta_relative": 2 * delta / largest} if largest > 0 else {})


def depth_radius_correlation(
    points: Float[Tensor, "n d"], depths: Int[Tensor, "n"], space: Space
) -> float | None:
    """Spearman's rank correlation, -1..1, of the level of texts in the tree with their distance from the origin.

    Points of one level have one rank and different radii, so that even radii ordered by level do not give 1:
    with k levels of equal size √(1 - 1/k²), 0.97 for four. No number where all radii or levels are the same.

    Args:
        points: of texts.
        depths: the level of each; 0 is the root.
        space: of the points.
    """
    radius, level = wide(space.radius(points)), wide(depths)
    if not _varies(radius) or not _varies(level):
        return None
    return float(spearmanr(radius.numpy(), level.numpy()).statistic)


def tree_distance_correlation(
    distances: Float[Tensor, "n n"], nodes: Int[Tensor, "n"], tree: Tree
) -> float | None:
    """Pearson's correlation, -1..1, of distances between points with edges between their nodes, over all pairs.

    For leaves of one depth it is the cophenetic correlation of the tree with the points. No number where
    one of the two does not vary.

    Args:
        distances: of all points, see :func:`distances`.
        nodes: the tree node of each point.
        tree: of the concepts.

    Raises:
        HacoreError: if there are no points, or the tree has no such node.
    """
    nodes = check_nodes(tree, nodes, "texts")
    pairs = torch.triu_indices(len(nodes), len(nodes), 1)
    d, edges = wide(distances)[pairs[0], pairs[1]], tree_distances(tree)[nodes[pairs[0]], nodes[pairs[1]]]
    if not _varies(d) or not _varies(edges):
        return None
    return torch.corrcoef(torch.stack([d, edges]))[0, 1].item()


def _varies(values: Tensor) -> bool:
    return len(values) > 1 and bool(values.max() - values.min() > CONSTANT * values.abs().max())
