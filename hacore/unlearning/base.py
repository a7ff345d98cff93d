"""What every unlearning method is made of: the request, the outcome, and settings that are callable."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int64
from torch import Tensor

from hacore.data import (
    Augment,
    Batches,
    Captioned,
    Dataset,
    PairedBatches,
    PairedViews,
    Reading,
    SideBySide,
    Split,
)
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.geometry import Euclidean
from hacore.models import CONTRASTIVE, Classifier, ImageText
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
KINDS = (Classifier.kind, *CONTRASTIVE, ImageText.kind)


@dataclass(frozen=True)
class Request:
    """One request to forget, with all that a method may use to answer it."""

    model: Model  # a Classifier, SimCLR, MoCo or ImageText, trained on retain and forget data
    trained: Fit  # what that training cost
    fresh: Callable[[Int64[Tensor, "k"]], Model]  # untrained, for training on these images
    dataset: Dataset
    split: Split
    training: Training
    checkpoint: Path | None = None  # folder for the loop's checkpoints; None keeps none
    watch: Callable[[Model, int], None] | None = None  # shown the model after each step; it may only look

    @property
    def captioned(self) -> Captioned:
        """The data set, where images come with what is said of them; else HacoreError."""
        if not isinstance(self.dataset, Captioned):
            raise HacoreError(
                f"{self.dataset.name} has no captions; load it with captions to forget concepts"
            )
        return self.dataset


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


ADAPTIVE = Range(3e-5, 3e-3)  # of rates, where AdamW goes on


@dataclass(frozen=True, kw_only=True)
class Method:
    """An unlearning method: its settings are fields, calling it with a :class:`Request` answers that.

    A method never changes the model it is given, and reads no test image. Vary settings with
    :func:`dataclasses.replace`; the defaults are the source's, or say why not.

    Attributes:
        name: its key in ``METHODS``.
        search: field -> where ``hacore.search`` looks for its value.
        needs_class: whether it can forget whole classes only.
        needs_cones: whether it is for hyperbolic spaces only.
        tuned_as: the method whose searched values it takes, where it is that method without a part.
        kinds: of the models it can be asked about: classifiers, encoders that learn without labels, models of images
            and texts.
    """

    name: ClassVar[str]
    search: ClassVar[dict[str, Range]] = {}
    needs_class: ClassVar[bool] = False
    needs_cones: ClassVar[bool] = False
    tuned_as: ClassVar[str | None] = None
    kinds: ClassVar[tuple[str, ...]] = (Classifier.kind,)

    def fits(self, scenario: str, kind: str = Classifier.kind, space: str | None = None) -> bool:
        """Whether the method answers requests of a scenario of ``hacore.experiments`` for such models."""
        known = scenario == "single-class" or not self.needs_class
        return known and kind in self.kinds and not (self.needs_cones and space == Euclidean.name)

    def ranges(self, kind: str = Classifier.kind) -> dict[str, Range]:
        """Where a search looks for values, of a method asked about such models."""
        if kind == ImageText.kind and "lr" in self.search:
            return self.search | {"lr": ADAPTIVE}
        return self.search

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
        self.check_space(request.model.space.name)
        return self.answer(request)

    def check_space(self, space: str) -> None:
        """Raise HacoreError if the method needs cones and the space of that name has none."""
        if self.needs_cones and space == Euclidean.name:
            raise HacoreError(
                f"{self.name} needs cones, and {space} space has none; choose a hyperbolic space"
            )

    def answer(self, request: Request) -> Outcome:
        """What the method does; :meth:`__call__` has checked the request."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Descent(Method):
    """Methods that hand a loss to the loop, starting from the original model.

    Plain SGD with momentum at a constant rate, or AdamW where the model was trained with it. Batch normalisation
    keeps the statistics of training unless a method says otherwise: batches full of forget images would move them.
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
            epochs=self.epochs, lr=self.lr, optimizer="adamw" if training.optimizer.endswith("adamw") else "sgd",
            schedule="constant", nesterov=False, freeze_norm=True,
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
            replace(request.training, batch_size=self.batch_size), views or request.model.views, request.split,
        )  # fmt: skip

    def pairs(self, request: Request, omega: int = 1) -> Any:
        """A forget batch with ``omega`` retain batches after each other, each in the views the model learns from."""
        data, split, seed = request.dataset, request.split, request.training.loop.seed
        sources = [
            PairedBatches(
                data.train_images, _numbers(data) if isinstance(data, Captioned) else split.labels,
                split.forget, split.retain, self.batch_size, omega, seed, augment,
            )
            for augment in _augmentations(request.training, request.model.views)
        ]  # fmt: skip
        if isinstance(data, Captioned):
            return Reading(sources[0], data, seed, split)
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

        def after(model: Model, step: int) -> bool:
            if request.watch is not None:
                request.watch(model, step)
            return stop is not None and stop(model, step)

        done = fit(
            model, batches, loss, self.loop(request, **changes), method=self.name, checkpoint=request.checkpoint,
            stop=None if stop is None and request.watch is None else after,
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
    dataset: Dataset,
    labels: Tensor,
    index: Int64[Tensor, "k"],
    training: Training,
    views: int,
    split: Split | None = None,
) -> Batches | SideBySide | Reading:
    """Batches of the training images in ``index``, or tuples of that many views of each batch.

    Of images with captions, batches of :class:`hacore.data.Captions`; where a split is given, of an image to forget
    only what speaks of a forgotten concept is read.
    """
    captioned = isinstance(dataset, Captioned)
    seed = training.loop.seed
    sources = [
        Batches(
            dataset.train_images, _numbers(dataset) if captioned else labels, index, training.batch_size, seed, augment
        )
        for augment in _augmentations(training, views)
    ]  # fmt: skip
    if isinstance(dataset, Captioned):
        return Reading(sources[0], dataset, seed, split)
    return sources[0] if views == 1 else SideBySide(*sources)


def _numbers(dataset: Dataset) -> Int64[Tensor, "n"]:
    """The number of each training image, by which what is said of it is looked up."""
    return torch.arange(len(dataset.train_labels), device=dataset.train_labels.device)


def _augmentations(training: Training, views: int) -> list[Augment]:
    """One augmentation for each view, each with random numbers of its own."""
    return [Augment(training.augment, training.loop.seed + view * VIEW) for view in range(views)]
