"""Training on what remains, and the controls, on cases whose answers are known."""

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
from hacore.models import from_config
from hacore.train import Fit
from hacore.unlearning.cost import combined
from hacore.unlearning.finetuning import (
    Annealed,
    Finetune,
    HeadReset,
    L1Sparse,
    RowReplacement,
    head_parameters,
    untrained_head,
)

CLASS = 5  # the class that tiny_run forgets


@pytest.fixture(scope="module")
def flat():
    return prepare(tiny_run())


@pytest.fixture(scope="module", params=SPACES)
def anywhere(request):
    return prepare(tiny_run(request.param))


def score(request, model, part):
    return accuracy(model, request.dataset.train_images, request.split.labels, getattr(request.split, part))


def l1(model):
    return sum(p.detach().abs().sum() for p in model.parameters()).item()


def with_one_retain_batch(request):
    """The request with 32 retain images, which are one batch."""
    return replace(request, split=replace(request.split, retain=request.split.retain[:32]))


def gradient_step(request, index, lr, sign=1.0):
    """The original's parameters after one step of gradient descent by hand, statistics learning on."""
    model = copy.deepcopy(request.model).train()
    images = as_float(request.dataset.train_images[index])
    loss = sign * cross_entropy(model(images), request.split.labels[index])
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return [p.detach() - lr * g for p, g in zip(model.parameters(), gradients, strict=True)]


