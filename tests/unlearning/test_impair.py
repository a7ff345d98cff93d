"""UNSIR: what the noise is, what each phase sees, and what is left of the class."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_run
from torch.nn.functional import cross_entropy

from hacore.errors import HacoreError
from hacore.evaluate import accuracy
from hacore.experiments import prepare
from hacore.geometry import SPACES
from hacore.unlearning.cost import Work, combined
from hacore.unlearning.impair import NoisyBatches, Unsir

# Few images make few steps: more rate, and all of the images, than on CIFAR-10.
TINY = Unsir(lr=0.03, repair_lr=0.001, batch_size=16, share=0.9, noises=32)


@pytest.fixture(scope="module", params=SPACES)
def request_(request):
    return prepare(tiny_run(request.param))


@pytest.fixture(scope="module")
def flat_request():
    return prepare(tiny_run())


def weights(model):
    return torch.cat([value.double().flatten() for value in model.state_dict().values()])


def learned(method, request):
    with Work(torch.device("cpu")) as work:
        noise = method.noise(request, torch.full((method.noises,), 5), work)
    return noise, work.fit()


def test_noise_is_misclassified(request_):
    noise, cost = learned(TINY, request_)
    start, _ = learned(replace(TINY, noise_steps=0), request_)
    with torch.no_grad():
        model = request_.model.eval()
        error, before = (cross_entropy(model(each), torch.full((32,), 5)) for each in (noise, start))
        assert error > before
        assert (model(noise).argmax(1) != 5).all()
    assert cost.steps == TINY.noise_steps
    assert cost.flops > 0


def test_noise_starts_standard_normal_in_normalised_pixels(flat_request):
    start, _ = learned(replace(TINY, noise_steps=0, noises=200), flat_request)
    z = flat_request.model.normalise(start)
    assert z.mean().abs() < 0.05
    assert abs(z.std() - 1) < 0.05
    assert start.min() < 0  # images in [0, 1] would be cut


def test_a_heavy_penalty_shrinks_the_noise(flat_request):
    sizes = []
    for weight in (0.0, 10.0):
        noise, _ = learned(replace(TINY, noise_weight=weight), flat_request)
        sizes.append(flat_request.model.normalise(noise).square().mean())
    assert sizes[1] < sizes[0] / 2


def test_noisy_batches_are_the_retain_batches_with_noise_behind(flat_request):
    retain = TINY.over(flat_request, flat_request.split.retain[:40])
    images, labels = torch.full((3, 1, 8, 8), -7.0), torch.full((3,), 5)
    noisy = NoisyBatches(retain, images, labels, 4)
    batches = list(noisy.epoch(0))
    assert len(noisy) == len(batches) == 3
    for plain, mixed in zip(retain.epoch(0), batches, strict=True):
        assert torch.equal(mixed.images[:-4], plain.images)
        assert torch.equal(mixed.labels[:-4], plain.labels)
        assert (mixed.images[-4:] == -7).all()
        assert (mixed.labels[-4:] == 5).all()
    rest = list(noisy.epoch(0, skip=1))
    assert all(torch.equal(a.images, b.images) for a, b in zip(rest, batches[1:], strict=True))


def test_the_subset_is_the_share_of_every_retained_class(flat_request):
    split = flat_request.split
    drawn = replace(TINY, share=0.5).subset(flat_request)
    assert torch.isin(drawn, split.retain).all()
    counts = torch.bincount(split.labels[drawn], minlength=10)
    wanted = torch.bincount(split.labels[split.retain], minlength=10) / 2
    assert counts[5] == 0
    assert ((counts - wanted).abs() <= 0.5).all()


def test_the_class_is_forgotten_and_the_others_repaired(request_):
    data, split = request_.dataset, request_.split
    model = TINY(request_).model
    forgotten = accuracy(model, data.train_images, split.labels, split.forget)
    retained = accuracy(model, data.train_images, split.labels, split.validation)
    assert accuracy(request_.model, data.train_images, split.labels, split.forget) > 90
    # Hyperbolic models resist more.
    assert forgotten < (20 if request_.model.space.name == "euclidean" else 75)
    assert retained > 75


def test_forget_images_are_never_seen(flat_request):
    data, split = flat_request.dataset, flat_request.split
    images = data.train_images.clone()
    images[split.forget] = 255 - images[split.forget]
    other = replace(flat_request, dataset=replace(data, train_images=images))
    assert torch.equal(*(weights(TINY(each).model) for each in (flat_request, other)))


def test_the_cost_is_of_all_three_phases(flat_request, tmp_path):
    outcome = TINY(replace(flat_request, checkpoint=tmp_path))
    retain = len(TINY.over(flat_request, TINY.subset(flat_request)))
    assert outcome.fit.steps == TINY.noise_steps + 2 * retain
    assert len(outcome.fit.history) == 2
    again = TINY(replace(flat_request, checkpoint=tmp_path))
    assert torch.equal(weights(again.model), weights(outcome.model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["impair", "repair"]


def test_samples_cannot_be_forgotten():
    request = prepare(tiny_run(scenario="random-samples", forget=20))
    with pytest.raises(HacoreError, match="whole classes only"):
        TINY(request)


def test_costs_add_up(flat_request):
    cost = flat_request.trained
    both = combined(cost, replace(cost, seconds=3 * cost.seconds, peak_memory_bytes=1))
    assert both.seconds == pytest.approx(4 * cost.seconds)
    assert both.steps == 2 * cost.steps
    assert both.flops == 2 * cost.flops
    assert both.images_per_second == pytest.approx(cost.images_per_second)
    assert both.peak_memory_bytes == cost.peak_memory_bytes
    assert len(both.history) == 2 * len(cost.history)
