"""The Poincare ball as free functions with an explicit curvature, and its isometry with the Lorentz model.

``curv`` is c > 0 and the space has curvature -c: points are ball coordinates x with c|x|² < 1, the metric
is (2 / (1 - c|x|²))² |dx|². A tangent vector at the origin is given in an orthonormal frame, so its
length is a geodesic distance and exp0 means the same here as in the Lorentz model: geoopt's and
Ganea's ``expmap0(u)`` is our ``exp0(2 u)``.

Quantities that the isometry carries over (angles, geodesics, means, hyperplanes) are computed on the
hyperboloid, in working precision throughout. Points on or outside the unit sphere are treated as just
inside it.

Derived in the chapter "Hyperbolic geometry you can compute with".
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hacore.geometry import lorentz
from hacore.geometry.lorentz import Scalar
from hacore.geometry.numerics import (
    MAX_RADIUS,
    atanhc,
    clip_norm,
    just_inside,
    norm,
    precise,
    radial,
)
from hacore.geometry.product import hyperbolic_pairwise


def _inside(x: Float[Tensor, "*n d"], c: Scalar) -> tuple[Float[Tensor, "*n 1"], Float[Tensor, "*n 1"]]:
    """Factor that pulls points on or outside the sphere just inside it, and c|x|² < 1 of the result."""
    return just_inside(c * (x * x).sum(-1, keepdim=True))


def _up(x: Float[Tensor, "*n d"], c: Scalar) -> Float[Tensor, "*n d"]:
    pull, w = _inside(x, c)
    return x * (2 * pull / (1 - w))


def _down(x: Float[Tensor, "*n d"], c: Scalar) -> Float[Tensor, "*n d"]:
    return x / (1 + (1 + c * (x * x).sum(-1, keepdim=True)).sqrt())


@precise("x")
def poincare_to_lorentz(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n d"]:
    """Isometry from the ball to the hyperboloid (space components): 2 x / (1 - c|x|²), same curvature."""
    return _up(x, curv)


@precise("x")
def lorentz_to_poincare(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n d"]:
    """Isometry from the hyperboloid to the ball: x / (1 + √c x_t), same curvature."""
    return _down(x, curv)


def exp0(v: Float[Tensor, "*n d"], curv: Any) -> Float[Tensor, "*n d"]:
    """Exponential map at the origin: the point at distance |v| in the direction of v.

    x = tanh(√c |v| / 2) v / (√c |v|) (Ganea et al. 2018, for v/2). Lengths above 12/√c are cut to it,
    see :data:`~hacore.geometry.numerics.MAX_RADIUS`; such v get no gradient along themselves, only across.

    Raises:
        HacoreError: curvature not positive, or v not a floating-point tensor (..., d).
    """
    return radial(v, curv, _half_tanh)


def _half_tanh(t: Tensor) -> tuple[Tensor, Tensor]:
    """tanh(t / 2) and its slope."""
    half = torch.tanh(t / 2)
    return half, (1 - half * half) / 2


def _log0(x: Float[Tensor, "*n d"], c: Scalar) -> Float[Tensor, "*n d"]:
    pull, w = _inside(x, c)
    return x * (2 * pull * atanhc(w))


@precise("x")
def log0(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n d"]:
    """Logarithm at the origin, the inverse of :func:`exp0`: v = 2 artanh(√c |x|) x / (√c |x|)."""
    return _log0(x, curv)


@precise("x")
def project(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n d"]:
    """Cut points beyond the radius 12/√c, also those outside the ball, back to it along their ray."""
    return clip_norm(x, math.tanh(MAX_RADIUS / 2) / curv.sqrt())


@precise("x")
def radius(x: Float[Tensor, "*n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Geodesic distance from the origin, 2 artanh(√c |x|)/√c; gradient 0 at the origin."""
    return norm(_log0(x, curv))


