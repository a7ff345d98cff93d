"""The interface of a Space: curvature, input errors, sampling, geoopt parameters, classifier, devices."""

import copy
import math

import geoopt
import pytest
import torch
import torch.nn.functional as F

from hacore.errors import HacoreError
from hacore.geometry import (
    SPACES,
    Euclidean,
    HyperbolicLogistic,
    Lorentz,
    Poincare,
    lorentz,
    lorentz_to_poincare,
    poincare,
    space,
)

names = pytest.mark.parametrize("name", SPACES)
hyperbolic_names = pytest.mark.parametrize("name", ["lorentz", "poincare"])
NAN = float("nan")


@names
def test_learnable_curvature_has_a_gradient_and_stays_within_a_factor_of_ten(name):
    geometry = space(name, 0.3, learnable=True)
    assert geometry.learnable
    assert [n for n, _ in geometry.named_parameters()] == ["theta"]
    assert float(geometry.curv.detach()) == 0.3
    for theta in (-8.0, -1.0, 0.0, 1.0, 8.0):
        with torch.no_grad():
            geometry.theta.fill_(theta)
        curv = geometry.curv
        assert 0.03 <= float(curv.detach()) <= 3.0
        assert torch.autograd.grad(curv, geometry.theta)[0] > 0


@hyperbolic_names
def test_curvature_is_trained_by_a_loss(name):
    geometry = space(name, 1.0, learnable=True)
    x = geometry.random(4, 3).detach()
    optimizer = torch.optim.SGD(geometry.parameters(), lr=0.1)
    before = float(geometry.curv.detach())
    geometry.pairwise(x, x + 0.01).sum().backward()
    optimizer.step()
    assert float(geometry.curv.detach()) != before


@names
def test_fixed_curvature_is_exact_and_has_no_parameter(name):
    geometry = space(name, 0.1)
    assert not list(geometry.parameters())
    assert geometry.curv.dtype == torch.float64
    assert float(geometry.curv) == 0.1
    assert geometry.curv.dim() == 0
    assert "curv=0.1" in repr(geometry)


@names
def test_weights_are_not_loaded_into_another_curvature(name):
    geometry = space(name, 0.5, learnable=True)
    with torch.no_grad():
        geometry.theta.fill_(0.7)
    twin = space(name, 0.5, learnable=True)
    twin.load_state_dict(copy.deepcopy(geometry.state_dict()))
    assert torch.equal(twin.curv, geometry.curv)
    with pytest.raises(HacoreError, match=r"0\.5.*1\.0"):
        space(name, 1.0, learnable=True).load_state_dict(geometry.state_dict())


