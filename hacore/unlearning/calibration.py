"""Alignment calibration: unlearning for encoders that learn without labels."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hacore import losses
from hacore.errors import HacoreError
from hacore.models import CONTRASTIVE, ContrastiveEncoder
from hacore.train import EpochSource
from hacore.unlearning.base import Descent, Outcome, Range, Request


class Calibrated(NamedTuple):
    """Images of retain and forget data together, in three views, and which of them are to be forgotten.

    The second view shows, in the row of a forget image, the next forget image of the batch: a mismatched pair.
    The third shows the image itself again.
    """

    first: Tensor  # (b, c, h, w)
    second: Tensor  # (b, c, h, w)
    third: Tensor  # (b, c, h, w)
    forget: Tensor  # (b,) bool


class Mismatched:
    """Three views of each batch as :class:`Calibrated`; the source's labels say what is to be forgotten."""

    def __init__(self, source: EpochSource) -> None:
        self.source = source

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.source)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Calibrated]:
        """The batches of one epoch from the ``skip``-th on."""
        for first, second, third in self.source.epoch(epoch, skip):
            forget = first.labels.bool()
            rows = forget.nonzero().squeeze(1)
            images = second.images.clone()
            # The order of a batch is random, so the next one is a random other one.
            images[rows] = second.images[rows.roll(1)]
            yield Calibrated(first.images, images, third.images, forget)


@dataclass(frozen=True, kw_only=True)
class AlignmentCalibration(Descent):
    r"""Calibrate alignment: mismatched forget pairs together, true ones apart, the rest as in training.

    The loss is :func:`hacore.losses.alignment_calibration` in the geometry of the model, on batches of
    retain and forget images together, a forget image being compared with a random other one. A batch with
    one forget image has no mismatched pair: its image is compared with itself there.

    Source: :cite:t:`wang2025muc` and its code, which trains ten epochs after 800; derived in the chapter
    *Calibrating alignment*. Batch normalisation keeps its statistics, so that a forget image means the same in
    all three views whatever stands beside it.

    Raises:
        HacoreError: if a weight is negative.
    """

    name = "alignment-calibration"
    kinds = tuple(CONTRASTIVE)

    batch_size: int = 256
    negative: float = 1.0  # alpha, negative calibration: mismatched forget pairs together
    positive: float = 1.0  # beta, positive calibration: true forget pairs apart
    preserving: float | None = None  # gamma, performance preserving: spread of forget anchors; None is alpha

    search: ClassVar[dict[str, Range]] = {
        "lr": Range(1e-3, 1e-1),
        "negative": Range(0.1, 10.0),
        "positive": Range(0.1, 10.0),
    }

    def answer(self, request: Request) -> Outcome:
        if min(self.negative, self.positive, self.preserving or 0.0) < 0:
            raise HacoreError(f"the weights of {self.name} must be 0 or more; 0 switches a part off")
        split = request.split
        everything = torch.cat([self.retained(request), split.forget]).sort().values
        marked = torch.zeros_like(split.labels)
        marked[split.forget] = 1
        batches = Mismatched(self.over(request, everything, marked, views=3))
        return self.descend(request, batches, self.loss)

    def loss(self, model: ContrastiveEncoder, batch: Calibrated) -> tuple[Tensor, dict[str, Any]]:
        """The calibrated loss, and its parts."""
        terms, points = model.compare(batch.first, batch.second)
        again = model.embed(batch.third[batch.forget])
        anchors = batch.forget.repeat(len(terms.alignment) // len(batch.forget))
        true = model.space.paired_similarity(points[batch.forget], again)
        return losses.alignment_calibration(
            terms, anchors, true, self.negative, self.positive, self.preserving
        )