@precise("x", "y")
def dist(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Geodesic distance over the last dimension, 2/√c asinh(√c |x - y| / √((1 - c|x|²)(1 - c|y|²))).

    Nothing cancels but 1 - c|x|², which is as exact as the coordinates are. Exactly 0, with gradient 0,
    for equal points.

    Shapes: (..., d) and (..., d), broadcast, to (...). Unit: that of 1/√c.
    Raises:
        HacoreError: curvature not positive or shapes that do not fit.
    """
    root = curv.sqrt()
    (pull_x, wx), (pull_y, wy) = _inside(x, curv), _inside(y, curv)
    scale = ((1 - wx).sqrt() * (1 - wy).sqrt()).squeeze(-1)
    return 2 / root * torch.asinh(root * norm(x * pull_x - y * pull_y) / scale)


def pairwise(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Scalar, refine: bool = False
) -> Float[Tensor, "n m"]:
    """All geodesic distances between two sets of points, (n, d) and (m, d) to (n, m), by one matrix product.

    The points are carried to the hyperboloid in working precision; see :func:`hacore.geometry.lorentz.pairwise`
    for the error envelope, ``refine`` and errors.
    """
    return hyperbolic_pairwise(x, y, curv, dist, refine, ball=True)


def similarity(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Scalar
) -> Float[Tensor, "n m"]:
    """Minus :func:`pairwise`, for the price of it."""
    return hyperbolic_pairwise(x, y, curv, dist, refine=False, ball=True, sign=-1)


@precise("x", "y")
def geodesic(
    x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], t: float | Float[Tensor, "..."], curv: Scalar
) -> Float[Tensor, "... d"]:
    """The point at share t of the way from x to y; see :func:`hacore.geometry.lorentz.geodesic`."""
    return _down(lorentz.geodesic(_up(x, curv), _up(y, curv), t, curv), curv)


@precise("x")
def midpoint(
    x: Float[Tensor, "... d"],
    curv: Scalar,
    weights: Float[Tensor, "..."] | None = None,
    iterations: int = 0,
) -> Float[Tensor, "... d"]:
    """Weighted mean (..., m, d) to (..., d): Einstein midpoint, or Karcher steps from it.

    See :func:`hacore.geometry.lorentz.midpoint`.
    """
    return _down(lorentz.midpoint(_up(x, curv), curv, weights, iterations), curv)


@precise("x")
def half_aperture(x: Float[Tensor, "*n d"], curv: Scalar, min_radius: float = 0.1) -> Float[Tensor, "*n"]:
    """Half-aperture of the cone at x; see :func:`hacore.geometry.lorentz.half_aperture`."""
    return lorentz.half_aperture(_up(x, curv), curv, min_radius)


@precise("x", "y")
def exterior_angle(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], curv: Scalar) -> Float[Tensor, "*n"]:
    """Angle at x between the outward ray and the geodesic to y; see :func:`hacore.geometry.lorentz.exterior_angle`."""
    return lorentz.exterior_angle(_up(x, curv), _up(y, curv), curv)


@precise("x", "y", leading="matrix")
def pairwise_exterior_angle(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: Scalar
) -> Float[Tensor, "n m"]:
    """All exterior angles at x (n, d) towards y (m, d); see :func:`hacore.geometry.lorentz.pairwise_exterior_angle`."""
    return lorentz.pairwise_exterior_angle(_up(x, curv), _up(y, curv), curv)


@precise("x", "y", leading="matrix")
def paired_exterior_angle(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: Scalar
) -> Float[Tensor, "n"]:
    """The diagonal of :func:`pairwise_exterior_angle`, without the matrix."""
    return lorentz.paired_exterior_angle(_up(x, curv), _up(y, curv), curv)


@precise("x", "y", leading="matrix")
def cone_excess(
    x: Float[Tensor, "... _"],
    y: Float[Tensor, "... _"],
    curv: Scalar,
    slack: float = 1.0,
    min_radius: float = 0.1,
) -> Float[Tensor, "n"]:
    """How far each y is outside of the cone of its x; see :func:`hacore.geometry.lorentz.cone_excess`."""
    return lorentz.cone_excess(_up(x, curv), _up(y, curv), curv, slack, min_radius)


@precise("x", "normal", leading="any")
def hyperplane_distance(
    x: Float[Tensor, "*n d"], normal: Float[Tensor, "k d"], offset: Float[Tensor, " k"], curv: Scalar
) -> Float[Tensor, "*n k"]:
    """Signed distance to hyperplanes; see :func:`hacore.geometry.lorentz.hyperplane_distance`."""
    return lorentz.hyperplane_distance(_up(x, curv), normal, offset, curv)
