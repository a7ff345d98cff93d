"""Encoders that learn without labels: SimCLR and MoCo, over any encoder and any space.

Derived in the chapter "Learning by contrast".
"""

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hacore.encoders import Encoder
from hacore.errors import HacoreError
from hacore.geometry import Space
from hacore.losses import Terms, gather, nt_xent_terms, queue_terms
from hacore.models.base import ImageModel, Lift


class Projector(nn.Sequential):
    """Features to the vectors that are compared: linear, batch normalisation, ReLU, linear.

    As in SimCLR, but the output is standardised over the batch without a learned scale, as every encoder's
    is here: the lift's scale then decides the radius of the points.
    """

    def __init__(self, inputs: int, dim: int) -> None:
        super().__init__(
            nn.Linear(inputs, inputs, bias=False),
            nn.BatchNorm1d(inputs),
            nn.ReLU(),
            nn.Linear(inputs, dim, bias=False),
            nn.BatchNorm1d(dim, affine=False),
        )


class ContrastiveEncoder(ImageModel):
    r"""What SimCLR and MoCo share: features :math:`h`, a projector, and points :math:`z` that are compared.

    Downstream users read :meth:`features`, the loss compares :meth:`embed`.

    Args:
        encoder, space, mean, std, lift: see :class:`~hacore.models.base.ImageModel`.
        dim: coordinates of the points.
        temperature: :math:`\tau > 0`, in units of the space's similarity.

    Raises:
        HacoreError: if an argument does not fit, or the lift goes to another space.
    """

    views: ClassVar[int] = 2

    def __init__(
        self,
        encoder: Encoder,
        space: Space,
        mean: Sequence[float],
        std: Sequence[float],
        dim: int = 64,
        lift: Lift | None = None,
        temperature: float = 0.5,
    ) -> None:
        super().__init__(encoder, space, mean, std, lift)
        if dim < 1:
            raise HacoreError(f"points need at least one coordinate, not {dim}")
        if not temperature > 0:
            raise HacoreError(f"a temperature must be positive, not {temperature}; try temperature=0.5")
        self.projector = Projector(encoder.dim, dim)
        self.temperature = float(temperature)
        self.config |= {"kind": self.kind, "dim": dim, "temperature": self.temperature}

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Points of ``space`` for images in [0, 1]; raises as :meth:`features`."""
        return self.lift(self.projector(self.features(images)))

    def compare(
        self, first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]
    ) -> tuple[Terms, Float[Tensor, "n d"]]:
        """The terms of the contrastive loss with row i of both as positives, and the points of ``first``.

        Anchor a of the terms belongs to row ``a % n``. In training mode, what a model remembers of earlier
        batches moves on.
        """
        raise NotImplementedError

    def loss(self, batch: Any) -> Float[Tensor, ""]:
        """The mean contrastive loss of two batches, views of the same images; no label is read."""
        first, second = batch
        terms, _ = self.compare(first.images, second.images)
        return (terms.spread - terms.alignment).mean()


class SimCLR(ContrastiveEncoder):
    """Learns to tell views of one image from views of all others in the batch (:cite:t:`chen2020simclr`).

    The loss is NT-Xent with the similarity of the space: cosine in the plane, as published, minus the
    geodesic distance in hyperbolic space, our extension.
    """

    kind: ClassVar[str] = "simclr"

    def compare(
        self, first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]
    ) -> tuple[Terms, Float[Tensor, "n d"]]:
        """See :meth:`ContrastiveEncoder.compare`: there are 2n anchors, the first views and then the second."""
        x, y = self.embed(torch.cat([first, second])).chunk(2)
        return nt_xent_terms(x, y, self.space, self.temperature), x


class MoCo(ContrastiveEncoder):
    r"""Learns to tell a view of an image from those in a queue of earlier ones (:cite:t:`he2020moco`).

    Keys come from a second encoder and projector that follow the first,
    :math:`\theta_k \leftarrow m \theta_k + (1 - m) \theta_q` at every training step, without a gradient; the
    keys of a step then replace the oldest in the queue. Other than in the source, batches are not shuffled
    between devices for batch normalisation.

    Args:
        queue: how many keys are kept; it must be small beside the training set, or an image meets its own key.
        momentum: :math:`m` in [0, 1).
    """

    kind: ClassVar[str] = "moco"

    queue: Tensor
    oldest: Tensor

    def __init__(
        self,
        encoder: Encoder,
        space: Space,
        mean: Sequence[float],
        std: Sequence[float],
        dim: int = 64,
        lift: Lift | None = None,
        temperature: float = 0.1,
        queue: int = 4096,
        momentum: float = 0.99,
    ) -> None:
        super().__init__(encoder, space, mean, std, dim, lift, temperature)
        if queue < 1 or not 0 <= momentum < 1:
            raise HacoreError(
                f"a queue of {queue} keys and a momentum of {momentum} are not possible; "
                "use at least one key and a momentum in [0, 1)"
            )
        self.momentum = float(momentum)
        self.key_encoder, self.key_projector = copy.deepcopy(encoder), copy.deepcopy(self.projector)
        for parameter in self._keys():
            parameter.requires_grad_(False)
        # Random points, standardised as a projector's output is, until keys replace them.
        with torch.no_grad():
            self.register_buffer("queue", self.lift(torch.randn(queue, dim)))
        self.register_buffer("oldest", torch.zeros((), dtype=torch.int64))
        self.config |= {"queue": queue, "momentum": self.momentum}

    def _keys(self) -> list[Tensor]:
        return [*self.key_encoder.parameters(), *self.key_projector.parameters()]

    def whiten(self, images: Float[Tensor, "n c h w"]) -> None:
        """Fit the frozen whitening of both encoders to training images in [0, 1]."""
        super().whiten(images)
        self.key_encoder.whiten(self.normalise(images))

    def compare(
        self, first: Float[Tensor, "n c h w"], second: Float[Tensor, "n c h w"]
    ) -> tuple[Terms, Float[Tensor, "n d"]]:
        """See :meth:`ContrastiveEncoder.compare`: there are n anchors, the first views; the second make keys."""
        if self.training:
            self._follow()
        with torch.no_grad():
            keys = self.lift(self.key_projector(self.key_encoder(self.normalise(second))))
        queries = self.embed(first)
        # A copy, because the queue moves on before the gradient is taken.
        terms = queue_terms(queries, keys, self.queue.clone(), self.space, self.temperature)
        if self.training:
            self._enqueue(gather(keys))
        return terms, queries

    @torch.no_grad()
    def _follow(self) -> None:
        leaders: Any = [*self.encoder.parameters(), *self.projector.parameters()]
        torch._foreach_lerp_(self._keys(), [p.detach() for p in leaders], 1 - self.momentum)

    @torch.no_grad()
    def _enqueue(self, keys: Float[Tensor, "n d"]) -> None:
        size = len(self.queue)
        keys = keys[-size:].to(self.queue.dtype)
        places = (self.oldest + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places] = keys
        self.oldest.add_(len(keys)).remainder_(size)


CONTRASTIVE: dict[str, type[ContrastiveEncoder]] = {model.kind: model for model in (SimCLR, MoCo)}
