"""What a model answers: logits and accuracies on any part of a data set."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from hacore.evaluate.outputs import Outputs, in_batches


@torch.no_grad()
def logits(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    index: Int[Tensor, "k"] | None = None,
    precision: str = "no",
) -> Float[Tensor, "k classes"]:
    """Logits of ``images[index]`` (all images when ``index`` is None), in evaluation mode.

    ``precision`` is that of the encoder, as in training: "no", "bf16" or "fp16".
    The model's training or evaluation mode is as before afterwards, layer by layer.
    """
    if index is None:
        index = torch.arange(len(images), device=images.device)
    return in_batches(model, model, images, index, precision)


def accuracy(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    index: Int[Tensor, "k"] | None = None,
    precision: str = "no",
) -> float:
    """Share of ``images[index]`` whose largest logit is their label, in percent."""
    return correct(logits(model, images, index, precision), labels if index is None else labels[index])


def correct(logits: Float[Tensor, "n classes"], labels: Int[Tensor, "n"]) -> float:
    """Share of rows whose largest logit is their label, in percent."""
    return 100 * (logits.argmax(dim=1) == labels).double().mean().item()


def accuracies(seen: dict[str, Outputs]) -> dict[str, float]:
    """The accuracy in percent on every part, as ``PART_accuracy``."""
    return {f"{name}_accuracy": correct(out.logits, out.labels) for name, out in seen.items()}
