"""Seeded walks over a dataset: batches are index operations on tensors that already are on the device."""

from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from hacore.data.dataset import as_float, generator
from hacore.errors import HacoreError

AUGMENTATIONS = ("none", "shift", "crop-flip", "simclr", "simclr-grey")


class Batch(NamedTuple):
    """Images (b, c, h, w), float32 in [0, 1], and their labels (b,)."""

    images: Tensor
    labels: Tensor


class Pair(NamedTuple):
    """One step of contrastive unlearning: anchors to forget and a fresh batch to retain.

    Each part is a batch, or a tuple of batches where a model learns from several views.
    """

    forget: Any
    retain: Any


class Augment:
    """Seeded augmentation of whole batches on their device.

    ``"none"`` returns the images; ``"shift"`` crops at random after padding one black pixel (digits);
    ``"crop-flip"`` after padding four, and mirrors half of the images (the usual CIFAR augmentation).
    The other two make views for contrastive learning: ``"simclr"`` resizes a random crop of 20-100 % of the
    area, mirrors half of the images, varies brightness, contrast and saturation by 40 % and hue by 10 % in 80 %
    of them, and takes the colour out of 20 % (:cite:t:`chen2020simclr` for CIFAR); ``"simclr-grey"``, for digits,
    which have no colour and must not be mirrored, resizes a crop of 50-100 % and turns, shears and shifts half of
    them.

    Raises:
        HacoreError: if the name is unknown.
    """

    def __init__(self, name: str = "none", seed: int = 0) -> None:
        if name not in AUGMENTATIONS:
            raise HacoreError(f"unknown augmentation {name!r}; choose one of: {', '.join(AUGMENTATIONS)}")
        self.name, self.seed = name, seed

    def __call__(self, images: Float[Tensor, "b c h w"], step: int) -> Float[Tensor, "b c h w"]:
        """Return augmented images that depend on ``images`` and (seed, step) only.

        kornia draws its parameters from torch's global CPU generator, whatever the device of the images:
        that one is set for the call and restored after it, no other one is touched.
        """
        if self.name == "none":
            return images
        state = torch.get_rng_state()
        torch.set_rng_state(generator(self.seed, "augment", step).get_state())
        try:
            return _pipeline(self.name, images.shape[-2], images.shape[-1])(images)
        finally:
            torch.set_rng_state(state)


@lru_cache
def _pipeline(name: str, height: int, width: int) -> Any:
    import kornia.augmentation as kornia  # slow to import, and not needed without augmentation

    def crop(padding: int) -> torch.nn.Module:
        # "slice" copies pixels; "resample" interpolates them (off by 7e-6) in three times the CPU time.
        return kornia.RandomCrop((height, width), padding=padding, cropping_mode="slice")

    def resized(smallest: float) -> torch.nn.Module:
        # Here "resample" interpolates all images at once, and "slice" one after the other.
        return kornia.RandomResizedCrop((height, width), scale=(smallest, 1.0), cropping_mode="resample")

    steps: dict[str, list[torch.nn.Module]] = {
        "shift": [crop(1)],
        "crop-flip": [crop(4), kornia.RandomHorizontalFlip()],
        "simclr": [
            resized(0.2),
            kornia.RandomHorizontalFlip(),
            kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
            kornia.RandomGrayscale(p=0.2),
        ],
        "simclr-grey": [resized(0.5), kornia.RandomAffine(15.0, translate=(0.1, 0.1), shear=10.0)],
    }
    return torch.nn.Sequential(*steps[name])


class Batches:
    """Batches of ``images[index]`` in an order that depends on (seed, epoch) only.

    A final batch of one image, on which batch normalisation cannot train, joins the batch before it.

    Args:
        images: uint8 (n, c, h, w).
        labels: int64 (n,), usually ``split.labels``.
        index: the images to visit, usually a part of a ``Split``.
        augment: applied to every batch; None for none.
        drop_last: leave out the final batch when it is smaller than ``batch_size``.

    Raises:
        HacoreError: if there is nothing to visit or the batch size does not fit.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, "n"],
        index: Int64[Tensor, "k"],
        batch_size: int,
        seed: int,
        augment: Augment | None = None,
        drop_last: bool = False,
    ) -> None:
        if batch_size < 1 or len(index) < (batch_size if drop_last else 1):
            raise HacoreError(
                f"cannot make batches of {batch_size} from {len(index)} images; "
                "use at least one image and a batch size that fits"
            )
        self.images, self.labels, self.index = images, labels, index
        self.batch_size, self.seed, self.drop_last = batch_size, seed, drop_last
        self.augment = augment or Augment("none")

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(_sizes(len(self.index), self.batch_size, self.drop_last))

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one epoch, without the first ``skip``: a resumed run sees the same rest.

        Raises:
            HacoreError: if ``skip`` is not within the epoch.
        """
        _check_skip(skip, len(self))
        chunks = _shuffled(self.index, generator(self.seed, "order", epoch), self.batch_size, self.drop_last)
        for position, chunk in islice(enumerate(chunks), skip, None):
            yield self.take(chunk, epoch * len(self) + position)

    def take(self, index: Int64[Tensor, "b"], step: int) -> Batch:
        """Return the images at ``index``, augmented as at ``step``, with their labels."""
        return Batch(self.augment(as_float(self.images[index]), step), self.labels[index])


