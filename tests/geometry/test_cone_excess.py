"""How far points are outside of cones, in one step: against the exterior angle and the half-aperture, and by hand."""

import math

import pytest
import torch

from hacore.errors import HacoreError
from hacore.geometry import Euclidean, Lorentz, Poincare, lorentz, space

HYPERBOLIC = pytest.mark.parametrize("name", ["lorentz", "poincare"])


def points(manifold, *counts, d=4, size=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = manifold.exp0(size * torch.randn(sum(counts), d, generator=g, dtype=torch.float64)).detach()
    return [part.clone().requires_grad_() for part in made.split(counts)]


@HYPERBOLIC
@pytest.mark.parametrize("curv", [0.1, 1.0, 3.0])
@pytest.mark.parametrize("size", [0.05, 0.3, 1.5])
@pytest.mark.parametrize("slack", [0.0, 0.5, 1.0, 2.0])
def test_it_is_the_angle_less_so_many_apertures(name, curv, size, slack):
    """Values and gradients, of cones and, at the smallest size, of half-spaces."""
    manifold = space(name, curv, learnable=True)
    x, y = points(manifold, 9, 9, size=size)
    fused = manifold.cone_excess(x, y, slack, 0.15)
    plain = manifold.exterior_angle(x, y) - slack * manifold.half_aperture(x, 0.15)
    torch.testing.assert_close(fused, plain)
    weights = torch.linspace(-1, 2, 9, dtype=torch.float64)
    leaves = [x, y, manifold.theta]
    for one, other in zip(
        torch.autograd.grad((weights * fused).sum(), leaves),
        torch.autograd.grad((weights * plain).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@HYPERBOLIC
@pytest.mark.parametrize("inside", [True, False], ids=["half-spaces", "cones"])
def test_gradients(name, inside):
    manifold = space(name, 0.7)
    x, y = points(manifold, 5, 5, size=0.02 if inside else 1.0)
    assert bool((manifold.half_aperture(x) == math.pi / 2).all()) == inside
    curv = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *args: manifold.functions.cone_excess(*args, 0.6), (x, y, curv))


def test_published_formulas():
    """MERU's arccos less its arcsin, term by term, where neither cancels."""
    c, k = 0.7, 0.1
    manifold = Lorentz(c)
    x, y = points(manifold, 6, 6)
    x_time, y_time = ((1 / c + (p * p).sum(1)).sqrt() for p in (x, y))
    inner = c * ((x * y).sum(1) - x_time * y_time)
    angle = torch.acos((y_time + x_time * inner) / (x.norm(dim=1) * (inner.square() - 1).sqrt()))
    aperture = torch.asin(2 * k / (c**0.5 * x.norm(dim=1)))
    torch.testing.assert_close(manifold.cone_excess(x, y, 1.0, k), angle - aperture, rtol=1e-6, atol=1e-6)


@HYPERBOLIC
def test_conventions(name):
    """Of the origin, equal and opposite points: what the angle is by convention, less the aperture."""
    manifold = space(name)
    x, y = points(manifold, 4, 4)
    at_origin = manifold.cone_excess(torch.zeros_like(x), y, 0.5)
    assert (at_origin == -math.pi / 4).all()
    (gradient,) = torch.autograd.grad(at_origin.sum(), y)
    assert (gradient == 0).all()

    equal = manifold.cone_excess(x, x.detach(), 0.5)
    aperture = -0.5 * manifold.half_aperture(x)
    torch.testing.assert_close(equal, aperture)
    for one, other in zip(
        torch.autograd.grad(equal.sum(), x), torch.autograd.grad(aperture.sum(), x), strict=True
    ):
        torch.testing.assert_close(one, other)

    # To an opposite point the way is back through the origin; nothing tells to which side the angle falls.
    other = (-x).detach().requires_grad_()
    opposite = manifold.cone_excess(x, other)
    torch.testing.assert_close(opposite, math.pi - manifold.half_aperture(x))
    (gradient,) = torch.autograd.grad(opposite.sum(), other)
    assert (gradient == 0).all()


@HYPERBOLIC
def test_precision_and_what_is_not_a_number(name):
    manifold = space(name)
    x, y = (p.detach().float() for p in points(manifold, 5, 5, d=32, size=0.3))
    exact = manifold.cone_excess(x.double(), y.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = manifold.cone_excess(x, y)
        low = manifold.cone_excess(x.bfloat16(), y)
    assert rounded.dtype == low.dtype == torch.float32
    torch.testing.assert_close(rounded, exact.float(), rtol=0, atol=3e-7)
    hole = torch.zeros_like(x)
    hole[1, 1] = math.nan
    for pair in ((x + hole, y), (x, y + hole)):
        found = manifold.cone_excess(*pair)
        assert found.isnan().tolist() == [False, True, False, False, False]


X = torch.ones(3, 2)
REFUSED = {
    "flat space": (lambda: Euclidean().cone_excess(X, X), "no entailment cones"),
    "no pairs": (lambda: Lorentz().cone_excess(X, X[:2]), "3 points came with 2"),
    "dimensions": (lambda: Poincare().cone_excess(X / 2, X[:, :1] / 2), "must be the same"),
    "vectors": (lambda: Lorentz().cone_excess(X[0], X[0]), "pass a matrix of points"),
    "curvature": (lambda: lorentz.cone_excess(X, X, -1.0), "curvature -1.0"),
    "no cone": (lambda: Lorentz().cone_excess(X, X, min_radius=0.0), "min_radius 0.0"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(call, message):
    with pytest.raises(HacoreError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
