"""Each method on a case whose answer is known."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run
from tiny_world import tiny_concept_run

from hacore.errors import HacoreError
from hacore.evaluate import evaluate
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.unlearning import METHODS, forgotten, method

CU = "contrastive-unlearning"


@pytest.fixture(scope="module", params=SPACES)
def request_(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat_request():
    return prepare(tiny_run())


@pytest.fixture(scope="module")
def samples_request():
    return prepare(tiny_run(scenario="random-samples", forget=20, recipe="memorising"))


def answer(name, **fields):
    """The method with settings that suit the tiny run."""
    return tiny_run(method=name, **fields).resolved().unlearning


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


@pytest.fixture(scope="module")
def encoder_request():
    return prepare(tiny_run(**ENCODER))


ENCODER = {"scenario": "random-samples", "forget": 40, "recipe": "simclr"}
EVERY_METHOD = pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, one in METHODS.items() for kind in one.kinds if kind != "moco"]
)


@pytest.fixture(scope="module")
def pairs_request():
    return prepare(tiny_concept_run("lorentz", method="original"))


@pytest.fixture
def asked(request, name, kind):
    """A request about such a model, and the method with settings that suit it."""
    if kind == "classifier":
        return request.getfixturevalue("flat_request"), answer(name)
    if kind == "image-text":
        chosen = tiny_concept_run("lorentz", method=name).resolved().unlearning
        return request.getfixturevalue("pairs_request"), chosen
    return request.getfixturevalue("encoder_request"), tiny_run(method=name, **ENCODER).resolved().unlearning


@EVERY_METHOD
def test_no_method_changes_the_model_it_is_given(asked):
    request, method = asked
    before = weights(request.model)
    outcome = method(request)
    assert torch.equal(weights(request.model), before)
    assert outcome.model is not request.model
    assert not outcome.model.training


@EVERY_METHOD
def test_no_method_reads_the_test_split(asked):
    request, method = asked
    data = request.dataset
    other = replace(data, test_images=255 - data.test_images)
    outcomes = [method(replace(request, dataset=each)) for each in (data, other)]
    assert torch.equal(*(weights(outcome.model) for outcome in outcomes))


@pytest.mark.parametrize(("trained", "after"), [("muon", "sgd"), ("adamw", "adamw"), ("muon-adamw", "adamw")])
def test_methods_go_on_with_the_optimiser_that_trained_what_is_no_convolution(flat_request, trained, after):
    training = flat_request.training
    training = replace(training, loop=replace(training.loop, optimizer=trained))
    assert answer("finetune").loop(replace(flat_request, training=training)).optimizer == after


def test_original_forgets_nothing(flat_request):
    outcome = METHODS["original"](flat_request)
    assert torch.equal(weights(outcome.model), weights(flat_request.model))
    assert outcome.fit == flat_request.trained


def test_retrain_never_sees_the_forget_data(flat_request):
    images = flat_request.dataset.train_images.clone()
    images[flat_request.split.forget] = 255 - images[flat_request.split.forget]
    other = replace(flat_request, dataset=replace(flat_request.dataset, train_images=images))
    assert torch.equal(*(weights(METHODS["retrain"](each).model) for each in (flat_request, other)))


def test_contrastive_unlearning_meets_its_stopping_rule(request_):
    outcome = answer(CU, space=request_.model.space.name)(request_)
    scores = evaluate(outcome.model, request_.dataset, request_.split)
    before = evaluate(request_.model, request_.dataset, request_.split)
    assert outcome.fit.stopped
    assert outcome.fit.steps % METHODS[CU].omega == 0
    assert scores["forget_validation_accuracy"] <= 10
    assert scores["forget_train_accuracy"] < before["forget_train_accuracy"] - 30
    assert scores["retain_validation_accuracy"] > before["retain_validation_accuracy"] - 15


def test_contrastive_unlearning_keeps_batch_statistics(request_):
    after = answer(CU, space=request_.model.space.name)(request_).model.state_dict()
    for name, value in request_.model.state_dict().items():
        if "running" in name:
            assert torch.equal(value, after[name])
    assert any("running" in name for name in after)


def test_without_the_pull_the_class_stays(request_):
    settings = answer(CU, space=request_.model.space.name)
    outcome = replace(settings, weight_ul=0.0, epochs=2, lr=0.003)(request_)
    assert not outcome.fit.stopped
    scores = evaluate(outcome.model, request_.dataset, request_.split)
    assert scores["forget_validation_accuracy"] > 50


def test_random_samples_stop_at_validation_accuracy(samples_request):
    method = replace(answer(CU, scenario="random-samples", recipe="memorising"), lr=0.01, weight_ul=1.0)
    outcome = method(samples_request)
    scores = evaluate(outcome.model, samples_request.dataset, samples_request.split)
    assert outcome.fit.stopped
    assert scores["forget_train_accuracy"] <= scores["retain_validation_accuracy"]


class Constant(torch.nn.Module):
    """Always answers one class."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, images):
        return torch.eye(10)[[self.answer] * len(images)]


@pytest.mark.parametrize(("answer", "done"), [(5, False), (3, True)])
def test_eq_8_by_hand(request_, monkeypatch, answer, done):
    # The forgotten class is 5: a model that always says 5 has 100 % on it, one that says 3 has none.
    model = copy.deepcopy(request_.model)
    monkeypatch.setattr(model, "forward", Constant(answer).forward)
    assert forgotten(request_)(model) is done


@pytest.mark.parametrize(("answer", "shift"), [(0, 1), (0, -1)])
def test_eq_9_by_hand(samples_request, monkeypatch, answer, shift):
    # Label all forget samples 0 and no validation image, or the other way round, and always answer 0.
    split = samples_request.split
    labels = torch.full_like(split.labels, answer + 1)
    labels[split.forget if shift > 0 else split.validation] = answer
    model = copy.deepcopy(samples_request.model)
    monkeypatch.setattr(model, "forward", Constant(answer).forward)
    asked = replace(samples_request, split=replace(split, labels=labels))
    assert forgotten(asked)(model) is (shift < 0)


def test_an_unknown_method_gets_the_list():
    with pytest.raises(HacoreError, match="no method 'magic'; choose one of original, retrain"):
        method("magic")
