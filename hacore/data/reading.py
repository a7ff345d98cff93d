"""Batches of images with what is said of them: one text drawn for each level of the tree, anew in every epoch."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from hacore.data.batches import Batch, Pair
from hacore.data.captioned import Captioned
from hacore.data.dataset import generator
from hacore.data.split import Split
from hacore.errors import HacoreError


class Captions(NamedTuple):
    """A batch of b images with one text for each of l levels; -1 is the number of no text and of no node."""

    images: Tensor  # (b, c, h, w), float32 in [0, 1]
    labels: Tensor  # (b,), the leaf class
    texts: Tensor  # (b, l), the number of the text drawn for each level
    tokens: Tensor  # (b, l, length)
    nodes: Tensor  # (b, l), the node of the tree each text speaks of
    drawn: Tensor  # (b,), the one level for models that read one text an image
    statements: Tensor  # (b, s), the numbers of all texts that are true of the image


class Reading:
    """What a source of image numbers yields, as :class:`Captions`.

    The source is a :class:`~hacore.data.batches.Batches` or :class:`~hacore.data.batches.PairedBatches` whose
    labels are the numbers of the training images. Texts depend on (seed, epoch, batch) only. Where a split is
    given, of an image that is to be forgotten only texts that speak of a forgotten concept are drawn: what the
    others say, that a star is a thing, is not to be forgotten.

    Raises:
        HacoreError: if an image has no text that could be drawn.
    """

    def __init__(self, source: Any, dataset: Captioned, seed: int, split: Split | None = None) -> None:
        self.source, self.dataset, self.seed = source, dataset, seed
        self.usable = dataset.captions >= 0
        if split is not None:
            concept = dataset.about(forgotten_nodes(dataset, split))
            of_concept = concept[dataset.captions.clamp(min=0)]
            to_forget = torch.zeros(len(dataset.captions), dtype=torch.bool, device=concept.device)
            to_forget[split.forget] = True
            self.usable = self.usable & (of_concept | ~to_forget[:, None, None])
        silent = ~self.usable.flatten(1).any(dim=1)
        if silent.any():
            raise HacoreError(
                f"nothing is said of training image {int(silent.nonzero()[0])} that could be read; "
                "give every image at least one caption"
            )

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self.source)

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of one epoch from the ``skip``-th on."""
        for position, batch in enumerate(self.source.epoch(epoch, skip), skip):
            key = (self.seed, "captions", epoch, position)
            if isinstance(batch, Pair):
                yield Pair(self.read(batch.forget, *key, "forget"), self.read(batch.retain, *key, "retain"))
            else:
                yield self.read(batch, *key)

    def read(self, batch: Batch, *key: int | str) -> Captions:
        """A batch whose labels are image numbers, with texts drawn by a generator of this key."""
        data, number = self.dataset, batch.labels
        usable = self.usable[number]
        chance = torch.rand(usable.shape, generator=generator(*key)).to(usable.device)
        chance = torch.where(usable, chance, -1.0)
        best, wording = chance.max(dim=2)
        found = data.captions[number].gather(2, wording[..., None]).squeeze(2)
        texts = torch.where(best >= 0, found, -1)
        known = texts.clamp(min=0)
        return Captions(
            images=batch.images,
            labels=data.train_labels[number],
            texts=texts,
            tokens=data.tokens[known],
            nodes=torch.where(texts >= 0, data.text_nodes[known], -1),
            drawn=_one_level(best >= 0, *key),
            statements=data.captions[number].flatten(1),
        )


def forgotten_nodes(dataset: Captioned, split: Split) -> tuple[int, ...]:
    """The highest nodes of the tree whose every leaf is to be forgotten.

    Raises:
        HacoreError: if the split forgets no whole classes.
    """
    if not split.forget_classes:
        raise HacoreError("a concept is a node of the tree: forget classes, not random samples")
    return dataset.tree.cover([dataset.leaf_of[label] for label in split.forget_classes])


def _one_level(there: Bool[Tensor, "b levels"], *key: int | str) -> Tensor:
    """For each row one of the levels that are there, all equally likely."""
    chance = torch.rand(there.shape, generator=generator(*key, "level")).to(there.device)
    return torch.where(there, chance, -1.0).argmax(dim=1)
