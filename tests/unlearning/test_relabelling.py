"""Wrong labels for forget images: what is drawn, what is nearest, and what may move."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run

from hacore.data import Split
from hacore.errors import HacoreError
from hacore.evaluate import accuracy
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.unlearning.relabelling import (
    BoundaryExpansion,
    BoundaryShrink,
    RandomRelabel,
    SalUn,
    best_other,
    nearest_labels,
    random_labels,
)


@pytest.fixture(scope="module", params=SPACES)
def anywhere(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat():
    return prepare(tiny_run())


def score(request, model, part):
    return accuracy(model, request.dataset.train_images, request.split.labels, getattr(request.split, part))


def test_the_best_other_class_by_hand():
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0]] * 3)
    assert best_other(scores, torch.tensor([0, 1, 3])).tolist() == [1, 0, 0]
    assert best_other(scores, torch.tensor([0, 1, 3]), (0, 1)).tolist() == [2, 2, 2]
    with pytest.raises(HacoreError, match="no other class is left"):
        best_other(scores, torch.tensor([0, 1, 3]), (0, 1, 2))


def test_random_labels_are_other_classes_drawn_uniformly(flat):
    split = Split.samples(flat.dataset, count=400)
    drawn = [
        random_labels(
            replace(flat, split=split, training=replace(
                flat.training, loop=replace(flat.training.loop, seed=seed)))
        )
        for seed in range(20)
    ]  # fmt: skip
    shifts = torch.cat([(labels - split.labels)[split.forget] % 10 for labels in drawn])
    counts = shifts.bincount(minlength=10)
    assert counts[0] == 0
    # 8,000 draws of nine shifts: 889 each, give or take 28.
    assert ((counts[1:] - 8000 / 9).abs() < 4 * 28.1).all()
    for labels in drawn:
        assert torch.equal(labels[split.retain], split.labels[split.retain])
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], random_labels(replace(flat, split=split)))


def test_no_forgotten_class_is_drawn(flat):
    split = Split.classes(flat.dataset, [2, 5])
    labels = random_labels(replace(flat, split=split))[split.forget]
    assert set(labels.tolist()) == {0, 1, 3, 4, 6, 7, 8, 9}


@pytest.mark.parametrize("method", [RandomRelabel, SalUn])
def test_relabelling_forgets_the_class_and_keeps_the_others(anywhere, method):
    after = method(lr=0.01, batch_size=32)(anywhere)
    assert score(anywhere, after.model, "forget") < 30
    assert score(anywhere, after.model, "validation") > 80
    assert after.fit.steps == -(-450 // 32)


def test_half_of_the_weights_are_salient_and_only_they_move(anywhere):
    method = SalUn(lr=0.05, batch_size=32)
    masks = method.masks(copy.deepcopy(anywhere.model), anywhere)
    total = sum(mask.numel() for mask in masks.values())
    assert sum(int(mask.sum()) for mask in masks.values()) == round(total / 2)
    after = dict(method(anywhere).model.named_parameters())
    moved = 0
    for name, before in anywhere.model.named_parameters():
        assert torch.equal(after[name][~masks[name]], before[~masks[name]])
        moved += int((after[name] != before)[masks[name]].sum())
        assert after[name]._backward_hooks is None or not after[name]._backward_hooks
    assert moved > 0.4 * total


def test_salient_weights_have_the_largest_gradients(flat):
    masks = SalUn(share=0.25).masks(copy.deepcopy(flat.model), flat)
    model = copy.deepcopy(flat.model).eval()
    images = flat.dataset.train_images[flat.split.forget].float() / 255
    loss = torch.nn.functional.cross_entropy(model(images), flat.split.labels[flat.split.forget])
    sizes = {
        name: g.abs()
        for (name, _), g in zip(
            model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
        )
    }
    inside = torch.cat([sizes[name][mask] for name, mask in masks.items()])
    outside = torch.cat([sizes[name][~mask] for name, mask in masks.items()])
    assert inside.min() >= outside.max() * (1 - 1e-3)


def test_all_weights_salient_is_random_relabelling(flat):
    one, two = (m(flat).model for m in (SalUn(share=1.0), RandomRelabel()))
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(HacoreError, match=r"choose it in \(0, 1\]"):
        SalUn(share=0.0)(flat)


class Line(torch.nn.Module):
    """Logits of one pixel between centres at 0.2, 0.5 and 0.9: the nearest centre wins."""

    def forward(self, images):
        return -10 * (images.flatten(1) - torch.tensor([[0.2, 0.5, 0.9]])) ** 2


def test_the_nearest_label_on_a_line_of_classes():
    images = torch.tensor([0.25, 0.45, 0.6, 0.85]).view(-1, 1, 1, 1)
    labels = torch.tensor([0, 1, 1, 2])
    # Away from the own centre: left of it to the left, right of it to the right.
    assert nearest_labels(Line(), images, labels, 0.2).tolist() == [1, 0, 2, 1]
    # Where the step stays within the class, the second best is still another class.
    assert nearest_labels(Line(), images, labels, 0.01).tolist() == [1, 0, 2, 1]
    assert nearest_labels(Line(), images, labels, 0.2, (0,)).tolist() == [1, 2, 2, 1]


def test_boundary_shrink_trains_on_the_nearest_labels(anywhere):
    method = BoundaryShrink(lr=3e-3)
    model = copy.deepcopy(anywhere.model).eval()
    labels = method.labels(model, anywhere)
    split = anywhere.split
    assert (labels[split.forget] != 5).all()
    assert torch.equal(labels[split.retain], split.labels[split.retain])
    after = method(anywhere).model
    assert score(anywhere, after, "forget") == 0
    hits = accuracy(after, anywhere.dataset.train_images, labels, split.forget)
    assert hits > accuracy(anywhere.model, anywhere.dataset.train_images, labels, split.forget) + 50


def test_boundary_expansion_cuts_the_shadow_class_off_again(anywhere):
    wide = BoundaryExpansion.widened(anywhere)
    assert wide.head.weight.shape == (11, 32)
    assert torch.equal(wide.head.weight[:10], anywhere.model.head.weight)
    outcome = BoundaryExpansion(lr=1e-3)(anywhere)
    before, after = anywhere.model.state_dict(), outcome.model.state_dict()
    assert {n: v.shape for n, v in before.items()} == {n: v.shape for n, v in after.items()}
    assert outcome.model.config == anywhere.model.config
    assert score(anywhere, outcome.model, "forget") < 30
    assert score(anywhere, outcome.model, "validation") > 70


@pytest.mark.parametrize("method", [BoundaryShrink(), BoundaryExpansion()])
def test_boundaries_are_those_of_classes(method):
    assert not method.fits("random-samples")
    with pytest.raises(HacoreError, match="whole classes only"):
        method(prepare(tiny_run(scenario="random-samples", forget=20)))
