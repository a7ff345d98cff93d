"""No NaN and no infinity, forward or backward, from any point of any size, curvature or precision."""

import math

import pytest
import torch

from hacore.geometry import SPACES, HyperbolicLogistic, numerics, space

HYPERBOLIC = ("lorentz", "poincare")
CURVATURES = (1e-2, 1.0, 1e2)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def vectors(dtype):
    """The origin, norms 1e-12 to 1e6 along an axis and a diagonal, and each of them twice or reversed."""
    sizes = 10.0 ** torch.arange(-12, 7, dtype=torch.float64)
    rays = torch.tensor([[1.0, 0, 0], [0.6, 0.64, 0.48], [-1, 0, 0]], dtype=torch.float64)
    v = torch.cat([torch.zeros(1, 3, dtype=torch.float64), *(sizes[:, None] * ray for ray in rays)])
    return v.clamp(-6e4, 6e4).to(dtype) if dtype == torch.float16 else v.to(dtype)


def outputs(geometry, x):
    """Every function of the space on all pairs of points (n, d), as a list of tensors."""
    p, q = x[:, None].expand(-1, len(x), -1), x[None].expand(len(x), -1, -1)
    results = [geometry.log0(x), geometry.project(x), geometry.radius(x), geometry.dist(p, q)]
    results += [geometry.pairwise(x, x), geometry.pairwise(x, x, refine=True), geometry.similarity(x, x)]
    results += [geometry.geodesic(p, q, 0.3), geometry.geodesic(p, q, 0.0), geometry.midpoint(x)]
    results += [geometry.midpoint(torch.stack([p, q], dim=2), iterations=1)]
    if geometry.name in HYPERBOLIC:
        results += [geometry.half_aperture(x), geometry.exterior_angle(p, q)]
        results += [geometry.cone_excess(p.flatten(0, 1), q.flatten(0, 1))]
    torch.manual_seed(0)
    head = HyperbolicLogistic(geometry, x.shape[1], 4)
    return [*results, head(x)]


def assert_finite(geometry, v, lift):
    """Values are finite, and so is the gradient of every function with respect to v and the curvature."""
    count = len(outputs(geometry, lift(v)))
    for i in range(count):
        v = v.detach().requires_grad_()
        result = outputs(geometry, lift(v))[i]
        assert result.dtype == torch.promote_types(v.dtype, torch.float32), i
        assert result.isfinite().all(), i
        gradients = torch.autograd.grad(result.sum(), [v, geometry.theta], allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in gradients), i


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("curv", CURVATURES)
@pytest.mark.parametrize("name", SPACES)
def test_lifted_vectors_of_any_size(name, curv, dtype):
    geometry = space(name, curv, learnable=True)
    v = vectors(dtype)
    if dtype == torch.float16:
        # True gradients above 65504 (of a direction at 1e-12, of exp0 at radius 12) have no place in float16.
        size = v.double().norm(dim=1) * math.sqrt(curv)
        v = v[(size == 0) | ((size > 1e-3) & (size < 5))]
    assert_finite(geometry, v, geometry.exp0)


@pytest.mark.parametrize("arithmetic", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("curv", CURVATURES)
@pytest.mark.parametrize("name", SPACES)
def test_points_of_any_size_on_and_outside_the_boundary(name, curv, arithmetic, monkeypatch):
    """Raw coordinates, not projected: far beyond the resolved radius, on the sphere, and outside the ball."""
    monkeypatch.setattr(numerics, "work_dtype", lambda device: arithmetic)
    x = vectors(torch.float32)
    boundary = torch.nn.functional.normalize(x[1:], dim=1) / math.sqrt(curv)
    geometry = space(name, curv, learnable=True)
    assert_finite(geometry, torch.cat([x, boundary[::20], boundary[::20] * (1 - 1e-7)]), lambda p: p)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", SPACES)
def test_autocast_changes_nothing(name, dtype):
    geometry = space(name, 0.5, learnable=True)
    v = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    plain = outputs(geometry, geometry.exp0(v))
    with torch.autocast("cpu", dtype=dtype):
        cast = outputs(geometry, geometry.exp0(v))
    for a, b in zip(plain, cast, strict=True):
        assert b.dtype == torch.float32
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", SPACES)
def test_nan_is_never_hidden(name):
    """A NaN coordinate makes every distance it takes part in NaN, so that training can stop and say so."""
    geometry = space(name)
    x = geometry.random(3, 2)
    x[1, 0] = math.nan
    expected = torch.tensor([False, True, False])
    for result in (
        geometry.dist(x, x.roll(0)),
        geometry.radius(x),
        geometry.exp0(x)[:, 0],
        geometry.log0(x)[:, 0],
    ):
        assert torch.equal(result.isnan(), expected)
    assert torch.equal(geometry.pairwise(x, x).isnan(), expected[:, None] | expected)


@pytest.mark.parametrize("name", HYPERBOLIC)
@pytest.mark.parametrize("curv", CURVATURES)
def test_max_radius_is_where_float32_still_resolves_points(name, curv):
    """Rounding moves a point there by at most 0.005 (in units of 1/√c), and by ten times that 2.3 further out."""
    geometry = space(name, curv)
    unit = 1 / math.sqrt(curv)
    assert float(geometry.max_radius) == pytest.approx(numerics.MAX_RADIUS * unit)
    assert numerics.MAX_RADIUS > 8
    direction = torch.nn.functional.normalize(torch.randn(500, 3, dtype=torch.float64), dim=1)
    x = geometry.exp0(direction * 20 * unit)
    torch.testing.assert_close(geometry.radius(x), geometry.max_radius.expand(500), rtol=1e-8, atol=0)
    moved = geometry.dist(x, x.float().double()) / unit
    assert 0.001 < moved.max() <= 0.005
    assert geometry.radius(geometry.project(x.float() * 2)).max() <= float(geometry.max_radius) + 0.005 * unit
