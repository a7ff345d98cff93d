r"""Hyperbolic Alignment Calibration: forget images leave their texts, and the place their texts had in the hierarchy.

The terms are functions of similarities, or of points and a space, and none asks which geometry it is in
except for cones and radii, which flat space has not. With their weights at 0 and cosines for similarities
what is left is Alignment Calibration for CLIP: there is one code path.

Similarity is minus the geodesic distance in hyperbolic space, with no least value: whatever lowers it goes
on to the edge of what floating point resolves. So each term that lowers similarities stops at a *floor*, the
similarity at which forgetting is complete; terms that raise them end by themselves, distances being >= 0 and
cosines <= 1. That bounds every term from below, whatever the weights.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.errors import HacoreError
from hacore.geometry import Euclidean, Hyperbolic, Space
from hacore.losses.image_text import check_logit_scale, entailment, exclusion

BEYOND = 1.5  # a true pair is forgotten at this many times the mean distance of wrong pairs ...
REACH = 0.75  # ... but no farther than this share of the largest radius


@dataclass(frozen=True)
class Weights:
    """Weights of the terms, all >= 0, 0 switching a term off, and what the terms ask for.

    The defaults are Alignment Calibration, which every space has.

    Raises:
        HacoreError: a weight, the margin or the target is negative or not finite, or the bound is unknown.
    """

    negative: float = 1.0
    positive: float = 1.0
    preserving: float = 1.0
    entailment: float = 0.0  # hyperbolic space only
    norm: float = 0.0  # hyperbolic space only
    parent: float = 0.0  # keep the parent: needs the parents' texts
    margin: float = 0.1  # radians between a text's cone and its forget images
    target: float = 0.0  # geodesic radius for forget images; 0 is the root
    bound: str = "margin"  # or none: the raw terms, without a floor

    def __post_init__(self) -> None:
        """Check every number."""
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "bound":
                if value not in ("margin", "none"):
                    raise HacoreError(f"unknown bound {value!r}: choose margin or none")
            elif not (math.isfinite(value) and value >= 0):
                raise HacoreError(
                    f"{field.name} of the calibration is {value}: give a finite number that is not negative"
                )


def similarity_floor(wrong: Float[Tensor, ""], space: Space) -> Float[Tensor, ""]:
    r"""The similarity at which a true pair counts as forgotten, from the mean similarity of wrong pairs.

    Cosines: that mean itself. Distances: 1.5 times that mean, because a true pair as near as a wrong one is on
    average is still nearer than half of them; but at most 0.75 of the space's largest radius: pushing points
    apart raises the mean, so that the floor would run away from them. Without a gradient.
    """
    wrong = wrong.detach()
    if not isinstance(space, Hyperbolic):
        return wrong
    return (BEYOND * wrong).clamp_min(-REACH * space.max_radius.detach().to(wrong.dtype))


def positive_calibration(
    similarity: Float[Tensor, "n"], floor: float | Float[Tensor, ""], temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "n"]:
    r"""True pairs apart: :math:`\max(0, s(x_i, t_i) - s_0) / \tau` with the floor :math:`s_0`.

    With the floor at :math:`-\infty` it is the raw term :math:`s(x_i, t_i) / \tau`, which has no least value
    where similarity is minus a distance: nothing in it ends the push, and points fly to the edge of the space.

    Args:
        similarity: of each forget image and its text.
        floor: from :func:`similarity_floor`; no gradient beyond it.
        temperature: :math:`\tau > 0`.

    Source: positive calibration of :cite:t:`wang2025muc` and :cite:t:`pujolvidal2025hac`, our reading; the
    floor is ours. Chapter *Hyperbolic alignment calibration*.
    """
    if isinstance(floor, float) and floor == -math.inf:
        return similarity / temperature
    return (similarity - floor).relu() / temperature


def negative_calibration(
    similarity: Float[Tensor, "n m"], true: Bool[Tensor, "n m"], temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "n"]:
    r"""Wrong pairs together: :math:`-\operatorname{mean}_{j \notin P_i} s(x_i, t_j) / \tau`, true texts :math:`P_i`.

    Candidates have to come from retain and forget pairs alike. Within a single concept the texts of other
    images are as good as the image's own, and the term would undo positive calibration; within the
    forgotten concepts only, it makes hubs of their texts. At least 0 for distances, :math:`-1/\tau` for
    cosines, and 0 for an image of which every candidate is true.

    Source: negative calibration of :cite:t:`wang2025muc` and :cite:t:`pujolvidal2025hac`, our reading.
    """
    wrong = (~true).to(similarity.dtype)
    return -(wrong * similarity).sum(1) / (wrong.sum(1).clamp_min(1) * temperature)


def performance_preserving(
    similarity: Float[Tensor, "n m"], floor: float | Float[Tensor, ""], temperature: float | Float[Tensor, ""]
) -> Float[Tensor, "n"]:
    r"""Forget images spread over the texts: :math:`\max(\log \sum_j e^{s(x_i, t_j) / \tau}, \log m + s_0 / \tau)`.

    It pushes an image from what it is nearest to, as the denominator of the contrast did in training, and so
    keeps negative calibration from piling images up. The bound is its value where all m candidates are at
    the floor :math:`s_0`; with the floor at :math:`-\infty` it is the raw term, unbounded for distances.

    Source: performance preserving of :cite:t:`wang2025muc` and :cite:t:`pujolvidal2025hac`, our reading: the
    uniformity of :cite:t:`wangisola2020` over forget images.
    """
    spread = (similarity / temperature).logsumexp(1)
    if isinstance(floor, float) and floor == -math.inf:
        return spread
    least = math.log(similarity.shape[1]) + torch.as_tensor(floor / temperature)
    return torch.maximum(spread, least.to(spread))


def cone_calibration(
    texts: Float[Tensor, "n _"],
    images: Float[Tensor, "k _"],
    space: Space,
    margin: float = 0.1,
    min_radius: float = 0.1,
) -> Float[Tensor, "n"]:
    r"""Images out of their text's cone: :math:`\max(0, \operatorname{aper}(t_i) - \operatorname{ext}(t_i, x_i) + m)`.

    The entailment of training, turned round: 0 once the image is outside by the margin. That is
    :func:`~hacore.losses.exclusion` of an image from the cone that held it; arguments and errors as there.

    Source: entailment calibration of :cite:t:`pujolvidal2025hac`, our reading.
    """
    return exclusion(texts, images, space, margin, min_radius)


def norm_regularisation(points: Float[Tensor, "n _"], target: float, space: Space) -> Float[Tensor, "n"]:
    r"""Forget images at a given height: :math:`(r(x_i) - r_0)^2`, r the geodesic radius; 0 is the root.

    Source: norm regularisation of :cite:t:`pujolvidal2025hac`, our reading.
    """
    return (space.radius(points) - target).square()


def parent_calibration(
    parents: Float[Tensor, "n _"], images: Float[Tensor, "k _"], space: Space, min_radius: float = 0.1
) -> Float[Tensor, "n"]:
    """Forget the dog, keep the animal: the entailment of each forget image by the text of its concept's parent.

    In flat space, which has no cones, 1 minus the cosine of the two, so that CLIP has the option too.
    Not in the source: ours. Raises HacoreError as :func:`~hacore.losses.entailment`.
    """
    if isinstance(space, Hyperbolic):
        return entailment(parents, images, space, min_radius)
    return 1 - space.paired_similarity(parents, images)


def hyperbolic_alignment_calibration(
    retain_loss: Float[Tensor, ""],
    images: Float[Tensor, "n _"],
    texts: Float[Tensor, "k _"],
    candidates: Float[Tensor, "m _"],
    true: Bool[Tensor, "_ _"],
    space: Space,
    logit_scale: float | Float[Tensor, ""],
    weights: Weights,
    parents: Float[Tensor, "p _"] | None = None,
    min_radius: float = 0.1,
    floor: float | None = None,
    compare: Callable[[Tensor, Tensor], Tensor] | None = None,
    own: Int[Tensor, "n"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    r"""Hyperbolic Alignment Calibration (HAC); with cosines and no cones, Alignment Calibration (AC) for CLIP.

    .. math:: L = L_R + \alpha L_{neg} + \beta L_{pos} + \gamma L_{perf} + \lambda_e L_{cone} + \lambda_n L_{norm}
              + \lambda_p L_{parent},

    each of the six the mean, over forget images, of a function of this module, and :math:`L_R` the loss of
    training on retain pairs. The temperature is a constant here: else the loss would fall by warming up.

    Args:
        retain_loss: :math:`L_R`.
        images: forget images, points of the space.
        texts: one text for each, which it is to be torn from.
        candidates: the texts of the batch, of retain and forget pairs.
        true: which candidate is true of which forget image.
        space: the geometry all live in; flat space only with cosines, which are bounded.
        logit_scale: :math:`1 / \tau > 0`.
        weights: of the terms; those of weight 0 are not computed.
        parents: with ``weights.parent``, the text of the parent of each image's concept.
        min_radius: of the cones, as in training.
        floor: similarity at which forgetting is complete; None takes :func:`similarity_floor` of the mean
            wrong pair of this batch. Without effect with ``weights.bound = "none"``.
        compare: what the model compares images and texts by, (n, d) and (m, d) to (n, m), where it is not the
            space's similarity; bounded from below, as minus an angle is.
        own: the place of each image's text among the candidates, where it is known; None compares texts once more.

    Returns:
        The loss, and its parts without their weights: "retain" and those switched on of "negative
        calibration", "positive calibration", "preserving", "entailment calibration", "norm regularisation" and
        "parent". With several processes each has its own forget images; the mean of losses is that of all.

    Raises:
        HacoreError: if there are no forget images or candidates, points do not pair up, entailment or norm has
            a weight in flat space, flat space is without cosines, parents are missing or ``logit_scale <= 0``.

    Source: :cite:t:`pujolvidal2025hac` and, for the first three terms, :cite:t:`wang2025muc`. Neither gives the
    exact equations to us: every term is our reading. Chapter *Hyperbolic alignment calibration*.
    """
    _check(images, texts, candidates, true, space, weights, parents)
    check_logit_scale(logit_scale)
    temperature = 1 / (logit_scale.detach() if isinstance(logit_scale, Tensor) else logit_scale)

    terms: dict[str, tuple[float, Tensor]] = {}
    if weights.negative or weights.positive or weights.preserving:
        similar = compare or space.similarity
        similarity = similar(images, candidates)
        lowest: float | Tensor = -math.inf
        if weights.bound == "margin" and (weights.positive or weights.preserving):
            if floor is not None:
                lowest = floor
            else:
                wrong = _mean_wrong(similarity, true)
                lowest = similarity_floor(wrong, space) if compare is None else wrong.detach()
    if weights.negative:
        terms["negative calibration"] = weights.negative, negative_calibration(similarity, true, temperature)
    if weights.positive:
        # A matrix of which only the diagonal is read is still faster than pair by pair, by far.
        paired = (
            similar(images, texts).diagonal() if own is None else similarity.gather(1, own[:, None])[:, 0]
        )
        terms["positive calibration"] = weights.positive, positive_calibration(paired, lowest, temperature)
    if weights.preserving:
        terms["preserving"] = weights.preserving, performance_preserving(similarity, lowest, temperature)
    if weights.entailment:
        left = cone_calibration(texts, images, space, weights.margin, min_radius)
        terms["entailment calibration"] = weights.entailment, left
    if weights.norm:
        terms["norm regularisation"] = weights.norm, norm_regularisation(images, weights.target, space)
    if weights.parent and parents is not None:
        terms["parent"] = weights.parent, parent_calibration(parents, images, space, min_radius)

    parts = {name: term.mean() for name, (_, term) in terms.items()}
    total = retain_loss
    for name, (weight, _) in terms.items():
        total = total + weight * parts[name]
    return total, {"retain": retain_loss, **parts}


def _mean_wrong(similarity: Float[Tensor, "n m"], true: Bool[Tensor, "n m"]) -> Float[Tensor, ""]:
    """The mean similarity of wrong pairs; 0 where there are none."""
    wrong = (~true).to(similarity.dtype)
    return (wrong * similarity).sum() / wrong.sum().clamp_min(1)


def _check(
    images: Tensor,
    texts: Tensor,
    candidates: Tensor,
    true: Tensor,
    space: Space,
    weights: Weights,
    parents: Tensor | None,
) -> None:
    if len(images) == 0 or len(candidates) == 0:
        raise HacoreError(
            f"{len(images)} forget images and {len(candidates)} candidate texts leave nothing to calibrate: "
            "give at least one of each"
        )
    for name, points in (("texts", texts), ("parents", parents)):
        if points is not None and len(points) != len(images):
            raise HacoreError(
                f"{len(images)} forget images came with {len(points)} {name}: give one for each"
            )
    if true.shape != (len(images), len(candidates)):
        raise HacoreError(
            f"{len(images)} images and {len(candidates)} candidates came with a mask of what is true of shape "
            f"{tuple(true.shape)}: give one entry for each pair"
        )
    if weights.parent and parents is None:
        raise HacoreError(
            "keeping the parent needs the text of each concept's parent: give parents, or set its weight to 0"
        )
    if isinstance(space, Hyperbolic):
        return
    if weights.entailment or weights.norm:
        raise HacoreError(
            f"{space.name} space has no cones and no root: set the weights of entailment and norm to 0, "
            "or choose a hyperbolic space"
        )
    if not (isinstance(space, Euclidean) and space.kind == "cosine"):
        raise HacoreError(
            "calibration in flat space takes cosines, which are bounded: build it with similarity='cosine'"
        )
