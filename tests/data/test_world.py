"""The concept world: seeded bytes, drawings that show what is said of them, and shapes that can be told apart."""

from hashlib import sha256

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline

from hacore.data import DATASETS, load
from hacore.data.captioned import Captioned
from hacore.data.world import COLOURS, GROUPS, INSIDE, SHAPES, SIZES, _Bits, _cover, _star, world
from hacore.errors import HacoreError


@pytest.fixture(scope="module")
def small():
    return world(train=600, test=100, seed=3)


def attributes(dataset, part="captions"):
    """Colour and size of each image, read from its captions of the last level: "a small red hexagon"."""
    first = [dataset.texts[k].split() for k in getattr(dataset, part)[:, 3, 0].tolist()]
    colour = [list(COLOURS).index(words[2]) for words in first]
    return np.array(colour), np.array([list(SIZES).index(words[1]) for words in first])


def covered(dataset, seed):
    """Where the shapes of the training images are: the share of each pixel."""
    bits = _Bits("world", seed, "train")
    bits.raw(len(dataset.train_labels))  # the order of the images
    return _cover(dataset.train_labels.numpy(), attributes(dataset)[1], bits)


def test_bytes_are_seeded():
    drawn = world(train=64, test=32, seed=1)
    digest = sha256(drawn.train_images.numpy().tobytes() + drawn.test_images.numpy().tobytes()).hexdigest()
    assert digest[:16] == "67a66873111c3214"
    assert torch.equal(drawn.train_images, world(train=64, test=16, seed=1).train_images)
    assert not torch.equal(drawn.train_images, world(train=64, test=32, seed=2).train_images)
    assert not torch.equal(drawn.train_images[:32], drawn.test_images)
    assert drawn.train_labels[:16].tolist() != sorted(drawn.train_labels[:16].tolist())


def test_the_tree_has_three_levels_and_captions_four(small):
    assert max(small.tree.depths) == 2
    assert len(small.tree) == 1 + 4 + 16
    assert [small.tree.names[node] for node in small.leaf_of] == list(SHAPES) == list(small.classes)
    assert small.captions.shape == (600, 4, 4)
    assert small.captions.min() >= 0
    assert small.prompts.shape == (21, 4)
    assert small.unseen.shape == (21, 3)
    for label, leaf in enumerate(small.leaf_of):
        group = small.superclasses[small.superclass_of[label]]
        assert small.tree.names[small.tree.parents[leaf]] == group
        assert SHAPES[label] in GROUPS[group]


def test_shapes_colours_and_sizes_are_balanced(small):
    colours, sizes = attributes(small)
    # The first 256 of the numbers 0..599 that go round make all combinations once, so do the next.
    cell = small.train_labels.numpy() + 16 * colours + 128 * sizes
    assert set(np.bincount(cell, minlength=256)) == {2, 3}
    for labels, counts in ((small.train_labels, {37, 38}), (small.test_labels, {6, 7})):
        assert set(labels.bincount(minlength=16).tolist()) == counts


def test_captions_say_what_is_drawn(small):
    colours, sizes = attributes(small)
    cover = covered(small, seed=3)
    palette = np.array(list(COLOURS.values()))
    pixels = small.train_images.permute(0, 2, 3, 1).numpy().astype(float)
    area = cover.sum((1, 2))
    for image, label in enumerate(small.train_labels.tolist()):
        shown = pixels[image][cover[image] == 1]
        nearest = np.abs(shown[:, None] - palette).sum(2).argmin(1)
        assert np.bincount(nearest).argmax() == colours[image]
        assert (nearest == colours[image]).mean() > 0.9
        texts = [small.texts[k] for k in small.captions[image, 3].tolist()]
        words = SHAPES[label], list(COLOURS)[colours[image]], list(SIZES)[sizes[image]]
        assert all(set(words) < set(text.split()) for text in texts)
    for label in range(16):
        members = small.train_labels.numpy() == label
        assert area[members & (sizes == 0)].max() < area[members & (sizes == 1)].min()


