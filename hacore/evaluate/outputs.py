"""What a model makes of images: points, tangent vectors and logits from one pass, which all measures share."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from hacore.data import Dataset, Split, as_float
from hacore.data.dataset import generator
from hacore.errors import HacoreError

# Large enough to keep a GPU busy, small enough for the activations of a ResNet-50 on a laptop.
BATCH = 1000
COMPARED = 2000  # images of a part on which two models are compared
RETAINED = 5000  # retained training images that are looked at, drawn at random


class Outputs(NamedTuple):
    """What a model makes of n images, with the labels they are scored against."""

    points: Tensor  # (n, d), of the model's space
    features: Tensor  # (n, d), tangent vectors at the origin: log0 of the points
    logits: Tensor  # (n, classes)
    labels: Tensor  # (n,)

    def take(self, index: Int[Tensor, "k"]) -> "Outputs":
        """The outputs for some of the images."""
        index = index.to(self.labels.device)
        return Outputs(*(tensor[index] for tensor in self))

    def draw(self, count: int, *key: int | str) -> "Outputs":
        """At most ``count`` of the images, drawn at random; the same ``key`` draws the same ones."""
        return self.take(drawn(len(self.labels), count, *key))

    def compared(self, name: str) -> "Outputs":
        """The images of the part called ``name`` on which models are compared, see :func:`to_compare`."""
        return self.draw(COMPARED, "compared", name)

    def join(self, *others: "Outputs") -> "Outputs":
        """The outputs for these images and then those of others."""
        return Outputs(*(torch.cat(tensors) for tensors in zip(self, *others, strict=True)))


@torch.no_grad()
def outputs(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, "n"],
    index: Int[Tensor, "k"],
    precision: str = "no",
) -> Outputs:
    """What ``model`` makes of ``images[index]``, in evaluation mode.

    The model is a :class:`hacore.models.Classifier`, or any module with ``embed``, ``logits`` and ``space``
    of one. Its training or evaluation mode is as before afterwards, layer by layer. ``precision`` is that of
    the encoder, as in training: "no", "bf16" or "fp16".

    Raises:
        HacoreError: if there are no images.
    """
    classifier: Any = model
    points = in_batches(model, classifier.embed, images, index, precision)
    with evaluating(model):
        return Outputs(points, classifier.space.log0(points), classifier.logits(points), labels[index])


def in_batches(
    model: nn.Module,
    function: Callable[[Tensor], Tensor],
    images: UInt8[Tensor, "n c h w"],
    index: Int[Tensor, "k"],
    precision: str,
) -> Float[Tensor, "k *rest"]:
    """What ``function``, of ``model`` in evaluation mode, makes of ``images[index]``; the mode is kept.

    ``precision`` is that of the encoder, as in training: "no", "bf16" or "fp16".

    Raises:
        HacoreError: if there are no images.
    """
    if len(index) == 0:
        raise HacoreError("there are no images to evaluate; check the split")
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    with evaluating(model), torch.autocast(images.device.type, dtype, enabled=precision != "no"):
        return torch.cat([function(as_float(images[part])) for part in index.split(BATCH)])


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards training or evaluation mode is as before, layer by layer."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def parts(dataset: Dataset, split: Split) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """The images, labels and index of every part of a split that has images.

    Training and validation parts carry the labels the model was given (``split.labels``, noise
    included), test parts the true ones.
    """
    train = {
        "retain_train": split.retain,
        "forget_train": split.forget,
        "retain_validation": split.validation,
        "forget_validation": split.validation_forget,
    }
    test = {"retain_test": split.test, "forget_test": split.test_forget}
    every = {name: (dataset.train_images, split.labels, index) for name, index in train.items()}
    every |= {name: (dataset.test_images, dataset.test_labels, index) for name, index in test.items()}
    return {name: part for name, part in every.items() if len(part[2])}


def on_split(model: nn.Module, dataset: Dataset, split: Split, precision: str = "no") -> dict[str, Outputs]:
    """What ``model`` makes of every part of a split that has images; of ``retain_train`` of 5,000 at most."""
    every = parts(dataset, split)
    images, labels, index = every["retain_train"]
    some = drawn(len(index), RETAINED, "retained").to(index.device)
    every["retain_train"] = (images, labels, index[some])
    return {name: outputs(model, *part, precision) for name, part in every.items()}


def to_compare(model: nn.Module, dataset: Dataset, split: Split, precision: str = "no") -> dict[str, Outputs]:
    """What a reference makes of at most 2,000 ``retain_test`` and ``forget_train`` images, drawn at random.

    They are those that :meth:`Outputs.compared` draws from another model's outputs on the same parts.
    """
    out = {}
    for name in ("retain_test", "forget_train"):
        images, labels, index = parts(dataset, split)[name]
        some = drawn(len(index), COMPARED, "compared", name).to(index.device)
        out[name] = outputs(model, images, labels, index[some], precision)
    return out


def drawn(n: int, count: int, *key: int | str) -> Tensor:
    """At most ``count`` of the numbers below n, sorted; the same ``key`` draws the same ones."""
    return torch.randperm(n, generator=generator(*key))[:count].sort().values


def wide(tensor: Tensor) -> Tensor:
    """On the CPU in float64: some devices have none, and these sums are small."""
    return tensor.detach().cpu().double()


def numbered(values: Float[Tensor, "n"], name: str) -> dict[str, float]:
    """One entry per value: ``name_0``, ``name_1``, ..."""
    return {f"{name}_{k}": value for k, value in enumerate(values.tolist())}
