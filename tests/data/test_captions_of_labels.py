"""Captions of datasets that have labels only: trees, wording, and datasets of which nothing is known."""

import re
from dataclasses import replace

import pytest
import torch

from hacore.data import Dataset, load
from hacore.data.captioned import Captioned
from hacore.data.captions import spoken, with_captions
from hacore.data.names import CIFAR10, CIFAR100, CIFAR100_SUPERCLASSES, DIGITS
from hacore.errors import HacoreError

# The superclass of each class of CIFAR-100, in the order of their labels, as in the original files.
COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7, 6, 13, 15, 3, 15,
    0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10, 16, 4, 17, 4, 2, 0, 17, 4,
    18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16, 12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19,
    5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


def plain(name):
    classes = {"digits": DIGITS, "svhn": DIGITS, "cifar10": CIFAR10, "cifar100": CIFAR100}[name]
    images = torch.zeros(len(classes), 1, 1, 1, dtype=torch.uint8)
    labels = torch.arange(len(classes))
    superclasses = (CIFAR100_SUPERCLASSES, COARSE) if name == "cifar100" else ()
    return Dataset(name, images, labels, images, labels, classes, *superclasses)


@pytest.fixture(scope="module", params=["digits", "svhn", "cifar10", "cifar100"])
def dataset(request):
    return with_captions(plain(request.param))


def first_wordings(dataset, label):
    """The way down to a class, each node in the wording "a drawing of"."""
    return [dataset.texts[k].removeprefix("a drawing of ") for k in dataset.captions[label, :, 0].tolist()]


@pytest.mark.parametrize(
    ("name", "label", "way"),
    [
        ("digits", 0, ["a number", "an even number", "a zero"]),
        ("digits", 1, ["a number", "an odd number", "a one"]),
        ("svhn", 8, ["a number", "an even number", "an eight"]),
        ("cifar10", 0, ["a thing", "a vehicle", "a craft", "an airplane"]),
        ("cifar10", 5, ["a thing", "an animal", "a pet", "a dog"]),
        ("cifar10", 6, ["a thing", "an animal", "an egg-laying animal", "a frog"]),
        ("cifar100", 0, ["a thing", "a fruit or vegetable", "an apple"]),
        ("cifar100", 1, ["a thing", "a fish", "an aquarium fish"]),
        ("cifar100", 19, ["a thing", "a large herbivore", "cattle"]),
        ("cifar100", 52, ["a thing", "a tree", "an oak tree"]),
        ("cifar100", 71, ["a thing", "a natural scene", "the sea"]),
        ("cifar100", 98, ["a thing", "a person", "a woman"]),
    ],
)
def test_images_are_spoken_of_in_plain_english(name, label, way):
    assert first_wordings(with_captions(plain(name)), label) == way


def test_every_class_is_a_leaf_and_every_leaf_a_class(dataset):
    assert sorted(dataset.leaf_of) == sorted(dataset.tree.leaves)
    assert {dataset.tree.depths[leaf] for leaf in dataset.leaf_of} == {dataset.levels - 1}
    assert dataset.levels == (4 if dataset.name == "cifar10" else 3)
    assert all(len(dataset.tree.siblings(leaf)) >= 1 for leaf in dataset.leaf_of)
    assert not any("_" in text for text in (*dataset.texts, *dataset.classes))


def test_superclasses_of_cifar100_are_the_groups_of_the_tree():
    captioned = with_captions(plain("cifar100"))
    groups = captioned.tree.children(0)
    assert len(groups) == 20
    for label, leaf in enumerate(captioned.leaf_of):
        assert captioned.tree.parents[leaf] == groups[COARSE[label]]
    assert (captioned.superclasses, captioned.superclass_of) == (CIFAR100_SUPERCLASSES, COARSE)
    names = dict(zip(CIFAR100_SUPERCLASSES, (captioned.tree.names[node] for node in groups), strict=True))
    assert names["aquatic_mammals"] == "aquatic mammal"
    assert names["people"] == "person"
    assert names["non-insect_invertebrates"] == "invertebrate"


def test_wordings_are_enough_and_read_in_full(dataset):
    assert dataset.captions.shape[2] == dataset.prompts.shape[1] == 4
    assert dataset.captions.min() >= 0
    assert dataset.unseen.shape[1] == 3
    for text, row in zip(dataset.texts, dataset.tokens, strict=True):
        assert dataset.tokenizer.decode(row) == text
    # What is said of a node is what it is asked for with, and each text names it.
    for label, leaf in enumerate(dataset.leaf_of):
        assert torch.equal(dataset.captions[label, -1], dataset.prompts[leaf])
    for text, node in zip(dataset.texts, dataset.text_nodes.tolist(), strict=True):
        assert text.endswith(dataset.tree.names[node])


def test_unseen_paraphrases_bring_no_unknown_word(dataset):
    seen = {word for k in dataset.captions.unique().tolist() for word in dataset.texts[k].split()}
    assert {word for k in dataset.unseen.unique().tolist() for word in dataset.texts[k].split()} <= seen


def test_articles():
    named = ["apple", "bear", "eight", "one", "cattle", "sea", "orange", "even number", "insect"]
    expected = ["an apple", "a bear", "an eight", "a one", "cattle", "the sea", "an orange", "an even number"]
    assert [spoken(name) for name in named] == [*expected, "an insect"]


def test_real_digits_keep_their_images_and_are_left_alone_when_captioned():
    digits = load("digits")
    captioned = with_captions(digits)
    assert isinstance(captioned, Captioned)
    assert captioned.train_images is digits.train_images
    assert (captioned.mean, captioned.classes) == (digits.mean, digits.classes)
    assert captioned.captions.shape == (1078, 3, 4)
    assert with_captions(captioned) is captioned
    part = captioned.subset(train=50, test=20)
    assert torch.equal(part.captions, with_captions(digits.subset(train=50, test=20)).captions)
    odd = captioned.lifted([captioned.tree.node("odd number")])
    assert torch.equal((odd.captions[:, 2] < 0).all(1), captioned.train_labels % 2 == 1)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            replace(plain("digits"), name="mnist"),
            "no captions are known for 'mnist'; take one of digits, svhn",
        ),
        (replace(plain("digits"), classes=DIGITS[::-1]), "the classes of digits are not those"),
        (replace(plain("cifar100"), superclasses=(), superclass_of=()), "need its twenty superclasses"),
    ],
)
def test_unknown_datasets_are_refused(dataset, message):
    with pytest.raises(HacoreError, match=re.escape(message)):
        with_captions(dataset)
