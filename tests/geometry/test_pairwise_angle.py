"""Exterior angles by one matrix product: against the elementwise ones, MERU's formula, triangles by hand."""

import math

import pytest
import torch
from geometry_grid import DISTANCES, DTYPES, MODELS, RADII, pairs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hacore.errors import HacoreError
from hacore.geometry import Euclidean, Lorentz, Poincare, poincare_to_lorentz, space

HYPERBOLIC = pytest.mark.parametrize("name", ["lorentz", "poincare"])


def points(manifold, *counts, d=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    made = manifold.exp0(torch.randn(sum(counts), d, generator=g, dtype=torch.float64)).detach()
    return [part.clone().requires_grad_() for part in made.split(counts)]


@HYPERBOLIC
@pytest.mark.parametrize("curv", [0.1, 1.0, 3.0])
def test_values_and_gradients_are_those_of_the_elementwise_angle(name, curv):
    manifold = space(name, curv, learnable=True).double()
    x, y = points(manifold, 5, 7)
    weights = torch.linspace(-1, 2, 35, dtype=torch.float64).view(5, 7)
    leaves = [x, y, manifold.theta]
    pairwise, slow = manifold.pairwise_exterior_angle(x, y), manifold.exterior_angle(x[:, None], y)
    torch.testing.assert_close(pairwise, slow)
    for one, other in zip(
        torch.autograd.grad((weights * pairwise).sum(), leaves),
        torch.autograd.grad((weights * slow).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
    paired, slow = manifold.paired_exterior_angle(x, y[:5]), manifold.exterior_angle(x, y[:5])
    torch.testing.assert_close(paired, slow)
    for one, other in zip(
        torch.autograd.grad((weights[:, 0] * paired).sum(), leaves),
        torch.autograd.grad((weights[:, 0] * slow).sum(), leaves),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@HYPERBOLIC
def test_gradients(name):
    manifold = space(name, 0.7)
    assert torch.autograd.gradcheck(manifold.pairwise_exterior_angle, points(manifold, 3, 4))
    assert torch.autograd.gradcheck(manifold.paired_exterior_angle, points(manifold, 4, 4))


def test_values_are_those_of_the_published_formula():
    """MERU's arccos, term by term, where it does not cancel."""
    c = 0.7
    manifold = Lorentz(c).double()
    x, y = points(manifold, 6, 5)
    x_time, y_time = (1 / c + (x * x).sum(1)).sqrt()[:, None], (1 / c + (y * y).sum(1)).sqrt()
    inner = c * (x @ y.T - x_time * y_time)
    cosine = (y_time + x_time * inner) / (x.norm(dim=1)[:, None] * (inner.square() - 1).sqrt())
    torch.testing.assert_close(
        manifold.pairwise_exterior_angle(x, y), torch.acos(cosine), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("radius", RADII[1:])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_error_stays_in_its_envelope(model, radius, dtype):
    manifold = space(model)
    for distance in DISTANCES:
        x, y = pairs(model, radius, distance, dtype)
        true = manifold.exterior_angle(x.double(), y.double())
        apart = torch.sinh(manifold.dist(x.double(), y.double())).clamp_min(1e-300)
        e = torch.finfo(torch.float64).eps * (4 + x.shape[1] ** 0.5)
        envelope = 5 * e**0.5 * torch.cosh(manifold.radius(y.double())) / apart
        for measured in (
            manifold.pairwise_exterior_angle(x, y).diagonal(),
            manifold.paired_exterior_angle(x, y),
        ):
            assert measured.dtype == dtype
            error = (measured.double() - true).abs()
            assert (error <= envelope + 4 * torch.finfo(dtype).eps * math.pi).all(), distance


@HYPERBOLIC
def test_angles_by_hand(name):
    """Straight ahead 0, back to the origin π; sideways, what the hyperbolic right triangle says."""
    manifold = space(name)
    x = manifold.exp0(torch.tensor([[1.0, 0.0]]))
    y = manifold.exp0(torch.tensor([[3.0, 0.0], [0.5, 0.0], [0.0, 0.0], [-2.0, 0.0], [0.0, 2.0]]))
    # At x of the triangle O, x, y with a right angle at O: tan = tanh(2) / sinh(1).
    inside = math.atan2(math.tanh(2), math.sinh(1))
    expected = torch.tensor([[0.0, math.pi, math.pi, math.pi, math.pi - inside]])
    torch.testing.assert_close(manifold.pairwise_exterior_angle(x, y), expected, atol=2e-7, rtol=0)
    torch.testing.assert_close(
        manifold.paired_exterior_angle(x.expand(5, 2), y), expected[0], atol=2e-7, rtol=0
    )


def test_the_isometry_changes_nothing():
    ball, sheet = Poincare(0.7).double(), Lorentz(0.7).double()
    x, y = points(ball, 5, 6)
    carried = [poincare_to_lorentz(p, 0.7) for p in (x, y)]
    torch.testing.assert_close(
        ball.pairwise_exterior_angle(x, y), sheet.pairwise_exterior_angle(*carried), rtol=1e-12, atol=1e-12
    )


@HYPERBOLIC
@pytest.mark.parametrize("angle", ["pairwise_exterior_angle", "paired_exterior_angle"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_extremes_stay_finite(name, angle, dtype):
    """Coincident and opposite points, points on one ray, the origin, points too near it, huge norms; under autocast."""
    manifold = space(name, learnable=True)
    g = torch.Generator().manual_seed(1)
    ray = torch.randn(5, generator=g)
    special = torch.stack([0 * ray, 1e-30 * ray, 1e-12 * ray, 1e-4 * ray, ray, 2 * ray, -ray, 1e3 * ray])
    v = torch.cat([special, torch.randn(4, 5, generator=g) * torch.tensor([[1e-3], [1], [5], [1e4]])])
    x = manifold.exp0(v).to(dtype).detach().requires_grad_()
    y = x.detach().clone().requires_grad_()
    if name == "lorentz" and angle == "pairwise_exterior_angle":  # every vector is a point there
        y = torch.cat([y.detach(), 1e18 * ray[None].to(dtype), 1e30 * ray[None].to(dtype)]).requires_grad_()
    for first, second in ((x, y), (y, x), (x, x)):
        if angle == "paired_exterior_angle" and len(first) != len(second):
            continue
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = getattr(manifold, angle)(first, second)
            found.square().sum().backward()
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert ((found >= 0) & (found <= math.pi + 1e-6)).all()
    assert all(leaf.grad.isfinite().all() for leaf in (x, y, manifold.theta))


@HYPERBOLIC
def test_conventions(name):
    manifold = space(name)
    x = manifold.exp0(torch.randn(6, 8, generator=torch.Generator().manual_seed(0))).requires_grad_()
    same = manifold.pairwise_exterior_angle(x, x.detach()).diagonal()
    at_origin = manifold.pairwise_exterior_angle(torch.zeros(2, 8, requires_grad=True), x)
    assert (same == 0).all()
    assert (at_origin == 0).all()
    (gradient,) = torch.autograd.grad(same.sum() + at_origin.sum(), x)
    assert (gradient == 0).all()


@HYPERBOLIC
def test_not_a_number_stays_one(name):
    manifold = space(name)
    x = torch.full((2, 3), 0.1)
    x[1, 1] = math.nan
    found = manifold.pairwise_exterior_angle(x, torch.full((4, 3), 0.2) * torch.tensor([1, -1, 1]))
    assert found[0].isfinite().all()
    assert found[1].isnan().all()
    assert manifold.paired_exterior_angle(x, x.flip(0)).isnan().all()


class Largest(TorchDispatchMode):
    """The size of the largest tensor that is made while it watches."""

    size = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)]
        self.size = max([self.size, *sizes])
        return out


@HYPERBOLIC
def test_no_tensor_holds_a_vector_for_each_pair(name):
    manifold = space(name)
    x, y = points(manifold, 20, 30, d=16)
    with Largest() as watched:
        manifold.pairwise_exterior_angle(x, y).sum().backward()
    assert watched.size <= 20 * 30
    with Largest() as watched:
        manifold.exterior_angle(x[:, None], y).sum().backward()
    assert watched.size == 20 * 30 * 16  # what the line above is there to exclude


X = torch.ones(3, 2)
REFUSED = {
    "vectors": (lambda: Lorentz().pairwise_exterior_angle(X[0], X), "pass a matrix of points"),
    "dimensions": (lambda: Lorentz().pairwise_exterior_angle(X, torch.ones(3, 4)), "must be the same"),
    "dimensions in the ball": (lambda: Poincare().pairwise_exterior_angle(X / 2, X[:, :1] / 2), "must be the same"),
    "curvature": (lambda: MODELS["lorentz"].pairwise_exterior_angle(X, X, -1.0), "curvature -1.0"),
    "no pairs": (lambda: Lorentz().paired_exterior_angle(X, X[:2]), "3 points came with 2"),
    "flat space": (lambda: Euclidean().pairwise_exterior_angle(X, X), "no entailment cones"),
    "flat space, in pairs": (lambda: Euclidean().paired_exterior_angle(X, X), "no entailment cones"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refuses_in_one_sentence(call, message):
    with pytest.raises(HacoreError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
