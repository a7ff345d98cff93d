"""The two models that frame every answer: nothing forgotten, and trained anew."""

import copy
from dataclasses import dataclass

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
