"""The two models that frame every answer: nothing forgotten, and trained anew."""

import copy
from dataclasses import dataclass

import torch

from hacore.data import forgotten_nodes
from hacore.models import ImageText
from hacore.unlearning.base import KINDS, Method, Outcome, Request, train_on


@dataclass(frozen=True, kw_only=True)
class Original(Method):
    """Forget nothing: the control every other method is compared with, at the cost of its training."""

    name = "original"
    kinds = KINDS

    def answer(self, request: Request) -> Outcome:
        return Outcome(copy.deepcopy(request.model), request.trained)


@dataclass(frozen=True, kw_only=True)
class Retrain(Method):
    """Train anew on the retain data alone: the gold standard, exact by construction."""

    name = "retrain"
    kinds = KINDS

    def answer(self, request: Request) -> Outcome:
        split = request.split
        return train_on(
            request.fresh(split.retain), request.dataset, split, split.retain,
            request.training, self.name, request.checkpoint,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class RetrainLifted(Method):
    """Train anew on all pairs, but say no more of a forgotten concept's images than what its parent is.

    Pairs of a star are kept with the captions "a drawing of a polygon" and "a thing". A model that never read the
    word (:class:`Retrain`) places it at random, near whatever it likes, and is no fair standard for what a
    forgotten image should become: this one has seen the image and knows what kind of thing it is.
    """

    name = "retrain-lifted"
    kinds = (ImageText.kind,)

    def answer(self, request: Request) -> Outcome:
        split = request.split
        lifted = request.captioned.lifted(forgotten_nodes(request.captioned, split))
        everything = torch.cat([split.retain, split.forget]).sort().values
        return train_on(
            request.fresh(everything), lifted, split, everything,
            request.training, self.name, request.checkpoint,
        )  # fmt: skip
