"""The laws of each geometry, on random points, and geoopt as an independent oracle; float64 throughout."""

import math

import geoopt
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hacore.errors import HacoreError
from hacore.geometry import (
    SPACES,
    Euclidean,
    Lorentz,
    Poincare,
    lorentz,
    lorentz_to_poincare,
    poincare,
    poincare_to_lorentz,
    space,
)

HYPERBOLIC = {"lorentz": lorentz, "poincare": poincare}
checked = settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
curvatures = st.floats(-2, 2).map(lambda exponent: 10**exponent)
seeds = st.integers(0, 2**31)
dimensions = st.integers(1, 6)
names = pytest.mark.parametrize("name", SPACES)
hyperbolic_names = pytest.mark.parametrize("name", HYPERBOLIC)


def draw(seed, curv, d, n=8, sets=1):
    """Tangent vectors (n, d) of lengths up to 4/√c, half of them within a hundredth of the others."""
    generator = torch.Generator().manual_seed(seed)
    sets_of_v = []
    for _ in range(sets):
        v = Euclidean().random(n, d, 4 / math.sqrt(curv), generator, dtype=torch.float64)
        v[n // 2 :] = v[: n // 2] * (
            1 + 0.01 * torch.randn(n // 2, 1, generator=generator, dtype=torch.float64)
        )
        sets_of_v.append(v)
    return sets_of_v if sets > 1 else sets_of_v[0]


def close(a, b, scale=1.0, tol=1e-9):
    torch.testing.assert_close(a, b, rtol=tol, atol=tol * scale)


@names
@checked
@given(curv=curvatures, seed=seeds, d=dimensions)
def test_distance_is_a_metric(name, curv, seed, d):
    geometry = space(name, curv)
    x, y, z = (geometry.exp0(v) for v in draw(seed, curv, d, sets=3))
    assert torch.equal(geometry.dist(x, y), geometry.dist(y, x))
    assert (geometry.dist(x, x) == 0).all()
    assert (geometry.dist(x, y)[(x != y).any(1)] > 0).all()
    assert (geometry.dist(x, z) <= (geometry.dist(x, y) + geometry.dist(y, z)) * (1 + 1e-12)).all()


@names
@checked
@given(curv=curvatures, seed=seeds, d=dimensions)
def test_exp_and_log_are_inverse_and_keep_the_radius(name, curv, seed, d):
    geometry = space(name, curv)
    v = draw(seed, curv, d)
    x = geometry.exp0(v)
    close(geometry.log0(x), v, 1 / math.sqrt(curv))
    close(geometry.radius(x), v.norm(dim=1), 1 / math.sqrt(curv))
    close(geometry.radius(x), geometry.dist(x, torch.zeros_like(x)), 1 / math.sqrt(curv))
    close(geometry.project(x), x, 1 / math.sqrt(curv))


@names
@checked
@given(curv=curvatures, seed=seeds, d=dimensions)
def test_pairwise_is_the_distance_of_every_pair(name, curv, seed, d):
    geometry = space(name, curv)
    x, y = (geometry.exp0(v) for v in draw(seed, curv, d, sets=2))
    elementwise = geometry.dist(x[:, None], y[None])
    close(geometry.pairwise(x, y), elementwise, 1 / math.sqrt(curv), 1e-6)
    close(geometry.pairwise(x, y, refine=True), elementwise, 1 / math.sqrt(curv))
    if name != "euclidean":
        assert torch.equal(geometry.similarity(x, y), -geometry.pairwise(x, y))


@checked
@given(curv=curvatures, seed=seeds, d=dimensions)
def test_isometry_carries_every_quantity_over(curv, seed, d):
    hyperboloid, ball = Lorentz(curv), Poincare(curv)
    v, w = draw(seed, curv, d, sets=2)
    x, y = hyperboloid.exp0(v), hyperboloid.exp0(w)
    p, q = lorentz_to_poincare(x, curv), hyperboloid.convert(y, ball)
    unit = 1 / math.sqrt(curv)
    close(p, ball.exp0(v), unit)
    close(poincare_to_lorentz(p, curv), x, unit)
    close(ball.convert(p, hyperboloid), x, unit)
    assert ball.convert(p, Poincare(curv)) is p
    close(ball.dist(p, q), hyperboloid.dist(x, y), unit, 1e-8)
    close(ball.pairwise(p, q), hyperboloid.pairwise(x, y), unit, 1e-6)
    close(ball.half_aperture(p), hyperboloid.half_aperture(x))
    close(ball.exterior_angle(p, q), hyperboloid.exterior_angle(x, y), tol=1e-7)
    close(ball.geodesic(p, q, 0.3), hyperboloid.convert(hyperboloid.geodesic(x, y, 0.3), ball), unit)
    for iterations in (0, 3):
        mean = hyperboloid.midpoint(x, iterations=iterations)
        close(ball.midpoint(p, iterations=iterations), hyperboloid.convert(mean, ball), unit, 1e-8)


@names
@checked
@given(curv=curvatures, seed=seeds, d=dimensions, t=st.floats(0, 1))
def test_geodesics_have_their_ends_and_constant_speed(name, curv, seed, d, t):
    geometry = space(name, curv)
    unit = 1 / math.sqrt(curv)
    x, y = (geometry.exp0(v) for v in draw(seed, curv, d, sets=2))
    close(geometry.geodesic(x, y, 0.0), x, unit)
    close(geometry.geodesic(x, y, 1.0), y, unit)
    point = geometry.geodesic(x, y, t)
    length = geometry.dist(x, y)
    close(geometry.dist(x, point), t * length, unit, 1e-8)
    close(geometry.dist(point, y), (1 - t) * length, unit, 1e-8)
    path = geometry.geodesic(x[0], y[0], torch.tensor([0.0, t, 1.0], dtype=torch.float64))
    close(path, torch.stack([x[0], point[0], y[0]]), unit)


def rotation(d, seed):
    matrix = torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.qr(matrix).Q


@names
@checked
@given(curv=curvatures, seed=seeds, d=dimensions, iterations=st.sampled_from([0, 2]))
def test_midpoint_is_equidistant_and_ignores_order_scale_and_rotation(name, curv, seed, d, iterations):
    geometry = space(name, curv)
    unit = 1 / math.sqrt(curv)
    x, y = (geometry.exp0(v) for v in draw(seed, curv, d, sets=2))
    middle = geometry.midpoint(torch.stack([x, y], dim=1), iterations=iterations)
    close(geometry.dist(x, middle), geometry.dist(y, middle), unit, 1e-7)
    close(middle, geometry.geodesic(x, y, 0.5), unit, 1e-7)
    close(geometry.midpoint(x[:1], iterations=iterations), x[0], unit, 1e-7)
    weights = torch.rand(8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.1
    mean = geometry.midpoint(x, weights, iterations)
    close(geometry.midpoint(x.flip(0), 7 * weights.flip(0), iterations), mean, unit, 1e-8)
    turn = rotation(d, seed)
    close(geometry.midpoint(x @ turn, weights, iterations), mean @ turn, unit, 1e-8)


@names
def test_karcher_steps_end_where_the_mean_squared_distance_is_least(name):
    geometry = space(name, 0.7)
    x = geometry.exp0(draw(3, 0.7, 3))
    weights = torch.arange(1.0, 9, dtype=torch.float64)
    mean = geometry.midpoint(x, weights, iterations=100).requires_grad_()
    spread = (weights * geometry.dist(mean, x).square()).sum()
    (slope,) = torch.autograd.grad(spread, mean)
    assert slope.norm() < 1e-8 * spread
    if name != "euclidean":
        assert spread < (weights * geometry.dist(geometry.midpoint(x, weights), x).square()).sum()


@hyperbolic_names
@checked
@given(curv=curvatures, seed=seeds, d=dimensions)
def test_curvature_only_scales_lengths(name, curv, seed, d):
    """The space of curvature -c is that of curvature -1 with all lengths divided by √c."""
    v, w = draw(seed, 1.0, d, sets=2)
    unit = 1 / math.sqrt(curv)
    one, other = space(name), space(name, curv)
    x, y, p, q = one.exp0(v), one.exp0(w), other.exp0(v * unit), other.exp0(w * unit)
    close(p, x * unit, unit)
    close(other.dist(p, q), one.dist(x, y) * unit, unit, 1e-8)
    close(other.exterior_angle(p, q), one.exterior_angle(x, y), tol=1e-7)
    close(other.half_aperture(p), one.half_aperture(x))
    close(other.midpoint(p), one.midpoint(x) * unit, unit, 1e-8)


@hyperbolic_names
def test_little_curvature_is_nearly_flat(name):
    """d = |v - w| (1 + O(c r²)), so for c = 1e-2 and radii below 0.1 they agree to 1e-4."""
    geometry = space(name, 1e-2)
    v, w = torch.rand(2, 50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1
    x, y = geometry.exp0(v), geometry.exp0(w)
    torch.testing.assert_close(geometry.dist(x, y), (v - w).norm(dim=1), rtol=1e-4, atol=0)


@hyperbolic_names
@checked
@given(curv=curvatures, seed=seeds, d=st.integers(2, 6))
def test_cones_match_the_published_formulas(name, curv, seed, d):
    """MERU's arccos and arcsin, where they are well conditioned; law of cosines of the triangle (0, x, y)."""
    hyperboloid, geometry = Lorentz(curv), space(name, curv)
    v, w = draw(seed, curv, d, sets=2)
    x, y = hyperboloid.exp0(v), hyperboloid.exp0(w)
    x_time, y_time = lorentz.time(x, curv), lorentz.time(y, curv)
    inner = curv * ((x * y).sum(1) - x_time * y_time)
    cosine = (y_time + x_time * inner) / (x.norm(dim=1) * (inner.square() - 1).sqrt())
    angle = geometry.exterior_angle(geometry.exp0(v), geometry.exp0(w))
    well = (cosine.abs() < 0.99) & (inner < -1.001)
    torch.testing.assert_close(angle[well], torch.acos(cosine[well]), rtol=0, atol=1e-7)
    ratio = (0.2 / (math.sqrt(curv) * x.norm(dim=1))).clamp(max=1)
    close(geometry.half_aperture(geometry.exp0(v)), torch.asin(ratio), tol=1e-7)


@hyperbolic_names
def test_angles_of_known_points(name):
    geometry = space(name, 0.5)
    v = torch.tensor([[1.0, 0]]).double()
    x = geometry.exp0(v)

    def angle_to(*point):
        return float(geometry.exterior_angle(x, geometry.exp0(torch.tensor([point], dtype=torch.float64))))

    assert angle_to(2.0, 0.0) == 0  # straight on
    assert angle_to(-1.0, 0.0) == pytest.approx(math.pi)
    assert angle_to(0.0, 0.0) == pytest.approx(math.pi)
    assert angle_to(1.0, 0.0) == 0  # itself
    assert angle_to(1.0, 1e-7) == pytest.approx(math.pi / 2, abs=1e-6)  # sideways
    assert float(geometry.exterior_angle(torch.zeros_like(x), x)) == 0  # everything lies ahead of the root
    assert float(geometry.half_aperture(torch.zeros_like(x))) == math.pi / 2
    with pytest.raises(HacoreError, match="min_radius"):
        geometry.half_aperture(x, min_radius=0.0)


@checked
@given(curv=curvatures, seed=seeds, d=dimensions)
def test_geoopt_agrees(curv, seed, d):
    v, w = draw(seed, curv, d, sets=2)
    c = torch.tensor(curv, dtype=torch.float64)
    unit = 1 / math.sqrt(curv)
    # geoopt's tangent vectors at the ball's origin are half as long, its Lorentz model has time and k = 1/c,
    # and it changes the curvature tensor it is given.
    theirs, ours = geoopt.PoincareBall(c.clone()), Poincare(curv)
    x, y = ours.exp0(v), ours.exp0(w)
    close(x, theirs.expmap0(v / 2), unit)
    close(ours.log0(x), 2 * theirs.logmap0(x), unit, 1e-8)
    close(ours.dist(x, y), theirs.dist(x, y), unit, 1e-6)
    close(ours.geodesic(x, y, 0.3), theirs.geodesic(torch.tensor(0.3, dtype=torch.float64), x, y), unit, 1e-6)

    hyperboloid = geoopt.Lorentz(k=1 / c)
    x, y = lorentz.exp0(v, curv), lorentz.exp0(w, curv)
    full_x, full_y = (torch.cat([lorentz.time(p, curv)[:, None], p], dim=1) for p in (x, y))
    close(full_x, hyperboloid.expmap0(torch.cat([torch.zeros_like(v[:, :1]), v], dim=1)), unit, 1e-7)
    far = lorentz.dist(x, y, curv) > 0.1 * unit
    close(lorentz.dist(x, y, curv)[far], hyperboloid.dist(full_x, full_y)[far], unit, 1e-6)


@hyperbolic_names
@pytest.mark.parametrize(
    "operation",
    [
        *(
            "exp0",
            "log0",
            "radius",
            "project",
            "dist",
            "pairwise",
            "refined",
            "geodesic",
            "midpoint",
            "frechet",
        ),
        *("half_aperture", "exterior_angle", "cone_excess", "hyperplane_distance"),
    ],
)
def test_gradients_match_finite_differences(name, operation):
    functions = HYPERBOLIC[name]
    x, y = (functions.exp0(v, 0.8) for v in draw(7, 0.8, 3, n=4, sets=2))
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    calls = {
        "dist": lambda x, c: functions.dist(x, y, c),
        "pairwise": lambda x, c: functions.pairwise(x, y, c) + functions.pairwise(y, x, c).T,
        "refined": lambda x, c: functions.pairwise(x, y, c, refine=True),
        "geodesic": lambda x, c: functions.geodesic(x, y, 0.3, c),
        "midpoint": lambda x, c: functions.midpoint(x, c, weights),
        "frechet": lambda x, c: functions.midpoint(x, c, weights, iterations=2),
        "exterior_angle": lambda x, c: functions.exterior_angle(x, y, c),
        "cone_excess": lambda x, c: functions.cone_excess(x, y, c, 0.7) + functions.cone_excess(y, x, c),
        "hyperplane_distance": lambda x, c: functions.hyperplane_distance(x, y[:2], weights[:2], c),
    }
    call = calls.get(operation, lambda x, c: getattr(functions, operation)(x, c))
    curv = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(call, (x.requires_grad_(), curv))


@hyperbolic_names
def test_lifting_can_be_differentiated_twice(name):
    v = draw(7, 0.8, 3, n=4).requires_grad_()
    curv = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(HYPERBOLIC[name].exp0, (v, curv))
