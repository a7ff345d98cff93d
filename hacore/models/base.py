"""What every model is made of: an encoder, a lift into a space, and images in [0, 1]."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hacore.encoders import Encoder
from hacore.errors import HacoreError
from hacore.geometry import Space

MODES = ("free", "clipped", "fixed")


def full_precision(like: Tensor) -> torch.autocast:
    """Switch autocast off: geometry is computed in float32 or better, whatever the encoder runs in."""
    return torch.autocast(like.device.type, enabled=False)


def as_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class Lift(nn.Module):
    r"""Encoder features :math:`f` to points :math:`z = \exp_0(v)` of a space.

    ``"free"``: :math:`v = s f`. ``"clipped"``: :math:`v = s f \min(1, r / |s f|)` (Guo et al., 2022).
    ``"fixed"``: :math:`v = r f / |f|`, all points at one radius, where distance is a monotone
    function of the cosine in every geometry. In Euclidean space :math:`\exp_0` is the identity.

    Args:
        space: where the points live.
        mode: one of the three above.
        scale: :math:`s > 0`, features to tangent lengths; standardised features of dimension :math:`d`
            land near radius :math:`s \sqrt d`, 1.7 for the default and 32 features.
        radius: :math:`r > 0`, as a length in the tangent space.

    Raises:
        HacoreError: if the mode is unknown, or scale or radius is not positive and finite.
    """

    def __init__(self, space: Space, mode: str = "clipped", scale: float = 0.3, radius: float = 4.0) -> None:
        super().__init__()
        if mode not in MODES:
            raise HacoreError(f"there is no lift {mode!r}; choose one of {', '.join(MODES)}")
        for name, value in (("scale", scale), ("radius", radius)):
            if not 0 < value < math.inf:
                raise HacoreError(
                    f"the {name} of a lift must be positive and finite, not {value}; try {name}=1"
                )
        self.space, self.mode, self.scale, self.radius = space, mode, float(scale), float(radius)

    def forward(self, features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Points, in float32 or better, also under autocast."""
        with full_precision(features):
            features = as_float32(features)
            if self.mode == "free":
                return self.space.exp0(self.scale * features)
            # The floor keeps the gradient finite where a feature vector is zero.
            norm = features.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(features.dtype).tiny)
            factor = self.radius / norm
            if self.mode == "clipped":
                factor = factor.clamp(max=self.scale)
            return self.space.exp0(factor * features)


class ImageModel(nn.Module):
    """Images in [0, 1] to points of a space; nothing that uses one asks which geometry it holds.

    Args:
        encoder: see :func:`hacore.encoders.encoder`.
        space: where the points live.
        mean, std: of the training images' pixels in [0, 1], per channel: the model normalises.
        lift: how features become points; None is ``Lift(space)``.

    Attributes:
        kind: what such models are called in configurations and by methods.
        views: how many augmentations of an image the loss compares.
        space, lift, encoder: the parts.
        config: what :func:`hacore.models.from_config` rebuilds the untrained model from, as JSON types.

    Raises:
        HacoreError: if an argument does not fit, or the lift goes to another space.
    """

    kind: ClassVar[str]
    views: ClassVar[int]

    mean: Tensor
    std: Tensor
    config: dict[str, Any]

    def __init__(
        self,
        encoder: Encoder,
        space: Space,
        mean: Sequence[float],
        std: Sequence[float],
        lift: Lift | None = None,
    ) -> None:
        super().__init__()
        lift = lift or Lift(space)
        if lift.space is not space:
            raise HacoreError(
                "the lift goes to another space than the model's; give both the same Space object"
            )
        if not len(mean) == len(std) == encoder.channels:
            raise HacoreError(
                f"{len(mean)} means and {len(std)} standard deviations for {encoder.channels} channels; give one each"
            )
        if not all(math.isfinite(m) for m in mean) or not all(0 < s < math.inf for s in std):
            raise HacoreError(
                f"mean {tuple(mean)} is not finite or std {tuple(std)} not positive; check the images"
            )
        self.encoder, self.space, self.lift = encoder, space, lift
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(tuple(values), dtype=torch.float32).view(-1, 1, 1))
        self.config = {
            "encoder": encoder.config,
            "space": _space_config(space),
            "mean": [float(m) for m in mean],
            "std": [float(s) for s in std],
            "lift": {"mode": lift.mode, "scale": lift.scale, "radius": lift.radius},
        }

    def normalise(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Images in [0, 1] to zero mean and unit deviation per channel.

        Raises:
            HacoreError: if the images have other channels than the model.
        """
        if images.shape[1] != len(self.mean):
            raise HacoreError(
                f"the model was built for {len(self.mean)} channels and got images of shape {tuple(images.shape)}; "
                "load the data set the model was trained on"
            )
        return (images - self.mean) / self.std

    def whiten(self, images: Float[Tensor, "n c h w"]) -> None:
        """Fit the encoder's frozen whitening to training images in [0, 1]; nothing if it has none."""
        self.encoder.whiten(self.normalise(images))

    def features(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """The encoder's features of images in [0, 1].

        Raises:
            HacoreError: if the images have other channels than the model, or are too small.
        """
        return self.encoder(self.normalise(images))

    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """Points of ``space`` for images in [0, 1]; raises as :meth:`features`."""
        return self.lift(self.features(images))

    def loss(self, batch: Any) -> Tensor:
        """The loss the model is trained with: of one batch, or of a tuple of ``views`` batches of the same images."""
        raise NotImplementedError


def _space_config(space: Space) -> dict[str, Any]:
    return {"name": space.name, "curv": float(space.curv.detach()), "learnable": bool(space.learnable)}