X, Y, V = torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(2, 3)
BAD_INPUT = {
    "curvature zero": (lambda: Lorentz(0.0), "pass c > 0"),
    "curvature negative": (lambda: Poincare(-1.0), "pass c > 0"),
    "curvature NaN": (lambda: Euclidean(NAN), "pass c > 0"),
    "curvature infinite": (lambda: space("lorentz", math.inf), "pass c > 0"),
    "curvature as text": (lambda: lorentz.exp0(X, "1"), "pass c > 0"),
    "curvature negative in a function": (lambda: poincare.dist(X, X, -1.0), "pass c > 0"),
    "curvature negative in a tensor": (lambda: lorentz.dist(X, X, torch.tensor(-1.0)), "pass c > 0"),
    "curvature NaN in the product": (lambda: lorentz.pairwise(X, X, NAN), "pass c > 0"),
    "many curvatures": (lambda: lorentz.dist(X, X, torch.ones(4)), "one number"),
    "unknown space": (lambda: space("sphere"), "euclidean, lorentz, poincare"),
    "unknown similarity": (lambda: Euclidean(similarity="cos"), "cosine, dot, distance"),
    "last dimension": (lambda: Lorentz().dist(X, Y), "last dimension"),
    "last dimension, pairwise": (lambda: Poincare().pairwise(X, Y), "last dimension"),
    "last dimension, flat": (lambda: Euclidean().dist(X, Y), "last dimension"),
    "last dimension, cosine": (lambda: Euclidean().similarity(X, Y), "last dimension"),
    "leading dimensions": (lambda: Poincare().dist(X, V), "leading dimensions"),
    "not a matrix": (lambda: Lorentz().pairwise(X[0], X), "matrix of points"),
    "not a matrix, flat": (lambda: Euclidean().pairwise(X, X[None]), "matrix of points"),
    "weights": (lambda: Lorentz().midpoint(X, torch.ones(3)), "one weight"),
    "weights, flat": (lambda: Euclidean().midpoint(X, torch.ones(3)), "one weight"),
    "one point is no set": (lambda: Poincare().midpoint(X[0]), "one weight"),
    "integers": (lambda: lorentz.radius(X.long(), 1.0), "floating-point"),
    "a number": (lambda: lorentz.radius(X[0, 0], 1.0), "floating-point"),
    "other curvature": (lambda: Lorentz(1.0).convert(X, Poincare(0.5)), "curvature"),
    "learnable manifold": (lambda: Lorentz(1.0, learnable=True).manifold(), "fixed curvature"),
    "cones in flat space": (lambda: Euclidean().half_aperture(X), "hyperbolic"),
    "angles in flat space": (lambda: Euclidean().exterior_angle(X, X), "hyperbolic"),
    "no classes": (lambda: HyperbolicLogistic(Lorentz(), 3, 0), "both must be"),
    "classifier dimension": (lambda: HyperbolicLogistic(Lorentz(), 2, 5)(X), "last dimension"),
    "classifier dimension, flat": (lambda: HyperbolicLogistic(Euclidean(), 2, 5)(X), "last dimension"),
}


@pytest.mark.parametrize("case", BAD_INPUT)
def test_bad_input_is_one_clear_sentence(case):
    call, message = BAD_INPUT[case]
    with pytest.raises(HacoreError, match=message):
        call()


@names
def test_random_points_fill_the_radius_and_repeat_with_their_seed(name):
    geometry = space(name, 0.5)
    x = geometry.random(2000, 3, 3.0, torch.Generator().manual_seed(0), dtype=torch.float64)
    radius = geometry.radius(x)
    assert x.dtype == torch.float64
    assert radius.max() <= 3.0 + 1e-9
    assert abs(float(radius.mean()) - 1.5) < 0.06
    assert F.normalize(x, dim=1).mean(0).norm() < 0.06
    again = geometry.random(2000, 3, 3.0, torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.equal(x, again)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("cosine", lambda x, y: F.cosine_similarity(x[:, None], y[None], dim=-1)),
        ("dot", lambda x, y: torch.einsum("nd,md->nm", x, y)),
        ("distance", lambda x, y: -torch.cdist(x, y)),
    ],
)
def test_euclidean_similarities(kind, expected):
    x, y = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    geometry = Euclidean(similarity=kind)
    torch.testing.assert_close(geometry.similarity(x, y), expected(x, y), rtol=1e-10, atol=1e-10)
    assert geometry.max_radius == math.inf


def test_cosine_gradient_is_that_of_the_formula_and_0_at_a_zero_vector():
    g = torch.Generator().manual_seed(0)
    x, y, weights = (torch.randn(n, m, generator=g, dtype=torch.float64) for n, m in ((4, 3), (5, 3), (4, 5)))
    geometry = Euclidean()
    points = x.requires_grad_(), y.requires_grad_()
    formula = F.cosine_similarity(x[:, None], y[None], dim=-1)
    ours, theirs = (torch.autograd.grad(s, points, weights) for s in (geometry.similarity(*points), formula))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(geometry.similarity, points)
    x = torch.zeros(1, 3, requires_grad=True)
    geometry.similarity(x, y.detach().float()).sum().backward()
    assert torch.equal(x.grad, torch.zeros(1, 3))