def test_shapes_lie_within_the_image_and_move(small):
    cover = covered(small, seed=3)
    assert set(np.unique(cover)) == {0, 0.25, 0.5, 0.75, 1}
    place = (np.arange(32) + 0.5, cover.sum((1, 2)))
    centre = np.stack([(cover.sum(axis) * place[0]).sum(1) / place[1] for axis in (1, 2)])
    assert np.abs(centre - 16).max() < 9
    assert centre.std(1).min() > 1.5
    # Nothing is cut off: all drawings of a shape have one area in units of their radius, but for the pixels.
    disc = small.train_labels.numpy() == SHAPES.index("disc")
    radius = np.sqrt(cover[disc].sum((1, 2)) / np.pi) / 0.9
    assert ((radius > 6.9) & (radius < 8.1) | (radius > 10.9) & (radius < 13.1)).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_fill_the_unit_disc_and_nothing_beyond(shape):
    x, y = np.random.default_rng(0).uniform(-1.3, 1.3, (2, 40_000))
    inside, radius = INSIDE[shape](x, y), np.hypot(x, y)
    assert radius[inside].max() <= 1
    assert radius[inside].max() > 0.85
    assert 0.15 < (inside & (radius < 1)).sum() / (radius < 1).sum() < 0.9


def test_a_star_is_its_outline():
    x, y = np.random.default_rng(0).uniform(-1, 1, (2, 5_000))
    angles = -np.pi / 2 + np.pi / 5 * np.arange(10)
    radii = np.where(np.arange(10) % 2, 0.4, 1.0)
    outline = Outline(np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1))
    assert np.array_equal(_star(5, 0.4)(x, y), outline.contains_points(np.stack([x, y], 1)))


def test_a_nearest_centroid_tells_shapes_apart_and_colours_do_not():
    drawn = world(train=960, test=320)

    def silhouettes(images):
        """How much each pixel differs from the border, whatever the colour."""
        images = images.double()
        border = torch.cat([images[:, :, 0], images[:, :, -1], images[..., 0], images[..., -1]], 2)
        apart = (images - border.median(2).values[:, :, None, None]).abs().sum(1).flatten(1)
        return apart / apart.norm(dim=1, keepdim=True)

    def accuracy(features):
        train, test = features(drawn.train_images), features(drawn.test_images)
        centroids = torch.stack([train[drawn.train_labels == label].mean(0) for label in range(16)])
        return (torch.cdist(test, centroids).argmin(1) == drawn.test_labels).double().mean().item()

    assert accuracy(silhouettes) > 0.2  # three times chance; a small CNN reaches 0.98
    assert accuracy(lambda images: images.double().mean((2, 3))) < 0.2  # the mean colour hardly tells


def test_texts_are_read_in_full_and_unseen_ones_in_known_words(small):
    for text, row in zip(small.texts, small.tokens, strict=True):
        assert small.tokenizer.decode(row) == text
    seen = {word for k in small.captions.unique().tolist() for word in small.texts[k].split()}
    for row in small.unseen.tolist():
        assert {word for k in row for word in small.texts[k].split()} <= seen
    # No text says the name of a shape that it is not about.
    for text, node in zip(small.texts, small.text_nodes.tolist(), strict=True):
        named = {shape for shape in SHAPES if shape in text.split()}
        assert named == ({small.tree.names[node]} & set(SHAPES))


def test_load_gives_the_world(monkeypatch):
    from hacore.data import sources

    monkeypatch.setattr(sources, "world", lambda: world(train=32, test=16))
    drawn = load("world")
    assert isinstance(drawn, Captioned)
    assert drawn.name == "world"
    assert drawn.classes == DATASETS["world"].classes
    assert drawn.superclasses == DATASETS["world"].superclasses
    assert tuple(drawn.train_images.shape[1:]) == DATASETS["world"].shape
    assert len(drawn.subset(train=16).captions) == 16


def test_too_few_images_are_refused():
    assert len(world(train=16, test=16).train_labels.unique()) == 16
    with pytest.raises(HacoreError, match="15 training images of the world cannot show 16 shapes"):
        world(train=15)
    with pytest.raises(HacoreError, match="0 test images"):
        world(train=16, test=0)
