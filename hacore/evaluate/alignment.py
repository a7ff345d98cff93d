"""How a representation places views of one image: alignment, uniformity, and who was a training image.

An encoder that learnt without labels was taught that views of its training images agree. How well they agree
therefore gives members away. The audit of a data owner is in :mod:`hacore.evaluate.auditing`.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from hacore.data import Augment, Dataset, Split, as_float
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.evaluate.attacks import auc
from hacore.evaluate.outputs import drawn, evaluating, wide
from hacore.geometry import Euclidean, Space

AUGMENTED = 500  # images of a batch: it decides which image gets which variation, so it is no option
LAYERS = ("embed", "features")


def views(
    model: nn.Module,
    images: UInt8[Tensor, "m c h w"],
    index: Int[Tensor, "n"],
    augment: Augment,
    count: int,
    precision: str = "no",
    layer: str = "embed",
) -> Float[Tensor, "views n d"]:
    """What ``model`` makes, in evaluation mode, of ``count`` independent variations of ``images[index]``.

    They depend on the order of ``index`` and on the augmentation's name and seed only.

    Args:
        model: with ``embed`` and ``features``; its mode is as before afterwards.
        images, index: as in :func:`hacore.evaluate.outputs.outputs`.
        augment: the augmentation, not "none".
        count: how many views of each image.
        precision: that of the encoder, as in training.
        layer: "embed" for points of ``model.space``, or "features" for vectors that are compared in
            :class:`~hacore.geometry.Euclidean` space, those which a user is served.

    Raises:
        HacoreError: if there are no images, fewer than two views, the augmentation is none, which would make
            all views the same, or the layer is unknown.
    """
    if layer not in LAYERS:
        raise HacoreError(f"unknown layer {layer!r}; choose one of: {', '.join(LAYERS)}")
    return _views(model, [getattr(model, layer)], images, index, augment, count, precision)[0]


@torch.no_grad()
def _views(
    model: nn.Module,
    functions: list[Callable[[Tensor], Tensor]],
    images: Tensor,
    index: Tensor,
    augment: Augment,
    count: int,
    precision: str,
) -> list[Tensor]:
    """One tensor (views, n, d) per function, all of the same variations."""
    if len(index) == 0:
        raise HacoreError("there are no images to look at from several views; check the split")
    if count < 2 or augment.name == "none":
        raise HacoreError(
            f"{count} views with the augmentation {augment.name!r} cannot be compared; use at least two views "
            "that differ, with the augmentation the model was trained with"
        )
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    seen: list[list[Tensor]] = [[] for _ in functions]
    with evaluating(model):
        for number, part in enumerate(index.split(AUGMENTED)):
            batch = as_float(images[part])
            varied = [augment(batch, count * number + view) for view in range(count)]
            with torch.autocast(images.device.type, dtype, enabled=precision != "no"):
                for outputs, function in zip(seen, functions, strict=True):
                    outputs.append(torch.stack([function(view) for view in varied]))
    return [torch.cat(outputs, dim=1) for outputs in seen]


def alignment_matrix(
    first: Float[Tensor, "n _"], second: Float[Tensor, "m _"], space: Space
) -> Float[Tensor, "n m"]:
    """All similarities of two views: entry (i, j) compares image i in one with image j in the other.

    Raises:
        HacoreError: if the views are not of equally many images, or points are not of one dimension.
    """
    _check_views(first, second)
    return space.similarity(first, second)


def alignment(first: Float[Tensor, "n _"], second: Float[Tensor, "m _"], space: Space) -> Float[Tensor, "n"]:
    """The similarity of the two views of each image, the diagonal of :func:`alignment_matrix` without the rest.

    The cosine in Euclidean space, minus the distance in hyperbolic space. :cite:t:`wangisola2020` measure the
    squared distance on the sphere instead, which is two minus twice the cosine. Errors as there.
    """
    _check_views(first, second)
    return space.paired_similarity(first, second)


def uniformity(points: Float[Tensor, "n d"], space: Space) -> float:
    r"""How evenly points spread, :math:`\log \mathrm{mean}_{i < j} \, e^{-2 d_{ij}^2}` (:cite:t:`wangisola2020`).

    In Euclidean space :math:`d` is the chord between the points normalised to the unit sphere, as in the
    source; in hyperbolic space it is the geodesic distance, our extension, so that values of two geometries are
    not to be compared. 0 where all points are one, the lower the further they spread: on a sphere of
    many dimensions near -4.

    Raises:
        HacoreError: if there are fewer than two points.
    """
    if len(points) < 2:
        raise HacoreError("uniformity is a mean over pairs of points; use at least two images")
    if isinstance(space, Euclidean):
        points = F.normalize(space.exp0(points), dim=1)
    distances = wide(space.pairwise(points, points))
    upper = torch.ones_like(distances, dtype=torch.bool).triu(1)
    exponents = -2 * distances[upper].square()
    return (exponents.logsumexp(0) - math.log(len(exponents))).item()


def view_agreement(points: Float[Tensor, "views n d"], space: Space) -> Float[Tensor, "n"]:
    r"""Mean similarity of the :math:`v (v - 1) / 2` pairs of views of each image.

    The score of EncoderMI (:cite:t:`liu2021encodermi`), with which :cite:t:`wang2025muc` attack encoders: the
    mean of 45 cosines of ten views.

    Raises:
        HacoreError: if there are fewer than two views.
    """
    count = len(points)
    if count < 2:
        raise HacoreError("views of an image agree or not only where there are two; use at least two views")
    # Each pair once: the views that follow each other at every spacing. Pieces keep memory at that of the points.
    pairs = (space.paired_similarity(points[:-k], points[k:]).sum(0) for k in range(1, count))
    return torch.stack(list(pairs)).sum(0) * 2 / (count * (count - 1))


def threshold(members: Float[Tensor, "m"], non_members: Float[Tensor, "n"]) -> float:
    r"""The cut that tells members, with scores at or above it, from non-members best.

    Best is the balanced accuracy, the mean of the shares of both that are called right. The cut lies in the
    middle between neighbouring scores, the lowest one of those that are equally good; where no cut is better
    than to call every image a member, it is the smallest score. One sort, no search.

    Raises:
        HacoreError: if a side is empty or has scores that are not finite.
    """
    for name, scores in (("members", members), ("non-members", non_members)):
        if len(scores) == 0 or not scores.isfinite().all():
            raise HacoreError(f"a threshold needs finite scores of {name}; check the images and the model")
    m, n = len(members), len(non_members)
    scores, place = torch.cat([wide(members), wide(non_members)]).unique(return_inverse=True)
    above = place[:m].bincount(minlength=len(scores)).flip(0).cumsum(0).flip(0)
    counts = place[m:].bincount(minlength=len(scores))
    # Both shares times m n, in whole numbers, so that equally good cuts are equal.
    best = int((above * n + (counts.cumsum(0) - counts) * m).argmax())
    if best == 0:
        return scores[0].item()
    low, high = scores[best - 1].item(), scores[best].item()
    middle = low + (high - low) / 2
    return middle if middle > low else high  # between two neighbouring floats there is no middle


def encoder_membership(
    forget: Float[Tensor, "f"],
    retain: Float[Tensor, "r"],
    unseen: Float[Tensor, "u"],
    strangers: Float[Tensor, "s"] | None = None,
) -> dict[str, float]:
    """Membership attacks on an encoder, from how well the views of each image agree (:func:`view_agreement`).

    - ``emia_forget_nonmember_rate``: the share of forget images, in percent, that are called non-members at
      the :func:`threshold` between retain and unseen images, the measure of :cite:t:`wang2025muc`;
    - ``emia_auc``: chance in percent that the views of a forget image agree better than those of an unseen
      one, 50 where nothing tells them apart;
    - ``emia_retain_auc``: the same for retain images: how much there is to find at all.

    Args:
        forget, retain: agreement of training images.
        unseen: of images of the retained kind that no model trained on.
        strangers: of unseen images of the forgotten kind, where whole classes are forgotten; None: ``unseen``.

    Raises:
        HacoreError: if a part is empty or a score is not finite.
    """
    strangers = unseen if strangers is None else strangers
    if (
        not len(forget)
        or not len(strangers)
        or not torch.cat([wide(forget), wide(strangers)]).isfinite().all()
    ):
        raise HacoreError("an attack needs finite scores of forgotten and unseen images; check the split")
    cut = threshold(retain, unseen)
    return {
        "emia_forget_nonmember_rate": 100 * (wide(forget) < cut).double().mean().item(),
        "emia_auc": auc(forget, strangers),
        "emia_retain_auc": auc(retain, unseen),
    }


def simclr(channels: int) -> str:
    """The name of SimCLR's augmentation for images of so many channels."""
    return "simclr" if channels == 3 else "simclr-grey"


