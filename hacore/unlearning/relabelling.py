"""Teaching wrong labels for what is to be forgotten."""

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hacore.data import as_float
from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.models import Classifier
from hacore.unlearning.base import Descent, Outcome, Range, Request, training_loss
from hacore.unlearning.cost import combined, timed
from hacore.unlearning.finetuning import head_parameters, untrained_head

CHUNK = 512  # images of one adversarial step


def best_other(
    scores: Float[Tensor, "k classes"], labels: Int64[Tensor, "k"], forgotten: tuple[int, ...] = ()
) -> Int64[Tensor, "k"]:
    """The class with the highest score that is neither an image's own nor to be forgotten.

    Raises:
        HacoreError: if there is no such class.
    """
    barred = torch.zeros_like(scores, dtype=torch.bool)
    barred[:, list(forgotten)] = True
    barred.scatter_(1, labels.unsqueeze(1), True)
    if barred.all(dim=1).any():
        raise HacoreError("no other class is left to relabel the forget images with; retain at least one")
    return scores.masked_fill(barred, -torch.inf).argmax(dim=1)


def random_labels(request: Request) -> Int64[Tensor, "n"]:
    """The labels of all training images, with those of the forget images drawn anew, uniformly.

    Never drawn are an image's own label and classes to be forgotten.
    """
    split = request.split
    own = split.labels[split.forget]
    # The highest of uniform numbers is at each place with the same probability. In float64, where ties,
    # which would favour lower classes, do not happen.
    draw = torch.rand(
        len(own), len(request.dataset.classes), dtype=torch.float64,
        generator=generator(request.training.loop.seed, "random labels"),
    )  # fmt: skip
    return _relabelled(request, best_other(draw.to(own.device), own, split.forget_classes))


def _relabelled(request: Request, labels: Int64[Tensor, "k"]) -> Int64[Tensor, "n"]:
    changed = request.split.labels.clone()
    changed[request.split.forget] = labels
    return changed


@dataclass(frozen=True, kw_only=True)
class RandomRelabel(Descent):
    r"""Train on everything, with random labels for forget images, :math:`L = L_{CE}(D_r \cup \tilde D_f)`.

    A baseline of :cite:t:`golatkar2020` and the unlearning of :cite:t:`graves2021`. Each forget image
    gets one of the other classes, drawn once; code for the method often draws its own class too, and
    anew in each epoch. Classes to be forgotten are never drawn. Forget and retain images are shuffled into
    the same batches, and one epoch is a small share of retraining. Batch normalisation keeps its
    statistics.
    """

    name = "random-relabel"

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-3, 1e-1)}

    def answer(self, request: Request) -> Outcome:
        everything = torch.cat([self.retained(request), request.split.forget])
        return self.descend(request, self.over(request, everything, random_labels(request)), training_loss)


@dataclass(frozen=True, kw_only=True)
class SalUn(RandomRelabel):
    r"""Random relabelling of the weights that matter, :math:`m = 1(|\nabla_\theta L_f| \ge \text{threshold})`.

    The saliency unlearning of :cite:t:`fan2024salun`: only the share of weights whose gradient of the
    forget images' loss is largest is trained, half of them, ranked over all weights together; no other
    weight moves by one bit. The gradient is taken at the original weights, with batch normalisation in
    evaluation mode, as in the paper's equation; the authors' code takes a small step after each batch
    while it adds them up. Their ten epochs are one here, see :class:`RandomRelabel`.

    Raises:
        HacoreError: if the share is not in (0, 1].
    """

    name = "salun"

    share: float = 0.5  # of the weights that are trained

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-3, 1e-1), "share": Range(0.1, 0.9, log=False)}

    def answer(self, request: Request) -> Outcome:
        model = copy.deepcopy(request.model)
        masks, cost = timed(lambda: self.masks(model, request), model)
        parameters = dict(model.named_parameters())
        # A gradient of exactly 0 leaves no momentum, and Descent decays no weight: a masked weight stays.
        # Multiplying would not do: 0 times an infinite gradient is not a number.
        hooks = [
            parameters[name].register_hook(lambda gradient, mask=mask: gradient.masked_fill(~mask, 0))
            for name, mask in masks.items()
        ]
        everything = torch.cat([self.retained(request), request.split.forget])
        batches = self.over(request, everything, random_labels(request))
        try:
            done = self.descend(request, batches, training_loss, model)
        finally:
            for hook in hooks:
                hook.remove()
        return replace(done, fit=combined(cost, done.fit))

    def masks(self, model: Classifier, request: Request) -> dict[str, Bool[Tensor, "..."]]:
        """For each trainable parameter, which of its weights are salient: True is trained."""
        if not 0 < self.share <= 1:
            raise HacoreError(f"the share of trained weights is {self.share}; choose it in (0, 1]")
        model.eval()
        named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        sums = [torch.zeros_like(p) for p in named.values()]
        for batch in self.over(request, request.split.forget).epoch(0):
            loss = cross_entropy(model(batch.images), batch.labels, reduction="sum")
            for total, part in zip(
                sums, torch.autograd.grad(loss, list(named.values()), materialize_grads=True), strict=True
            ):
                total += part
        size = torch.cat([total.abs().flatten() for total in sums])
        # Ranks, not a threshold: weights with equal gradients, often 0, must not change the share.
        chosen = size.argsort(descending=True, stable=True)[: round(self.share * len(size))]
        salient = torch.zeros_like(size, dtype=torch.bool)
        salient[chosen] = True
        parts = salient.split([p.numel() for p in named.values()])
        return {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}


