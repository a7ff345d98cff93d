"""SISA: exact, and what it costs is what it redoes."""

import copy
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run

from hacore.errors import HacoreError
from hacore.evaluate import accuracy, evaluate
from hacore.experiments import prepare
from hacore.geometry import SPACES, Euclidean
from hacore.unlearning.sisa import Ensemble, Sisa

TINY = Sisa(shards=3, slices=2)


@pytest.fixture(scope="module", params=SPACES)
def request_(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat_request():
    return prepare(tiny_run())


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def asked(request, forget):
    """The request to forget exactly these images of those that were trained on."""
    split = request.split
    everything = torch.cat([split.retain, split.forget]).sort().values
    retain = everything[~torch.isin(everything, forget)]
    # As random samples: the classes of the images are of no importance.
    validation = torch.cat([split.validation, split.validation_forget]).sort().values
    test = torch.cat([split.test, split.test_forget]).sort().values
    none = split.forget[:0]
    changed = replace(
        split, retain=retain, forget=forget.sort().values, validation=validation, validation_forget=none,
        test=test, test_forget=none, forget_classes=(), scenario="samples",
    )  # fmt: skip
    return replace(request, split=changed)


def test_the_answer_does_not_depend_on_the_forget_images_by_a_bit(request_):
    data, split = request_.dataset, request_.split
    images = data.train_images.clone()
    images[split.forget] = 255 - images[split.forget]
    other = replace(request_, dataset=replace(data, train_images=images))
    answers = [TINY(each).model for each in (request_, other)]
    assert torch.equal(*map(weights, answers))
    # The control: a retain image does change it.
    images = data.train_images.clone()
    images[split.retain[0]] = 255 - images[split.retain[0]]
    other = replace(request_, dataset=replace(data, train_images=images))
    assert not torch.equal(weights(TINY(other).model), weights(answers[0]))


def test_slices_divide_the_training_images(flat_request):
    parts = TINY.parts(flat_request)
    assert [len(shard) for shard in parts] == [2, 2, 2]
    split = flat_request.split
    everything = torch.cat([split.retain, split.forget])
    assert torch.equal(torch.cat([*parts[0], *parts[1], *parts[2]]).sort().values, everything.sort().values)
    # The division was made before anyone asked to forget.
    other = asked(flat_request, split.retain[:7])
    assert all(
        torch.equal(a, b)
        for one, two in zip(parts, TINY.parts(other), strict=True)
        for a, b in zip(one, two, strict=True)
    )


def test_one_shard_is_redone_where_one_is_touched(flat_request):
    first = TINY.parts(flat_request)[1][0]
    whole = TINY(flat_request).fit  # a class is in every shard
    outcome = TINY(asked(flat_request, first[:3]))
    assert outcome.fit.steps == pytest.approx(whole.steps / 3, rel=0.15)
    assert outcome.fit.flops == pytest.approx(whole.flops / 3, rel=0.15)
    # The members of the other shards are those of a request elsewhere.
    elsewhere = TINY(asked(flat_request, TINY.parts(flat_request)[2][0][:3]))
    assert torch.equal(weights(outcome.model.members[0]), weights(elsewhere.model.members[0]))
    assert not torch.equal(weights(outcome.model.members[1]), weights(elsewhere.model.members[1]))


def test_stages_before_the_first_touched_slice_are_free(flat_request):
    early, late = TINY.parts(flat_request)[0]
    costs = [TINY(asked(flat_request, slice_[:3])).fit for slice_ in (early, late)]
    # Stages see one slice and two slices: the second alone is two thirds of both.
    assert costs[1].flops / costs[0].flops == pytest.approx(2 / 3, rel=0.1)
    assert len(costs[0].history) == 2 * len(costs[1].history)


def test_all_stages_see_as_much_as_the_training(flat_request):
    one_slice = replace(TINY, slices=1)(flat_request).fit
    assert TINY(flat_request).fit.flops == pytest.approx(one_slice.flops, rel=0.1)


def test_the_ensemble_answers_with_the_mean_of_probabilities(request_):
    torch.manual_seed(0)
    members = [copy.deepcopy(request_.model) for _ in range(2)]
    for p in members[1].parameters():
        p.data += 0.05 * torch.randn(p.shape)
    ensemble = Ensemble(members).eval()
    images = torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        wanted = torch.stack([member(images).softmax(1) for member in members]).mean(0)
        torch.testing.assert_close(ensemble(images).exp(), wanted, rtol=1e-4, atol=1e-6)
        features = ensemble.embed(images)
        tangent = [member.space.log0(member.embed(images)) for member in members]
    torch.testing.assert_close(features, torch.cat(tangent, 1))
    assert isinstance(ensemble.space, Euclidean)
    assert ensemble.classes == 10


def test_no_members_are_an_error():
    with pytest.raises(HacoreError, match="at least one member"):
        Ensemble([])


def test_it_is_evaluated_like_any_model(request_):
    outcome = TINY(request_)
    assert not outcome.model.training
    scores = evaluate(outcome.model, request_.dataset, request_.split)
    assert scores["forget_train_accuracy"] == 0
    data, split = request_.dataset, request_.split
    assert accuracy(outcome.model, data.train_images, split.labels, split.validation) > 70


def test_checkpoints_are_kept_apart(flat_request, tmp_path):
    first = TINY(replace(flat_request, checkpoint=tmp_path))
    assert len(list(tmp_path.iterdir())) == 6
    again = TINY(replace(flat_request, checkpoint=tmp_path))
    assert torch.equal(weights(first.model), weights(again.model))
    assert first.fit.steps == again.fit.steps


@pytest.mark.parametrize("wrong", [{"shards": 0}, {"slices": 0}, {"shards": 400}])
def test_impossible_divisions_are_errors(flat_request, wrong):
    with pytest.raises(HacoreError, match="cannot divide"):
        replace(TINY, **wrong)(flat_request)
