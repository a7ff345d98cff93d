"""Captions for datasets that have labels only: digits, SVHN, CIFAR-10 and CIFAR-100."""

from hacore.data.captioned import Captioned, Levels, captioned
from hacore.data.dataset import Dataset
from hacore.data.names import CIFAR10, CIFAR100, CIFAR100_SUPERCLASSES, DIGITS
from hacore.data.tree import Tree
from hacore.errors import HacoreError

# Wordings of captions and prompts, and those that no caption uses: known words, put differently, so that a
# model is asked about a concept in another way and not about words it has never read.
WORDINGS = ("a drawing of {}", "a picture of {}", "an image of {}", "this is {}")
UNSEEN = ("{}", "this is a picture of {}", "this drawing is of {}")
LENGTH = 20  # tokens of a caption, with start and end

_NUMBERS = {
    "even number": ("zero", "two", "four", "six", "eight"),
    "odd number": ("one", "three", "five", "seven", "nine"),
}
_THINGS = {
    "animal": {
        "pet": ("cat", "dog"),
        "hoofed animal": ("deer", "horse"),
        "egg-laying animal": ("bird", "frog"),
    },
    "vehicle": {"road vehicle": ("automobile", "truck"), "craft": ("airplane", "ship")},
}
# One thing of each superclass of CIFAR-100, in the order of their labels.
_SUPERCLASSES = (
    "aquatic mammal", "fish", "flower", "food container", "fruit or vegetable", "household device",
    "piece of furniture", "insect", "large carnivore", "man-made structure", "natural scene",
    "large herbivore", "medium-sized mammal", "invertebrate", "person", "reptile", "small mammal", "tree",
    "everyday vehicle", "special vehicle",
)  # fmt: skip
# Names that take no article, a definite one, or one that does not follow their first letter.
_SPOKEN = {"cattle": "cattle", "sea": "the sea", "one": "a one"}


def with_captions(dataset: Dataset) -> Captioned:
    """Caption every image at every level of a tree of concepts, from its class and what that is a kind of.

    Digits, those of SVHN included, are even or odd numbers. CIFAR-10 has animals (pets, hoofed, egg-laying)
    and vehicles (on the road, in air or water). CIFAR-100 has its superclasses, each in the singular. Each
    node has four wordings, of captions and prompts alike, and three that no caption uses. Class names become
    plain English, such as "aquarium fish". A dataset that has captions is returned as it is.

    Raises:
        HacoreError: if the dataset is not one of these, or its classes are not the known ones.
    """
    if isinstance(dataset, Captioned):
        return dataset
    known = {"digits": DIGITS, "svhn": DIGITS, "cifar10": CIFAR10, "cifar100": CIFAR100}
    if dataset.name not in known:
        raise HacoreError(
            f"no captions are known for {dataset.name!r}; take one of {', '.join(known)}, or give your own "
            "sentences to hacore.data.captioned.captioned"
        )
    if dataset.classes != known[dataset.name]:
        raise HacoreError(
            f"the classes of {dataset.name} are not those that captions are known for; load it with hacore.data.load"
        )
    tree = _tree(dataset)
    wordings, unseen = questions(tree)
    classes = tuple(_plain(name) for name in dataset.classes)
    ways = [tree.ancestors(tree.node(name))[::-1] for name in classes]
    values = {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__}
    return captioned(
        Dataset(**values | {"classes": classes}),
        tree,
        sentences=[[[wordings[node] for node in way]] for way in ways],
        prompts=wordings,
        unseen=unseen,
        vocabulary=1024,  # a hundred class names want more than the bytes
        length=LENGTH,
    )


def questions(tree: Tree) -> tuple[Levels, Levels]:
    """What is said of each node in captions and prompts, and paraphrases that they do not use."""
    things = [spoken(name) for name in tree.names]
    wordings, unseen = ([[form.format(a) for form in forms] for a in things] for forms in (WORDINGS, UNSEEN))
    return wordings, unseen


def spoken(name: str) -> str:
    """A name with its article: an apple, a bear, cattle."""
    return _SPOKEN.get(name, f"{'an' if name[0] in 'aeiou' else 'a'} {name}")


def _tree(dataset: Dataset) -> Tree:
    if dataset.classes == DIGITS:
        return Tree.nested("number", _NUMBERS)
    if dataset.classes == CIFAR10:
        return Tree.nested("thing", _THINGS)
    if dataset.superclasses != CIFAR100_SUPERCLASSES or len(dataset.superclass_of) != len(CIFAR100):
        raise HacoreError(
            "captions of cifar100 need its twenty superclasses; load it from files that have both kinds of labels"
        )
    groups: dict[str, list[str]] = {name: [] for name in _SUPERCLASSES}
    for name, group in zip(dataset.classes, dataset.superclass_of, strict=True):
        groups[_SUPERCLASSES[group]].append(_plain(name))
    return Tree.nested("thing", groups)


def _plain(name: str) -> str:
    return name.replace("_", " ")
