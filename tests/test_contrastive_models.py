"""SimCLR and MoCo: what they compare, what they remember, and that they come back from disk."""

import copy
import math

import pytest
import torch

from hacore.data import Batch
from hacore.encoders import encoder
from hacore.errors import HacoreError
from hacore.geometry import SPACES, space
from hacore.models import CONTRASTIVE, Classifier, Lift, MoCo, SimCLR, from_config
from hacore.train import load_model, save_model

MEAN, STD = (0.3,), (0.4,)
BOTH = pytest.mark.parametrize("kind", CONTRASTIVE)
EVERYWHERE = pytest.mark.parametrize("name", SPACES)


def build(kind="simclr", name="euclidean", **settings):
    torch.manual_seed(0)
    where = space(name)
    if kind == "moco":
        settings = {"queue": 12} | settings
    return CONTRASTIVE[kind](encoder("cnn", 1), where, MEAN, STD, dim=8, lift=Lift(where), **settings)


def images(n=6, seed=0):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def pair(n=6):
    labels = torch.zeros(n, dtype=torch.int64)
    return Batch(images(n), labels), Batch(images(n, seed=1), labels)


def similarities(model, x, y):
    """One at a time, by the definition."""
    x, y = x.detach(), y.detach()
    if model.space.name == "euclidean":
        return torch.tensor([[torch.dot(a, b) / (a.norm() * b.norm()) for b in y] for a in x])
    return torch.stack([torch.stack([-model.space.dist(a, b) for b in y]) for a in x])


@EVERYWHERE
def test_simclr_is_nt_xent_of_the_points_of_both_views(name):
    model = build("simclr", name).eval()
    first, second = pair(4)
    points = model.embed(torch.cat([first.images, second.images]))
    s = similarities(model, points, points) / model.temperature
    n, losses = 4, []
    for i in range(2 * n):
        others = [j for j in range(2 * n) if j != i]
        losses.append(torch.logsumexp(s[i, others], 0) - s[i, (i + n) % (2 * n)])
    assert model.loss((first, second)).item() == pytest.approx(torch.stack(losses).mean().item(), abs=1e-4)


@EVERYWHERE
def test_moco_compares_queries_with_their_key_and_the_queue(name):
    model = build("moco", name).eval()
    first, second = pair(3)
    queries = model.embed(first.images)
    keys = model.lift(model.key_projector(model.key_encoder(model.normalise(second.images))))
    own = similarities(model, queries, keys).diagonal() / model.temperature
    stored = similarities(model, queries, model.queue) / model.temperature
    expected = (torch.cat([own[:, None], stored], 1).logsumexp(1) - own).mean()
    assert model.loss((first, second)).item() == pytest.approx(expected.item(), abs=1e-4)


def test_a_second_view_that_equals_the_first_is_all_there_is_to_align():
    # Every image the same: all similarities are 1, and the loss is the log of what each is compared with.
    model = build("simclr").eval()
    batch = Batch(images(1).expand(5, -1, -1, -1), torch.zeros(5, dtype=torch.int64))
    assert model.loss((batch, batch)).item() == pytest.approx(math.log(9), abs=1e-5)


def test_labels_are_not_read():
    model = build("simclr").eval()
    first, second = pair()
    other = Batch(first.images, first.labels + 7), Batch(second.images, second.labels + 3)
    assert torch.equal(model.loss((first, second)), model.loss(other))


def test_momentum_moves_keys_towards_queries_once_a_step():
    model = build("moco", momentum=0.75)
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            parameter.add_(1.0)
    before = copy.deepcopy(model.key_encoder)
    model.loss(pair())
    for old, new, leader in zip(
        before.parameters(), model.key_encoder.parameters(), model.encoder.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * leader)
        assert not new.requires_grad


def test_the_queue_replaces_its_oldest_keys_and_goes_round():
    model = build("moco", queue=8)
    start = model.queue.clone()
    model.loss(pair(5))
    torch.testing.assert_close(model.queue[5:], start[5:])
    assert not torch.equal(model.queue[:5], start[:5])
    kept = model.queue[1:5].clone()
    model.loss(pair(4))
    assert int(model.oldest) == 1
    torch.testing.assert_close(model.queue[1:5], kept)  # the next to go


def test_a_batch_longer_than_the_queue_fills_it():
    model = build("moco", queue=3)
    model.loss(pair(5))
    assert int(model.oldest) == 0


def test_in_evaluation_mode_nothing_moves_on():
    model = build("moco").eval()
    before = copy.deepcopy(model.state_dict())
    model.loss(pair())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_gradient_reaches_queries_only():
    model = build("moco")
    model.loss(pair()).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in model.projector.parameters() if p.ndim > 1
    )
    assert all(p.grad is None for p in model.key_encoder.parameters())


@BOTH
@EVERYWHERE
def test_a_model_comes_back_from_disk(tmp_path, kind, name):
    model = build(kind, name)
    model.loss(pair())
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert type(again) is type(model)
    assert again.config == model.config
    torch.testing.assert_close(again.embed(images()), model.eval().embed(images()))
    assert not again.training


@BOTH
def test_features_are_the_encoders_and_points_the_projectors(kind):
    model = build(kind, "lorentz").eval()
    assert model.features(images()).shape == (6, 32)
    assert model.embed(images()).shape == (6, 8)
    assert model.space.radius(model.embed(images())).max() <= 4 + 1e-5


def test_whitening_is_fitted_to_both_encoders_of_moco():
    where = space("euclidean")
    colours = torch.rand(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = MoCo(encoder("resnet9", 3), where, (0.5,) * 3, (0.3,) * 3, dim=8, queue=4)
    model.whiten(colours)
    torch.testing.assert_close(model.key_encoder.whitening, model.encoder.whitening)
    assert not torch.equal(model.encoder.whitening[:12], torch.eye(12))


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: build(temperature=0.0), "temperature must be positive"),
        (lambda: build("moco", queue=0), "at least one key"),
        (lambda: build("moco", momentum=1.0), r"momentum in \[0, 1\)"),
        (lambda: SimCLR(encoder("cnn", 1), space("lorentz"), MEAN, STD, dim=0), "at least one coordinate"),
        (lambda: SimCLR(encoder("cnn", 3), space("lorentz"), MEAN, STD), "give one each"),
        (lambda: from_config({"kind": "byol"}), "does not describe a model"),
        (lambda: from_config(build().config | {"dim": 0}), "at least one coordinate"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(call, says):
    with pytest.raises(HacoreError, match=says):
        call()


def test_kinds_are_told_apart():
    assert {kind.kind for kind in (Classifier, SimCLR, MoCo)} == {"classifier", "simclr", "moco"}
