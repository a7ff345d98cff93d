"""Batches out of shards that do not fit in memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import islice

import torch
from torch import Tensor

from hacore.data.batches import Augment
from hacore.data.dataset import as_float, generator
from hacore.data.reading import Captions
from hacore.data.shards.concepts import MOST, Concepts
from hacore.data.shards.pictures import check, decoded
from hacore.data.shards.read import Report, Sample, Shards, Source
from hacore.data.tokenizer import Tokenizer
from hacore.errors import HacoreError


class ShardBatches:
    """Batches of :class:`~hacore.data.reading.Captions`, of one level, read from shards as they are needed.

    All batches are full. An epoch has as many as ``length`` samples fill, whatever their images turn out to be: a
    process that runs out of samples, because some are skipped or its shards are smaller than those of another,
    goes on with the first it had in this epoch; what is left over is not visited. Everything depends on (seed,
    epoch) and the number of processes only. The number of a text is a hash of it, so that equal captions have one.

    Args:
        source: tars, folders or patterns, see :func:`hacore.data.shards.find`.
        concept_words: as for :func:`hacore.data.shards.image_text`, whose classes and texts these are.
        tokenizer: of the captions.
        batch_size: images of all processes together; a multiple of the number of processes.
        seed: of the order, of the augmentation, and of the caption drawn where an image has several.
        size: pixels on a side.
        length: how many samples there are, of ``only``; None counts them, which reads all captions once.
        only: the classes to visit, such as ``["other"]`` to retain all but the concepts; None visits all.
        augment: applied to every batch; None for none.
        buffer: samples that wait to be drawn from, see :class:`hacore.data.shards.Shards`.
        fit: "crop" or "pad", see :func:`hacore.data.shards.decode`.
        least: the share of samples that must be usable; it is looked at at the end of each pass and epoch.
        workers: threads that decode.
        process: see :class:`hacore.data.shards.Shards`.

    Attributes:
        concepts: their classes, tree and prompts.
        report: what this process saw and skipped in the epoch that was begun last.
        divided: each process has batches of its own, which are not to be divided further.

    Raises:
        HacoreError: if an argument does not fit, or too little can be used.
    """

    divided = True

    def __init__(
        self,
        source: Source,
        concept_words: Mapping[str, Sequence[str]] | Sequence[str],
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        size: int = 224,
        *,
        length: int | None = None,
        only: Collection[str] | None = None,
        augment: Augment | None = None,
        buffer: int = 1000,
        fit: str = "crop",
        least: float = 0.5,
        workers: int = 4,
        process: tuple[int, int] | None = None,
    ) -> None:
        check(size, fit, workers)
        self.concepts, self.report = Concepts.of(concept_words), Report()
        names = self.concepts.names
        for name in () if only is None else only:
            if isinstance(only, str) or name not in names:
                raise HacoreError(f"there is no class {name!r}; give a list of some of: {', '.join(names)}")
        self.only = frozenset(range(len(names)) if only is None else map(names.index, only))
        self.shards = Shards(source, seed, buffer, process)
        self.tokenizer, self.batch_size, self.seed = tokenizer, batch_size, seed
        self.size, self.fit, self.least, self.workers = size, fit, least, workers
        self.augment = augment or Augment("none")
        self.length = self._count(Shards(source, process=(0, 1))) if length is None else length
        if not 1 <= batch_size <= self.length:
            raise HacoreError(
                f"cannot make batches of {batch_size} from {self.length:,} samples; use a batch size that fits"
            )

    def __len__(self) -> int:
        """Batches per epoch, the same in every process."""
        return self.length // self.batch_size

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Captions]:
        """Yield this process's batches of one epoch, without the first ``skip``: a resumed run sees the same rest.

        What is skipped is read and decoded all the same, because which images can be decoded decides what is in
        the batches after them.

        Raises:
            HacoreError: if ``skip`` is not within the epoch, the batch size is no multiple of the number of
                processes, or too little can be used.
        """
        if not 0 <= skip <= len(self):
            raise HacoreError(f"cannot skip {skip} of {len(self)} batches; resume within the epoch")
        rank, processes = self.shards.process
        share, rest = divmod(self.batch_size, processes)
        if rest:
            raise HacoreError(
                f"a batch of {self.batch_size} cannot be divided evenly among {processes} processes; use a multiple"
            )
        report = self.report = Report()
        samples = self._samples(epoch, report)
        for position in range(len(self)):
            rows = list(islice(samples, share))
            if position >= skip:
                yield self._batch(rows, (epoch * len(self) + position) * processes + rank)
        self._check(report)

    def _samples(self, epoch: int, report: Report) -> Iterator[tuple[Sample, Tensor]]:
        """The samples of an epoch, over and over."""
        while True:
            stream = self._wanted(self.shards.samples(report, epoch))
            yield from decoded(stream, report, self.size, self.fit, self.workers)
            self._check(report)
            report = Report()  # each sample is reported once

    def _wanted(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples to visit, with the captions to use; those of other classes are not counted as seen."""
        for sample in samples:
            label, texts = self.concepts.read(sample)
            if label in self.only:
                yield sample._replace(captions=texts)

    def _count(self, shards: Shards) -> int:
        """How many samples of all processes are to be visited, as far as that can be told without their images."""
        report = Report()
        for _ in self._wanted(shards.samples(report, with_images=False)):
            report.keep()
        self._check(report)
        return report.kept

    def _check(self, report: Report) -> None:
        if report.seen == 0 and len(self.only) < len(self.concepts.names):
            names = ", ".join(repr(self.concepts.names[label]) for label in sorted(self.only))
            raise HacoreError(
                f"no sample is about {names or 'no class'}; visit other classes, or look for other words"
            )
        report.check(self.least)

    def _batch(self, rows: list[tuple[Sample, Tensor]], step: int) -> Captions:
        statements = torch.full((len(rows), MOST), -1, dtype=torch.int64)
        for row, (sample, _) in zip(statements, rows, strict=True):
            row[: len(sample.captions)] = torch.tensor([text_number(text) for text in sample.captions])
        chance = torch.rand(statements.shape, generator=generator(self.seed, "captions", step))
        drawn = torch.where(statements >= 0, chance, -1.0).argmax(dim=1, keepdim=True)
        said = [sample.captions[place] for (sample, _), place in zip(rows, drawn[:, 0].tolist(), strict=True)]
        images = torch.stack([image for _, image in rows])
        return Captions(
            images=self.augment(as_float(images), step),
            labels=torch.tensor([self.concepts.label(sample.captions[0]) for sample, _ in rows]),
            texts=statements.gather(1, drawn),
            tokens=self.tokenizer.encode(said)[:, None],
            nodes=torch.tensor([self.concepts.node(text) for text in said])[:, None],
            drawn=torch.zeros(len(rows), dtype=torch.int64),
            statements=statements,
        )


def text_number(text: str) -> int:
    """A number from 0 to 2^63 - 1 that stands for a text; two texts share one about never."""
    return int.from_bytes(sha256(text.encode()).digest()[:8], "big") >> 1
