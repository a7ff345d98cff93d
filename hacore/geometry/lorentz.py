"""The Lorentz model (hyperboloid) as free functions with an explicit curvature.

Convention, here and in the whole package: ``curv`` is c > 0 and the space has curvature -c. Points are
stored as their d space components x, of any size; the time component is derived, x_t = sqrt(1/c + |x|²)
(Desai et al. 2023, MERU). The inner product is <x, y> = x·y - x_t y_t, and -c<x, y> = cosh(√c d(x, y)).
A tangent vector at the origin is its d space components, and its length is a geodesic distance.

Derived in the chapter "Hyperbolic geometry you can compute with".
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hacore.geometry import angles
from hacore.geometry.numerics import (
    MAX_RADIUS,
    asinhc,
    check_min_radius,
    clip_norm,
    coshc,
    mean_weights,
    norm,
    precise,
    radial,
    safe_sqrt,
    sinhc,
    unit,
    wedge_squared,
)
from hacore.geometry.product import hyperbolic_pairwise

Scalar = Float[Tensor, ""]  # or a plain number: precise() turns it into a tensor


def _time(x: Float[Tensor, "*n d"], c: Scalar) -> Float[Tensor, "*n"]:
    return (1 / c + (x * x).sum(-1)).sqrt()


@precise("x")
def time(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Time component x_t = sqrt(1/c + |x|²) of points (..., d); raises HacoreError for c <= 0."""
    return _time(x, curv)


def exp0(v: Float[Tensor, "*n d"], curv: Any) -> Float[Tensor, "*n d"]:
    """Exponential map at the origin: the point at distance |v| in the direction of v.

    x = sinh(√c |v|) v / (√c |v|) (MERU). Lengths above 12/√c are cut to it, see
    :data:`~hacore.geometry.numerics.MAX_RADIUS`; such v get no gradient along themselves, only across.

    Raises:
        HacoreError: curvature not positive, or v not a floating-point tensor (..., d).
    """
    return radial(v, curv, lambda t: (torch.sinh(t), torch.cosh(t)))


