"""What a model answers: logits and accuracies on any part of a data set."""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from hacore.data import as_float
from hacore.errors import HacoreError
from hacore.models import Classifier

# Large enough to keep a GPU busy, small enough for the activations of a ResNet-50 on a laptop.
BATCH = 1000


@torch.no_grad()
def logits(
    model: Classifier, images: UInt8[Tensor, "n c h w"], index: Int[Tensor, "k"] | None = None
) -> Float[Tensor, "k classes"]:
    """Logits of ``images[index]`` (all images when ``index`` is None), in evaluation mode.

    The model's training or evaluation mode is as before afterwards, layer by layer.
    """
    if index is None:
        index = torch.arange(len(images), device=images.device)
    if len(index) == 0:
        raise HacoreError("there are no images to evaluate; check the split")
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    out = torch.cat([model(as_float(images[part])) for part in index.split(BATCH)])
    for module, training in modes:
        module.training = training
    return out


def accuracy(
    model: Classifier,
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    index: Int[Tensor, "k"] | None = None,
) -> float:
    """Share of ``images[index]`` whose largest logit is their label, in percent."""
    target = labels if index is None else labels[index]
    return 100 * (logits(model, images, index).argmax(dim=1) == target).double().mean().item()
