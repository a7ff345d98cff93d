"""Images with statements about them at several levels of a tree of concepts."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from hacore.data.dataset import Dataset
from hacore.data.tokenizer import Tokenizer, clean
from hacore.data.tree import Tree
from hacore.errors import HacoreError

Levels = Sequence[Sequence[str]]  # the sentences of each level, root first


@dataclass(frozen=True, eq=False, kw_only=True)
class Captioned(Dataset):
    """A dataset whose images are spoken of by texts, each text about one node of a tree of concepts.

    Class ``k`` is the leaf ``leaf_of[k]``. Every distinct sentence is one row of ``texts``; all else counts
    in these rows. A text is true of the images of every leaf below its node, and its level says how much it
    says: 0 about the root, the last level the most (the leaf, with attributes where there are some). -1
    among captions means that there is none, so that images may have different numbers of them.

    Args:
        tree: of the concepts.
        leaf_of: the leaf of each class; leaf and class have one name.
        texts: every sentence there is: captions, prompts and unseen paraphrases.
        text_nodes: the node that each text speaks of; of a text with attributes, its leaf.
        text_levels: the level of each text.
        tokens: the texts under ``tokenizer``.
        tokenizer: of all texts.
        captions: texts that are true of each training image and used in training, by level.
        test_captions: the same of the test images.
        prompts: texts that ask for each node in zero-shot classification, in wordings used in training.
        unseen: paraphrases of the prompts that no caption uses, to see whether a forgotten concept leaks
            through other words; there may be none.

    Raises:
        HacoreError: if parts do not fit together, or a caption is not true of its image.
    """

    tree: Tree
    leaf_of: tuple[int, ...]
    texts: tuple[str, ...]
    text_nodes: Int64[Tensor, "t"]
    text_levels: Int64[Tensor, "t"]
    tokens: Int64[Tensor, "t length"]
    tokenizer: Tokenizer
    captions: Int64[Tensor, "n levels paraphrases"]
    test_captions: Int64[Tensor, "m levels paraphrases"]
    prompts: Int64[Tensor, "nodes p"]
    unseen: Int64[Tensor, "nodes q"]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_leaves()
        self._check_tensors()
        self._check_texts()
        above = _above(self.tree).to(self.train_labels.device)
        self._check_captions("training", self.captions, self.train_labels, above)
        self._check_captions("test", self.test_captions, self.test_labels, above)
        self._check_questions()

    @property
    def levels(self) -> int:
        """How many levels captions have."""
        return self.captions.shape[1]

    def to(self, device: str | torch.device) -> "Captioned":
        """Return the dataset with all its tensors on ``device``."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self._tensors().items()}
        return replace(self, **moved)

    def subset(self, train: int | None = None, test: int | None = None, seed: int = 0) -> "Captioned":
        """Return a seeded, class-balanced part with its captions; arguments and errors as of a dataset.

        Texts stay, those included of which no image is left.
        """
        train_index = self._balanced(self.train_labels, train, seed, "training")
        test_index = self._balanced(self.test_labels, test, seed, "test")
        return replace(
            self,
            train_images=self.train_images[train_index],
            train_labels=self.train_labels[train_index],
            captions=self.captions[train_index],
            test_images=self.test_images[test_index],
            test_labels=self.test_labels[test_index],
            test_captions=self.test_captions[test_index],
            mean=(),
            std=(),
        )

    def about(self, nodes: Sequence[int]) -> Bool[Tensor, "t"]:
        """Which texts speak of a concept in the subtree of one of ``nodes``.

        Raises:
            HacoreError: if a node does not exist.
        """
        below = sorted({node for top in nodes for node in self.tree.subtree(top)})
        return torch.isin(self.text_nodes, self.text_nodes.new_tensor(below))

    def lifted(self, nodes: Sequence[int]) -> "Captioned":
        """Return the dataset without the training captions that speak of ``nodes`` or of what is below them.

        What is said of those images in training is then at most their concept's parent. Test captions stay:
        they are what a model is asked, not what it is taught.

        Raises:
            HacoreError: if a node does not exist, or an image would be left without any caption.
        """
        spoken = self.captions >= 0
        kept = spoken & ~self.about(nodes)[self.captions.clamp(min=0)]
        silent = ~kept.flatten(1).any(1)
        if silent.any():
            names = ", ".join(self.tree.names[node] for node in nodes)
            raise HacoreError(
                f"{self.name}: without the captions about {names}, nothing is said of {int(silent.sum())} training "
                "images; lift concepts that have a parent with captions of its own"
            )
        return replace(self, captions=self.captions.where(kept, -1))

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}

    def _check_leaves(self) -> None:
        if len(self.leaf_of) != len(self.classes) or len(set(self.leaf_of)) != len(self.leaf_of):
            raise HacoreError(
                f"{self.name}: {len(self.classes)} classes need as many different leaves of the tree, got "
                f"{list(self.leaf_of)}; give one leaf per class"
            )
        for name, leaf in zip(self.classes, self.leaf_of, strict=True):
            if leaf not in self.tree.leaves or self.tree.names[leaf] != name:
                found = f"{self.tree.names[leaf]!r}" if 0 <= leaf < len(self.tree) else "no node"
                raise HacoreError(
                    f"{self.name}: class {name!r} stands at node {leaf} of the tree, which is {found} and must be a "
                    "leaf of that name; set leaf_of from tree.node"
                )

    def _check_tensors(self) -> None:
        texts, nodes = len(self.texts), len(self.tree)
        shapes: dict[str, tuple[int | None, ...]] = {
            "text_nodes": (texts,),
            "text_levels": (texts,),
            "tokens": (texts, self.tokenizer.length),
            "captions": (len(self.train_labels), None, None),
            "test_captions": (len(self.test_labels), None, None),
            "prompts": (nodes, None),
            "unseen": (nodes, None),
        }
        for name, shape in shapes.items():
            tensor = getattr(self, name)
            fits = tensor.ndim == len(shape) and all(
                want in (None, have) for want, have in zip(shape, tensor.shape, strict=True)
            )
            if tensor.dtype != torch.int64 or not fits:
                wanted = ", ".join("any" if size is None else str(size) for size in shape)
                raise HacoreError(
                    f"{self.name}: {name} must be int64 of shape ({wanted}), got {tensor.dtype} "
                    f"{tuple(tensor.shape)}; build it from {texts} texts and {nodes} concepts"
                )
        devices = {tensor.device: name for name, tensor in self._tensors().items()}
        if len(devices) > 1:
            places = ", ".join(f"{name} on {device}" for device, name in devices.items())
            raise HacoreError(f"{self.name}: tensors must be on one device, got {places}; move them with .to")
        if self.captions.shape[1:] != self.test_captions.shape[1:]:
            raise HacoreError(
                f"{self.name}: training captions have (levels, paraphrases) {tuple(self.captions.shape[1:])}, test "
                f"captions {tuple(self.test_captions.shape[1:])}; fill up with -1"
            )

    def _check_texts(self) -> None:
        if len(set(self.texts)) < len(self.texts):
            twice = next(text for text in self.texts if self.texts.count(text) > 1)
            raise HacoreError(f"{self.name}: the text {twice!r} is there twice; list each sentence once")
        for name, limit in (
            ("text_nodes", len(self.tree)),
            ("text_levels", self.levels),
            ("tokens", self.tokenizer.size),
        ):
            _check_range(self.name, name, getattr(self, name), 0, limit)

    def _check_captions(self, part: str, captions: Tensor, labels: Tensor, above: Tensor) -> None:
        _check_range(self.name, f"{part} captions", captions, -1, len(self.texts))
        spoken = captions >= 0
        silent = (~spoken.flatten(1).any(1)).nonzero()
        if len(silent):
            raise HacoreError(
                f"{self.name}: {part} image {int(silent[0])} has no caption; give every image at least one"
            )
        row, level, place = spoken.nonzero(as_tuple=True)
        text = captions[row, level, place]
        leaves = labels.new_tensor(self.leaf_of)[labels]
        false = (~above[self.text_nodes[text], leaves[row]]).nonzero()
        if len(false):
            first = int(false[0])
            raise HacoreError(
                f"{self.name}: {part} image {int(row[first])} is a {self.tree.names[int(leaves[row[first]])]!r}, so "
                f"{self.texts[int(text[first])]!r} is not true of it; caption it with its leaf or what is above"
            )
        astray = (self.text_levels[text] != level).nonzero()
        if len(astray):
            first = int(astray[0])
            raise HacoreError(
                f"{self.name}: {part} image {int(row[first])} has {self.texts[int(text[first])]!r} at level "
                f"{int(level[first])}, but that text is of level {int(self.text_levels[text[first]])}; put it there"
            )

    def _check_questions(self) -> None:
        """Prompts and unseen paraphrases speak of the node whose row they are in."""
        if not self.prompts.shape[1]:
            raise HacoreError(
                f"{self.name}: there is no prompt to ask for a concept; give each node at least one"
            )
        for name, rows in (("prompts", self.prompts), ("unseen", self.unseen)):
            _check_range(self.name, name, rows, 0, len(self.texts))
            wrong = self.text_nodes[rows] != torch.arange(len(rows), device=rows.device)[:, None]
            if wrong.any():
                node, place = wrong.nonzero()[0].tolist()
                text = int(rows[node, place])
                raise HacoreError(
                    f"{self.name}: {name} of {self.tree.names[node]!r} hold {self.texts[text]!r}, which speaks of "
                    f"{self.tree.names[int(self.text_nodes[text])]!r}; put it into the row of its own node"
                )
        used = torch.cat([part.flatten() for part in (self.captions, self.test_captions, self.prompts)])
        seen = self.unseen[torch.isin(self.unseen, used)]
        if len(seen):
            raise HacoreError(
                f"{self.name}: {self.texts[int(seen[0])]!r} is among the unseen paraphrases, but a caption or prompt "
                "uses it; leave it out of one of the two"
            )


