"""Training on what remains, and the two controls that leave the encoder alone at first or altogether."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.geometry import HyperbolicLogistic
from hacore.models import Classifier, from_config
from hacore.train import EpochSource
from hacore.unlearning.base import KINDS, Descent, Method, Model, Outcome, Range, Request, training_loss
from hacore.unlearning.cost import combined, timed


def head_parameters(head: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters of a head, each with one row per class; a learnable curvature is the space's."""
    return {name: p for name, p in head.named_parameters() if not name.startswith("space.")}


def untrained_head(request: Request) -> nn.Module:
    """A head like the original's, with weights drawn anew.

    Not those of ``request.fresh``: that is where the original started from, the features of each class grew
    around its row, and the row still finds them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(request.training.loop.seed, "head").initial_seed())
        fresh: Any = from_config(request.model.config)
    return fresh.head.to(next(request.model.parameters()).device)


@dataclass(frozen=True, kw_only=True)
class Finetune(Descent):
    r"""Go on training on the retain images, :math:`L = L_{CE}(D_r)`, and trust that the rest fades.

    An encoder that learns without labels goes on with its contrastive loss.

    A baseline of :cite:t:`golatkar2020`, with the rate of the code of :cite:t:`jia2023`. Batch
    normalisation goes on learning: it sees nothing but retain images. That code trains for ten epochs; we
    give every method that walks over the retain images one, a small share of retraining.
    """

    name = "finetune"
    kinds = KINDS

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-3, 1e-1)}

    def answer(self, request: Request) -> Outcome:
        batches = self.over(request, self.retained(request))
        return self.descend(request, batches, training_loss, freeze_norm=False)


class Penalised(NamedTuple):
    """The weight of the penalty at a step, once for each image, and the batch."""

    gamma: Tensor
    batch: Any


class Annealed:
    r"""Batches with a weight that falls in a line from :math:`\gamma` at the first step to 0 at the last."""

    def __init__(self, batches: EpochSource, gamma: float, epochs: int) -> None:
        self.batches, self.gamma = batches, gamma
        self.last = epochs * len(batches) - 1

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.batches)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Penalised]:
        """The batches of one epoch from the ``skip``-th on, of whatever kind, each with the weight."""
        for step, batch in enumerate(self.batches.epoch(epoch, skip), epoch * len(self) + skip):
            gamma = self.gamma * (1 - step / max(self.last, 1))
            images = batch
            while not isinstance(images, Tensor):
                images = images[0]
            yield Penalised(torch.full((len(images),), gamma, device=images.device), batch)


@dataclass(frozen=True, kw_only=True)
class L1Sparse(Descent):
    r"""Finetune towards few weights, :math:`L = L_{CE}(D_r) + \gamma_t \lVert\theta\rVert_1`.

    The sparsity-aware unlearning of :cite:t:`jia2023`: :math:`\gamma_t` falls linearly, so that the
    last steps repair what the penalty broke. Their code lowers it after each of ten epochs; we have
    one, and lower it after each step, from :math:`\gamma` to exactly 0. As in their code the penalty
    covers all parameters, also biases and normalisations. Batch normalisation goes on learning.
    """

    name = "l1-sparse"
    kinds = KINDS

    gamma: float = 5e-4

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-3, 1e-1), "gamma": Range(1e-6, 1e-2)}

    def answer(self, request: Request) -> Outcome:
        if not self.gamma >= 0:
            raise HacoreError(f"gamma is {self.gamma}; a penalty on the weights needs gamma of 0 or more")
        batches = Annealed(self.over(request, self.retained(request)), self.gamma, self.epochs)
        return self.descend(request, batches, self.loss, freeze_norm=False)

    @staticmethod
    def loss(model: Model, batch: Penalised) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of training and the penalty at its present weight."""
        learnt = model.loss(batch.batch)
        size = torch.stack([p.abs().sum() for p in model.parameters() if p.requires_grad]).sum()
        return learnt + batch.gamma.mean() * size, {"training loss": learnt, "l1 norm": size}


@dataclass(frozen=True, kw_only=True)
class HeadReset(Descent):
    r"""Control: an untrained head on the encoder as it is, then cross-entropy on the retain images.

    Nothing but the finetuning itself touches what the encoder knows. A method that does no better under an
    attack on features has forgotten in the head only. The head is not the one that the original started
    from (:func:`untrained_head`).
    """

    name = "head-reset"

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-3, 1e-1)}

    def answer(self, request: Request) -> Outcome:
        model, cost = timed(lambda: self.reset(request), request.model)
        batches = self.over(request, self.retained(request))
        done = self.descend(request, batches, training_loss, model, freeze_norm=False)
        return replace(done, fit=combined(cost, done.fit))

    @staticmethod
    @torch.no_grad()
    def reset(request: Request) -> Classifier:
        """The original model with the head of an untrained one."""
        model = copy.deepcopy(request.model)
        fresh = head_parameters(untrained_head(request))
        for name, parameter in head_parameters(model.head).items():
            parameter.copy_(fresh[name])
        return model


@dataclass(frozen=True, kw_only=True)
class RowReplacement(Method):
    r"""Control: replace the forgotten class's row of the head, and train nothing.

    The new row has an untrained direction :math:`\hat u`, the length :math:`n` of the longest other row,
    and a hyperplane at distance :math:`D` from the origin, so that in every geometry its logit is at most
    :math:`n\,(r - D)` for a point at radius :math:`r`, while another row :math:`(w_j, b_j)` gives at
    least :math:`-n\,(r + \beta)`, with :math:`\beta = \max_j |b_j|` (in Euclidean space
    :math:`\max_j |b_j| / n`). The class is thus never predicted for a point with
    :math:`r < (D - \beta) / 2`; with points within radius 4, as lifts clip them, that is always at
    :math:`c = 1`. The hyperbolic head cuts distances at :math:`12 / \sqrt c`, so at a larger curvature the
    bound holds within a smaller radius. The mean of the other rows would do in
    Euclidean space, where its logit is the mean of theirs, but hyperbolic logits are not linear in the
    row; and it would tell an attack about other classes, where an untrained row tells nothing.

    Raises:
        HacoreError: if whole classes are not what is forgotten, all of them are, or the head is not logistic.
    """

    name = "row-replacement"
    needs_class = True

    distance: float = 12.0  # D, in units of the radius; the largest that hyperbolic space of c = 1 can hold

    def answer(self, request: Request) -> Outcome:
        return Outcome(*timed(lambda: self.replace_rows(request), request.model))

    @torch.no_grad()
    def replace_rows(self, request: Request) -> Classifier:
        """The original model with the rows replaced."""
        model = copy.deepcopy(request.model)
        head, fresh = model.head, untrained_head(request)
        if not isinstance(head, HyperbolicLogistic) or not isinstance(fresh, HyperbolicLogistic):
            raise HacoreError(f"{self.name} replaces rows of a logistic head; choose head='logistic'")
        rows = torch.tensor(request.split.forget_classes, device=head.weight.device)
        length = _longest(head.weight, rows)
        head.weight[rows] = length * normalize(fresh.weight[rows], dim=-1)
        # A Euclidean bias is in units of the logit, n D; a hyperbolic one is the distance itself, and is cut.
        head.bias[rows] = -self.distance * length.clamp(min=1)
        return model


def _longest(weight: Float[Tensor, "classes d"], rows: Tensor) -> Float[Tensor, ""]:
    """The length of the longest row that is not among ``rows``."""
    others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    others[rows] = False
    if not others.any():
        raise HacoreError("every class is to be forgotten; leave at least one")
    return weight[others].norm(dim=-1).max()