def test_one_step_of_finetuning_by_hand(flat):
    small = with_one_retain_batch(flat)
    after = Finetune(lr=0.03, batch_size=32)(small)
    assert after.fit.steps == 1
    for p, wanted in zip(
        after.model.parameters(), gradient_step(small, small.split.retain, 0.03), strict=True
    ):
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", [Finetune(), L1Sparse(), HeadReset()])
def test_one_epoch_over_retain_never_sees_the_forget_images(flat, method):
    images = flat.dataset.train_images.clone()
    images[flat.split.forget] = 255 - images[flat.split.forget]
    other = replace(flat, dataset=replace(flat.dataset, train_images=images))
    outcomes = [method(each) for each in (flat, other)]
    for one, two in zip(*(outcome.model.parameters() for outcome in outcomes), strict=True):
        assert torch.equal(one, two)
    assert outcomes[0].fit.steps == -(-len(flat.split.retain) // method.batch_size)
    assert outcomes[0].fit.seconds < flat.trained.seconds


def test_finetuning_keeps_what_is_retained_and_learns_statistics(anywhere):
    after = Finetune()(anywhere).model
    assert score(anywhere, after, "validation") > 90
    before, now = anywhere.model.state_dict(), after.state_dict()
    moved = [not torch.equal(before[name], now[name]) for name in before if "running_mean" in name]
    assert moved
    assert all(moved)


def test_the_weight_of_the_penalty_falls_from_gamma_to_zero(flat):
    batches = Finetune(batch_size=100).over(flat, flat.split.retain)
    source = Annealed(batches, gamma=2.0, epochs=2)
    seen = [float(batch.gamma[0]) for epoch in range(2) for batch in source.epoch(epoch)]
    steps = 2 * len(batches)
    assert seen == pytest.approx([2.0 * (1 - k / (steps - 1)) for k in range(steps)])
    assert seen[-1] == 0
    # A resumed run goes on where it was.
    assert [float(b.gamma[0]) for b in source.epoch(1, 2)] == pytest.approx(seen[len(batches) + 2 :])


def test_the_penalised_loss_by_hand(flat):
    batch = next(Annealed(Finetune().over(flat, flat.split.retain), 0.25, 1).epoch(0))
    model = copy.deepcopy(flat.model).eval()
    loss, parts = L1Sparse.loss(model, batch)
    ce = cross_entropy(model(batch.batch.images), batch.batch.labels).item()
    assert loss.item() == pytest.approx(ce + 0.25 * l1(model), rel=1e-5)
    assert parts["l1 norm"].item() == pytest.approx(l1(model), rel=1e-5)


def test_a_huge_gamma_drives_the_weights_to_zero_and_none_is_finetuning(flat):
    strong = L1Sparse(lr=1e-3, gamma=1.0, epochs=20)(flat).model
    assert l1(strong) < 0.1 * l1(flat.model)
    none, plain = (method(flat).model for method in (L1Sparse(gamma=0.0), Finetune()))
    for one, two in zip(none.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, two)
    with pytest.raises(HacoreError, match="gamma of 0 or more"):
        L1Sparse(gamma=-1.0)(flat)


def test_the_head_is_that_of_an_untrained_model_before_training(anywhere):
    start = HeadReset.reset(anywhere)
    fresh = head_parameters(untrained_head(anywhere))
    for name, parameter in head_parameters(start.head).items():
        assert torch.equal(parameter, fresh[name])
        assert not torch.equal(parameter, head_parameters(anywhere.model.head)[name])
    assert not torch.equal(start.head.weight, anywhere.fresh(anywhere.split.retain).head.weight)
    for name, value in start.encoder.state_dict().items():
        assert torch.equal(value, anywhere.model.encoder.state_dict()[name])


def test_head_reset_forgets_the_class_in_its_outputs(anywhere):
    after = HeadReset(lr=0.05, batch_size=32)(anywhere)
    assert score(anywhere, after.model, "forget") < 30
    assert score(anywhere, after.model, "validation") > 80


def test_replacing_a_row_forgets_the_class_and_nothing_else(anywhere):
    done = RowReplacement()(anywhere)
    model, before = done.model, anywhere.model
    images = as_float(anywhere.dataset.train_images)
    with torch.no_grad():
        old, new = before(images), model(images)
    others = [k for k in range(10) if k != CLASS]
    assert torch.equal(new[:, others], old[:, others])
    assert (new[:, CLASS] < old[:, others].min(dim=1).values).all()
    assert score(anywhere, model, "forget") == 0
    for name, value in model.encoder.state_dict().items():
        assert torch.equal(value, before.encoder.state_dict()[name])
    assert done.fit.steps == 0
    assert 0 < done.fit.seconds < anywhere.trained.seconds
    assert done.fit.history == []


def test_the_replaced_row_loses_far_from_every_point_seen(anywhere):
    # Points at the radius at which lifts are clipped, in every direction: no row can be beaten further out.
    model = RowReplacement()(anywhere).model
    directions = torch.randn(5000, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        points = model.space.exp0(4 * directions / directions.norm(dim=1, keepdim=True))
        row = 4 * torch.nn.functional.normalize(model.head.weight, dim=1)
        logits = model.logits(torch.cat([points, model.space.exp0(row)]))
    assert (logits.argmin(dim=1) == CLASS).all()


def test_the_replaced_row_has_an_untrained_direction(flat):
    row = RowReplacement()(flat).model.head.weight[CLASS]
    fresh = untrained_head(flat).weight[CLASS]
    assert torch.cosine_similarity(row, fresh, dim=0).item() == pytest.approx(1, abs=1e-5)
    others = torch.arange(10) != CLASS
    assert row.norm().item() == pytest.approx(flat.model.head.weight[others].norm(dim=1).max().item())


def test_row_replacement_refuses_what_has_no_rows(flat):
    config = {**flat.model.config, "head": "prototype"}
    prototypes = replace(flat, model=from_config(config))
    with pytest.raises(HacoreError, match="choose head='logistic'"):
        RowReplacement()(prototypes)
    with pytest.raises(HacoreError, match="whole classes only"):
        RowReplacement()(prepare(tiny_run(scenario="random-samples", forget=20)))


def test_costs_of_two_parts_add_up():
    first = Fit(1.0, 2, 30.0, 100.0, 7, False, [{"epoch": 1.0}])
    second = Fit(3.0, 4, 10.0, 20.0, 9, True, [{"epoch": 2.0}])
    assert combined(first, second) == Fit(4.0, 6, 40.0, 40.0, 9, True, [{"epoch": 1.0}, {"epoch": 2.0}])