def nearest_labels(
    model: nn.Module,
    images: Float[Tensor, "k c h w"],
    labels: Int64[Tensor, "k"],
    bound: float,
    forgotten: tuple[int, ...] = (),
) -> Int64[Tensor, "k"]:
    r"""The nearest incorrect class, the one predicted after :math:`x + \epsilon\,\mathrm{sign}\,\nabla_x L_{CE}`.

    As in the code of :cite:t:`chen2023boundary`, the perturbed image is cut to [0, 1] and rounded to
    whole grey levels. Where the step does not leave the class, that code takes the image's own label; we
    take the most likely other one, as the paper's "nearest but incorrect label" asks.

    Args:
        bound: :math:`\epsilon`, in units of a pixel in [0, 1].
    """
    with torch.enable_grad():
        # A copy, because the flop counter's hooks do not allow gradients of a leaf that enters a module.
        inputs = images.detach().requires_grad_().clone()
        loss = cross_entropy(model(inputs), labels, reduction="sum")  # a mean would only shrink the gradient
        (gradient,) = torch.autograd.grad(loss, inputs)
    with torch.no_grad():
        moved = ((images + bound * gradient.sign()).clamp(0, 1) * 255).round() / 255
        return best_other(model(moved), labels, forgotten)


@dataclass(frozen=True, kw_only=True)
class BoundaryShrink(Descent):
    r"""Finetune the forgotten class on each image's nearest incorrect label, :math:`L = L_{CE}(D_f, y_{nbi})`.

    The boundary shrink of :cite:t:`chen2023boundary`, which forgets whole classes only: the decision
    space of the class is given to its neighbours. The label is found by one step of fast gradient sign
    on the original model (:func:`nearest_labels`), so once for each image. Rate, bound and epochs are
    theirs; the epochs are over the forget images alone. Batch normalisation keeps its statistics, where
    their code lets it move to the forgotten class.

    Raises:
        HacoreError: if no whole class is forgotten, or the bound is not positive.
    """

    name = "boundary-shrink"
    needs_class = True

    lr: float = 1e-5
    epochs: int = 10  # over the forget images
    bound: float = 0.1  # of the adversarial step, in units of a pixel in [0, 1]

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-5, 1e-1), "bound": Range(0.02, 0.5)}

    def answer(self, request: Request) -> Outcome:
        if not self.bound > 0:
            raise HacoreError(f"the bound of the adversarial step is {self.bound}; it must be positive")
        model = copy.deepcopy(request.model).eval()
        labels, cost = timed(lambda: self.labels(model, request), model)
        done = self.descend(request, self.over(request, request.split.forget, labels), training_loss, model)
        return replace(done, fit=combined(cost, done.fit))

    def labels(self, model: Classifier, request: Request) -> Int64[Tensor, "n"]:
        """The labels of all training images, with the nearest incorrect ones for the forget images."""
        split = request.split
        found = [
            nearest_labels(
                model, as_float(request.dataset.train_images[part]), split.labels[part],
                self.bound, split.forget_classes,
            )
            for part in split.forget.split(CHUNK)
        ]  # fmt: skip
        return _relabelled(request, torch.cat(found))


@dataclass(frozen=True, kw_only=True)
class BoundaryExpansion(Descent):
    r"""Finetune the forgotten class on a shadow class of its own, then cut that class off the head.

    The boundary expansion of :cite:t:`chen2023boundary`, which forgets whole classes only: the head gets
    a row :math:`C + 1` with untrained weights, forget images are trained towards it,
    :math:`L = L_{CE}(D_f, C + 1)`, and the row is removed: the answer has the original architecture. Rate
    and epochs are theirs, over the forget images alone. Batch normalisation keeps its statistics, where
    their code lets it move to the forgotten class.

    Raises:
        HacoreError: if no whole class is forgotten.
    """

    name = "boundary-expansion"
    needs_class = True

    lr: float = 1e-5
    epochs: int = 10  # over the forget images

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-5, 1e-1)}

    def answer(self, request: Request) -> Outcome:
        model, cost = timed(lambda: self.widened(request), request.model)
        shadow = _relabelled(request, torch.full_like(request.split.forget, model.classes))
        batches = self.over(request, request.split.forget, shadow)
        done = self.descend(request, batches, training_loss, model)
        for name, parameter in head_parameters(model.head).items():
            setattr(model.head, name, nn.Parameter(parameter.detach()[: model.classes].clone()))
        return replace(done, fit=combined(cost, done.fit))

    @staticmethod
    def widened(request: Request) -> Classifier:
        """The original model with one more row in its head, from a head that was never trained."""
        model = copy.deepcopy(request.model)
        fresh = head_parameters(untrained_head(request))
        for name, parameter in head_parameters(model.head).items():
            rows = torch.cat([parameter.detach(), fresh[name].detach()[:1]])
            setattr(model.head, name, nn.Parameter(rows))
        return model
