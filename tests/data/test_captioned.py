"""Images with captions: built from sentences, kept together, lifted, and every part that does not fit."""

import re
from dataclasses import replace

import pytest
import torch

from hacore.data import Dataset
from hacore.data.captioned import captioned
from hacore.data.tokenizer import Tokenizer
from hacore.data.tree import Tree
from hacore.errors import HacoreError

TREE = Tree.nested("thing", {"animal": ["cat", "dog"], "vehicle": ["bus"]})
THING, ANIMAL, VEHICLE, CAT, DOG, BUS = range(6)
WORDINGS = ("a {}", "one {}")


def both(name):
    return [wording.format(name) for wording in WORDINGS]


def sentences(name, group, colours=("red", "blue")):
    return [[both("thing"), both(group), both(name), [f"a {colour} {name}"]] for colour in colours]


def build(**changes):
    """Twelve cats, dogs and buses, and six for testing; the first pixel is the number, odd ones are blue."""
    images = torch.zeros(18, 1, 2, 2, dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(18)
    labels = torch.arange(18) % 3
    dataset = Dataset(
        "zoo",
        images[:12],
        labels[:12],
        images[12:],
        labels[12:],
        ("dog", "cat", "bus"),
        mean=(0.25,),
        std=(0.5,),
    )
    colours = torch.arange(18) % 2
    arguments = {
        "tree": TREE,
        "sentences": [sentences("dog", "animal"), sentences("cat", "animal"), sentences("bus", "vehicle")],
        "prompts": [both(name) for name in TREE.names],
        "unseen": [[f"the {name}"] for name in TREE.names],
        "variants": (colours[:12], colours[12:]),
    }
    return captioned(dataset, **arguments | changes)


@pytest.fixture(scope="module")
def zoo():
    return build()


def said(dataset, image, part="captions"):
    return [[dataset.texts[k] for k in level if k >= 0] for level in getattr(dataset, part)[image].tolist()]


def test_sentences_become_captions_of_the_images_they_are_true_of(zoo):
    assert zoo.leaf_of == (DOG, CAT, BUS)
    assert zoo.levels == 4
    assert zoo.captions.shape == (12, 4, 2)
    assert said(zoo, 0) == [
        ["a thing", "one thing"],
        ["a animal", "one animal"],
        ["a dog", "one dog"],
        ["a red dog"],
    ]
    assert said(zoo, 1)[3] == ["a blue cat"]  # image 1 is odd
    assert said(zoo, 2, "test_captions")[1:] == [
        ["a vehicle", "one vehicle"],
        ["a bus", "one bus"],
        ["a red bus"],
    ]
    assert (
        len(zoo.texts) == len(set(zoo.texts)) == 6 * 2 + 6 + 6
    )  # captions that are prompts, attributes, unseen
    for text, node, level in zip(zoo.texts, zoo.text_nodes.tolist(), zoo.text_levels.tolist(), strict=True):
        assert text.endswith(TREE.names[node])
        assert level == (3 if {"red", "blue"} & set(text.split()) else TREE.depths[node])
    for node, name in enumerate(TREE.names):
        assert [zoo.texts[k] for k in zoo.prompts[node]] == both(name)
        assert [zoo.texts[k] for k in zoo.unseen[node]] == [f"the {name}"]
    assert torch.equal(zoo.tokens, zoo.tokenizer.encode(zoo.texts))
    assert (zoo.mean, zoo.std) == ((0.25,), (0.5,))


def test_a_leaf_that_is_less_deep_is_spoken_of_by_all_deeper_levels():
    tree = Tree.nested("thing", {"cat": [], "vehicle": {"bus": []}})
    images, labels = torch.zeros(2, 1, 1, 1, dtype=torch.uint8), torch.arange(2)
    dataset = Dataset("uneven", images, labels, images, labels, ("cat", "bus"))
    lines = [["a thing"], ["a cat"], []], [["a thing"], ["a vehicle"], ["a bus"]]
    prompts = [[f"a {name}"] for name in tree.names]
    out = captioned(dataset, tree, [[line] for line in lines], prompts, [[]] * 4)
    assert out.text_nodes[out.captions.clamp(min=0)][:, :, 0].tolist() == [[0, 1, 0], [0, 2, 3]]
    assert out.captions[:, 2, 0].tolist() == [-1, out.texts.index("a bus")]
    assert out.unseen.shape == (4, 0)
    lines = [["a thing"], ["a cat"], ["a black cat"]], lines[1]
    deeper = captioned(dataset, tree, [[line] for line in lines], prompts, [[]] * 4)
    row = deeper.texts.index("a black cat")
    assert (deeper.text_nodes[row].item(), deeper.text_levels[row].item()) == (1, 2)


def test_captions_follow_their_images_into_a_subset(zoo):
    part = zoo.subset(train=7, test=4, seed=3)
    assert part.captions.shape == (7, 4, 2)
    for small, big, images in (
        ("captions", zoo.captions, part.train_images),
        ("test_captions", zoo.test_captions, part.test_images),
    ):
        numbers = images[:, 0, 0, 0].long() - (0 if small == "captions" else 12)
        assert torch.equal(getattr(part, small), big[numbers])
    plain = Dataset.subset(Dataset(**base(zoo)), train=7, test=4, seed=3)
    assert torch.equal(plain.train_images, part.train_images)
    assert torch.equal(plain.test_labels, part.test_labels)
    assert (part.mean, part.std) == (plain.mean, plain.std) != (zoo.mean, zoo.std)
    assert len(zoo.subset(train=7).test_captions) == 6


def base(dataset):
    return {name: getattr(dataset, name) for name in Dataset.__dataclass_fields__}


def test_to_takes_every_tensor_along(zoo):
    assert zoo.to("cpu").captions.data_ptr() == zoo.captions.data_ptr()  # already there
    assert zoo._tensors().keys() == {
        "train_images", "train_labels", "test_images", "test_labels", "text_nodes", "text_levels", "tokens",
        "captions", "test_captions", "prompts", "unseen",
    }  # fmt: skip


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_everything_works_on_a_gpu(zoo):
    moved = zoo.to("cuda")
    assert all(tensor.is_cuda for tensor in moved._tensors().values())
    assert torch.equal(moved.lifted([DOG]).captions.cpu(), zoo.lifted([DOG]).captions)
    assert torch.equal(moved.subset(train=7).captions.cpu(), zoo.subset(train=7).captions)
    assert build().to("cuda").about([DOG]).is_cuda


def test_texts_about_a_concept_are_those_of_its_subtree(zoo):
    about = [zoo.texts[k] for k in zoo.about([DOG]).nonzero().flatten()]
    assert about == ["a dog", "one dog", "a red dog", "a blue dog", "the dog"]
    animals = {zoo.texts[k] for k in zoo.about([ANIMAL]).nonzero().flatten()}
    assert {"the animal", "one cat", "a red dog"} < animals
    assert not any("thing" in text or "bus" in text for text in animals)
    assert zoo.about([THING]).all()
    assert not zoo.about([]).any()
    assert torch.equal(zoo.about([DOG, BUS]), zoo.about([DOG]) | zoo.about([BUS]))
    with pytest.raises(HacoreError, match="no node 17"):
        zoo.about([17])


def test_lifting_leaves_what_is_above(zoo):
    dogs, cats, animals = zoo.lifted([DOG]), zoo.lifted([CAT]), zoo.lifted([ANIMAL])
    assert said(dogs, 0) == [["a thing", "one thing"], ["a animal", "one animal"], [], []]
    assert said(dogs, 1) == said(zoo, 1)
    assert said(animals, 0) == said(animals, 1) == [["a thing", "one thing"], [], [], []]
    assert said(animals, 2) == said(zoo, 2)
    assert torch.equal(animals.test_captions, zoo.test_captions)
    assert torch.equal(animals.prompts, zoo.prompts)
    assert torch.equal(dogs.lifted([CAT]).captions, cats.lifted([DOG]).captions)
    assert torch.equal(dogs.lifted([CAT]).captions, zoo.lifted([CAT, DOG]).captions)
    with pytest.raises(HacoreError, match="about thing, nothing is said of 12 training images"):
        zoo.lifted([THING])


def with_row(name, index, value):
    """A change of one number of a tensor."""

    def change(dataset):
        tensor = getattr(dataset, name).clone()
        tensor[index] = value
        return {name: tensor}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"leaf_of": (DOG, CAT)}, "3 classes need as many different leaves"),
        (lambda d: {"leaf_of": (DOG, CAT, CAT)}, "got [4, 3, 3]"),
        (lambda d: {"leaf_of": (CAT, DOG, BUS)}, "class 'dog' stands at node 3 of the tree, which is 'cat'"),
        (
            lambda d: {"leaf_of": (DOG, CAT, 99)},
            "class 'bus' stands at node 99 of the tree, which is no node",
        ),
        (
            lambda d: {"leaf_of": (DOG, CAT, VEHICLE), "classes": ("dog", "cat", "vehicle")},
            "must be a leaf of that name",
        ),
        (lambda d: {"text_nodes": d.text_nodes.int()}, "text_nodes must be int64 of shape (24)"),
        (lambda d: {"text_levels": d.text_levels[1:]}, "text_levels must be int64 of shape (24)"),
        (lambda d: {"tokens": d.tokens[:, 1:]}, "tokens must be int64 of shape (24, 16)"),
        (lambda d: {"captions": d.captions[1:]}, "captions must be int64 of shape (12, any, any)"),
        (
            lambda d: {"test_captions": d.test_captions[0]},
            "test_captions must be int64 of shape (6, any, any)",
        ),
        (lambda d: {"test_captions": d.test_captions[..., :1]}, "fill up with -1"),
        (lambda d: {"prompts": d.prompts[1:]}, "prompts must be int64 of shape (6, any)"),
        (lambda d: {"prompts": d.prompts.to("meta")}, "tensors must be on one device, got"),
        (lambda d: {"texts": (d.texts[1], *d.texts[1:])}, "'one thing' is there twice"),
        (with_row("text_nodes", 3, 6), "text_nodes must lie in 0..5, got 0..6"),
        (with_row("text_levels", 3, 4), "text_levels must lie in 0..3, got 0..4"),
        (with_row("tokens", 3, -1), "tokens must lie in 0.."),
        (with_row("captions", (4, 1, 0), 24), "training captions must lie in -1..23"),
        (with_row("test_captions", (4, 1, 0), -2), "test captions must lie in -1..23"),
        (with_row("test_captions", 5, -1), "test image 5 has no caption"),
        (
            lambda d: with_row("captions", (1, 2, 0), d.texts.index("a dog"))(d),
            "training image 1 is a 'cat', so 'a dog' is not true of it",
        ),
        (
            lambda d: with_row("test_captions", (2, 1, 1), d.texts.index("a animal"))(d),
            "test image 2 is a 'bus', so 'a animal' is not true",
        ),
        (
            lambda d: with_row("captions", (1, 3, 0), d.texts.index("a cat"))(d),
            "training image 1 has 'a cat' at level 3, but that text is of level 2",
        ),
        (lambda d: {"prompts": d.prompts[:, :0]}, "no prompt to ask for a concept"),
        (with_row("prompts", (0, 0), -1), "prompts must lie in 0..23"),
        (
            lambda d: with_row("prompts", (DOG, 1), d.texts.index("a cat"))(d),
            "prompts of 'dog' hold 'a cat', which speaks of 'cat'",
        ),
        (
            lambda d: with_row("unseen", (THING, 0), d.texts.index("the bus"))(d),
            "unseen of 'thing' hold 'the bus'",
        ),
        (
            lambda d: with_row("unseen", (BUS, 0), d.texts.index("a red bus"))(d),
            "'a red bus' is among the unseen paraphrases, but a caption",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(unchecked, zoo, change, message):
    with pytest.raises(HacoreError, match=re.escape(message)):
        replace(zoo, **change(zoo))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"tree": Tree.nested("thing", {"cat": [], "dogs": []})},
            "no concept 'dog'; did you mean one of: dogs",
        ),
        ({"sentences": [sentences("dog", "animal")]}, "3 classes need sentences for each"),
        ({"sentences": [sentences("dog", "animal"), [], []]}, "3 classes need sentences for each"),
        (
            {"sentences": [sentences("dog", "animal"), [[["a thing"]]], [[["a thing"]]]]},
            "one number of levels, got [1, 4]",
        ),
        ({"sentences": [[[]], [[]], [[]]]}, "one number of levels, got [0]"),
        (
            {"sentences": [sentences(name, "animal") for name in ("dog", "cat", "bus")]},
            "'a animal' is said of 'animal' at level 1 and of 'vehicle' at level 1",
        ),
        ({"prompts": [both("thing")]}, "each of the 6 concepts needs prompts"),
        ({"unseen": [["the thing"], *[[]] * 5]}, "each of the 6 concepts needs unseen paraphrases"),
        ({"prompts": [[]] * 6}, "no prompt"),
        ({"unseen": [["a thing"]] * 6}, "'a thing' is said of 'thing' at level 0 and of 'animal'"),
        ({"unseen": [both(name) for name in TREE.names]}, "among the unseen paraphrases"),
        ({"variants": (torch.zeros(3).long(), torch.zeros(6).long())}, "12 images with 3 variants"),
        ({"variants": (torch.full((12,), 2), torch.zeros(6).long())}, "variants must lie in 0..1"),
        ({"length": 4, "vocabulary": 260}, "does not fit into 4 tokens"),
    ],
)
def test_sentences_that_do_not_fit_are_refused(unchecked, changes, message):
    with pytest.raises(HacoreError, match=re.escape(message)):
        build(**changes)


def test_a_class_without_some_variant_needs_no_image_of_it():
    lines = [sentences("dog", "animal"), sentences("cat", "animal"), sentences("bus", "vehicle", ["red"])]
    with pytest.raises(HacoreError, match="training image 5 has no caption"):  # a blue bus
        build(sentences=lines)
    red = torch.zeros(12, dtype=torch.int64), torch.zeros(6, dtype=torch.int64)
    assert said(build(sentences=lines, variants=red), 5)[3] == ["a red bus"]


def test_the_tokenizer_is_learned_from_all_texts(zoo):
    again = Tokenizer.trained(zoo.texts)
    assert zoo.tokenizer == again
