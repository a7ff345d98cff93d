"""Fisher forgetting against closed forms."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_run
from torch import nn

from hacore.data.dataset import generator
from hacore.errors import HacoreError
from hacore.evaluate import accuracy
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.models import Classifier
from hacore.unlearning.cost import Work
from hacore.unlearning.fisher import Fisher, fisher_information


@pytest.fixture(scope="module", params=SPACES)
def request_(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat_request():
    return prepare(tiny_run())


def information(model, batches, *key):
    with Work(torch.device("cpu")) as work:
        found = fisher_information(model, batches, generator(*key), work)
    return found, work.fit()


def parameters(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("batch", [1, 4])
def test_information_of_a_linear_softmax_is_p_times_one_minus_p_times_x_squared(batch):
    torch.manual_seed(0)
    images = torch.rand(8, 1, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    # Many draws of labels: the same images again and again, in batches whose scores are summed.
    estimate, _ = information(model, images.repeat(100 * batch, 1, 1, 1).split(batch), "closed form")
    p = model(images).detach().softmax(1)
    spread = p * (1 - p)
    exact = torch.einsum("nk,nd->kd", spread, images.flatten(1).square()) / len(images)
    # 800 batches: a relative deviation of 5 % an entry. The square of a mean would be wrong by a factor of 4.
    torch.testing.assert_close(estimate["1.weight"], exact, rtol=0.25, atol=0)
    torch.testing.assert_close(estimate["1.bias"], spread.mean(0), rtol=0.25, atol=0)
    torch.testing.assert_close(estimate["1.weight"].sum(), exact.sum(), rtol=0.1, atol=0)


def test_true_labels_do_not_enter():
    asked = prepare(tiny_run(scenario="random-samples", forget=20))
    other = replace(asked, split=replace(asked.split, labels=asked.split.labels.roll(1)))
    answers = [Fisher(images=100)(each).model for each in (asked, other)]
    assert torch.equal(*map(parameters, answers))


def test_the_cost_is_one_forward_and_backward_pass_per_image():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False))
    _, cost = information(model, torch.rand(8, 1, 2, 2).split(4), "cost")
    # One product forward and one for the weights' gradient, 2 x 4 x 3 FLOPs an image each.
    assert (cost.steps, cost.flops) == (2, 8 * 2 * 2 * 4 * 3)
    assert cost.seconds > 0


def test_no_images_are_an_error():
    with pytest.raises(HacoreError, match="at least one image"):
        information(nn.Linear(1, 2), [])


def test_noise_vanishes_with_alpha(request_):
    kept = Fisher(alpha=0.0)(request_).model
    assert torch.equal(parameters(kept), parameters(request_.model))
    distance = [
        (parameters(Fisher(alpha=alpha)(request_).model) - parameters(request_.model)).norm()
        for alpha in (1e-12, 1e-8)
    ]
    # The same draws, scaled by the root of alpha.
    assert distance[1] / distance[0] == pytest.approx(100, rel=1e-2)


def test_variance_by_hand():
    method = Fisher(alpha=2.0)
    known = torch.tensor([[0.5, 0.25], [0.0, 0.0]])
    # 1/F, at most 1000, is shared by a row: (2 + 4) / 2 and 1000; in the head at most 100, times ten.
    torch.testing.assert_close(method.variance(known, head=False), torch.tensor([[6.0, 6], [2e3, 2e3]]))
    torch.testing.assert_close(method.variance(known, head=True), torch.tensor([[60.0, 60], [2e3, 2e3]]))
    torch.testing.assert_close(method.variance(known[0], head=False), torch.tensor([40.0, 80]))
    root = replace(method, exponent=0.5).variance(torch.tensor([[0.25]]), head=False)
    torch.testing.assert_close(root, torch.tensor([[4.0]]))


def test_noise_is_larger_where_information_is_smaller():
    model = nn.Linear(400, 2, bias=False)
    before = model.weight.detach().clone()
    known = {"weight": torch.tensor([1.0, 1e-2])[:, None].expand(2, 400)}
    Fisher(alpha=1.0).scrub(model, known, (), generator("scrub"))
    deviation = (model.weight.detach() - before).std(1)
    torch.testing.assert_close(deviation, torch.tensor([1.0, 10.0]), rtol=0.1, atol=0)


def test_a_forgotten_class_loses_its_row_and_no_other(request_):
    model = Fisher(alpha=0.0, reset=True)(request_).model
    before, after = request_.model.head.weight, model.head.weight
    others = torch.arange(10) != 5
    assert torch.equal(before[others], after[others])
    assert 0.5 < after[5].std() / 1e-3**0.5 < 1.5
    assert not torch.isin(after[5], before[5]).any()


def test_enough_noise_destroys_the_model_and_little_does_not(request_):
    data, split = request_.dataset, request_.split
    weak, strong = (
        accuracy(Fisher(alpha=alpha)(request_).model, data.train_images, split.labels, split.retain)
        for alpha in (1e-8, 1e-3)
    )
    assert weak > 95
    assert strong < 40


def test_resetting_the_row_forgets_the_class_in_flat_space(flat_request):
    data, split = flat_request.dataset, flat_request.split
    model = Fisher(alpha=1e-8, reset=True)(flat_request).model
    assert accuracy(flat_request.model, data.train_images, split.labels, split.forget) > 90
    assert accuracy(model, data.train_images, split.labels, split.forget) < 20
    assert accuracy(model, data.train_images, split.labels, split.retain) > 95


def test_forget_images_are_not_read_and_the_seed_decides(flat_request):
    data, split = flat_request.dataset, flat_request.split
    images = data.train_images.clone()
    images[split.forget] = 255 - images[split.forget]
    other = replace(flat_request, dataset=replace(data, train_images=images))
    method = Fisher(images=100)
    answers = [parameters(method(each).model) for each in (flat_request, other)]
    assert torch.equal(*answers)
    loop = replace(flat_request.training.loop, seed=1)
    reseeded = replace(flat_request, training=replace(flat_request.training, loop=loop))
    assert not torch.equal(parameters(method(reseeded).model), answers[0])


def test_prototypes_too(request_):
    here = request_.model
    torch.manual_seed(0)
    model = Classifier(
        here.encoder, 10, here.space, request_.dataset.mean, request_.dataset.std, "prototype", here.lift
    )
    after = Fisher(images=64)(replace(request_, model=model)).model
    assert parameters(after).isfinite().all()
    assert not torch.equal(parameters(after), parameters(model))


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"images": 0}, {"batch_size": 0}])
def test_impossible_settings_are_errors(flat_request, wrong):
    with pytest.raises(HacoreError, match="fisher needs"):
        Fisher(**wrong)(flat_request)
