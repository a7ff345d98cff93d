"""UNSIR: break a class with noise made to be misclassified, then repair the others."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from hacore.data import Batch, Batches
from hacore.data.dataset import generator, stratified
from hacore.models import Classifier
from hacore.unlearning.base import Descent, Outcome, Range, Request, training_loss
from hacore.unlearning.cost import Work, combined


class NoisyBatches:
    """The batches of ``retain``, each with ``count`` of the noise images drawn at random behind it."""

    def __init__(
        self,
        retain: Batches,
        images: Float[Tensor, "k c h w"],
        labels: Int64[Tensor, "k"],
        count: int,
    ) -> None:
        self.retain, self.images, self.labels, self.count = retain, images, labels, count

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.retain)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """The batches of one epoch from the ``skip``-th on."""
        for step, batch in enumerate(self.retain.epoch(epoch, skip), start=skip):
            stream = generator(self.retain.seed, "noise", epoch, step)
            drawn = torch.randint(len(self.images), (self.count,), generator=stream).to(self.images.device)
            yield Batch(
                torch.cat([batch.images, self.images[drawn]]), torch.cat([batch.labels, self.labels[drawn]])
            )


@dataclass(frozen=True, kw_only=True)
class Unsir(Descent):
    r"""Impair with error-maximising noise labelled as the forgotten class, then repair on retain images.

    Noise images :math:`N` for a forgotten class :math:`c` are learned with Adam, the model unchanged:

    .. math:: \min_N \; -L_{CE}(f(N), c) + \lambda |N|^2

    One epoch on retain images mixed with noise labelled :math:`c` impairs the class, one epoch on retain
    images alone repairs the others. The forget images are never seen.

    Source: :cite:t:`tarun2023unsir` and its code: Adam, whose rates are kept as defaults, and batch
    normalisation that goes on learning. The noise is in normalised pixels there, without limits,
    and so it is here: a model of ours takes images in [0, 1] and normalises them itself, so
    it is given :math:`\mu + \sigma N`, which leaves [0, 1] on purpose. The code's 1000 images of each class are
    ``share`` of CIFAR-10's, and its 5120 noise images beside 9000 retain images are ``ratio``, so
    that both scale with the data; its 256 different noise images a class are 64 here, because learning them
    would otherwise cost more than all the rest; each is seen several times there, too.
    """

    name = "unsir"
    needs_class = True

    lr: float = 0.02  # of impairing
    batch_size: int = 256  # retain images; the noise comes on top
    repair_lr: float = 0.01
    share: float = 0.2  # of the images of each retained class
    ratio: float = 0.57  # noise images per retain image while impairing
    noises: int = 64  # different noise images of each forgotten class
    noise_steps: int = 40
    noise_lr: float = 0.1
    noise_weight: float = 0.1  # lambda

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-4, 3e-2), "repair_lr": Range(1e-4, 3e-2)}

    def answer(self, request: Request) -> Outcome:
        labels = torch.tensor(request.split.forget_classes, device=request.split.labels.device)
        labels = labels.repeat_interleave(self.noises)
        with Work(labels.device) as work:
            noise = self.noise(request, labels, work)
        retain = self.over(request, self.subset(request))
        noisy = NoisyBatches(retain, noise, labels, max(1, round(self.ratio * retain.batch_size)))
        impaired = self.phase(request, "impair", noisy, copy.deepcopy(request.model), self.lr)
        repaired = self.phase(request, "repair", retain, impaired.model, self.repair_lr)
        return Outcome(repaired.model, combined(work.fit(), impaired.fit, repaired.fit))

    def phase(
        self, request: Request, name: str, batches: Batches | NoisyBatches, model: Classifier, lr: float
    ) -> Outcome:
        """One of the two trainings, with checkpoints of its own."""
        folder = request.checkpoint and request.checkpoint / name
        return self.descend(
            replace(request, checkpoint=folder), batches, training_loss, model,
            lr=lr, optimizer="adamw", freeze_norm=False,
        )  # fmt: skip

    def subset(self, request: Request) -> Int64[Tensor, "k"]:
        """``share`` of the retain images of each class."""
        split = request.split
        stream = generator(request.training.loop.seed, "unsir", "retain")
        drawn = stratified(split.labels[split.retain].cpu(), self.share, stream)
        return split.retain[drawn.to(split.retain.device)]

    def noise(self, request: Request, labels: Int64[Tensor, "k"], work: Work) -> Float[Tensor, "k c h w"]:
        r"""Images :math:`\mu + \sigma N` that the model does not take for their ``labels``."""
        frozen = copy.deepcopy(request.model).eval().requires_grad_(requires_grad=False)
        shape = request.dataset.train_images.shape[1:]
        stream = generator(request.training.loop.seed, "unsir", "noise")
        start = torch.randn((len(labels), *shape), generator=stream).to(labels.device)
        noise = start.requires_grad_()
        optimizer = torch.optim.Adam([noise], lr=self.noise_lr)

        def step() -> None:
            optimizer.zero_grad()
            error = cross_entropy(frozen(frozen.mean + frozen.std * noise), labels)
            size = noise.square().flatten(1).sum(1).mean()
            (self.noise_weight * size - error).backward()
            optimizer.step()

        for _ in range(self.noise_steps):
            work.do("noise", len(labels), step)
        return (frozen.mean + frozen.std * noise).detach()
