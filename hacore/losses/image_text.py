r"""Images and texts as points of one space: contrast with several true texts, and entailment cones.

Two images with one caption are no negatives of each other, so the target of the contrast is a matrix: which
text is true of which image. Without it the loss asks the model to tell apart what the captions say is the same.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.errors import HacoreError
from hacore.geometry import Hyperbolic, Space
from hacore.geometry.numerics import check_min_radius
from hacore.losses.processes import gather, gather_with_gradient, world


def positives(statements: Int[Tensor, "n s"], texts: Int[Tensor, "m"]) -> Bool[Tensor, "n m"]:
    """Which of the m texts, by number, are among the s statements true of each image; -1 is no text and no match."""
    return (statements.unsqueeze(-1) == texts).any(1) & (texts >= 0)


def image_text_contrast(logits: Float[Tensor, "n m"], positive: Bool[Tensor, "_ _"]) -> Float[Tensor, ""]:
    r"""Symmetric InfoNCE in which an image may have several true texts, and a text several images.

    With :math:`P_i` the texts true of image i and :math:`Q_j` the images text j is true of,

    .. math:: L = -\frac12 \left[\frac1n \sum_i \frac{1}{|P_i|} \sum_{j \in P_i}
              \log \frac{e^{l_{ij}}}{\sum_k e^{l_{ik}}} + \frac1m \sum_j \frac{1}{|Q_j|} \sum_{i \in Q_j}
              \log \frac{e^{l_{ij}}}{\sum_k e^{l_{kj}}}\right].

    It is the mean of log-probabilities over the positives ("out" in supervised contrast), not the log of
    their sum: every true text is pulled, where the log of a sum is content with one. The least value, where
    all positives share the softmax evenly, is the mean of :math:`\log |P_i|` and :math:`\log |Q_j|`, not 0.

    Args:
        logits: similarities times the logit scale, images by texts.
        positive: which text is true of which image.

    Raises:
        HacoreError: if the two do not fit, or an image or a text has no positive. That is not read back from
            an accelerator; there the loss is NaN, at which training stops.

    Source: :cite:t:`khosla2020supcon`, Eq. 2, in both directions of :cite:t:`radford2021clip`; with one
    positive each, the loss of the latter. Chapter *Images and words in one space*.
    """
    if logits.shape != positive.shape:
        raise HacoreError(
            f"logits {tuple(logits.shape)} came with positives {tuple(positive.shape)}: "
            "give one entry for each image and text"
        )
    return (_direction(logits, positive, "image") + _direction(logits.T, positive.T, "text")) / 2


def _direction(
    logits: Float[Tensor, "anchors candidates"], positive: Bool[Tensor, "anchors candidates"], anchor: str
) -> Float[Tensor, ""]:
    """Minus the mean over anchors of the mean log-probability of their positives."""
    target = positive.to(logits.dtype)
    count = target.sum(1)
    # On an accelerator the host would have to wait for the answer.
    if count.device.type == "cpu" and not bool((count > 0).all()):
        raise HacoreError(
            f"{int((count == 0).sum())} of {len(count)} {anchor}s have no positive: "
            f"give every {anchor} at least one true pair, or leave it out of the batch"
        )
    alignment = (target * logits).sum(1) / count
    return (logits.logsumexp(1) - alignment).mean()


def clip_loss(
    images: Float[Tensor, "n _"],
    texts: Float[Tensor, "m _"],
    space: Space,
    logit_scale: float | Float[Tensor, ""],
    positive: Bool[Tensor, "_ _"] | None = None,
    *,
    statements: Int[Tensor, "_ s"] | None = None,
    text_ids: Int[Tensor, "t"] | None = None,
) -> Float[Tensor, ""]:
    r"""The contrast of CLIP and of MERU: :func:`image_text_contrast` of similarities times the logit scale.

    CLIP is the case of cosines, MERU that of minus the geodesic distance. With several processes, images are
    compared with the texts of all and texts with the images of all, gradients included: the mean over
    processes is the loss of the whole batch in one.

    Args:
        images: points of the space.
        texts: points of the space.
        space: the geometry both live in.
        logit_scale: :math:`1 / \tau > 0`, in 1 / units of similarity.
        positive: which text is true of which image; for one process.
        statements: instead of ``positive``, the numbers of the texts true of each image, padded with -1.
        text_ids: with ``statements``, the number of each text.

    With neither, text i is true of image i and of no other: :func:`~hacore.losses.info_nce` at temperature
    1 / ``logit_scale``.

    Raises:
        HacoreError: if images and texts differ in dimension, do not pair up where they have to, are less than
            two, have no positive, ``logit_scale <= 0``, positives are given twice or by half, or (in every
            process) processes hold batches of different shapes.

    Source: :cite:t:`radford2021clip`, Fig. 3; :cite:t:`desai2023meru`. Chapter *Images and words in
    one space*.
    """
    return _contrast(images, texts, space.similarity, logit_scale, positive, statements, text_ids)


def angle_loss(
    images: Float[Tensor, "n _"],
    texts: Float[Tensor, "m _"],
    space: Space,
    logit_scale: float | Float[Tensor, ""],
    positive: Bool[Tensor, "_ _"] | None = None,
    *,
    statements: Int[Tensor, "_ s"] | None = None,
    text_ids: Int[Tensor, "t"] | None = None,
) -> Float[Tensor, ""]:
    """As :func:`clip_loss`, with :func:`angle_similarity` for the similarity: what is true of an image is above it.

    Distance asks an image to be near each of its texts, a general one and a special one alike, which no
    tree allows; the angle is 0 for all the ancestors on its ray. Raises HacoreError where space is flat, too.
    """

    def similarity(points: Tensor, others: Tensor) -> Tensor:
        return angle_similarity(others, points, space)

    return _contrast(images, texts, similarity, logit_scale, positive, statements, text_ids)


def angle_similarity(
    texts: Float[Tensor, "m _"], images: Float[Tensor, "n _"], space: Space
) -> Float[Tensor, "n m"]:
    """Minus the exterior angle at the text towards the image, radians, images by texts; HacoreError in flat space."""
    return -space.pairwise_exterior_angle(texts, images).T


def _contrast(
    images: Tensor,
    texts: Tensor,
    similarity: Callable[[Tensor, Tensor], Tensor],
    logit_scale: float | Tensor,
    positive: Tensor | None,
    statements: Tensor | None,
    text_ids: Tensor | None,
) -> Tensor:
    """:func:`image_text_contrast` of the images and texts of all processes."""
    if images.shape[1] != texts.shape[1]:
        raise HacoreError(
            f"images and texts have {images.shape[1]} and {texts.shape[1]} dimensions: "
            "they must be points of one space"
        )
    check_logit_scale(logit_scale)
    if (statements is None) != (text_ids is None):
        raise HacoreError("statements and text_ids say together what is true: give both or neither")
    if positive is not None and statements is not None:
        raise HacoreError("positives came both as a matrix and as statements: give one of them")
    rank, processes = world()
    if positive is not None and processes > 1:
        raise HacoreError(
            "a matrix of positives knows the images and texts of its own process only: "
            "with several processes give statements and text_ids"
        )
    if positive is None and statements is None and len(images) != len(texts):
        raise HacoreError(
            f"{len(images)} images came with {len(texts)} texts: give one text for each image, or say which are true"
        )
    if len(images) * processes < 2 or len(texts) * processes < 2:
        raise HacoreError("a contrast tells a pair from others: give at least two images and two texts")

    if processes == 1:
        if statements is not None and text_ids is not None:
            positive = positives(statements, text_ids)
        elif positive is None:
            positive = torch.eye(len(images), dtype=torch.bool, device=images.device)
        return image_text_contrast(similarity(images, texts) * logit_scale, positive)

    all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
    if statements is not None and text_ids is not None:
        true_texts = positives(statements, gather(text_ids))
        true_images = positives(gather(statements), text_ids).T
    else:
        own = rank * len(images) + torch.arange(len(images), device=images.device)
        true_texts = true_images = own[:, None] == torch.arange(len(all_texts), device=images.device)
    from_images = _direction(similarity(images, all_texts) * logit_scale, true_texts, "image")
    from_texts = _direction((similarity(all_images, texts) * logit_scale).T, true_images, "text")
    return (from_images + from_texts) / 2


def check_logit_scale(scale: float | Tensor) -> None:
    """Raise unless it is positive; a tensor is a learned one, positive by construction, and not read back."""
    if not isinstance(scale, Tensor) and not scale > 0:
        raise HacoreError(f"the logit scale must be positive, not {scale}")


def entailment(
    parents: Float[Tensor, "n _"],
    children: Float[Tensor, "k _"],
    space: Space,
    min_radius: float = 0.1,
    slack: float = 1.0,
) -> Float[Tensor, "n"]:
    r"""How far each child is outside of its parent's entailment cone, in radians.

    .. math:: \max(0, \; \operatorname{ext}(p_i, x_i) - \eta \operatorname{aper}(p_i))

    In MERU a text is the parent of its image. Callers take the mean.

    Args:
        parents: points of a hyperbolic space.
        children: points of that space, one for each parent.
        space: the geometry both live in.
        min_radius: :math:`K` of the half-aperture, see :meth:`~hacore.geometry.Space.half_aperture`.
        slack: :math:`\eta > 0`; below 1 the child has to be inside of a narrower cone.

    Raises:
        HacoreError: if the space is flat, points do not pair up, or ``min_radius`` or ``slack`` is not positive.

    Source: the entailment loss of :cite:t:`desai2023meru`, after :cite:t:`ganea2018cones`; the slack is that of
    :cite:t:`pal2025hycoclip`. Chapter *Images and words in one space*.
    """
    _check_cones(space, parents, children)
    if not (math.isfinite(slack) and slack > 0):
        raise HacoreError(f"the slack is {slack}: give a positive number, 1 for the cone itself")
    return space.cone_excess(parents, children, slack, min_radius).relu()


def exclusion(
    parents: Float[Tensor, "n _"],
    strangers: Float[Tensor, "k _"],
    space: Space,
    margin: float = 0.1,
    min_radius: float = 0.1,
) -> Float[Tensor, "n"]:
    r"""How far each stranger is from being outside of the cone by a margin, in radians.

    .. math:: \max(0, \; \operatorname{aper}(p_i) + m - \operatorname{ext}(p_i, x_i))

    0 for a stranger whose exterior angle is at least the half-aperture and the margin :math:`m \ge 0`; never
    more than :math:`\pi/2 + m`. Arguments and errors as :func:`entailment`. Callers take the mean.

    Source: the negative pairs of :cite:t:`ganea2018cones`, with a margin on the angle instead of on the energy.
    """
    _check_cones(space, parents, strangers)
    if not (math.isfinite(margin) and margin >= 0):
        raise HacoreError(f"the margin is {margin} radians: give a finite number that is not negative")
    return (margin - space.cone_excess(parents, strangers, min_radius=min_radius)).relu()


def radius_floor(
    points: Float[Tensor, "n _"], angle: Float[Tensor, "k"], space: Space, min_radius: float = 0.1
) -> Float[Tensor, "n"]:
    r"""Squared geodesic distance by which points are below the radius at which their cone has a given aperture.

    .. math:: \max(0, \; r_0 - r(x_i))^2, \qquad \sinh(\sqrt c \, r_0) = 2K / \sin \psi_i

    Below :math:`r_0` the half-aperture exceeds :math:`\psi_i`. Without it cones open to half-spaces, where
    their aperture has no gradient that could close them again.

    Args:
        points: points of a hyperbolic space.
        angle: :math:`\psi_i \in (0, \pi/2]`, radians, the widest half-aperture of each.
        space: the geometry they live in.
        min_radius: :math:`K` of the half-aperture.

    Raises:
        HacoreError: if the space is flat, angles do not pair up or are out of range (not read back from an
            accelerator), or ``min_radius`` is not positive.
    """
    _check_cones(space, points, angle)
    check_min_radius(min_radius)
    if angle.device.type == "cpu" and not bool(((angle > 0) & (angle <= math.pi / 2 + 1e-6)).all()):
        raise HacoreError("an aperture is out of range: give half-apertures in (0, π/2] radians")
    root = space.curv.sqrt()
    floor = torch.asinh(2 * min_radius / torch.sin(angle.to(root.dtype))) / root
    radius = space.radius(points)
    return (floor - radius).relu().square().to(radius.dtype)


def _check_cones(space: Space, first: Tensor, second: Tensor) -> None:
    if not isinstance(space, Hyperbolic):
        raise HacoreError(f"{space.name} space has no entailment cones: choose a hyperbolic space")
    if len(first) != len(second):
        raise HacoreError(f"{len(first)} points came with {len(second)} to pair with: give one for each")
