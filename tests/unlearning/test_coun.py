"""CoUn and its module: two views, retain data only, the loss worked by hand."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_run

from hacore import losses
from hacore.data import Augment, Batches, Pair, SideBySide
from hacore.errors import HacoreError
from hacore.evaluate import evaluate
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.unlearning.contrastive import ContrastiveUnlearning
from hacore.unlearning.coun import ContrastiveCoUn, CoUn


@pytest.fixture(scope="module", params=SPACES)
def asked(request):
    return prepare(tiny_run(request.param))


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def test_two_views_show_the_same_images_differently():
    images = torch.randint(0, 255, (20, 1, 8, 8), dtype=torch.uint8)
    labels = torch.arange(20)
    views = SideBySide(*(Batches(images, labels, labels, 8, 0, Augment("shift", seed)) for seed in (0, 1)))
    assert len(views) == 3
    for first, second in views.epoch(0):
        assert torch.equal(first.labels, second.labels)
        assert not torch.equal(first.images, second.images)
    assert len(list(views.epoch(0, skip=2))) == 1


def test_coun_never_sees_the_forget_images(asked):
    images = asked.dataset.train_images.clone()
    images[asked.split.forget] = 255 - images[asked.split.forget]
    other = replace(asked, dataset=replace(asked.dataset, train_images=images))
    method = CoUn(batch_size=64)
    assert torch.equal(*(weights(method(each).model) for each in (asked, other)))


def test_coun_lowers_its_contrast_and_keeps_utility(asked):
    outcome = CoUn(batch_size=64, epochs=5, lr=0.01, weight_cl=0.1)(asked)
    first, last = outcome.fit.history[0], outcome.fit.history[-1]
    assert last["contrast"] < first["contrast"]
    before = evaluate(asked.model, asked.dataset, asked.split)["retain_validation_accuracy"]
    after = evaluate(outcome.model, asked.dataset, asked.split)["retain_validation_accuracy"]
    assert after > before - 10


def test_without_its_module_it_is_contrastive_unlearning(asked):
    # Weight 0 leaves the loss of Eq. 7 on the first view; the parts say the same at the first step.
    settings = {"batch_size": 32, "omega": 2, "epochs": 1, "stop_at": -1.0, "lr": 0.001}
    plain = ContrastiveCoUn(weight_cl=0.0, **settings)
    batch = next(iter(plain.batches(asked).epoch(0)))
    model = asked.model
    total, parts = plain.loss(model, batch)
    reference, _ = ContrastiveUnlearning(**settings).loss(model, Pair(batch.forget[0], batch.retain[0]))
    torch.testing.assert_close(total, reference)
    weighted, _ = ContrastiveCoUn(weight_cl=2.0, **settings).loss(model, batch)
    torch.testing.assert_close(weighted, total + 2 * parts["contrast"])


def test_its_module_is_infonce_of_the_two_retain_views(asked):
    method = ContrastiveCoUn(batch_size=32, omega=2)
    batch = next(iter(method.batches(asked).epoch(0)))
    model = asked.model.eval()
    _, parts = method.loss(model, batch)
    z, other = (model.embed(view.images) for view in batch.retain)
    torch.testing.assert_close(
        parts["contrast"], losses.info_nce(z, other, model.space, method.temperature), rtol=1e-4, atol=1e-4
    )


def test_a_share_of_the_retain_images_is_drawn_once(asked):
    some = CoUn(retain_share=0.25).retained(asked)
    retain = asked.split.retain
    assert len(some) == round(0.25 * len(retain))
    assert torch.isin(some, retain).all()
    assert torch.equal(some, CoUn(retain_share=0.25).retained(asked))
    assert torch.equal(CoUn().retained(asked), retain)
    with pytest.raises(HacoreError, match="share of retain images"):
        CoUn(retain_share=0.0).retained(asked)
