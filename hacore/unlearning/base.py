"""What every unlearning method is made of: the request, the outcome, and settings that are callable."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from hacore.data import Augment, Batch, Batches, Dataset, PairedBatches, Split
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.models import Classifier
from hacore.train import EpochSource, Fit, TrainConfig, fit


@dataclass(frozen=True)
class Training:
    """How a classifier is trained: the loop's settings and what it is fed."""

    loop: TrainConfig
    batch_size: int = 128  # images
    augment: str = "none"  # a name of hacore.data.Augment


@dataclass(frozen=True)
class Request:
    """One request to forget, with all that a method may use to answer it."""

    model: Classifier  # trained on retain and forget data
    trained: Fit  # what that training cost
    fresh: Callable[[Int64[Tensor, "k"]], Classifier]  # untrained, for training on these images
    dataset: Dataset
    split: Split
    training: Training
    checkpoint: Path | None = None  # folder for the loop's checkpoints; None keeps none


@dataclass(frozen=True)
class Outcome:
    """The model a method answers with, and what it cost to make."""

    model: Classifier
    fit: Fit


@dataclass(frozen=True)
class Range:
    """Where a search looks for a number: from ``low`` to ``high``, evenly in its logarithm if ``log``."""

    low: float
    high: float
    log: bool = True


@dataclass(frozen=True, kw_only=True)
class Method:
    """An unlearning method: its settings are fields, calling it with a :class:`Request` answers that.

    A method never changes the model it is given, and reads no test image. Vary settings with
    :func:`dataclasses.replace`; the defaults are the source's, or say why not.

    Attributes:
        name: its key in ``METHODS``.
        search: field -> where ``hacore.search`` looks for its value.
        needs_class: whether it can forget whole classes only.
    """

    name: ClassVar[str]
    search: ClassVar[dict[str, Range]] = {}
    needs_class: ClassVar[bool] = False

    def fits(self, scenario: str) -> bool:
        """Whether the method answers requests of a scenario of ``hacore.experiments``."""
        return scenario == "single-class" or not self.needs_class

    def __call__(self, request: Request) -> Outcome:
        """Answer the request.

        Raises:
            HacoreError: if the method cannot answer such a request, or training diverges.
        """
        if self.needs_class and not request.split.forget_classes:
            raise HacoreError(
                f"{self.name} forgets whole classes only, not random samples; choose another method"
            )
        return self.answer(request)

    def answer(self, request: Request) -> Outcome:
        """What the method does; :meth:`__call__` has checked the request."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Descent(Method):
    """Methods that hand a loss to the loop, starting from the original model.

    Plain SGD with momentum at a constant rate. Batch normalisation keeps the statistics of
    training unless a method says otherwise: batches full of forget images would move them.
    """

    lr: float = 0.01
    epochs: int = 1
    batch_size: int = 64  # images a step; of each part where a step sees retain and forget images
    retain_share: float = 1.0  # of the retain images, drawn once: those an epoch over them visits

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-4, 1e-1)}

    def loop(self, request: Request, **changes: Any) -> TrainConfig:
        """The settings of the loop, with the seed and precision of the request's training."""
        training = request.training.loop
        config = TrainConfig(
            epochs=self.epochs, lr=self.lr, schedule="constant", nesterov=False, freeze_norm=True,
            precision=training.precision, seed=training.seed,
        )  # fmt: skip
        return replace(config, **changes)

    def retained(self, request: Request) -> Int64[Tensor, "k"]:
        """The retain images that an epoch over them visits: ``retain_share`` of them, the same in every epoch.

        Raises:
            HacoreError: if the share is not in (0, 1].
        """
        retain = request.split.retain
        if not 0 < self.retain_share <= 1:
            raise HacoreError(f"the share of retain images is {self.retain_share}; choose it in (0, 1]")
        if self.retain_share == 1:
            return retain
        count = max(1, round(self.retain_share * len(retain)))
        order = torch.randperm(len(retain), generator=generator(request.training.loop.seed, "retain share"))
        return retain[order[:count].to(retain.device)].sort().values

    def over(self, request: Request, index: Int64[Tensor, "k"], labels: Tensor | None = None) -> Batches:
        """Batches of the training images in ``index``, augmented as in training.

        ``labels`` (n,) replaces the labels of all training images.
        """
        return Batches(
            request.dataset.train_images, request.split.labels if labels is None else labels, index,
            self.batch_size, request.training.loop.seed, _augment(request.training),
        )  # fmt: skip

    def pairs(self, request: Request, omega: int = 1) -> PairedBatches:
        """A forget batch with ``omega`` retain batches after each other; see PairedBatches."""
        return PairedBatches(
            request.dataset.train_images, request.split.labels, request.split.forget, request.split.retain,
            self.batch_size, omega, request.training.loop.seed, _augment(request.training),
        )  # fmt: skip

    def descend(
        self,
        request: Request,
        batches: EpochSource,
        loss: Callable[[Any, Any], Any],
        model: Classifier | None = None,
        stop: Callable[[Any, int], bool] | None = None,
        **changes: Any,
    ) -> Outcome:
        """Train a copy of the original (or ``model``, in place) with ``loss``; ``changes`` go to the loop."""
        model = copy.deepcopy(request.model) if model is None else model
        done = fit(
            model, batches, loss, self.loop(request, **changes),
            method=self.name, checkpoint=request.checkpoint, stop=stop,
        )  # fmt: skip
        return Outcome(model, done)


def cross_entropy_of(model: Classifier, batch: Batch) -> Tensor:
    """The cross-entropy of a batch, the loss every classifier here was trained with."""
    return cross_entropy(model(batch.images), batch.labels)


def train_on(
    model: Classifier,
    dataset: Dataset,
    split: Split,
    index: Int64[Tensor, "k"],
    training: Training,
    method: str,
    checkpoint: Path | None = None,
) -> Outcome:
    """Train ``model`` in place, with cross-entropy, on the training images in ``index``."""
    batches = Batches(
        dataset.train_images, split.labels, index, training.batch_size, training.loop.seed, _augment(training)
    )
    done = fit(model, batches, cross_entropy_of, training.loop, method=method, checkpoint=checkpoint)
    return Outcome(model, done)


def _augment(training: Training) -> Augment:
    return Augment(training.augment, training.loop.seed)
