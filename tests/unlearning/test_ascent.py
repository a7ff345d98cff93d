"""Climbing the loss of the forget images, on steps worked by hand."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run
from torch.nn.functional import cross_entropy

from hacore.data import as_float
from hacore.errors import HacoreError
from hacore.evaluate import accuracy
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.unlearning.ascent import GradientAscent, NegGradPlus

LR = 0.03


@pytest.fixture(scope="module", params=SPACES)
def anywhere(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat():
    return prepare(tiny_run())


def score(request, model, part):
    return accuracy(model, request.dataset.train_images, request.split.labels, getattr(request.split, part))


def gradients(request, index):
    """Of the cross-entropy on these images at the original weights, statistics kept."""
    model = copy.deepcopy(request.model).eval()
    images = as_float(request.dataset.train_images[index])
    loss = cross_entropy(model(images), request.split.labels[index])
    return torch.autograd.grad(loss, list(model.parameters()))


def assert_moved_by(request, outcome, steps):
    """The parameters are the original ones plus these."""
    triples = zip(outcome.model.parameters(), request.model.parameters(), steps, strict=True)
    for after, before, step in triples:
        torch.testing.assert_close(after - before, step, rtol=1e-3, atol=1e-6)


def test_one_step_of_ascent_by_hand(anywhere):
    outcome = GradientAscent(lr=LR, epochs=1, batch_size=64)(anywhere)
    assert outcome.fit.steps == 1  # 45 forget images
    assert_moved_by(anywhere, outcome, [LR * g for g in gradients(anywhere, anywhere.split.forget)])


def test_ascent_forgets_and_sees_no_retain_image(anywhere):
    method = GradientAscent(lr=1e-2, epochs=10)
    outcome = method(anywhere)
    before, after = (score(anywhere, model, "forget") for model in (anywhere.model, outcome.model))
    assert after < before - 30
    images = anywhere.dataset.train_images.clone()
    images[anywhere.split.retain] = 0
    other = method(replace(anywhere, dataset=replace(anywhere.dataset, train_images=images)))
    for one, two in zip(outcome.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("alpha", [1.0, 0.6, 0.0])
def test_one_step_of_neggrad_plus_by_hand(anywhere, alpha):
    split = replace(anywhere.split, retain=anywhere.split.retain[:64])
    small = replace(anywhere, split=split)
    outcome = NegGradPlus(lr=LR, alpha=alpha, batch_size=64)(small)
    assert outcome.fit.steps == 1
    retain, forget = (gradients(small, index) for index in (split.retain, split.forget))
    steps = [-LR * (alpha * r - (1 - alpha) * f) for r, f in zip(retain, forget, strict=True)]
    assert_moved_by(small, outcome, steps)


def test_neggrad_plus_walks_over_the_retain_images_once(flat):
    method = NegGradPlus(batch_size=45)  # 405 retain and 45 forget images: nine steps
    outcome = method(flat)
    assert outcome.fit.steps == 9
    parts = outcome.fit.history[0]
    wanted = 0.95 * parts["retain"] - 0.05 * parts["forget"]
    assert parts["loss"] == pytest.approx(wanted, rel=1e-5)


def test_neggrad_plus_forgets_the_class_and_keeps_the_others(anywhere):
    # A model that is sure of the forget images has no gradient to climb: what suits one does not suit all.
    lr, alpha = (0.02, 0.8) if anywhere.model.space.name == "poincare" else (0.01, 0.9)
    after = NegGradPlus(lr=lr, alpha=alpha, batch_size=32)(anywhere).model
    assert score(anywhere, after, "forget") < 30
    assert score(anywhere, after, "validation") > 70


def test_alpha_is_a_share(flat):
    with pytest.raises(HacoreError, match=r"choose it in \[0, 1\]"):
        NegGradPlus(alpha=1.5)(flat)
