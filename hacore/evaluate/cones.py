r"""Radii, apertures and entailment cones: where texts of each level and images lie in a hyperbolic space.

The aperture is the half-aperture of :cite:t:`desai2023meru`, the angle between the axis of a cone and its
surface: 90 degrees for a half-space. Cones saturate, so that shares inside them say little without it. All
angles are in degrees. Flat space has radii, but no cones: their measures are absent there.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.data.tree import Tree
from hacore.errors import HacoreError
from hacore.evaluate.hierarchy import ancestor_table, check_nodes
from hacore.evaluate.outputs import wide
from hacore.geometry import Euclidean, Space


def radii_by_level(
    texts: Float[Tensor, "t d"],
    levels: Int[Tensor, "t"],
    images: Float[Tensor, "n d"],
    space: Space,
) -> dict[str, float]:
    """Distances from the origin: ``radius_text_L_median``, ``_q05``, ``_q95`` for every level L that has texts.

    And ``radius_image_...`` of the images, which belong outside of all of them.

    Args:
        texts: points of texts.
        levels: the level of each, from 0, the root's.
        images: points of images.
        space: of the points.

    Raises:
        HacoreError: if there are no texts or no images.
    """
    radius = wide(space.radius(texts))
    out = _by_level(radius, levels, "radius_text")
    return out | _spread(wide(space.radius(images)), "radius_image")


def apertures_by_level(
    texts: Float[Tensor, "t d"], levels: Int[Tensor, "t"], space: Space, min_radius: float = 0.1
) -> dict[str, float]:
    """Half-apertures in degrees: ``aperture_L_median``, ``_q05``, ``_q95`` for every level L that has texts.

    Empty in flat space.

    Args:
        texts, levels, space: as in :func:`radii_by_level`.
        min_radius: K of the cones, as in training.

    Raises:
        HacoreError: if there are no texts, or ``min_radius <= 0``.
    """
    if isinstance(space, Euclidean):
        return {}
    return _by_level(wide(space.half_aperture(texts, min_radius)).rad2deg(), levels, "aperture")


def inside(
    images: Float[Tensor, "n d"],
    texts: Float[Tensor, "t d"],
    space: Space,
    min_radius: float = 0.1,
) -> Bool[Tensor, "n t"]:
    """Which image lies in the cone of which text: its exterior angle there is at most the half-aperture.

    Raises:
        HacoreError: in flat space, which has no cones.
    """
    angles = wide(space.pairwise_exterior_angle(texts, images))
    return (angles <= wide(space.half_aperture(texts, min_radius))[:, None]).T


def cones(
    images: Float[Tensor, "n d"],
    own: Int[Tensor, "n"],
    concepts: Float[Tensor, "nodes d"],
    tree: Tree,
    space: Space,
    min_radius: float = 0.1,
) -> dict[str, float]:
    """How images lie to the cones of the concepts' texts.

    - ``exterior_angle_own_median``, ``_q05``, ``_q95``: the angle of an image at the text of its own leaf, degrees;
    - ``in_cone_own``: the share of images inside the cone of their own leaf, in percent;
    - ``in_cone_others``: the mean share of other leaves whose cones an image lies in, in percent;
    - ``in_cone_parent``: the share in the cone of the leaf's parent;
    - ``in_cone_group``: the share in that of its group, the ancestor right below the root; absent where
      every leaf is its own group.

    Empty in flat space.

    Args:
        images: points of images.
        own: the tree node, a leaf, of each.
        concepts: one point per node of the tree, that of its text.
        tree: of the concepts.
        space: of the points.
        min_radius: K of the cones, as in training.

    Raises:
        HacoreError: if there are no images, concepts are not one per node, or a concept is no leaf of the tree.
    """
    if isinstance(space, Euclidean):
        return {}
    own = check_nodes(tree, own, "images")
    check_concepts(tree, concepts)
    leaves = torch.tensor(tree.leaves)
    if not torch.isin(own, leaves).all():
        raise HacoreError("an image's own concept must be a leaf of the tree; use the data set's leaf_of")
    parent = torch.tensor(tree.parents)[own]
    if (parent < 0).any():
        raise HacoreError("a tree that is a root alone has no cones to tell apart; use a tree with leaves")
    within = inside(images, concepts, space, min_radius)
    rows = torch.arange(len(own))
    angles = wide(space.exterior_angle(concepts[own.to(concepts.device)], images)).rad2deg()
    out = _spread(angles, "exterior_angle_own")
    mine = within[rows, own]
    out["in_cone_own"] = _percent(mine)
    if len(leaves) > 1:
        out["in_cone_others"] = _percent((within[:, leaves].sum(1) - mine.int()) / (len(leaves) - 1))
    out["in_cone_parent"] = _percent(within[rows, parent])
    group = groups(tree)[own]
    if (group != own).any():
        out["in_cone_group"] = _percent(within[rows, group])
    return out


def groups(tree: Tree) -> Int[Tensor, "nodes"]:
    """The ancestor of every node right below the root, which is its own group; that of the root is the root."""
    depth = torch.tensor(tree.depths)
    # Every other node has one ancestor of depth 1; argmax finds it, and 0, the root, for the root.
    return (ancestor_table(tree) & (depth == 1)).int().argmax(1)


def check_concepts(tree: Tree, concepts: Tensor) -> None:
    """Raise HacoreError unless there is one point per node of the tree."""
    if len(concepts) != len(tree.names):
        raise HacoreError(
            f"there are {len(concepts)} concept points for a tree of {len(tree.names)} nodes; give one per node, "
            "in the order of the tree"
        )


def _by_level(values: Tensor, levels: Tensor, name: str) -> dict[str, float]:
    levels = levels.cpu()
    if not len(levels):
        raise HacoreError("there are no texts to measure; check the data set's captions")
    out: dict[str, float] = {}
    for level in levels.unique().tolist():
        out |= _spread(values[levels == level], f"{name}_{level}")
    return out


def _spread(values: Tensor, name: str) -> dict[str, float]:
    """Median, 5 % and 95 % quantile."""
    if not len(values):
        raise HacoreError("there are no images to measure; check the split")
    q05, median, q95 = values.quantile(torch.tensor([0.05, 0.5, 0.95]).double()).tolist()
    return {f"{name}_median": median, f"{name}_q05": q05, f"{name}_q95": q95}


def _percent(shares: Tensor) -> float:
    return 100 * shares.double().mean().item()
