"""Alignment calibration: whom it compares with whom, and that it does what its parts promise."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from hacore.data import Augment, Batch, Batches, SideBySide
from hacore.errors import HacoreError
from hacore.evaluate.alignment import view_agreement, views
from hacore.experiments import Run, prepare
from hacore.geometry import SPACES
from hacore.train import TrainConfig, fit
from hacore.unlearning import KINDS, METHODS, AlignmentCalibration, training_loss
from hacore.unlearning.calibration import Mismatched

GENERIC = ("original", "retrain", "finetune", "gradient-ascent", "neggrad-plus", "l1-sparse")


def tiny(recipe="simclr", space="euclidean", epochs=4):
    """100 digits, 20 of them to be forgotten."""
    run = Run(scenario="random-samples", recipe=recipe, space=space, forget=20)
    settings = run.resolved()
    training = settings.training
    training = replace(training, batch_size=40, loop=replace(training.loop, epochs=epochs))
    settings = replace(settings, train_images=200, test_images=60, training=training)
    return prepare(replace(run, settings=settings))


@pytest.fixture(scope="module", params=SPACES)
def asked(request):
    return tiny(space=request.param)


@pytest.fixture(scope="module")
def moco():
    return tiny("moco")


def source(n=12, forget=(1, 4, 7), batch_size=12):
    """Image k is filled with k, so that it can be recognised; no augmentation."""
    images = torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1).expand(n, 1, 8, 8).contiguous()
    marked = torch.zeros(n, dtype=torch.int64)
    marked[list(forget)] = 1
    walks = [Batches(images, marked, torch.arange(n), batch_size, 0, Augment("none")) for _ in range(3)]
    return Mismatched(SideBySide(*walks))


def shown(images):
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def test_a_forget_image_is_compared_with_another_one_and_a_retain_image_with_itself():
    (batch,) = source().epoch(0)
    first, second, third = shown(batch.first), shown(batch.second), shown(batch.third)
    assert first == third
    for row, forget in enumerate(batch.forget.tolist()):
        assert forget == (first[row] in {1, 4, 7})
        assert (second[row] != first[row]) == forget
        assert not forget or second[row] in {1, 4, 7}
    assert sorted(second) == sorted(first)


def test_one_forget_image_in_a_batch_has_no_other_to_be_compared_with():
    (batch,) = source(forget=(3,)).epoch(0)
    assert shown(batch.first) == shown(batch.second)


def test_resuming_sees_the_same_rest():
    walk = source(batch_size=4)
    rest = list(walk.epoch(1, skip=1))
    assert len(walk) == 3
    for ours, theirs in zip(list(walk.epoch(1))[1:], rest, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def aligned(model, request, index):
    augment = Augment(request.training.augment, 77)
    return view_agreement(views(model, request.dataset.train_images, index, augment, 6), model.space).mean()


def test_positive_calibration_lowers_the_alignment_of_forget_images_only(asked):
    method = AlignmentCalibration(lr=0.02, epochs=25, batch_size=100, negative=0.0, positive=10.0)
    after = method(asked).model
    lost = [
        (aligned(asked.model, asked, index) - aligned(after, asked, index)).item()
        for index in (asked.split.forget, asked.split.retain)
    ]
    assert lost[0] > 0.02
    assert lost[0] > lost[1] + 0.01


def test_negative_calibration_pulls_forget_images_together(asked):
    def mixed(model):
        points = views(model, asked.dataset.train_images, asked.split.forget, Augment("simclr-grey", 5), 2)
        matrix = model.space.similarity(points[0], points[1])
        return matrix[~torch.eye(len(matrix), dtype=torch.bool)].mean().item()

    method = AlignmentCalibration(
        lr=0.02, epochs=25, batch_size=100, negative=5.0, positive=0.0, preserving=0.0
    )
    assert mixed(method(asked).model) > mixed(asked.model) + 0.02


def test_without_forget_weights_it_is_training_on_retain_anchors(asked):
    method = AlignmentCalibration(negative=0.0, positive=0.0, preserving=0.0)
    _, parts = method.loss(asked.model, next(iter(source(forget=()).epoch(0))))
    batch = next(iter(source(forget=()).epoch(0)))
    expected = asked.model.loss((Batch(batch.first, batch.forget), Batch(batch.second, batch.forget)))
    assert parts["retain"].item() == pytest.approx(expected.item(), abs=1e-5)


def test_moco_is_calibrated_too(moco):
    outcome = AlignmentCalibration(lr=0.02, epochs=20, batch_size=100, negative=0.0, positive=10.0)(moco)
    assert set(outcome.fit.history[0]) >= {"retain", "negative calibration", "positive calibration"}
    assert aligned(outcome.model, moco, moco.split.forget) < aligned(moco.model, moco, moco.split.forget)


def test_the_original_is_left_as_it_was(moco):
    before = copy.deepcopy(moco.model.state_dict())
    AlignmentCalibration()(moco)
    assert all(torch.equal(value, before[name]) for name, value in moco.model.state_dict().items())


def test_no_label_is_read(moco):
    other = replace(moco, split=replace(moco.split, labels=(moco.split.labels + 1) % 10))
    for name in (*GENERIC[1:], "alignment-calibration"):
        ours, theirs = (METHODS[name](each).model.state_dict() for each in (moco, other))
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), name


def test_ascent_climbs_the_contrastive_loss(moco):
    def lost(model):
        batches = METHODS["finetune"].over(moco, moco.split.forget)
        return sum(model.loss(batch).item() for batch in batches.epoch(0))

    after = replace(METHODS["gradient-ascent"], lr=0.01)(moco).model
    assert lost(after.eval()) > lost(moco.model.eval())


def test_retrain_sees_retain_images_only(moco):
    images = moco.dataset.train_images.clone()
    images[moco.split.forget] = 255 - images[moco.split.forget]
    other = replace(moco, dataset=replace(moco.dataset, train_images=images))
    ours, theirs = (METHODS["retrain"](each).model.state_dict() for each in (moco, other))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


def test_methods_say_which_models_they_answer_for(asked):
    assert {name for name, one in METHODS.items() if one.fits("random-samples", "simclr")} == {
        *GENERIC, "alignment-calibration"
    }  # fmt: skip
    assert not METHODS["alignment-calibration"].fits("random-samples")
    assert METHODS["original"].kinds == KINDS
    with pytest.raises(HacoreError, match=r"answers for models of kind classifier, not simclr"):
        METHODS["scrub"](asked)


@pytest.mark.parametrize("weights", [{"negative": -1.0}, {"positive": -0.1}, {"preserving": -2.0}])
def test_negative_weights_are_refused(moco, weights):
    with pytest.raises(HacoreError, match="must be 0 or more"):
        AlignmentCalibration(**weights)(moco)


def test_a_classifiers_loss_is_cross_entropy():
    request = prepare(
        replace(
            (run := Run()),
            settings=replace(
                run.resolved(), train_images=100, test_images=50,
                training=replace(run.resolved().training, loop=TrainConfig(epochs=1, lr=0.1)),
            ),
        )
    )  # fmt: skip
    batch = next(iter(METHODS["finetune"].over(request, request.split.retain).epoch(0)))
    expected = cross_entropy(request.model(batch.images), batch.labels)
    torch.testing.assert_close(training_loss(request.model, batch), expected)


def test_a_killed_calibration_goes_on_to_the_same_weights(tmp_path, moco):
    class Killed(Exception):
        pass

    method = AlignmentCalibration(epochs=4, batch_size=40)
    whole = method(moco).model.state_dict()
    model, seen = copy.deepcopy(moco.model), []

    def dies(model, batch):
        seen.append(1)
        if len(seen) == 6:
            raise Killed
        return method.loss(model, batch)

    def again(loss):
        request = replace(moco, checkpoint=tmp_path)
        marked = torch.zeros_like(moco.split.labels)
        marked[moco.split.forget] = 1
        everything = torch.cat([moco.split.retain, moco.split.forget]).sort().values
        walk = Mismatched(method.over(request, everything, marked, views=3))
        copied = copy.deepcopy(model)
        fit(copied, walk, loss, method.loop(request), method=method.name, checkpoint=tmp_path)
        return copied.state_dict()

    with pytest.raises(Killed):
        again(dies)
    resumed = again(method.loss)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
