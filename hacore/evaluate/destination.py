r"""Where does a forgotten image go: to a sibling, to its parent, to the root, or nowhere?

Three answers that can disagree: the most similar text, the text that sees it under the smallest exterior angle,
and the deepest text whose cone it lies in. And the way from an image to the root, by the texts it passes.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hacore.data.tree import Tree
from hacore.errors import HacoreError
from hacore.evaluate.cones import check_concepts, inside
from hacore.evaluate.hierarchy import check_nodes
from hacore.evaluate.outputs import wide
from hacore.geometry import Euclidean, Space

NOWHERE = -1
ORIGIN = 1e-3  # a radius within which a text is at the root: no device resolves angles there
PLACES = ("own", "sibling", "parent", "ancestor", "root", "elsewhere", "nowhere")


def places(
    images: Float[Tensor, "n d"],
    concepts: Float[Tensor, "nodes d"],
    tree: Tree,
    space: Space,
    min_radius: float = 0.1,
) -> dict[str, Int[Tensor, "n"]]:
    """The tree node each image is at, -1 for nowhere, by three measures; in flat space by the first alone.

    - ``distance``: the node whose text is the most similar (the nearest; in flat space that of largest cosine);
    - ``angle``: the node at whose text the exterior angle to the image is smallest. A text at the origin
      has no direction and is no candidate;
    - ``cone``: the deepest node whose cone the image lies in, of several the one of smallest angle; nowhere
      if there is none.

    Args:
        images: points of images.
        concepts: one point per node of the tree, that of its text.
        tree: of the concepts.
        space: of the points.
        min_radius: K of the cones, as in training.

    Raises:
        HacoreError: if concepts are not one per node, or there are no images.
    """
    check_concepts(tree, concepts)
    if not len(images):
        raise HacoreError("there are no images to follow; check the split")
    out = {"distance": wide(space.similarity(images, concepts)).argmax(1)}
    if isinstance(space, Euclidean):
        return out
    angles = wide(space.pairwise_exterior_angle(concepts, images)).T
    seen = angles.where(wide(space.radius(concepts)) > ORIGIN, torch.inf)
    out["angle"] = torch.where(seen.amin(1) < torch.inf, seen.argmin(1), NOWHERE)
    within = inside(images, concepts, space, min_radius)
    depth = torch.tensor(tree.depths).expand_as(within).where(within, NOWHERE)
    deepest = depth.amax(1, keepdim=True)
    first = angles.where(depth == deepest, torch.inf).argmin(1)
    out["cone"] = torch.where(deepest.squeeze(1) >= 0, first, NOWHERE)
    return out


def relations(tree: Tree) -> Int[Tensor, "nodes nodes"]:
    """Entry (i, j): what node j is to concept i, as number of :data:`PLACES`; see :func:`destination`."""
    own, sibling, parent, ancestor, root, elsewhere = range(6)
    table = torch.full((len(tree.names), len(tree.names)), elsewhere)
    for node in range(len(tree.names)):
        for other in tree.siblings(node):
            table[node, list(tree.subtree(other))] = sibling
        table[node, list(tree.ancestors(node))] = ancestor
        table[node, tree.parents[node]] = parent  # the root has none, but all nodes are its own
        table[node, 0] = root
        table[node, list(tree.subtree(node))] = own
    return table


def destination(
    images: Float[Tensor, "n d"],
    own: Int[Tensor, "n"],
    concepts: Float[Tensor, "nodes d"],
    tree: Tree,
    space: Space,
    min_radius: float = 0.1,
) -> dict[str, float]:
    """Shares of images, in percent, by what the node they are at is to their own concept.

    ``destination_MEASURE_PLACE`` with the measures of :func:`places` (``distance``, ``angle``, ``cone``; the last
    two are absent in flat space), which add up to 100 over these places:

    - ``own``: the concept itself, or below it;
    - ``sibling``: another child of its parent, or below one;
    - ``parent`` and, above that, ``ancestor``, but not the root;
    - ``root``, also where it is the parent;
    - ``elsewhere``: any other node;
    - ``nowhere``: no node at all.

    Args:
        images: points of the forgotten images.
        own: the node each belongs to: its leaf, or, where a whole subtree was forgotten, that subtree's top.
        concepts, tree, space, min_radius: as in :func:`places`.

    Raises:
        HacoreError: as :func:`places`, or if the tree has no such node, or a concept is the root.
    """
    own = check_nodes(tree, own, "images")
    if not (own > 0).all():
        raise HacoreError("every image belongs to the root; name the concept below it that was forgotten")
    table = relations(tree)
    out: dict[str, float] = {}
    for measure, nodes in places(images, concepts, tree, space, min_radius).items():
        place = table[own, nodes].where(nodes >= 0, PLACES.index("nowhere"))
        shares = 100 * place.bincount(minlength=len(PLACES)).double() / len(place)
        out |= {
            f"destination_{measure}_{name}": share
            for name, share in zip(PLACES, shares.tolist(), strict=True)
        }
    return out


def traversal(
    image: Float[Tensor, "d"],
    root: Float[Tensor, "d"],
    space: Space,
    texts: Float[Tensor, "t d"],
    names: Sequence[str],
    steps: int = 50,
    min_radius: float | None = None,
) -> list[str]:
    """The texts most similar to the points of the geodesic from an image to the root, in order, each once.

    The image traversals of :cite:t:`desai2023meru`, who walk from the image to the origin and let only those texts
    answer whose cone holds the point; ``min_radius`` does the same.

    Args:
        image: where the way starts.
        root: where it ends: the origin, the text of the root, or in flat space the mean of all points.
        space: of all points.
        texts: what may be passed.
        names: the words of each text.
        steps: points on the way, both ends among them.
        min_radius: K of the cones, to let only texts whose cone holds the point answer; None asks all.

    Returns:
        Names, the image's nearest first. With ``min_radius`` a point in no cone adds none, so that it can be empty.

    Raises:
        HacoreError: if there are no texts or not as many names, or fewer than two steps; with ``min_radius`` in
            flat space, which has no cones.
    """
    if steps < 2 or not len(texts) or len(names) != len(texts):
        raise HacoreError(
            f"a way of {steps} steps past {len(texts)} texts with {len(names)} names cannot be told; "
            "use two steps or more and one name per text"
        )
    share = torch.linspace(0, 1, steps, device=image.device)
    way = space.geodesic(image.expand(steps, -1), root.expand(steps, -1), share)
    similarity = wide(space.similarity(way, texts))
    if min_radius is not None:
        similarity = similarity.where(inside(way, texts, space, min_radius), -torch.inf)
    best, nearest = similarity.max(1)
    return list(dict.fromkeys(names[k] for k in nearest[best > -torch.inf].tolist()))
