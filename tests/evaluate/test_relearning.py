"""The relearning attack on models that never forgot, never knew, and can learn."""

import copy

import pytest
import torch
from tiny import tiny_run

from hacore.data import Split
from hacore.errors import HacoreError
from hacore.evaluate import accuracy
from hacore.evaluate.relearning import relearn
from hacore.experiments import prepare
from hacore.unlearning import METHODS


@pytest.fixture(scope="module")
def request_():
    return prepare(tiny_run(method="original"))


@pytest.fixture(scope="module")
def retrain(request_):
    return METHODS["retrain"](request_).model


def test_a_head_that_denies_a_class_relearns_it_at_once(request_, retrain):
    data, split = request_.dataset, request_.split
    denies = copy.deepcopy(request_.model)
    with torch.no_grad():
        denies.head.bias[5] -= 6  # nothing is forgotten, the class is only never answered
    assert accuracy(denies, data.train_images, split.labels, split.forget) == 0
    out, gold = (relearn(model, data, split, retrain) for model in (denies, retrain))
    assert out["relearn_forget_accuracy"] > 80
    assert gold["relearn_forget_accuracy"] < 20
    assert gold["relearn_gap"] == 0
    assert out["relearn_gap"] == out["relearn_forget_accuracy"] - gold["relearn_forget_accuracy"]
    # The model itself is as it was.
    assert accuracy(denies, data.train_images, split.labels, split.forget) == 0


def test_more_steps_relearn_more(request_, retrain):
    data, split = request_.dataset, request_.split
    few, many = (relearn(retrain, data, split, steps=steps, lr=0.01) for steps in (1, 100))
    assert few["relearn_forget_accuracy"] < 10
    assert many["relearn_forget_accuracy"] > 50
    assert set(few) == {"relearn_forget_accuracy"}


def test_the_attacker_is_asked_about_images_it_does_not_have(request_, retrain, monkeypatch):
    fed, asked = [], []
    monkeypatch.setattr("hacore.evaluate.relearning.Batches", lambda *a, **k: fed.append(a[2]) or [0])
    monkeypatch.setattr("hacore.evaluate.relearning.fit", lambda *a, **k: None)
    monkeypatch.setattr(
        "hacore.evaluate.relearning.accuracy", lambda model, images, labels, index: asked.append(index) or 0.0
    )
    split = request_.split
    relearn(retrain, request_.dataset, split, share=0.25)
    few = round(0.25 * len(split.forget))
    assert torch.isin(fed[0], split.forget).sum() == torch.isin(fed[0], split.retain).sum() == few
    assert torch.cat([fed[0][:few], asked[0]]).sort().values.tolist() == split.forget.tolist()


def test_one_forget_image_is_too_few(request_, retrain):
    split = Split.samples(request_.dataset, count=1)
    with pytest.raises(HacoreError, match="one to ask about"):
        relearn(retrain, request_.dataset, split)
