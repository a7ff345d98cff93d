"""The report on a model whose answers are known, and on models that really are trained."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run
from torch import nn

from hacore.data import Dataset, Split
from hacore.errors import HacoreError
from hacore.evaluate import accuracy, evaluate, logits
from hacore.evaluate.outputs import on_split, to_compare
from hacore.experiments import prepare
from hacore.geometry import Euclidean
from hacore.unlearning import METHODS

N = 12  # images per class


class Brightness(nn.Module):
    """Reads the class off the brightness, 0, 1 or 2 steps of 50, and takes class 2 for class 0."""

    def __init__(self):
        super().__init__()
        self.space = Euclidean()

    def embed(self, images):
        seen = (images[:, 0, 0, 0] * 255 / 50).round().long()
        return nn.functional.one_hot(torch.where(seen == 2, 0, seen), 3).float()

    def logits(self, points):
        return points

    def forward(self, images):
        return self.embed(images)


@pytest.fixture
def dataset():
    labels = torch.arange(3).repeat_interleave(N)
    images = (50 * labels).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    return Dataset("shades", images, labels, images, labels, ("dark", "mid", "light"), (), (), (0.2,), (0.2,))


@pytest.fixture
def model():
    return Brightness()


def test_accuracy_by_hand(model, dataset):
    # 24 of 36 images are in classes the rule gets right; of the last 18, the 6 in class 1.
    assert accuracy(model, dataset.train_images, dataset.train_labels) == pytest.approx(100 * 24 / 36)
    last = torch.arange(18, 36)
    assert accuracy(model, dataset.train_images, dataset.train_labels, last) == pytest.approx(100 * 6 / 18)


def test_a_forgotten_class_by_hand(model, dataset):
    scores = evaluate(model, dataset, Split.single_class(dataset, 2), reference=model)
    assert {name: value for name, value in scores.items() if name.endswith("_accuracy")} == {
        **{f"retain_{part}_accuracy": 100.0 for part in ("train", "validation", "test")},
        **{f"forget_{part}_accuracy": 0.0 for part in ("train", "validation", "test")},
        # Dark and light images are one point; which of the two classes it takes is a toss-up.
        "probe_forget_accuracy": scores["probe_forget_accuracy"],
    }
    for part in ("train", "test"):
        assert [scores[f"forget_{part}_as_{k}"] for k in range(3)] == [100.0, 0.0, 0.0]
    assert scores["confusion_gap"] == 0.0
    # Images of a class are equal, seen in training or not: nobody can tell who is a member.
    for name in ("logits", "features", "confidence", "entropy", "modified_entropy"):
        assert scores[f"attack_{name}_auc"] == 50.0
    assert {
        scores[f"radius_{kind}_{name}"] for kind in ("retain", "forget") for name in ("q05", "median")
    } == {1.0}
    # Each class is one point, so there is no distance within; the forget images do not vary.
    assert "class_separation" not in scores
    assert scores["cka_retain"] == pytest.approx(100)
    assert scores["cka_forget"] == 0.0
    # It is no network that could be fine-tuned.
    assert "relearn_forget_accuracy" not in scores


def test_random_samples_have_no_forgotten_test_images(model, dataset):
    scores = evaluate(model, dataset, Split.samples(dataset, count=6))
    assert "forget_train_accuracy" in scores
    assert "forget_test_accuracy" not in scores
    assert "forget_test_as_0" not in scores
    assert scores["retain_test_accuracy"] == pytest.approx(100 * 24 / 36)


def test_without_a_reference_nothing_is_compared(model, dataset):
    split = Split.single_class(dataset, 2)
    alone, beside = (evaluate(model, dataset, split, reference) for reference in (None, model))
    assert set(beside) - set(alone) == {"confusion_gap", "cka_retain", "cka_forget"}
    assert {name: beside[name] for name in alone} == alone


def test_one_forgotten_image_has_no_fitted_attack(model, dataset):
    scores = evaluate(model, dataset, Split.samples(dataset, count=1))
    assert "attack_logits_auc" not in scores
    assert "attack_confidence_auc" in scores


def test_training_parts_are_scored_against_the_labels_given_in_training(model, dataset):
    split = Split.samples(dataset, count=6, label_noise=0.5, seed=1)
    right = (model(dataset.train_images.float() / 255).argmax(1) == split.labels)[split.retain]
    assert evaluate(model, dataset, split)["retain_train_accuracy"] == pytest.approx(
        100 * right.double().mean().item()
    )


def test_the_images_compared_are_the_same_for_both_models(model, dataset, monkeypatch):
    monkeypatch.setattr("hacore.evaluate.outputs.COMPARED", 5)
    split = Split.single_class(dataset, 2)
    seen, theirs = on_split(model, dataset, split), to_compare(model, dataset, split)
    for name in ("retain_test", "forget_train"):
        mine = seen[name].compared(name)
        assert len(mine.labels) == 5
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs[name], strict=True))


def test_modes_are_as_before():
    model = prepare(tiny_run(method="original")).model
    model.train()
    model.encoder.eval()
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    logits(model, images)
    assert model.training
    assert not model.encoder.training


def test_nothing_to_evaluate_is_an_error(model, dataset):
    with pytest.raises(HacoreError, match="no images to evaluate"):
        logits(model, dataset.train_images, torch.arange(0))


@pytest.mark.parametrize("space", ["euclidean", "lorentz", "poincare"])
def test_the_report_tells_the_original_from_retrain(space):
    request = prepare(tiny_run(space, method="original"))
    retrain = METHODS["retrain"](request).model
    before = {name: value.clone() for name, value in request.model.state_dict().items()}
    scores = [evaluate(m, request.dataset, request.split, retrain) for m in (request.model, retrain)]
    original, itself = scores
    assert set(original) == set(itself)
    assert all(math.isfinite(value) and isinstance(value, float) for s in scores for value in s.values())
    assert (itself["cka_retain"], itself["cka_forget"]) == pytest.approx((100, 100))
    assert itself["confusion_gap"] == itself["relearn_gap"] == 0
    assert itself["forget_train_as_5"] == 0 < original["forget_train_as_5"]
    assert original["confusion_gap"] > 50
    assert original["relearn_forget_accuracy"] > itself["relearn_forget_accuracy"] + 50
    assert original["attack_member_rate_forget"] > itself["attack_member_rate_forget"] + 30
    assert original["cka_forget"] < 95
    # Nothing was changed, and nothing left to chance.
    assert all(torch.equal(value, before[name]) for name, value in request.model.state_dict().items())
    assert evaluate(request.model, request.dataset, request.split, retrain) == original


def test_memorised_labels_give_members_away():
    run = tiny_run(method="original", scenario="random-samples", forget=0.2, recipe="memorising")
    training = run.settings.training
    settings = replace(run.settings, training=replace(training, loop=replace(training.loop, epochs=40)))
    request = prepare(replace(run, settings=settings))
    retrain = METHODS["retrain"](request).model
    original, gold = (evaluate(m, request.dataset, request.split) for m in (request.model, retrain))
    # Entropy alone, which knows no label, finds least.
    margins = {"logits": 6, "features": 6, "confidence": 12, "modified_entropy": 12, "entropy": 2}
    for attack, by in margins.items():
        assert original[f"attack_{attack}_auc"] > gold[f"attack_{attack}_auc"] + by, attack
        assert 30 < gold[f"attack_{attack}_auc"] < 70, attack
