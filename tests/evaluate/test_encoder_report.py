"""``evaluate`` of encoders that learnt without labels: what it adds, and what it reads from a probe."""

import math
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run

from hacore.evaluate import evaluate
from hacore.evaluate.outputs import on_split
from hacore.evaluate.probing import probe
from hacore.evaluate.report import neighbours, owners_audit
from hacore.experiments import Prepared, prepare, run
from hacore.unlearning import METHODS

RUN = {"scenario": "random-samples", "forget": 40, "recipe": "simclr"}


@pytest.fixture(scope="module")
def asked():
    return prepare(tiny_run("lorentz", **RUN))


def probed(request, model):
    data, split = request.dataset, request.split
    return probe(model, data.train_images, split.labels, split.retain, len(data.classes))


def test_everything_is_finite_and_has_one_name(asked):
    retrain = METHODS["retrain"](asked).model
    out = evaluate(asked.model, asked.dataset, asked.split, retrain, before=asked.model)
    assert all(math.isfinite(value) for value in out.values())
    assert {
        "retain_train_accuracy", "retain_test_accuracy", "forget_train_accuracy", "svc_forget_nonmember_rate",
        "emia_forget_nonmember_rate", "emia_auc", "features_emia_auc", "alignment_forget", "uniformity_test",
        "knn_retain_train_accuracy", "knn_retain_test_accuracy", "knn_forget_train_accuracy",
        "cka_retain", "audit_score", "audit_p_value", "audit_visible",
    } <= out.keys()  # fmt: skip


def test_accuracies_are_those_of_a_probe_of_the_retain_images(asked):
    out = evaluate(asked.model, asked.dataset, asked.split)
    theirs = evaluate(probed(asked, asked.model), asked.dataset, asked.split)
    assert {name: out[name] for name in theirs} == theirs


def test_a_model_that_did_not_change_shows_the_owner_nothing(asked):
    found = owners_audit(asked.model, asked.model, asked.dataset, asked.split, augment="simclr-grey")
    assert found["audit_raw"] == 0
    assert found["audit_visible"] == 0
    assert found["audit_p_value"] == pytest.approx(1)


def test_half_of_the_retain_images_are_neighbours_of_the_others(asked):
    # Features that say the label: the nearest neighbours have it too, whichever half they are in.
    class Told(torch.nn.Module):
        space = probed(asked, asked.model).space

        def embed(self, images):
            return images.flatten(1)

        def logits(self, points):
            return points

    images = torch.zeros_like(asked.dataset.train_images)
    images.flatten(1)[torch.arange(len(images)), asked.dataset.train_labels] = 255
    told = replace(asked.dataset, train_images=images)
    out = neighbours(on_split(Told(), told, asked.split))
    assert out["knn_retain_train_accuracy"] == 100
    assert out["knn_forget_train_accuracy"] == 100
    assert out["knn_retain_test_accuracy"] < 100


def test_a_record_holds_the_audit_of_the_original_and_the_answer(asked):
    one = tiny_run("lorentz", method="finetune", **RUN)
    record = run(one, Prepared(replace(one, method="retrain"), asked))
    assert record["run"]["recipe"] == "simclr"
    assert record["settings"]["head"] == "simclr"
    assert 0 < record["metrics"]["audit_p_value"] <= 1
    again = METHODS["finetune"]
    answer = one.resolved().unlearning(asked).model
    assert again.name == record["run"]["method"]
    found = owners_audit(asked.model, answer, asked.dataset, asked.split, augment="simclr-grey")
    assert record["metrics"]["audit_score"] == pytest.approx(found["audit_score"], abs=1e-3)
