import json

import pytest
import torch
from torch import nn

from hacore.encoders import encoder
from hacore.errors import HacoreError
from hacore.geometry import SPACES, space
from hacore.models import HEADS, MODES, Classifier, Lift, Prototypes, from_config
from hacore.train import load_model, load_model_state, save_model

MEAN, STD = (0.3,), (0.4,)


def classifier(name="lorentz", head="logistic", curv=1.0, learnable=False, seed=0, **lift):
    where = space(name, curv, learnable)
    torch.manual_seed(seed)
    return Classifier(encoder("cnn", 1, 6), 10, where, MEAN, STD, head, Lift(where, **lift))


def images(n=5):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("curv", [0.5, 2.0])
def test_lift_puts_points_at_the_length_of_the_tangent_vector(name, mode, curv):
    where = space(name, curv)
    features = torch.tensor([[0.0, 0.0], [3.0, 4.0], [-30.0, 40.0]], requires_grad=True)
    points = Lift(where, mode, scale=0.1, radius=2.0)(features)
    lengths = {"free": [0, 0.5, 5], "clipped": [0, 0.5, 2], "fixed": [0, 2, 2]}[mode]
    torch.testing.assert_close(where.radius(points), torch.tensor(lengths).float(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(nn.functional.normalize(points[1:]), nn.functional.normalize(features[1:]))
    points.sum().backward()
    assert features.grad.isfinite().all()  # also for the features that are zero


def test_lift_to_a_fixed_radius_leaves_only_the_angle():
    """Distance is then a monotone function of the cosine in every geometry: nothing hyperbolic is left."""
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    orders = []
    for name in SPACES:
        where = space(name)
        points = Lift(where, "fixed", radius=3.0)(features)
        orders.append(where.dist(points[:1], points[1:]).argsort())
    assert all(torch.equal(order, orders[0]) for order in orders)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("head", HEADS)
def test_classifier_is_its_parts_in_order_and_trains(name, head):
    model = classifier(name, head)
    x = images()
    points = model.embed(x)
    torch.testing.assert_close(points, model.lift(model.encoder((x - MEAN[0]) / STD[0])))
    torch.testing.assert_close(model(x), model.logits(points))
    assert model(x).shape == (5, 10)
    nn.functional.cross_entropy(model(x), torch.arange(5)).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_every_geometry_starts_from_the_same_weights():
    first, *others = (dict(classifier(name).named_parameters()) for name in SPACES)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)


@pytest.mark.parametrize("name", SPACES)
def test_prototype_logits_are_minus_the_distance_over_the_temperature(name):
    where = space(name)
    head = Prototypes(where, 3, 4, temperature=0.5)
    points = where.random(6, 3)
    with torch.no_grad():
        expected = [[-where.dist(z, where.exp0(w)) / 0.5 for w in head.tangent] for z in points]
        torch.testing.assert_close(head(points), torch.tensor(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_geometry_stays_float32_under_autocast(name, head, dtype):
    model, x, lows = classifier(name, head), images(), []
    model.encoder.register_forward_hook(lambda module, inputs, out: lows.append(out))
    with torch.autocast("cpu", dtype):
        points = model.embed(x)
        logits = model.logits(points)
    assert lows[0].dtype == dtype
    assert points.dtype == logits.dtype == torch.float32
    # The one rounding is the encoder's: from its output on, the result is that of float32.
    torch.testing.assert_close(logits, model.logits(model.lift(lows[0].float())), rtol=0, atol=0)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("learnable", [False, True])
def test_checkpoint_rebuilds_the_model(tmp_path, name, head, learnable):
    model = classifier(name, head, curv=0.3, learnable=learnable, mode="free", scale=0.2)
    if learnable:
        nn.init.constant_(model.space.theta, 0.1)
    model(images())  # moves the statistics of normalisation
    save_model(tmp_path / "model.safetensors", model)
    again = load_model(tmp_path / "model.safetensors")
    assert again.config == model.config == json.loads(json.dumps(model.config))
    assert torch.equal(again(images()), model.eval()(images()))
    assert not again.training


def test_whitening_uses_normalised_images():
    where = space("euclidean")
    model = Classifier(encoder("resnet9", 3, 4), 2, where, (0.5,) * 3, (0.1, 0.2, 0.3))
    x = torch.rand(4, 3, 12, 12)
    model.whiten(x)
    whitened = model.encoder.whitening.clone()
    model.encoder.whiten((x - 0.5) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    torch.testing.assert_close(model.encoder.whitening, whitened)
    classifier().whiten(images())  # an encoder without: nothing happens


def weights_of(path, name="euclidean", **change):
    save_model(path, classifier(name, **change))
    return path


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda p: Lift(space("lorentz"), "bent"), "no lift 'bent'; choose one of free, clipped, fixed"),
        (lambda p: Lift(space("lorentz"), scale=0.0), "scale of a lift must be positive"),
        (lambda p: Lift(space("lorentz"), radius=float("inf")), "radius of a lift must be positive"),
        (lambda p: classifier(head="linear"), "no head 'linear'; choose one of logistic, prototype"),
        (lambda p: Prototypes(space("lorentz"), 2, 2, temperature=0.0), "temperature must be positive"),
        (lambda p: classifier()(torch.rand(2, 3, 8, 8)), r"built for 1 channels.*\(2, 3, 8, 8\)"),
        (lambda p: classifier()(torch.rand(2, 1, 2, 2)), "at least 4 pixels"),
        (lambda p: Classifier(encoder("cnn", 1), 1, space("lorentz"), MEAN, STD), "at least two classes"),
        (lambda p: Classifier(encoder("cnn", 3), 2, space("lorentz"), MEAN, STD), "1 means and 1 standard"),
        (lambda p: Classifier(encoder("cnn", 1), 2, space("lorentz"), MEAN, (0.0,)), "not positive"),
        (
            lambda p: Classifier(
                encoder("cnn", 1), 2, space("lorentz"), MEAN, STD, lift=Lift(space("lorentz"))
            ),
            "another space",
        ),
        (lambda p: from_config({"classes": 2}), "does not describe a model"),
        (lambda p: load_model_state(weights_of(p, curv=2.0), classifier("euclidean")), "curvature"),
        (lambda p: load_model_state(weights_of(p, head="prototype"), classifier()), "holds another model"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(tmp_path, call, says):
    with pytest.raises(HacoreError, match=says):
        call(tmp_path / "model.safetensors")
