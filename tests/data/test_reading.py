"""Batches of images with texts: seeded, resumable, and only what is to be forgotten said of forget images."""

from dataclasses import replace

import pytest
import torch
from tiny_world import tiny_world

from hacore.data import Batches, Pair, PairedBatches, Reading, Split, forgotten_nodes
from hacore.errors import HacoreError


@pytest.fixture
def data():
    return tiny_world()


def numbers(data):
    return torch.arange(len(data.train_labels))


def read_all(data, index=None, size=32, seed=3, split=None):
    index = numbers(data) if index is None else index
    return Reading(Batches(data.train_images, numbers(data), index, size, seed), data, seed, split)


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def of_classes(data, *names):
    return Split.classes(data, [data.classes.index(name) for name in names], seed=0)


def test_every_text_is_true_of_its_image_and_of_its_level(data):
    seen = 0
    for batch in read_all(data).epoch(0):
        seen += len(batch.images)
        assert batch.images.dtype == torch.float32
        assert batch.tokens.shape == (len(batch.images), data.levels, data.tokenizer.length)
        for row, label in enumerate(batch.labels.tolist()):
            way = data.tree.ancestors(data.leaf_of[label])
            assert set(batch.texts[row].tolist()) <= set(batch.statements[row].tolist())
            for level, text in enumerate(batch.texts[row].tolist()):
                assert int(data.text_levels[text]) == level
                assert int(batch.nodes[row, level]) == int(data.text_nodes[text])
                assert int(data.text_nodes[text]) in way
                assert torch.equal(batch.tokens[row, level], data.tokens[text])
    assert seen == len(data.train_labels)


def test_labels_are_leaf_classes_and_images_those_that_were_drawn(data):
    walk = read_all(data)
    for batch, plain in zip(walk.epoch(1), walk.source.epoch(1), strict=True):
        assert torch.equal(batch.images, plain.images)
        assert torch.equal(batch.labels, data.train_labels[plain.labels])


def test_all_wordings_and_all_levels_are_drawn_about_equally(data):
    first = [
        text for epoch in range(8) for batch in read_all(data).epoch(epoch) for text in batch.texts[:, 0]
    ]
    count = torch.stack(first).bincount()
    assert (count > 0).sum() == data.captions.shape[2]
    assert count[count > 0].min() > 0.2 * len(first)
    drawn = torch.cat([batch.drawn for epoch in range(8) for batch in read_all(data).epoch(epoch)])
    assert drawn.bincount(minlength=data.levels).min() > 0.2 * len(drawn)


def test_texts_depend_on_seed_and_epoch_and_not_on_the_global_generator(data):
    torch.manual_seed(1)
    one = list(read_all(data).epoch(2))
    torch.manual_seed(2)
    assert all(same(a, b) for a, b in zip(one, read_all(data).epoch(2), strict=True))
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(read_all(data).epoch(2))
    assert torch.equal(torch.get_rng_state(), before)
    whole = numbers(data)
    other_epoch, other_seed = (
        torch.cat([batch.texts for batch in walk])
        for walk in (read_all(data, whole).epoch(3), read_all(data, whole, seed=4).epoch(2))
    )
    texts = torch.cat([batch.texts for batch in one])
    assert not torch.equal(texts, other_epoch)
    assert not torch.equal(texts, other_seed)


@pytest.mark.parametrize("skip", [0, 3, 10])
def test_resuming_reads_the_same_rest(data, skip):
    walk = read_all(data)
    whole, rest = list(walk.epoch(1)), list(walk.epoch(1, skip))
    assert len(whole) == len(walk) == 10
    assert len(rest) == 10 - skip
    assert all(same(a, b) for a, b in zip(whole[skip:], rest, strict=True))


