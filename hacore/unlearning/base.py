"""What every unlearning method is made of: the request, the outcome, and settings that are callable."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from hacore.data import Augment, Batches, Dataset, PairedBatches, PairedViews, SideBySide, Split
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.models import CONTRASTIVE, Classifier
from hacore.train import EpochSource, Fit, TrainConfig, fit


@dataclass(frozen=True)
class Training:
    """How a model is trained: the loop's settings and what it is fed."""

    loop: TrainConfig
    batch_size: int = 128  # images
    augment: str = "none"  # a name of hacore.data.Augment


# What is asked to forget. Methods that answer one kind only read what that kind has; ``Method.kinds`` says which.
Model = Any
VIEW = 2**16  # between the seeds of the augmentations of two views
KINDS = (Classifier.kind, *CONTRASTIVE)


@dataclass(frozen=True)
class Request:
    """One request to forget, with all that a method may use to answer it."""

    model: Model  # a Classifier, SimCLR or MoCo, trained on retain and forget data
    trained: Fit  # what that training cost
    fresh: Callable[[Int64[Tensor, "k"]], Model]  # untrained, for training on these images
    dataset: Dataset
    split: Split
    training: Training
    checkpoint: Path | None = None  # folder for the loop's checkpoints; None keeps none


@dataclass(frozen=True)
class Outcome:
    """The model a method answers with, and what it cost to make."""

    model: Model
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
        kinds: of the models it can be asked about: classifiers, encoders that learn without labels, or both.
    """

    name: ClassVar[str]
    search: ClassVar[dict[str, Range]] = {}
    needs_class: ClassVar[bool] = False
    kinds: ClassVar[tuple[str, ...]] = (Classifier.kind,)

    def fits(self, scenario: str, kind: str = Classifier.kind) -> bool:
        """Whether the method answers requests of a scenario of ``hacore.experiments`` for such models."""
        return (scenario == "single-class" or not self.needs_class) and kind in self.kinds

    def __call__(self, request: Request) -> Outcome:
        """Answer the request.

        Raises:
            HacoreError: if the method cannot answer such a request, or training diverges.
        """
        if self.needs_class and not request.split.forget_classes:
            raise HacoreError(
                f"{self.name} forgets whole classes only, not random samples; choose another method"
            )
        if request.model.kind not in self.kinds:
            raise HacoreError(
                f"{self.name} answers for models of kind {', '.join(self.kinds)}, not {request.model.kind}; "
                "choose another method"
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

    def over(
        self,
        request: Request,
        index: Int64[Tensor, "k"],
        labels: Tensor | None = None,
        views: int | None = None,
    ) -> Any:
        """Batches of the training images in ``index``, augmented as in training, in the views the model learns from.

        ``labels`` (n,) replaces the labels of all training images, ``views`` the number of views.
        """
        return walk(
            request.dataset, request.split.labels if labels is None else labels, index,
            replace(request.training, batch_size=self.batch_size), views or request.model.views,
        )  # fmt: skip

    def pairs(self, request: Request, omega: int = 1) -> Any:
        """A forget batch with ``omega`` retain batches after each other, each in the views the model learns from."""
        sources = [
            PairedBatches(
                request.dataset.train_images, request.split.labels, request.split.forget, request.split.retain,
                self.batch_size, omega, request.training.loop.seed, augment,
            )
            for augment in _augmentations(request.training, request.model.views)
        ]  # fmt: skip
        return sources[0] if len(sources) == 1 else PairedViews(*sources)

    def descend(
        self,
        request: Request,
        batches: EpochSource,
        loss: Callable[[Any, Any], Any],
        model: Model | None = None,
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


def training_loss(model: Model, batch: Any) -> Tensor:
    """The loss the model was trained with, of a batch or of views of one."""
    return model.loss(batch)


def train_on(
    model: Model,
    dataset: Dataset,
    split: Split,
    index: Int64[Tensor, "k"],
    training: Training,
    method: str,
    checkpoint: Path | None = None,
) -> Outcome:
    """Train ``model`` in place, with its own loss, on the training images in ``index``."""
    batches = walk(dataset, split.labels, index, training, model.views)
    done = fit(model, batches, training_loss, training.loop, method=method, checkpoint=checkpoint)
    return Outcome(model, done)


def walk(
    dataset: Dataset, labels: Tensor, index: Int64[Tensor, "k"], training: Training, views: int
) -> Batches | SideBySide:
    """Batches of the training images in ``index``, or tuples of that many views of each batch."""
    sources = [
        Batches(dataset.train_images, labels, index, training.batch_size, training.loop.seed, augment)
        for augment in _augmentations(training, views)
    ]
    return sources[0] if views == 1 else SideBySide(*sources)


def _augmentations(training: Training, views: int) -> list[Augment]:
    """One augmentation for each view, each with random numbers of its own."""
    return [Augment(training.augment, training.loop.seed + view * VIEW) for view in range(views)]