class PairedBatches:
    """Algorithm 1 of contrastive unlearning: for each forget batch, ``omega`` times a fresh retain batch.

    Forget batches cover ``forget`` once per epoch, as in ``Batches``. Retain batches come from one seeded
    permutation of ``retain`` after the other, each without its incomplete last batch: they all have
    ``batch_size`` images (or all of a smaller ``retain``), none of them twice. Everything depends on
    (seed, epoch) only.

    Raises:
        HacoreError: if a part is empty, or the batch size or omega is below one.
    """

    def __init__(
        self,
        images: UInt8[Tensor, "n c h w"],
        labels: Int64[Tensor, "n"],
        forget: Int64[Tensor, "f"],
        retain: Int64[Tensor, "r"],
        batch_size: int,
        omega: int,
        seed: int,
        augment: Augment | None = None,
    ) -> None:
        if omega < 1:
            raise HacoreError(f"omega is {omega}; use at least one retain batch per forget batch")
        self.forget = Batches(images, labels, forget, batch_size, seed, augment)
        self.retain = Batches(
            images, labels, retain, min(batch_size, max(len(retain), 1)), seed, augment, drop_last=True
        )
        self.omega, self.seed = omega, seed

    def __len__(self) -> int:
        """Steps per epoch: forget batches times omega."""
        return len(self.forget) * self.omega

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Pair]:
        """Yield the pairs of one epoch, without the first ``skip``: a resumed run sees the same rest.

        Raises:
            HacoreError: if ``skip`` is not within the epoch.
        """
        _check_skip(skip, len(self))
        forget = _shuffled(self.forget.index, generator(self.seed, "forget", epoch), self.forget.batch_size)
        pairs = zip((chunk for chunk in forget for _ in range(self.omega)), self._retain(epoch), strict=False)
        for position, (anchors, others) in islice(enumerate(pairs), skip, None):
            # Two augmentation steps per pair, so that an image drawn into both parts is varied independently.
            step = 2 * (epoch * len(self) + position)
            yield Pair(self.forget.take(anchors, step), self.retain.take(others, step + 1))

    def _retain(self, epoch: int) -> Iterator[Tensor]:
        stream = generator(self.seed, "retain", epoch)
        while True:
            yield from _shuffled(self.retain.index, stream, self.retain.batch_size, drop_last=True)


class SideBySide:
    """What several sources yield side by side, as tuples; they differ in their augmentation only.

    Raises:
        HacoreError: if they do not have equally many batches.
    """

    def __init__(self, *sources: Any) -> None:
        if len({len(source) for source in sources}) != 1:
            raise HacoreError(
                "views side by side need sources with equally many batches; give them one index"
            )
        self.sources = sources

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.sources[0])

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[tuple[Any, ...]]:
        """Yield the tuples of one epoch, without the first ``skip``."""
        return zip(*(source.epoch(epoch, skip) for source in self.sources), strict=True)


class PairedViews(SideBySide):
    """Several ``PairedBatches`` side by side: pairs of a tuple of forget and a tuple of retain batches."""

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """Yield the pairs of one epoch, without the first ``skip``."""
        for views in super().epoch(epoch, skip):
            yield Pair(tuple(pair.forget for pair in views), tuple(pair.retain for pair in views))


def _check_skip(skip: int, length: int) -> None:
    if not 0 <= skip <= length:
        raise HacoreError(f"cannot skip {skip} of {length} batches; resume within the epoch")


def _sizes(count: int, batch_size: int, drop_last: bool = False) -> list[int]:
    """Divide ``count`` images into batch sizes; see ``Batches`` for what becomes of the last one."""
    full, rest = divmod(count, batch_size)
    sizes = [batch_size] * full
    if rest == 1 and full and not drop_last:
        sizes[-1] += 1
    elif rest and not drop_last:
        sizes.append(rest)
    return sizes


def _shuffled(
    index: Int64[Tensor, "k"], stream: torch.Generator, batch_size: int, drop_last: bool = False
) -> tuple[Tensor, ...]:
    order = index[torch.randperm(len(index), generator=stream).to(index.device)]
    sizes = _sizes(len(index), batch_size, drop_last)
    return order[: sum(sizes)].split(sizes)
