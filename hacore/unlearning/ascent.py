"""Climbing the loss of what is to be forgotten."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from hacore.data import Pair
from hacore.errors import HacoreError
from hacore.unlearning.base import KINDS, Descent, Model, Outcome, Range, Request, training_loss


@dataclass(frozen=True, kw_only=True)
class GradientAscent(Descent):
    r"""Climb the loss of the forget images, :math:`L = -L_{CE}(D_f)`, and look at nothing else.

    The loss is the one the model was trained with, for an encoder without labels the contrastive one.

    "NegGrad" of :cite:t:`golatkar2020`. The loss has no lower bound: with a large rate or many epochs the
    model unlearns everything. Rate and epochs are those of the code of :cite:t:`jia2023`. Batch
    normalisation keeps its statistics.
    """

    name = "gradient-ascent"
    kinds = KINDS

    lr: float = 1e-4
    epochs: int = 5  # over the forget images

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-5, 1e-1)}

    def answer(self, request: Request) -> Outcome:
        return self.descend(request, self.over(request, request.split.forget), self.loss)

    @staticmethod
    def loss(model: Model, batch: Any) -> Tensor:
        """Minus the loss of training."""
        return -training_loss(model, batch)


@dataclass(frozen=True, kw_only=True)
class NegGradPlus(Descent):
    r"""Climb on forget images while descending on retain images, :math:`\alpha L_{CE}(D_r) - (1-\alpha) L_{CE}(D_f)`.

    NegGrad+ of :cite:t:`kurmanji2023scrub`. An epoch walks over the retain images, and over the forget
    images as often as that takes. In their code the next step has the next forget batch; ours stay for
    :math:`\omega` steps, the number of retain batches for each forget batch, and all are seen equally
    often. They run several epochs, we run one, the share of retraining that every method has. They choose
    :math:`\alpha` close to 1 for each data set anew; 0.95 is where our search starts. Batch normalisation
    keeps its statistics.

    Raises:
        HacoreError: if alpha is not in [0, 1].
    """

    name = "neggrad-plus"
    kinds = KINDS

    alpha: float = 0.95  # share of the retain images in the loss

    search: ClassVar[dict[str, Range]] = {"lr": Range(1e-3, 1e-1), "alpha": Range(0.5, 1.0, log=False)}

    def answer(self, request: Request) -> Outcome:
        if not 0 <= self.alpha <= 1:
            raise HacoreError(f"alpha is {self.alpha}; it is a share, choose it in [0, 1]")
        split = request.split
        retain, forget = (len(self.over(request, part)) for part in (self.retained(request), split.forget))
        return self.descend(request, self.pairs(request, max(1, round(retain / forget))), self.loss)

    def loss(self, model: Model, batch: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        """The weighted difference of the losses of the two parts, and both."""
        retain, forget = model.loss(batch.retain), model.loss(batch.forget)
        return self.alpha * retain - (1 - self.alpha) * forget, {"retain": retain, "forget": forget}
