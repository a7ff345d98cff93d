"""Image encoders: normalised images (n, c, h, w) to features (n, dim).

All are built by :func:`hacore.encoders.encoder`, so that a name and three numbers rebuild one from a checkpoint.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from hacore.errors import HacoreError


class Encoder(nn.Module):
    r"""What every encoder has: a body, a projection to ``dim`` standardised features, and what rebuilds it.

    Features are standardised over the batch, without a learned scale: they point in every direction,
    not only into the positive orthant, and have length :math:`|f| \approx \sqrt{dim}` throughout training.
    The lift's scale then decides the radius of the points, and hardly any needs clipping.

    Attributes:
        name, channels, dim: the arguments of :func:`encoder`.
        min_size: the smallest height and width in pixels from which every layer has an input.
    """

    def __init__(self, name: str, channels: int, width: int, dim: int | None, min_size: int) -> None:
        super().__init__()
        self.name, self.channels, self.dim, self.min_size = name, channels, dim or width, min_size
        # No linear layer where the body already has the width: the parameter count is then the body's.
        self.project = nn.Sequential(
            nn.Identity() if self.dim == width else nn.Linear(width, self.dim, bias=False),
            nn.BatchNorm1d(self.dim, affine=False),
        )

    @property
    def config(self) -> dict[str, Any]:
        """The arguments of :func:`encoder` that build one like it, as JSON types."""
        return {"name": self.name, "channels": self.channels, "dim": self.dim}

    def body(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """Features before the projection to ``dim``."""
        raise NotImplementedError

    def whiten(self, images: Float[Tensor, "n c h w"]) -> None:
        """Fit a frozen first layer to normalised training images; nothing where there is none."""

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n dim"]:
        """Features of normalised images.

        Raises:
            HacoreError: if the images have other channels than the encoder, or are too small.
        """
        if images.shape[1] != self.channels or min(images.shape[2:]) < self.min_size:
            raise HacoreError(
                f"encoder {self.name!r} takes images (n, {self.channels}, h, w) of at least "
                f"{self.min_size} pixels a side, not {tuple(images.shape)}; build the encoder for "
                "these channels or resize the images"
            )
        return self.project(self.body(images))


class Conv(nn.Module):
    r"""A convolution without bias whose weight is the matrix (out, in :math:`\cdot k^2`) that Muon updates.

    Its output keeps the image size. The optimiser ``"muon"`` also renormalises this weight, so a
    batch normalisation, which undoes any scale, has to follow.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int = 3) -> None:
        super().__init__()
        self.shape = (outputs, inputs, kernel, kernel)
        self.weight = nn.Parameter(torch.empty(outputs, inputs * kernel**2))
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n out h w"]:
        """Convolve with stride 1 and zero padding."""
        return F.conv2d(images, self.weight.view(self.shape), padding=self.shape[-1] // 2)


def _block(inputs: int, outputs: int, *, pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = [Conv(inputs, outputs)]
    if pool:  # before the normalisation, which then has a quarter of the work
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.BatchNorm2d(outputs), nn.ReLU())


class DigitsCNN(Encoder):
    """Three 3x3 convolutions of width 16, 32, 32 for 8x8 digits: 18 thousand parameters."""

    def __init__(self, name: str, channels: int, dim: int | None) -> None:
        super().__init__(name, channels, 128, dim or 32, min_size=4)
        self.layers = nn.Sequential(
            _block(channels, 16, pool=False),
            _block(16, 32, pool=True),
            _block(32, 32, pool=False),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
        )

    def body(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """Features of 32 channels in four quadrants."""
        return self.layers(images)


class WorldCNN(Encoder):
    """Four 3x3 convolutions of width 24, 48, 96, 96, three of them of stride 2, for 32x32 drawings.

    0.14 million parameters, 3 million multiplications an image. Features are normalised image by image, as those of a
    vision transformer are, and not over the batch: of bright drawings on dark ground some were fifty times as long as
    the rest, which a radius shows, and a cosine does not.
    """

    def __init__(self, name: str, channels: int, dim: int | None) -> None:
        super().__init__(name, channels, 96, dim, min_size=8)
        self.project[1] = nn.LayerNorm(self.dim, elementwise_affine=False)
        widths = (channels, 24, 48, 96, 96)
        self.layers = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                )
                for inputs, outputs, stride in zip(widths, widths[1:], (2, 2, 2, 1), strict=False)
            )
        )

    def body(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """The strongest response of each of 96 channels."""
        # Channels last: faster on a CPU, and every layer keeps it.
        return self.layers(images.contiguous(memory_format=torch.channels_last)).amax(dim=(2, 3))


class ResNet9(Encoder):
    r"""A small fast network for 32x32 images, after Jordan's airbench: 0.28 million parameters.

    A frozen 2x2 whitening convolution (:meth:`whiten`), then three blocks of convolution, pooling,
    batch normalisation and ReLU with width 32, 64, 128, the last two followed by a residual
    convolution; global maximum. With ``"muon"`` it learns CIFAR-10 in a few epochs.
    """

    whitening: Tensor

    def __init__(self, name: str, channels: int, dim: int | None) -> None:
        super().__init__(name, channels, 128, dim, min_size=9)
        patch = 4 * channels
        # A buffer: it is frozen, and belongs to the checkpoint. Until whiten() is called, each pixel of
        # the patch is its own component.
        self.register_buffer("whitening", torch.cat([torch.eye(patch), -torch.eye(patch)]))
        self.first = _block(2 * patch, 32, pool=True)
        self.second, self.second_residual = _block(32, 64, pool=True), _block(64, 64, pool=False)
        self.third, self.third_residual = _block(64, 128, pool=True), _block(128, 128, pool=False)

    @torch.no_grad()
    def whiten(self, images: Float[Tensor, "n c h w"]) -> None:
        r"""Set the first convolution to whiten the 2x2 patches of these normalised training images.

        Its rows are :math:`\pm u_i / \sqrt{\lambda_i + \epsilon}` for the eigenvectors
        :math:`u_i` and eigenvalues :math:`\lambda_i` of the patches' covariance.
        """
        patches = F.unfold(images, 2).transpose(1, 2).flatten(0, 1).double().cpu()
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        rows = vectors.T / (values.clamp(min=0) + 5e-4).sqrt()[:, None]
        self.whitening.copy_(torch.cat([rows, -rows]))

    def body(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """The strongest response of each of 128 channels."""
        # Channels last: a training step takes two thirds of the time on a CPU, and every layer keeps it.
        images = images.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(images, self.whitening.unflatten(1, (self.channels, 2, 2)))
        x = self.second(self.first(x))
        x = self.third(x + self.second_residual(x))
        x = x + self.third_residual(x)
        return x.amax(dim=(2, 3))


class ResNet(Encoder):
    """ResNet-18, 34 or 50 of He et al. (2016) from transformers, with the stem for small images.

    The stem is one 3x3 convolution of stride 1 without max-pooling, as usual for CIFAR; the body of
    ResNet-18 then has 11,168,832 parameters.
    """

    def __init__(self, name: str, channels: int, dim: int | None) -> None:
        from transformers import ResNetConfig, ResNetModel  # seconds to import, and optional

        depths, layer = {
            "resnet18": ((2, 2, 2, 2), "basic"),
            "resnet34": ((3, 4, 6, 3), "basic"),
            "resnet50": ((3, 4, 6, 3), "bottleneck"),
        }[name]
        widths = tuple(64 * 2**stage * (4 if layer == "bottleneck" else 1) for stage in range(4))
        super().__init__(name, channels, widths[-1], dim, min_size=1)
        config = ResNetConfig(
            num_channels=channels, embedding_size=64, hidden_sizes=widths, depths=depths, layer_type=layer
        )
        model = ResNetModel(config)
        convolution = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")  # as all others
        self.stem = nn.Sequential(convolution, nn.BatchNorm2d(64), nn.ReLU())
        self.stages = model.encoder.stages

    def body(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width"]:
        """The mean of the last stage over the image."""
        x = self.stem(images)
        for stage in self.stages:
            x = stage(x)
        return x.mean(dim=(2, 3))
