"""Contrastive unlearning in the geometry of the model, and its stopping rules."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from hacore import losses
from hacore.data import Pair
from hacore.data.dataset import generator
from hacore.evaluate import accuracy
from hacore.models import Classifier
from hacore.train import EpochSource
from hacore.unlearning.base import Descent, Outcome, Range, Request

LOOKED = 500  # images of a part that the stopping rules look at


def forgotten(request: Request, percent: float | None = None) -> Callable[[Classifier], bool]:
    r"""The stopping rule of contrastive unlearning, read from set-aside data, never from the test split.

    For forgotten classes (Eq. 8), stop once accuracy on their validation images is at most
    :math:`1/C`, or ``percent`` where given; for random samples (Eq. 9), once accuracy on the forget
    images is at most that on validation images. The paper reads both from the test split; we do not.

    It is asked every few steps, so it looks at no more than 500 images of a part, drawn once, in the
    precision of training.
    """
    data, split, training = request.dataset, request.split, request.training.loop

    def some(index: Tensor, name: str) -> Tensor:
        order = torch.randperm(len(index), generator=generator(training.seed, "stop", name))
        return index[order[:LOOKED].to(index.device)]

    validation, forget = some(split.validation, "validation"), some(split.forget, "forget")
    aside = some(split.validation_forget, "validation_forget")

    def measured(model: Classifier, index: Tensor) -> float:
        return accuracy(model, data.train_images, split.labels, index, training.precision)

    if split.forget_classes:
        bound = 100 / len(data.classes) if percent is None else percent
        return lambda model: measured(model, aside) <= bound
    return lambda model: measured(model, forget) <= measured(model, validation)


@dataclass(frozen=True, kw_only=True)
class ContrastiveUnlearning(Descent):
    r"""Contrastive unlearning, :math:`\lambda_{UL} L_{UL} + \lambda_{CE} L_{CE}`, in the geometry of the model.

    Algorithm 1 of :cite:t:`lee2024contrastive`: for each forget batch, :math:`\omega` retain
    batches, one step each; the stopping rule is asked after each forget batch. In hyperbolic space,
    the method of :cite:t:`leone2024`. Batch normalisation keeps the statistics of training: a batch
    that is half forget images would otherwise move them towards the data to be forgotten.
    """

    name = "contrastive-unlearning"

    lr: float = 1e-3
    epochs: int = 10
    omega: int = 4  # retain batches per forget batch, each with a step
    temperature: float = 0.7  # tau, in units of similarity
    weight_ul: float = 3.0  # lambda_UL, the pull away from the class
    weight_ce: float = 1.0  # lambda_CE, cross-entropy on the retain batch
    stop_at: float | None = None  # percent, of Eq. 8; None is 100 / classes, negative never stops

    search: ClassVar[dict[str, Range]] = {
        "lr": Range(1e-3, 3e-2),
        "temperature": Range(0.1, 2.0),
        "weight_ul": Range(0.02, 2.0),
    }

    def answer(self, request: Request) -> Outcome:
        done = forgotten(request, self.stop_at)

        def stop(model: Classifier, step: int) -> bool:
            return step % self.omega == 0 and done(model)

        return self.descend(request, self.batches(request), self.loss, stop=stop)

    def batches(self, request: Request) -> EpochSource:
        """Forget batches, each with its retain batches."""
        return self.pairs(request, self.omega)

    def loss(self, model: Classifier, batch: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a pair of batches (Eq. 7), and its parts."""
        z = model.embed(torch.cat([batch.forget.images, batch.retain.images]))
        return self.of_points(model, batch, *z.split([len(batch.forget.images), len(batch.retain.images)]))

    def of_points(
        self, model: Classifier, batch: Pair, z_forget: Tensor, z_retain: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The same, when the points of the images are known."""
        ul = losses.contrastive_unlearning(
            z_forget, batch.forget.labels, z_retain, batch.retain.labels, model.space, self.temperature
        )
        ce = cross_entropy(model.logits(z_retain), batch.retain.labels)
        return self.weight_ul * ul + self.weight_ce * ce, {"unlearning": ul, "cross-entropy": ce}
