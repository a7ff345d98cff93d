"""Fisher forgetting: noise in the weights that the retain data hardly depend on."""

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hacore.data import as_float
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.unlearning.base import Method, Outcome, Range, Request
from hacore.unlearning.cost import Work

LARGEST = 1e3  # inverse information; the head's is cut at a tenth
FLOOR = 1e-8  # information, below which it is taken as this
RESET = 1e-4  # variance of the rows of a forgotten class


def fisher_information(
    model: nn.Module, batches: Iterable[Float[Tensor, "_ c h w"]], stream: torch.Generator, work: Work
) -> dict[str, Tensor]:
    r"""The diagonal of the Fisher information of a classifier, by name of its trainable parameters.

    .. math:: F = \frac{1}{n} \sum_i E_{y \sim p(y | x_i)} \left[ (\nabla \log p(y | x_i))^2 \right]

    One label is drawn for each image instead of summing over the classes: the mean is the same at
    :math:`1/C` of the cost. Since labels are drawn independently from the model's own distribution,
    where the score :math:`\nabla \log p` has mean zero, the cross terms of a squared sum of scores
    vanish in expectation, so that the square of a *batch's* gradient is an unbiased estimate of the
    sum of squares of its images' (the Gauss-Newton-Bartlett estimator of :cite:t:`liu2024sophia`). It
    takes an ordinary backward pass in any geometry. The price is variance: over :math:`B` batches, the
    estimate of one entry has a relative standard deviation of about :math:`\sqrt{2 / B}`. For true
    labels this would be wrong: their gradients do not have mean zero.

    Args:
        model: images to logits; its mode stays, so put it in evaluation mode.
        batches: of images in [0, 1]; the smaller, the less variance.
        stream: CPU generator the labels are drawn from.
        work: where the cost is counted.

    Raises:
        HacoreError: if there are no images.
    """
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    squares = [torch.zeros_like(p) for p in named.values()]
    count = 0

    def scores(images: Tensor) -> tuple[Tensor, ...]:
        logits = model(images)
        share = logits.detach().double().softmax(dim=1).cpu()
        drawn = torch.multinomial(share, 1, generator=stream).squeeze(1).to(logits.device)
        return torch.autograd.grad(cross_entropy(logits, drawn, reduction="sum"), list(named.values()))

    for images in batches:
        score = work.do("score", len(images), functools.partial(scores, images))
        for total, part in zip(squares, score, strict=True):
            total.addcmul_(part, part)
        count += len(images)
    if not count:
        raise HacoreError("the Fisher information needs at least one image; check the split")
    return {name: total / count for name, total in zip(named, squares, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Fisher(Method):
    r"""Fisher forgetting: add Gaussian noise where the retain data carry little information.

    .. math:: w' = w + \sqrt{\alpha F_r^{-\gamma}} \, n, \quad n \sim N(0, I)

    with the diagonal :math:`F_r` of the Fisher information on the retain data
    (:func:`fisher_information`). Nothing is trained, and the forget images are not even read.

    Source: :cite:t:`golatkar2020`. The paper derives :math:`\gamma = 1/2`; the authors' code, which
    published comparisons run, has :math:`\gamma = 1`, and so have we. The rest follows that code, too:
    :math:`F^{-1}` is at most 1000 (100 in the head) where the information vanishes; the weights of one
    filter share their mean variance; the variance of the head and of vectors (biases, normalisations) is
    ten times as large. A learnable curvature, one number for all data, is left alone. Batch normalisation
    keeps its statistics.

    If a whole class is forgotten, the code also replaces its rows of the head by noise of mean 0 and variance
    0.001, whatever :math:`\alpha`; the paper does not mention it. Here ``reset`` asks for that, and it is off:
    alone, it is enough to forget a class in Euclidean space, so that it hides what the noise does,
    and in hyperbolic space it does the opposite. A row of zeros answers with logit 0, and there the logits of
    all other classes are often negative, so that the forgotten class wins.

    The code takes all retain images, one by one, and a backward pass per class; we take ``images`` of
    them drawn at random, and one label each.
    """

    name = "fisher"

    alpha: float = 1e-6  # strength: variance of the noise per inverse information
    exponent: float = 1.0  # gamma
    images: int = 4096  # retain images, at most
    batch_size: int = 16  # images a backward pass
    reset: bool = False  # draw the head's rows of forgotten classes anew

    search: ClassVar[dict[str, Range]] = {"alpha": Range(1e-9, 1e-4)}

    def answer(self, request: Request) -> Outcome:
        if not 0 <= self.alpha < float("inf") or self.images < 1 or self.batch_size < 1:
            raise HacoreError("fisher needs alpha >= 0 and at least one image a batch; change its settings")
        data, split, seed = request.dataset, request.split, request.training.loop.seed
        model = copy.deepcopy(request.model).eval()
        drawn = torch.randperm(len(split.retain), generator=generator(seed, "fisher", "images"))
        index = split.retain[drawn[: self.images].to(split.retain.device)]
        batches = (as_float(data.train_images[part]) for part in index.split(self.batch_size))
        with Work(data.train_images.device) as work:
            information = fisher_information(model, batches, generator(seed, "fisher", "labels"), work)
            self.scrub(model, information, split.forget_classes, generator(seed, "fisher", "noise"))
        return Outcome(model, work.fit())

    @torch.no_grad()
    def scrub(
        self,
        model: nn.Module,
        information: dict[str, Tensor],
        classes: tuple[int, ...],
        stream: torch.Generator,
    ) -> None:
        """Add the noise in place; the rows of ``classes`` in the head are drawn anew."""
        for name, weight in model.named_parameters():
            if name not in information or weight.ndim == 0:
                continue
            head = name.startswith("head.")
            variance = self.variance(information[name], head)
            noise = torch.randn(weight.shape, generator=stream, dtype=weight.dtype).to(weight.device)
            if head and self.reset and classes:
                rows = list(classes)
                weight[rows], variance[rows] = 0.0, 10 * RESET
            weight.add_(variance.sqrt() * noise)

    def variance(self, information: Tensor, head: bool) -> Tensor:
        """Variance of the noise of one parameter with this Fisher information."""
        inverse = (information + FLOOR).pow(-self.exponent).clamp(max=LARGEST / 10 if head else LARGEST)
        if inverse.ndim > 1:
            inverse = inverse.flatten(1).mean(1).view(-1, *[1] * (inverse.ndim - 1)).expand_as(inverse)
        return self.alpha * inverse * (10 if head or inverse.ndim == 1 else 1)