def test_of_forget_images_only_what_speaks_of_the_concept_is_read(data):
    split = of_classes(data, "triangle", "disc")
    concept = data.about([data.tree.node("triangle"), data.tree.node("disc")])
    everything = torch.cat([split.retain, split.forget])
    general = 0
    for batch in read_all(data, everything, split=split).epoch(0):
        gone = torch.isin(batch.labels, torch.tensor(split.forget_classes))
        texts = batch.texts[gone]
        assert (texts[:, :2] == -1).all(), "that a triangle is a thing and a polygon is not to be forgotten"
        assert (batch.nodes[gone][:, :2] == -1).all()
        assert concept[texts[:, 2:]].all()
        assert (batch.drawn[gone] >= 2).all()
        assert (batch.texts[~gone] >= 0).all()
        # What is true of an image is true, whether it is read or not.
        assert torch.isin(batch.statements[gone], data.captions[split.forget]).all()
        assert (batch.statements >= 0).all()
        general += int((batch.drawn[~gone] < 2).sum())
    assert general > 0


def test_of_a_whole_group_also_its_own_name_is_read(data):
    group = data.tree.children(data.tree.node("polygon"))
    split = of_classes(data, *(data.tree.names[leaf] for leaf in group))
    assert forgotten_nodes(data, split) == (data.tree.node("polygon"),)
    for batch in read_all(data, split.forget, split=split).epoch(0):
        assert (batch.texts[:, 0] == -1).all()
        assert (batch.nodes[:, 1] == data.tree.node("polygon")).all()


def test_concepts_are_nodes_not_samples(data):
    with pytest.raises(HacoreError, match="forget classes, not random samples"):
        forgotten_nodes(data, Split.samples(data, count=20, seed=0))


def test_levels_without_a_text_are_never_drawn(data):
    captions = data.captions.clone()
    captions[::2, 1] = -1
    captions[:, 3, 1:] = -1
    sparse = replace(data, captions=captions)
    for batch in read_all(sparse).epoch(0):
        rows = torch.arange(len(batch.drawn))
        assert (batch.texts[rows, batch.drawn] >= 0).all()
        assert (batch.texts[:, 1] == -1).any()
        assert ((batch.nodes == -1) == (batch.texts == -1)).all()
        assert torch.isin(batch.texts[:, 3], captions[:, 3, 0]).all()


def test_lifted_data_never_say_the_concept(data):
    node = data.tree.node("star")
    lifted = data.lifted([node])
    concept = data.about([node])
    stars = torch.tensor([data.classes.index(data.tree.names[leaf]) for leaf in data.tree.leaves_of(node)])
    for epoch in range(3):
        for batch in read_all(lifted).epoch(epoch):
            said = batch.statements[batch.statements >= 0]
            assert not concept[said].any()
            assert not concept[batch.texts[batch.texts >= 0]].any()
            assert (batch.drawn[torch.isin(batch.labels, stars)] == 0).all()


def test_pairs_are_read_side_by_side_and_each_for_itself(data):
    split = of_classes(data, "triangle")
    source = PairedBatches(data.train_images, numbers(data), split.forget, split.retain, 8, 2, seed=0)
    walk = Reading(source, data, 0, split)
    pairs = list(walk.epoch(0))
    assert len(pairs) == len(walk) == len(source)
    concept = data.about([data.tree.node("triangle")])
    for pair in pairs:
        assert isinstance(pair, Pair)
        assert (pair.forget.labels == data.classes.index("triangle")).all()
        assert (pair.retain.labels != data.classes.index("triangle")).all()
        assert concept[pair.forget.texts[:, 2:]].all()
        assert not concept[pair.retain.texts].any()
    assert not torch.equal(pairs[0].forget.drawn, pairs[0].retain.drawn)
    for ours, theirs in zip(pairs[2:], walk.epoch(0, 2), strict=True):
        assert same(ours.forget, theirs.forget)
        assert same(ours.retain, theirs.retain)


def test_an_image_of_which_nothing_can_be_read_is_refused(data):
    split = of_classes(data, "triangle")
    captions = data.captions.clone()
    captions[split.forget[0], 2:] = -1
    with pytest.raises(HacoreError, match=rf"training image {int(split.forget[0])} that could be read"):
        read_all(replace(data, captions=captions), split=split)