def captioned(
    dataset: Dataset,
    tree: Tree,
    sentences: Sequence[Sequence[Levels]],
    prompts: Levels,
    unseen: Levels,
    variants: tuple[Int64[Tensor, "n"], Int64[Tensor, "m"]] | None = None,
    vocabulary: int = 512,
    length: int = 16,
) -> Captioned:
    """Put sentences to the images of a dataset whose class names are leaves of ``tree``.

    Sentences depend on the class and on the variant of an image: its attributes, such as colour and size, or
    nothing but variant 0. Those of level l speak of the ancestor of the leaf at depth l, or of the leaf where
    it is less deep.

    The tokenizer learns from all texts, unseen paraphrases included: it sees no image, and no sentence may be
    cut, which would hide its concept.

    Args:
        dataset: images with labels, on any device.
        tree: of the concepts.
        sentences: for each class, for each variant, for each level: paraphrases. All have as many levels.
        prompts: for each node, texts that ask for it, equally many.
        unseen: for each node, paraphrases that no caption uses, equally many, which may be none.
        variants: of the training and of the test images; None where there is one variant only.
        vocabulary: tokens that the tokenizer learns.
        length: context of the tokenizer.

    Raises:
        HacoreError: if parts do not fit together, a sentence would speak of two concepts, or does not fit
            into the context.
    """
    leaf_of = tuple(tree.node(name) for name in dataset.classes)
    variant_count = _check_sentences(dataset, tree, sentences, prompts, unseen)
    levels = [level for variants_of in sentences for variant in variants_of for level in variant]
    shape = len(sentences), variant_count, len(sentences[0][0]), max(map(len, levels))
    texts = _Texts(dataset.name, tree)
    table = torch.full(shape, -1, dtype=torch.int64)
    for label, leaf in enumerate(leaf_of):
        way = tree.ancestors(leaf)[::-1]
        for variant, said in enumerate(sentences[label]):
            for level, paraphrases in enumerate(said):
                node = way[min(level, len(way) - 1)]
                for place, text in enumerate(paraphrases):
                    table[label, variant, level, place] = texts.number(text, node, level)
    questions = {
        name: torch.tensor(
            [[texts.number(text, node, tree.depths[node]) for text in row] for node, row in enumerate(rows)],
            dtype=torch.int64,
        ).view(len(tree), -1)
        for name, rows in (("prompts", prompts), ("unseen", unseen))
    }
    tokenizer = Tokenizer.trained(texts.found, vocabulary, length)
    tokens = tokenizer.encode(texts.found)
    for text, row in zip(texts.found, tokens, strict=True):
        if tokenizer.decode(row) != clean(text):
            raise HacoreError(
                f"{dataset.name}: {text!r} does not fit into {length} tokens; take a longer context, or a larger "
                "vocabulary, whose tokens are longer"
            )
    if variants is None:
        variants = torch.zeros_like(dataset.train_labels), torch.zeros_like(dataset.test_labels)
    device = dataset.train_labels.device
    rows = []
    for labels, chosen in zip((dataset.train_labels, dataset.test_labels), variants, strict=True):
        if chosen.shape != labels.shape:
            raise HacoreError(
                f"{dataset.name}: {len(labels)} images with {len(chosen)} variants; give one per image"
            )
        _check_range(dataset.name, "variants", chosen, 0, variant_count)
        rows.append(table.to(device)[labels, chosen])
    return Captioned(
        **{field.name: getattr(dataset, field.name) for field in fields(Dataset)},
        tree=tree,
        leaf_of=leaf_of,
        texts=tuple(texts.found),
        text_nodes=torch.tensor(texts.nodes, dtype=torch.int64, device=device),
        text_levels=torch.tensor(texts.levels, dtype=torch.int64, device=device),
        tokens=tokens.to(device),
        tokenizer=tokenizer,
        captions=rows[0],
        test_captions=rows[1],
        prompts=questions["prompts"].to(device),
        unseen=questions["unseen"].to(device),
    )


