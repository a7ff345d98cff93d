"""CoUn: learning from what remains, by cross-entropy and by contrast between two views."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hacore import losses
from hacore.data import Augment, Batch, Batches, Pair, PairedBatches, PairedViews, SideBySide
from hacore.models import Classifier
from hacore.train import EpochSource
from hacore.unlearning.base import VIEW, Descent, Outcome, Range, Request
from hacore.unlearning.contrastive import ContrastiveUnlearning


def _augmentations(request: Request) -> tuple[Augment, Augment]:
    """Two independent augmentations that suit the images, whatever the model was trained with.

    Without augmentation two views would be the same image, and the contrastive term would only spread
    the images apart.
    """
    name = "crop-flip" if request.dataset.train_images.shape[-1] >= 32 else "shift"
    seed = request.training.loop.seed
    return Augment(name, seed), Augment(name, seed + VIEW)


@dataclass(frozen=True, kw_only=True)
class CoUn(Descent):
    r"""Train on retain images only, by cross-entropy and contrast, :math:`L_{CE} + \lambda L_{CL}`.

    :math:`L_{CL}` is the symmetric InfoNCE loss between two views of a batch
    (:func:`hacore.losses.info_nce`) in the geometry of the model. The forget images are never seen:
    what they looked like is expected to drift towards the retained classes nearest to them. As in
    the source, cross-entropy sees the first view and batch normalisation goes on learning. The
    source trains for 50 epochs; we give every method the same small share of retraining.

    Source: :cite:t:`khalil2025coun`; derived in the chapter *Learning from what remains*.
    """

    name = "coun"

    batch_size: int = 256
    temperature: float = 0.1
    weight_cl: float = 1.0  # lambda

    search: ClassVar[dict[str, Range]] = {
        "lr": Range(1e-3, 1e-1),
        "temperature": Range(0.05, 1.0),
        "weight_cl": Range(0.05, 5.0),
    }

    def answer(self, request: Request) -> Outcome:
        split, retain, seed = request.split, self.retained(request), request.training.loop.seed
        first, second = (
            Batches(request.dataset.train_images, split.labels, retain, self.batch_size, seed, augment)
            for augment in _augmentations(request)
        )

        def loss(model: Classifier, views: tuple[Batch, Batch]) -> tuple[Tensor, dict[str, Tensor]]:
            z = model.embed(torch.cat([view.images for view in views]))
            one, other = z.chunk(2)
            ce = cross_entropy(model.logits(one), views[0].labels)
            cl = losses.info_nce(one, other, model.space, self.temperature)
            return ce + self.weight_cl * cl, {"cross-entropy": ce, "contrast": cl}

        return self.descend(request, SideBySide(first, second), loss, freeze_norm=False)


@dataclass(frozen=True, kw_only=True)
class ContrastiveCoUn(ContrastiveUnlearning):
    r"""Contrastive unlearning with CoUn's module: :math:`\lambda_{CL} L_{CL}` on the retain batch is added.

    :cite:t:`khalil2025coun` add their module to other methods in the same way. Everything else is
    :class:`ContrastiveUnlearning`, the stopping rule included.
    """

    name = "contrastive-coun"

    weight_cl: float = 0.1  # lambda_CL

    search: ClassVar[dict[str, Range]] = ContrastiveUnlearning.search | {"weight_cl": Range(0.01, 1.0)}

    def batches(self, request: Request) -> EpochSource:
        """Forget batches with two views of each retain batch."""
        data, split, seed = request.dataset, request.split, request.training.loop.seed
        return PairedViews(
            *(
                PairedBatches(
                    data.train_images, split.labels, split.forget, split.retain,
                    self.batch_size, self.omega, seed, augment,
                )
                for augment in _augmentations(request)
            )
        )  # fmt: skip

    def loss(self, model: Classifier, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of contrastive unlearning on the first view, and the contrast of both."""
        images = [batch.forget[0].images, *(view.images for view in batch.retain)]
        z = model.embed(torch.cat(images)).split([len(part) for part in images])
        total, parts = self.of_points(model, Pair(batch.forget[0], batch.retain[0]), z[0], z[1])
        cl = losses.info_nce(z[1], z[2], model.space, self.temperature)
        return total + self.weight_cl * cl, parts | {"contrast": cl}