@names
def test_similarity_has_minus_the_gradient_of_the_distance(name):
    geometry = space(name, 0.7, learnable=True)
    if name == "euclidean":
        geometry.kind = "distance"
    x, y = (geometry.random(n, 3, generator=torch.Generator().manual_seed(n)).detach() for n in (4, 5))
    x.requires_grad_()
    y.requires_grad_()
    weights = torch.randn(4, 5, generator=torch.Generator().manual_seed(0))
    inputs = (x, y, geometry.theta)
    similarity = torch.autograd.grad(geometry.similarity(x, y), inputs, weights, allow_unused=True)
    distance = torch.autograd.grad(geometry.pairwise(x, y), inputs, -weights, allow_unused=True)
    torch.testing.assert_close([*filter(torch.is_tensor, similarity)], [*filter(torch.is_tensor, distance)])


@names
def test_geoopt_optimises_parameters_on_the_manifold(name):
    """Riemannian Adam takes points to their targets and never leaves the manifold."""
    geometry = space(name, 0.5)
    target = geometry.random(6, 3, 2.0, torch.Generator().manual_seed(0), dtype=torch.float64)
    start = geometry.random(6, 3, 2.0, torch.Generator().manual_seed(1), dtype=torch.float64)
    parameter = geometry.parameter(start)
    torch.testing.assert_close(geometry.points(parameter), start)
    optimizer = geoopt.optim.RiemannianAdam([parameter], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        geometry.dist(geometry.points(parameter), target).square().sum().backward()
        optimizer.step()
    assert geometry.dist(geometry.points(parameter), target).max() < 0.02
    assert parameter.manifold.check_point_on_manifold(parameter.detach(), atol=1e-8)


def nearest_on_hyperplane(x, normal, offset, curv):
    """Distance from one point of the hyperboloid to a hyperplane, by minimising over points of the plane.

    The plane {p: cosh(b) z·p + sinh(b) p_t = 0} is reached from its foot point and its d - 1 directions.
    """
    root = math.sqrt(curv)
    z = normal / normal.norm()
    basis = torch.linalg.svd(z[None]).Vh[1:]
    along = torch.zeros(len(basis), dtype=torch.float64, requires_grad=True)

    def point():
        # In the plane, p_⊥ is free and p·z = -tanh(√c b) p_t.
        across = along @ basis
        tanh = math.tanh(root * offset)
        time = ((1 / curv + across.square().sum()) / (1 - tanh**2)).sqrt()
        return across - tanh * time * z

    optimizer = torch.optim.LBFGS([along], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        squared = lorentz.dist(x, point(), curv).square()
        squared.backward()
        return squared

    optimizer.step(closure)
    return float(lorentz.dist(x, point(), curv).detach())


@pytest.mark.parametrize("curv", [0.2, 1.0, 5.0])
def test_logistic_distances_are_those_to_the_nearest_point_of_the_hyperplane(curv):
    geometry = Lorentz(curv)
    x = geometry.random(6, 3, 2.0, torch.Generator().manual_seed(0), dtype=torch.float64)
    normal = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    offset = torch.tensor([0.0, 0.5, -0.5, 1.0, -1.0, 0.2], dtype=torch.float64)
    signed = lorentz.hyperplane_distance(x, normal, offset, curv)
    for i in range(6):
        assert abs(float(signed[i, i])) == pytest.approx(
            nearest_on_hyperplane(x[i], normal[i], float(offset[i]), curv), rel=1e-5
        )
    in_the_ball = poincare.hyperplane_distance(lorentz_to_poincare(x, curv), normal, offset, curv)
    torch.testing.assert_close(in_the_ball, signed, rtol=1e-9, atol=1e-9)
    # The origin is on the positive side of a hyperplane with positive offset, at that distance.
    at_origin = lorentz.hyperplane_distance(torch.zeros(1, 3).double(), normal, offset, curv)
    torch.testing.assert_close(at_origin[0], offset)


def test_logistic_in_the_ball_is_ganeas_formula():
    """Ganea et al. 2018, Eq. 25, at p = exp0(-b ẑ), with |a| parallel transported to the origin."""
    curv = 0.7
    geometry = Poincare(curv)
    ball = geoopt.PoincareBall(c=curv).double()
    head = HyperbolicLogistic(geometry, 3, 4).double()
    with torch.no_grad():
        head.bias.copy_(torch.tensor([0.0, 0.4, -0.7, 1.0]))
    x = geometry.random(5, 3, dtype=torch.float64)
    for k in range(4):
        z, b = head.weight[k].detach(), head.bias[k].detach()
        p = geometry.exp0(-b * z / z.norm())
        shifted = ball.mobius_add((-p).expand(5, 3), x)
        ratio = 2 * math.sqrt(curv) * (shifted @ z) / ((1 - curv * shifted.square().sum(1)) * z.norm())
        expected = z.norm() / math.sqrt(curv) * torch.asinh(ratio)
        torch.testing.assert_close(head(x)[:, k], expected, rtol=1e-6, atol=1e-6)


@names
def test_logistic_tends_to_the_linear_layer_and_learns(name):
    torch.manual_seed(0)
    geometry = space(name, 1e-2)
    x = geometry.random(40, 3, 0.1)
    head = HyperbolicLogistic(geometry, 3, 2)
    plain = F.linear(x, head.weight, head.bias)
    scale = 2 if name == "poincare" else 1  # ball coordinates are half the radius near the origin
    torch.testing.assert_close(head(x), scale * plain, rtol=1e-3, atol=1e-5)
    assert head(x[0]).shape == (2,)
    x = geometry.random(40, 3, 10.0)
    labels = (geometry.log0(x)[:, 0] > 2).long()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        F.cross_entropy(head(x), labels).backward()
        optimizer.step()
    assert (head(x).argmax(1) == labels).float().mean() > 0.95


@pytest.mark.parametrize("device", ["cpu"] + (["cuda"] if torch.cuda.is_available() else []))
@names
def test_every_device_gives_the_results_of_the_cpu_in_float64(name, device):
    """Values and gradients of float32 points; the head's weights are moved along."""
    reference = HyperbolicLogistic(space(name, 0.6, learnable=True), 16, 4)
    moved = copy.deepcopy(reference).to(device)
    v = Euclidean().random(20, 16, 4.0, torch.Generator().manual_seed(0))

    def evaluate(head, v):
        geometry = head.space
        v = v.detach().requires_grad_()
        x = geometry.exp0(v)
        values = [
            geometry.pairwise(x, x.flip(0)),
            geometry.dist(x, x.flip(0)),
            geometry.geodesic(x, x.flip(0), 0.3),
            geometry.midpoint(x, iterations=2),
            head(x),
        ]
        total = sum(value.square().mean() for value in values)
        return [*values, *torch.autograd.grad(total, [v, geometry.theta, head.weight], allow_unused=True)]

    expected = evaluate(copy.deepcopy(reference).double(), v.double())
    for a, b in zip(evaluate(moved, v.to(device)), expected, strict=True):
        if b is None:
            assert a is None
            continue
        assert a.device.type == device
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-4, atol=1e-4 * float(b.detach().abs().max()))


@names
def test_gradients_asked_for_inside_autocast_are_those_outside(name):
    where = space(name)
    generator = torch.Generator().manual_seed(0)
    x, y = (where.random(8, 16, generator=generator).requires_grad_() for _ in range(2))
    outside = torch.autograd.grad(where.similarity(x, y).square().sum(), (x, y))
    with torch.autocast("cpu", torch.bfloat16):
        inside = torch.autograd.grad(where.similarity(x, y).square().sum(), (x, y))
    for ours, theirs in zip(inside, outside, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


@names
def test_paired_similarity_is_the_diagonal_of_similarity(name):
    where = space(name)
    generator = torch.Generator().manual_seed(0)
    x, y = (where.random(8, 16, generator=generator) for _ in range(2))
    torch.testing.assert_close(
        where.paired_similarity(x, y), where.similarity(x, y).diagonal(), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("kind", ["cosine", "dot", "distance"])
def test_paired_similarity_knows_the_kinds_of_euclidean_space(kind):
    flat = Euclidean(similarity=kind)
    x, y = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[4.0, 3.0], [0.0, 2.0]])
    expected = {"cosine": [0.96, 0.0], "dot": [24.0, 0.0], "distance": [-(2**0.5), -(5**0.5)]}[kind]
    torch.testing.assert_close(flat.paired_similarity(x, y), torch.tensor(expected))