@precise("x")
def log0(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n d"]:
    """Logarithm at the origin, the inverse of :func:`exp0`: v = asinh(√c |x|) x / (√c |x|).

    Its length is the radius of x. Raises HacoreError as :func:`exp0`.
    """
    return x * asinhc(curv * (x * x).sum(-1, keepdim=True))


@precise("x")
def project(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n d"]:
    """Cut points beyond the radius 12/√c back to it, along their geodesic to the origin.

    Every x in R^d is a point of the model; the limit is where float32 stops resolving points.
    """
    limit = torch.sinh(torch.full_like(curv, MAX_RADIUS)) / curv.sqrt()
    return clip_norm(x, limit)


@precise("x")
def radius(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Geodesic distance from the origin, asinh(√c |x|)/√c; gradient 0 at the origin."""
    root = curv.sqrt()
    return torch.asinh(root * norm(x)) / root


@precise("x", "y")
def dist(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Geodesic distance over the last dimension, d = 2/√c asinh(√c q^½ / 2), q = |x - y|² - (x_t - y_t)².

    q is the squared Minkowski chord. It is exactly 0, with gradient 0, for equal points.

    Shapes: (..., d) and (..., d), broadcast, to (...). Unit: that of 1/√c.
    Raises:
        HacoreError: curvature not positive or shapes that do not fit.
    """
    # q without cancellation. With D = x - y, s = x + y, T = x_t + y_t:  x_t - y_t = D·s/T, and
    # T² - |s|² = 4/c + q, so q T² = |D|²T² - (D·s)² = |D|²(4/c + q) + |D∧s|². Solved for q:
    #     q = (4|D|²/c + |D∧s|²) / (T² - |D|²),   T² - |D|² = 2/c + 2 (x_t y_t + x·y).
    # Every term is positive when x·y >= 0. When x·y < 0 the plain form q = 2 (x_t y_t - 1/c - x·y) is,
    # with x_t y_t - 1/c = (x_t²y_t² - 1/c²) / (x_t y_t + 1/c) = ((|x|² + |y|²)/c + |x|²|y|²) / (x_t y_t + 1/c).
    # |D∧s| = 2 |x∧y| = 2 |D∧x|: the area is exact to rounding when taken on a shortest side of (0, x, y).
    difference = x - y
    x2, y2, inner = (x * x).sum(-1), (y * y).sum(-1), (x * y).sum(-1)
    d2 = (difference * difference).sum(-1)
    smaller = (x2 < y2).unsqueeze(-1)
    short = torch.where(smaller, x, y)
    short = torch.where((d2 < torch.minimum(x2, y2)).unsqueeze(-1), difference, short)
    area2 = wedge_squared(short, torch.where(smaller, y, x))
    times = _time(x, curv) * _time(y, curv)
    near = (2 / curv * d2 + 2 * area2) / (1 / curv + times + inner.clamp_min(0))
    far = 2 * (((x2 + y2) / curv + x2 * y2) / (times + 1 / curv) - inner)
    squared = torch.where(inner < 0, far, near)
    return 2 / curv.sqrt() * torch.asinh(curv.sqrt() / 2 * safe_sqrt(squared))


def pairwise(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Scalar, refine: bool = False
) -> Float[Tensor, "n m"]:
    """All geodesic distances between two sets of points, (n, d) and (m, d) to (n, m), by one matrix product.

    cosh(√c d) - 1 = u is one product of factors; nothing is subtracted from 1. Error envelope: u is
    wrong by at most e = eps (4 + √d) cosh(√c r_x) cosh(√c r_y), r being radii, hence d by at most
    min(e / √(2u), √(2e)) / √c, plus the rounding of the result. Where u <= e/2, distance and gradient are 0.
    eps is that of float64 (2e-16) also for float32 points: at d = 128, √(2e) is 8e-8 at the origin, 2e-6 at
    √c r = 4 and 1e-4 at 8. On devices without float64 (mps) eps is 1e-7, and these are 2e-3, 0.05 and 3.

    The gradient of a pair, in float32, is wrong by about 1e-7 cosh(√c r) / (√c d) of its size.

    ``refine=True`` recomputes pairs too near for that envelope with :func:`dist`: as exact as ``dist``,
    equal points exactly 0, at the price of gathering those pairs (and of waiting for an accelerator).

    Raises:
        HacoreError: curvature not positive, or not two matrices with the same d.
    """
    return hyperbolic_pairwise(x, y, curv, dist, refine, ball=False)


def similarity(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Scalar
) -> Float[Tensor, "n m"]:
    """Minus :func:`pairwise`, for the price of it."""
    return hyperbolic_pairwise(x, y, curv, dist, refine=False, ball=False, sign=-1)


@precise("x", "y")
def geodesic(
    x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], t: float | Float[Tensor, "..."], curv: Scalar
) -> Float[Tensor, "... d"]:
    """The point at share t of the way from x to y: (sinh((1-t)θ) x + sinh(tθ) y) / sinh θ, θ = √c d(x, y).

    t is a number or a tensor that broadcasts with the leading dimensions of x and y; t outside [0, 1]
    continues the geodesic. Raises HacoreError as :func:`dist`.
    """
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device)
    w = curv * dist(x, y, curv).square()
    whole = sinhc(w)
    start = (1 - t) * sinhc((1 - t).square() * w) / whole
    end = t * sinhc(t.square() * w) / whole
    return start.unsqueeze(-1) * x + end.unsqueeze(-1) * y


@precise("x")
def midpoint(
    x: Float[Tensor, "... d"],
    curv: Scalar,
    weights: Float[Tensor, "..."] | None = None,
    iterations: int = 0,
) -> Float[Tensor, "... d"]:
    """Weighted mean of points over the second to last dimension, (..., m, d) to (..., d).

    ``iterations=0``: the Einstein midpoint, the sum S of the weighted points in R^(d+1) scaled back to
    the hyperboloid, S / √(-c<S, S>). More: so many Karcher steps m <- exp_m(mean of log_m(x_i)) from
    it, towards the Frechet mean. Weights (..., m) are >= 0, not all 0; they need not sum to 1.

    Raises:
        HacoreError: curvature not positive, or weights that do not fit the points.
    """
    w = mean_weights(x, weights)
    mean = (w * x).sum(-2)
    time_mean = (w.squeeze(-1) * _time(x, curv)).sum(-1)
    # -<S, S> >= 1/c because -<x_i, x_j> >= 1/c and the weights sum to 1: rounding must not undercut it.
    size = torch.maximum(time_mean.square() - (mean * mean).sum(-1), 1 / curv)
    mean = mean / (curv * size).sqrt().unsqueeze(-1)
    for _ in range(iterations):
        mean = _karcher_step(mean, x, w, curv)
    return mean


def _karcher_step(
    mean: Float[Tensor, "*n d"], x: Float[Tensor, "*n m d"], weights: Float[Tensor, "*#n m 1"], c: Scalar
) -> Float[Tensor, "*n d"]:
    """exp_mean of the weighted mean of log_mean(x_i) = θ (x_i - cosh(θ) mean) / sinh θ, space parts only."""
    center = mean.unsqueeze(-2)
    w = (c * dist(center, x, c).square()).unsqueeze(-1)
    step = (weights * (x - coshc(w) * center) / sinhc(w)).sum(-2)
    # |step|² in the Lorentz metric, its time part being step·mean / mean_t: no difference of large squares.
    time2 = 1 / c + (mean * mean).sum(-1)
    length2 = (((step * step).sum(-1) / c + wedge_squared(step, mean)) / time2).unsqueeze(-1)
    return coshc(c * length2) * mean + sinhc(c * length2) * step


@precise("x")
def half_aperture(x: Float[Tensor, "*n d"], curv: Scalar, min_radius: float = 0.1) -> Float[Tensor, "*n"]:
    """Half-aperture, in radians, of the entailment cone at x: asin(2K / (√c |x|)), K = ``min_radius``.

    As in MERU. Where √c |x| <= 2K the cone is a half-space, π/2, and the gradient is 0: inside that
    radius a cone cannot learn from its aperture (keep points outside it, or use the exterior angle).

    Raises:
        HacoreError: curvature or min_radius not positive.
    """
    check_min_radius(min_radius)
    z2 = curv * (x * x).sum(-1)
    inside = z2 <= 4 * min_radius**2
    angle = torch.atan2(
        torch.full_like(z2, 2 * min_radius), torch.where(inside, 1, z2 - 4 * min_radius**2).sqrt()
    )
    return torch.where(inside, math.pi / 2, angle)


@precise("x", "y")
def exterior_angle(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Angle at x, in radians, between the geodesic to y and the one leading straight away from the origin.

    π - ∠(O x y); MERU has arccos((y_t + x_t c<x, y>) / (|x| √((c<x, y>)² - 1))), computed here as an
    arctangent of the two components of the direction to y. y is in the cone of x when the angle is at
    most the half-aperture of x. By convention 0 for y = x and for x at the origin, whose cone is all
    space. Raises HacoreError as :func:`dist`.
    """
    # The direction to y at x, Y + c<x, y> X, has the component √c |y⊥| across the ray through x (y⊥: the
    # part of y orthogonal to x) and along it, ρ being √c times a radius and φ the angle between x and y,
    #     c (x_t y·x̂ - y_t |x|) = sinh(ρ_y - ρ_x) - sinh(ρ_y) cosh(ρ_x) (1 - cos φ)
    #                           = -D·s / (|y| x_t + |x| y_t) - c x_t (|y| - y·x̂),   D = x - y, s = x + y,
    # because c (|y|²x_t² - |x|²y_t²) = |y|² - |x|² = -D·s; and |y| - y·x̂ = |y⊥|² / (|y| + y·x̂) if y·x̂ > 0.
    x_norm, y_norm, outward = norm(x), norm(y), unit(x)
    at_origin = x_norm == 0
    difference = x - y
    across = difference - (difference * outward).sum(-1, keepdim=True) * outward
    across2 = (across * across).sum(-1)
    inner = (y * outward).sum(-1)
    ahead = inner > 0
    lag = torch.where(ahead, across2 / torch.where(ahead, y_norm + inner, 1), y_norm - inner)
    x_time, y_time = _time(x, curv), _time(y, curv)
    spread = y_norm * x_time + x_norm * y_time
    gain = -(difference * (x + y)).sum(-1) / torch.where(spread == 0, 1, spread)
    along = gain - curv * x_time * lag
    opposite = curv.sqrt() * safe_sqrt(across2)
    undefined = at_origin | ((opposite == 0) & (along == 0))
    return torch.where(
        undefined, 0, torch.atan2(torch.where(undefined, 0, opposite), torch.where(undefined, 1, along))
    )


def pairwise_exterior_angle(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Scalar
) -> Float[Tensor, "n m"]:
    r"""All exterior angles at x (n, d) towards y (m, d), radians, to (n, m), by one matrix product of directions.

    With :math:`T = \tanh(\sqrt c \, r)` and :math:`C = \cosh(\sqrt c \, r)` of the radii and
    :math:`q = \hat x \cdot \hat y`, entry (i, j) is

    .. math:: \operatorname{atan2}\left(T_y \sqrt{1 - q^2} / C_x, \; q T_y - T_x\right).

    Error envelope: with e = eps (4 + √d), the angle is wrong by at most 5 √e cosh(√c r_y) / sinh(√c d), plus the
    rounding of the result. eps is that of float64 also for float32 points: 5 √e is 3e-7 at d = 128; on devices
    without float64 (mps), 7e-3. Take :func:`exterior_angle` where points are too near to each other for that.

    By convention 0, with gradient 0, for points that the product cannot tell from x, and for an x that it
    cannot tell from the origin; directions that it cannot tell from equal or opposite ones have no gradient
    across. So gradients are finite everywhere.

    Raises:
        HacoreError: curvature not positive, or not two matrices with the same d.
    """
    return angles.exterior_angles(x, y, curv)


def paired_exterior_angle(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Scalar
) -> Float[Tensor, "n"]:
    """The diagonal of :func:`pairwise_exterior_angle`, without the matrix; twice as fast as :func:`exterior_angle`."""
    return angles.cone_excess(x, y, curv, slack=0.0, min_radius=0.1)


def cone_excess(
    x: Float[Tensor, "... _"],
    y: Float[Tensor, "... _"],
    curv: float | Scalar,
    slack: float = 1.0,
    min_radius: float = 0.1,
) -> Float[Tensor, "n"]:
    """How far each y is outside of the cone of its x, radians: (n, d) and (n, d) to (n,), below 0 inside.

    :func:`paired_exterior_angle` less ``slack`` times :func:`half_aperture`, in less than half the steps of the two.

    Raises:
        HacoreError: curvature or min_radius not positive, or not two matrices of one shape.
    """
    return angles.cone_excess(x, y, curv, slack, min_radius)


@precise("x", "normal", leading="any")
def hyperplane_distance(
    x: Float[Tensor, "*n d"], normal: Float[Tensor, "k d"], offset: Float[Tensor, " k"], curv: Scalar
) -> Float[Tensor, "*n k"]:
    """Signed geodesic distance of points to k hyperplanes, (..., d) to (..., k).

    asinh(√c (cosh(√c b) ẑ·x + sinh(√c b) x_t)) / √c (Bdeir et al. 2024; in the ball,
    Shimizu et al. 2021): the hyperplane is orthogonal to ``normal`` z at distance b = ``offset`` from the
    origin, on the side of -z for b > 0, so that the distance tends to ẑ·x + b as c -> 0. Offsets are cut
    at the largest radius, 12/√c. A zero normal gives 0, with gradient 0.

    Raises:
        HacoreError: curvature not positive, or shapes that do not fit.
    """
    root = curv.sqrt()
    shift = torch.where(norm(normal) == 0, 0, (root * offset).clamp(-MAX_RADIUS, MAX_RADIUS))
    height = torch.cosh(shift) * (x @ unit(normal).T) + torch.sinh(shift) * _time(x, curv).unsqueeze(-1)
    return torch.asinh(root * height) / root
