"""Teachers: the original model for what is retained, and a bad one, or none, for what is to be forgotten."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from hacore.data import Batch
from hacore.errors import HacoreError
from hacore.models import Classifier
from hacore.train import EpochSource
from hacore.unlearning.base import Descent, Outcome, Range, Request
from hacore.unlearning.cost import combined, timed


def divergence(
    student: Float[Tensor, "b classes"], teacher: Float[Tensor, "b classes"], temperature: float = 1.0
) -> Float[Tensor, "b"]:
    r""":math:`T^2\,KL(p_t \,\|\, p_s)` of each image, of softmaxes of logits over a temperature :math:`T`, in nats."""
    ours, theirs = (log_softmax(logits / temperature, dim=1) for logits in (student, teacher))
    return temperature**2 * kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)


def _teacher(model: Classifier) -> Classifier:
    return copy.deepcopy(model).eval().requires_grad_(False)


class Maximise(NamedTuple):
    """A forget batch, on which the student leaves the teacher."""

    images: Tensor
    labels: Tensor


class Minimise(NamedTuple):
    """A retain batch, on which the student follows the teacher and the labels."""

    images: Tensor
    labels: Tensor


class Rounds:
    """Walks over the retain images in ``rounds`` parts; each of the first ``msteps`` follows a walk over forget images.

    All that is one epoch to the loop, which wants epochs of equal length.
    """

    def __init__(
        self, forget: EpochSource, retain: EpochSource, epochs: int, rounds: int, msteps: int
    ) -> None:
        self.forget, self.retain, self.epochs = forget, retain, epochs
        self.rounds, self.msteps = rounds, msteps

    def __len__(self) -> int:
        """Steps of all rounds."""
        return self.msteps * len(self.forget) + self.epochs * len(self.retain)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Maximise | Minimise]:
        """The batches of all rounds from the ``skip``-th on."""
        return islice(self._all(), skip, None)

    def _all(self) -> Iterator[Maximise | Minimise]:
        retain = (batch for epoch in range(self.epochs) for batch in self.retain.epoch(epoch))
        total = self.epochs * len(self.retain)
        for number in range(self.rounds):
            if number < self.msteps:
                yield from (Maximise(*batch) for batch in self.forget.epoch(number))
            count = (number + 1) * total // self.rounds - number * total // self.rounds
            yield from (Minimise(*batch) for batch in islice(retain, count))


@dataclass(frozen=True, kw_only=True)
class Scrub(Descent):
    r"""Leave the original model on forget images, follow it on retain images, in turns.

    SCRUB of :cite:t:`kurmanji2023scrub`: a max-step maximises the divergence from the original model
    on a forget batch, :math:`L = -T^2 KL(p_o \| p)`; a min-step minimises
    :math:`\alpha T^2 KL(p_o \| p) + \gamma L_{CE}` on a retain batch. Each of the first ``msteps`` rounds
    begins with max-steps on all forget images. Without the rewinding of SCRUB+R, which chooses among
    checkpoints of the rounds the one whose forget error is as on validation images.

    A round of theirs is an epoch over the retain images; to keep to the share of retraining that every
    method has, ours is a part of one: ``epochs=3`` is their run. They use batches of 32 forget and 128
    retain images, a weight decay of 5e-4, which a short run does not feel, and let batch normalisation
    move; ours keeps its statistics. :math:`\alpha`, :math:`\gamma`, :math:`T`, rate, rounds and max-steps
    are those of their large-scale runs.

    Raises:
        HacoreError: if there are fewer rounds than msteps, or the temperature is not positive.
    """

    name = "scrub"

    lr: float = 5e-4
    epochs: int = 1  # over the retain images, all rounds together
    rounds: int = 3
    msteps: int = 2  # rounds that begin with max-steps
    alpha: float = 0.001  # weight of the divergence in min-steps
    gamma: float = 0.99  # weight of the cross-entropy in min-steps
    temperature: float = 4.0

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-4, 1e-1), "alpha": Range(1e-3, 1.0)}

    def answer(self, request: Request) -> Outcome:
        if not 0 <= self.msteps <= self.rounds or self.rounds < 1:
            raise HacoreError(
                f"{self.msteps} of {self.rounds} rounds cannot have max-steps; use at least one round, "
                "and msteps from 0 to their number"
            )
        if not self.temperature > 0:
            raise HacoreError(f"the temperature is {self.temperature}; it must be positive")
        teacher, split = _teacher(request.model), request.split
        batches = Rounds(
            self.over(request, split.forget), self.over(request, self.retained(request)),
            self.epochs, self.rounds, self.msteps,
        )  # fmt: skip

        def loss(model: Classifier, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
            return self.loss(model, teacher, batch)

        return self.descend(request, batches, loss, epochs=1)

    def loss(
        self, model: Classifier, teacher: Classifier, batch: Maximise | Minimise
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of a max-step or a min-step, and the divergence."""
        with torch.no_grad():
            wanted = teacher(batch.images)
        logits = model(batch.images)
        far = divergence(logits, wanted, self.temperature).mean()
        if isinstance(batch, Maximise):
            return -far, {"divergence": far}
        return self.alpha * far + self.gamma * cross_entropy(logits, batch.labels), {"divergence": far}


@dataclass(frozen=True, kw_only=True)
class BadTeacher(Descent):
    r"""Follow the original model on some retain images, and an untrained one on forget images.

    Of :cite:t:`chundawat2023badteacher`: with :math:`l = 1` for a forget image and 0 for a retain image, and
    the logits of the untrained model :math:`p_d` and of the original :math:`p_o`,
    :math:`L = l\,KL(p_d \| p) + (1 - l)\,KL(p_o \| p)`, the mean over shuffled batches of all forget
    images and 30 % of the retain images, drawn once, with Adam. The untrained model has never seen
    a forget image: it is what Retrain starts from. Their code divides by the number of classes too, to which
    Adam is indifferent. One epoch, as in the paper. Batch normalisation keeps its statistics.

    Raises:
        HacoreError: if the share of retain images is not in (0, 1], or the temperature is not positive.
    """

    name = "bad-teacher"

    lr: float = 1e-4
    batch_size: int = 256
    retain_share: float = 0.3
    temperature: float = 1.0

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-4, 1e-2), "temperature": Range(0.5, 5.0)}

    def answer(self, request: Request) -> Outcome:
        if not self.temperature > 0:
            raise HacoreError(f"the temperature is {self.temperature}; it must be positive")
        split = request.split
        good = _teacher(request.model)
        bad, cost = timed(lambda: _teacher(request.fresh(split.retain)), request.model)
        index = torch.cat([split.forget, self.retained(request)])
        forget = torch.zeros_like(split.labels)
        forget[split.forget] = 1

        def loss(model: Classifier, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
            return self.loss(model, good, bad, batch)

        done = self.descend(request, self.over(request, index, forget), loss, optimizer="adamw")
        return replace(done, fit=combined(cost, done.fit))

    def loss(
        self, model: Classifier, good: Classifier, bad: Classifier, batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean divergence from the teachers; the labels are 1 for forget images and 0 for others."""
        with torch.no_grad():
            wanted = torch.where(batch.labels.unsqueeze(1) == 1, bad(batch.images), good(batch.images))
        far = divergence(model(batch.images), wanted, self.temperature).mean()
        return far, {}
