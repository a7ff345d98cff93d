"""Image-text samples gathered in memory, as a data set with captions."""

from collections.abc import Mapping, Sequence
from hashlib import sha256

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from hacore.data.captioned import Captioned
from hacore.data.shards.concepts import Concepts
from hacore.data.shards.pictures import check, decoded
from hacore.data.shards.read import Report, Shards, Source
from hacore.data.tokenizer import Tokenizer
from hacore.errors import HacoreError

TEST = 0.1  # share of the images of each class
UNSEEN = ("a picture of {}", "an image of {}", "this shows {}", "a snapshot of {}", "here you see {}")


def image_text(
    source: Source,
    concept_words: Mapping[str, Sequence[str]] | Sequence[str],
    size: int = 224,
    limit: int | None = None,
    tokenizer: Tokenizer | None = None,
    seed: int = 0,
    fit: str = "crop",
    least: float = 0.5,
    workers: int = 4,
) -> tuple[Captioned, Report]:
    """Gather image-text samples that fit in memory: 3 ``size``² bytes each, and twice that for a moment.

    The tree is "thing" with the concepts and "other" below it; each caption is one text, all on one level. The
    class of an image is the first concept that its captions mention, and of its captions those are kept that
    mention it; a sample that mentions two concepts is of the one that comes first in ``concept_words``.
    Samples with one caption share one text, so that none is a negative of the other.

    Args:
        source: tars, folders or patterns, see :func:`hacore.data.shards.find`.
        concept_words: concept -> further words that mention it, or the concepts alone, see
            :func:`hacore.data.shards.mentions`; "r/dogpictures" stands for a subreddit.
        size: pixels on a side.
        limit: the most samples to gather, which are drawn from all shards; None takes all.
        tokenizer: None learns one of 4,096 tokens at most, with a context of 32, from the captions.
        seed: of the draw and of the division into training and test images, a tenth of every class: those whose
            keys have the lowest hashes.
        fit: "crop" or "pad", see :func:`hacore.data.shards.decode`.
        least: the share of samples that must be usable.
        workers: threads that decode.

    Returns:
        The data set, and a report of what was skipped.

    Raises:
        HacoreError: if nothing or too little can be used, or a class has fewer than two images.
    """
    check(size, fit, workers)
    if limit is not None and limit < 1:
        raise HacoreError(f"at most {limit} samples make no data set; use a limit of 1 or more")
    concepts, report = Concepts.of(concept_words), Report()
    # Every process holds all of it, as of any data set; training divides the batches.
    stream = Shards(source, seed, process=(0, 1)).samples(report, epoch=0)
    images: list[Tensor] = []
    labels: list[int] = []
    said: list[tuple[str, ...]] = []
    ranks: list[bytes] = []
    for sample, image in decoded(stream, report, size, fit, workers):
        label, captions_of = concepts.read(sample)
        images.append(image)
        labels.append(label)
        said.append(captions_of)
        ranks.append(sha256(f"{seed}/{sample.key}".encode()).digest())
        if len(images) == limit:
            break
    report.check(least)
    held_out = _held_out(labels, ranks, concepts)
    texts, nodes, prompts, unseen = _texts(said, concepts)
    if tokenizer is None:
        tokenizer = Tokenizer.trained(list(texts), size=4096, length=32)
    captions = torch.full((len(said), 1, max(map(len, said))), -1, dtype=torch.int64)
    for row, found in zip(captions, said, strict=True):
        row[0, : len(found)] = torch.tensor([texts[text] for text in found])
    pixels: UInt8[Tensor, "n 3 size size"] = torch.stack(images)
    classes = torch.tensor(labels)
    dataset = Captioned(
        name="image-text",
        train_images=pixels[~held_out],
        train_labels=classes[~held_out],
        test_images=pixels[held_out],
        test_labels=classes[held_out],
        classes=concepts.names,
        tree=concepts.tree,
        leaf_of=tuple(range(1, len(concepts.names) + 1)),
        texts=tuple(texts),
        text_nodes=torch.tensor(nodes),
        text_levels=torch.zeros(len(texts), dtype=torch.int64),
        tokens=tokenizer.encode(list(texts)),
        tokenizer=tokenizer,
        captions=captions[~held_out],
        test_captions=captions[held_out],
        prompts=prompts,
        unseen=unseen,
    )
    return dataset, report


def _held_out(labels: list[int], ranks: list[bytes], concepts: Concepts) -> Tensor:
    """Which images are for testing: of each class a tenth, but at least one, and those of one key together."""
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label, name in enumerate(concepts.names):
        members = [row for row, of in enumerate(labels) if of == label]
        order = sorted(ranks[row] for row in members)
        keys = sorted(set(order))
        if len(keys) < 2:
            raise HacoreError(
                f"{len(members)} of {len(labels):,} image-text samples are about {name!r}, which is too few to "
                "divide into training and test; take more samples, or other words"
            )
        last = min(order[max(1, round(TEST * len(order))) - 1], keys[-2])  # one key is left for training
        held_out[[row for row in members if ranks[row] <= last]] = True
    return held_out


def _texts(
    said: list[tuple[str, ...]], concepts: Concepts
) -> tuple[dict[str, int], list[int], Int64[Tensor, "nodes 1"], Int64[Tensor, "nodes q"]]:
    """Number the texts: captions, prompts, and paraphrases that neither uses; with the node of each."""
    texts: dict[str, int] = {}

    def number(text: str) -> int:
        return texts.setdefault(text, len(texts))

    for captions in said:
        for caption in captions:
            number(caption)
    prompts = [[number(prompt)] for prompt in concepts.prompts]
    asked = [concepts.ask(template) for template in UNSEEN]
    free = [
        texts_of
        for texts_of in asked
        if not texts.keys() & set(texts_of)
        and [concepts.label(text) + 1 for text in texts_of[1:]] == list(range(1, len(texts_of)))
    ]
    wordings = [[number(texts_of[node]) for texts_of in free[:2]] for node in range(len(prompts))]
    # An unseen paraphrase of the root's prompt mentions no concept, and is the root's all the same.
    roots = {texts_of[0] for texts_of in free[:2]}
    nodes = [0 if text in roots else concepts.node(text) for text in texts]
    return (
        texts,
        nodes,
        torch.tensor(prompts),
        torch.tensor(wordings, dtype=torch.int64).view(len(prompts), -1),
    )
