"""Classifiers over any :class:`hacore.geometry.Space`: encoder, lift into the space, head.

Derived in the chapters "Hyperbolic geometry you can compute with" and "Forgetting one class".
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hacore.encoders import Encoder
from hacore.errors import HacoreError
from hacore.geometry import HyperbolicLogistic, Space
from hacore.models.base import ImageModel, Lift, as_float32, full_precision

HEADS = ("logistic", "prototype")


class Prototypes(nn.Module):
    r"""Nearest-prototype head: logit :math:`-d(z, p_k) / T`.

    The learned prototypes are :math:`p_k = \exp_0(w_k)`, so any optimiser can move them.

    Raises:
        HacoreError: if the temperature is not positive and finite.
    """

    def __init__(self, space: Space, dim: int, classes: int, temperature: float = 0.1) -> None:
        super().__init__()
        if not 0 < temperature < math.inf:
            raise HacoreError(
                f"a temperature must be positive and finite, not {temperature}; try temperature=0.1"
            )
        self.space, self.temperature = space, float(temperature)
        self.tangent = nn.Parameter(
            torch.randn(classes, dim) / dim**0.5
        )  # each about one unit from the origin

    def forward(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logits."""
        return -self.space.pairwise(points, self.space.exp0(self.tangent)) / self.temperature


class Classifier(ImageModel):
    """Images to points of a space to logits; the checkpoint holds everything a prediction needs.

    Args:
        encoder, space, mean, std, lift: see :class:`~hacore.models.base.ImageModel`.
        classes: how many, at least two.
        head: ``"logistic"``: multinomial logistic regression of the space, in Euclidean space the linear
            one; ``"prototype"``: minus the distance to learned prototypes over a temperature.
        temperature: of the prototype head.

    Raises:
        HacoreError: if an argument does not fit, or the lift goes to another space.
    """

    kind: ClassVar[str] = "classifier"
    views: ClassVar[int] = 1

    def __init__(
        self,
        encoder: Encoder,
        classes: int,
        space: Space,
        mean: Sequence[float],
        std: Sequence[float],
        head: str = "logistic",
        lift: Lift | None = None,
        temperature: float = 0.1,
    ) -> None:
        super().__init__(encoder, space, mean, std, lift)
        if classes < 2:
            raise HacoreError(f"a classifier needs at least two classes, not {classes}")
        if head not in HEADS:
            raise HacoreError(f"there is no head {head!r}; choose one of {', '.join(HEADS)}")
        self.classes = classes
        self.head: nn.Module
        if head == "prototype":
            self.head = Prototypes(space, encoder.dim, classes, temperature)
        else:
            self.head = HyperbolicLogistic(space, encoder.dim, classes)
        self.config |= {
            "kind": self.kind, "classes": classes, "head": head, "temperature": float(temperature)
        }  # fmt: skip

    def logits(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logits of points, in float32 or better, also under autocast."""
        with full_precision(points):
            return self.head(as_float32(points))

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in [0, 1]: ``logits(embed(images))``."""
        return self.logits(self.embed(images))

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The cross-entropy of a batch: of its ``images`` and ``labels``."""
        return cross_entropy(self(batch.images), batch.labels)