class _Texts:
    """Sentences numbered in the order in which they are met, with what each speaks of."""

    def __init__(self, dataset: str, tree: Tree) -> None:
        self.dataset, self.tree = dataset, tree
        self.nodes: list[int] = []
        self.levels: list[int] = []
        self._numbers: dict[str, int] = {}

    @property
    def found(self) -> list[str]:
        return list(self._numbers)

    def number(self, text: str, node: int, level: int) -> int:
        number = self._numbers.setdefault(text, len(self.nodes))
        if number == len(self.nodes):
            self.nodes.append(node)
            self.levels.append(level)
        if (self.nodes[number], self.levels[number]) != (node, level):
            names = self.tree.names[self.nodes[number]], self.tree.names[node]
            raise HacoreError(
                f"{self.dataset}: {text!r} is said of {names[0]!r} at level {self.levels[number]} and of {names[1]!r} "
                f"at level {level}; word it for one of them"
            )
        return number


def _above(tree: Tree) -> Bool[Tensor, "nodes nodes"]:
    """Row a, column b: whether a is b or above it."""
    above = torch.zeros(len(tree), len(tree), dtype=torch.bool)
    for node in range(len(tree)):
        above[list(tree.ancestors(node)), node] = True
    return above


def _check_range(dataset: str, name: str, values: Tensor, low: int, limit: int) -> None:
    if values.numel() and (values.min() < low or values.max() >= limit):
        raise HacoreError(
            f"{dataset}: {name} must lie in {low}..{limit - 1}, got {int(values.min())}..{int(values.max())}; "
            "check what they count"
        )


def _check_sentences(
    dataset: Dataset, tree: Tree, sentences: Sequence[Sequence[Levels]], prompts: Levels, unseen: Levels
) -> int:
    """Check that there is something to say of every class and node; return the largest number of variants."""
    if len(sentences) != len(dataset.classes) or not all(sentences):
        raise HacoreError(
            f"{dataset.name}: {len(dataset.classes)} classes need sentences for each, for at least one variant; got "
            f"{len(sentences)} lists"
        )
    depths = {len(variant) for variants in sentences for variant in variants}
    if len(depths) > 1 or 0 in depths:
        raise HacoreError(
            f"{dataset.name}: sentences must have one number of levels, got {sorted(depths)}; leave a level of which "
            "nothing is said empty"
        )
    for name, rows in (("prompts", prompts), ("unseen paraphrases", unseen)):
        if len(rows) != len(tree) or len({len(row) for row in rows}) > 1:
            raise HacoreError(
                f"{dataset.name}: each of the {len(tree)} concepts needs {name}, and all as many; got lists of "
                f"{sorted({len(row) for row in rows})} for {len(rows)}"
            )
    return max(map(len, sentences))