def representation(
    model: nn.Module,
    dataset: Dataset,
    split: Split,
    precision: str = "no",
    augment: str | None = None,
    views: int = 10,
    seed: int = 0,
    most: int = 1000,
) -> dict[str, float]:
    """Every measure of this module, of an encoder that learnt without labels, from one set of views a part.

    Of the points that its loss compares: :func:`encoder_membership`; ``alignment_forget``,
    ``alignment_retain`` and ``alignment_test``, means of :func:`view_agreement` in units of the space's
    similarity; ``uniformity_test``. Of the features a user is served, by cosine, with ``features_`` before
    their names: :func:`encoder_membership` and ``alignment_forget``. Where whole classes are forgotten,
    forget images are compared with test images of those classes.

    Args:
        model: with ``space``, ``features`` and ``embed``.
        dataset, split: what it was asked to forget.
        precision: that of the encoder, as in training.
        augment: name of the augmentation that makes the views; None is that of SimCLR for such images.
        views: of each image.
        seed: of the images that are drawn and of the views; other ones than in training.
        most: images of a part, at most.

    Returns:
        Finite numbers by name.

    Raises:
        HacoreError: if a part is empty, views cannot be made, or the model gives NaN or infinite points.
    """
    name = augment or simclr(dataset.channels)
    parts = {
        "forget": (dataset.train_images, split.forget),
        "retain": (dataset.train_images, split.retain),
        "test": (dataset.test_images, split.test),
        "test_forget": (dataset.test_images, split.test_forget),
    }
    network: Any = model
    layers: dict[str, dict[str, Tensor]] = {"": {}, "features_": {}}
    flat = Euclidean().to(split.retain.device)
    out: dict[str, float] = {}
    for part, (images, index) in parts.items():
        if part == "test_forget" and not len(index):
            continue
        some = index[drawn(len(index), most, seed, "representation", part).to(index.device)]
        # Hashed, because a step of training with this seed would vary images in the same way.
        varied = Augment(name, generator(seed, "views", part).initial_seed())
        features, points = _views(
            model, [network.features, network.embed], images, some, varied, views, precision
        )
        layers["features_"][part] = view_agreement(features, flat)
        layers[""][part] = view_agreement(points, network.space)
        if part == "test":
            out["uniformity_test"] = uniformity(points[0], network.space)
    for prefix, scores in layers.items():
        attacked = encoder_membership(
            scores["forget"], scores["retain"], scores["test"], scores.get("test_forget")
        )
        out |= {prefix + key: value for key, value in attacked.items()}
        for part in ("forget", "retain", "test") if prefix == "" else ("forget",):
            out[f"{prefix}alignment_{part}"] = wide(scores[part]).mean().item()
    return out


def _check_views(first: Tensor, second: Tensor) -> None:
    if len(first) != len(second):
        raise HacoreError(
            f"one view has {len(first)} images and the other {len(second)}; give two views of the same images"
        )
    if first.shape[1] != second.shape[1]:
        raise HacoreError(
            f"the views have {first.shape[1]} and {second.shape[1]} dimensions; take both from one model"
        )
