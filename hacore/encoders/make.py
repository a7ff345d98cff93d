"""Image encoders by name."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch

from hacore.encoders.images import DigitsCNN, Encoder, ResNet, ResNet9, WorldCNN
from hacore.encoders.vit import SIZES, ViT
from hacore.errors import HacoreError

ENCODERS: dict[str, Callable[[str, int, int | None], Encoder]] = {
    "cnn": DigitsCNN,
    "world": WorldCNN,
    "resnet9": ResNet9,
    "resnet18": ResNet,
    "resnet34": ResNet,
    "resnet50": ResNet,
}


TRANSFORMERS = (*SIZES, "vit")


def encoder(
    name: str, channels: int = 3, dim: int | None = None, seed: int | None = None, **shape: Any
) -> Encoder:
    """Build an untrained encoder.

    Args:
        name: a key of :data:`ENCODERS`: ``"cnn"`` for digits, ``"world"`` for drawings, ``"resnet9"`` for CIFAR on
            a laptop, ``"resnet18"``, ``"resnet34"``, ``"resnet50"`` for CIFAR on a GPU.
        channels: of the images, 1 or more.
        dim: number of features; None takes the encoder's own (32, 96, 128, 512, 512, 2048), any other
            number adds a linear layer.
        shape: of a vision transformer (``"vit-s"``, ``"vit-b"``, ``"vit-l"``, ``"vit"``), see
            :class:`hacore.encoders.ViT`; others have none.
        seed: initial weights depend on it alone and the global generators are left as they were;
            None draws them from torch's global generator.

    Raises:
        HacoreError: if the name is unknown or a number is not positive.
    """
    if name not in ENCODERS and name not in TRANSFORMERS:
        known = ", ".join([*ENCODERS, *TRANSFORMERS])
        raise HacoreError(f"there is no encoder {name!r}; choose one of {known}")
    if channels < 1 or (dim is not None and dim < 1):
        raise HacoreError(f"an encoder needs at least one channel and one feature, not {channels} and {dim}")
    with torch.random.fork_rng(devices=[]) if seed is not None else contextlib.nullcontext():
        if seed is not None:
            torch.manual_seed(seed)
        if name in TRANSFORMERS:
            return ViT(name, channels, dim, **shape)
        if shape:
            raise HacoreError(f"encoder {name!r} has no {', '.join(shape)}; only vision transformers have")
        return ENCODERS[name](name, channels, dim)
