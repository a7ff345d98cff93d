"""All distances between two sets of points by one matrix product, with a hand-written gradient.

Only the product needs the working precision (see numerics.py): it yields u = cosh(√c d) - 1, which
no later step subtracts anything from, so the logarithm is taken in the precision of the result.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from hacore.geometry.numerics import as_curvature, check_points, just_inside, result_dtype


def _hyperboloid(p: Tensor, r: Tensor, ball: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Carry points p, in place, to X on the hyperboloid of curvature -1; |X|, C = X_t, C - 1 and the pull.

    Lorentz points p become r p. Ball points become r p (A + 2), where A = C - 1 and A + 2 = 2 / (1 - |r p|²),
    those on or outside the sphere being pulled just inside it first, by a factor <= 1, returned too.
    """
    size = torch.linalg.vector_norm(p.mul_(r), dim=-1, keepdim=True)
    w = size * size
    if not ball:
        cosh = (w + 1).sqrt_()
        return size, cosh, w.div_(cosh + 1), None
    pull, w = just_inside(w)
    above = 2 * w / (1 - w)
    scale = (above + 2) * pull
    p.mul_(scale)
    return size.mul_(scale), above + 1, above, pull


class HyperbolicDistances(torch.autograd.Function):
    """All distances arcosh(1 + u) / r, r = √c, u = C_x C_yᵀ - 1 - X Yᵀ with r x, r y as X, Y on the hyperboloid.

    With A = C_x - 1 and B = C_y - 1, u = (A C_y + B) - X·Y: nothing is subtracted from 1. Pairs that the product
    cannot tell from equal points get distance 0 and gradient 0. Gradients run in the precision of the result.
    ``sign`` = -1 gives minus the distances, the similarity, without another pass over the matrix.

    X and Y lie one above the other, so that what is done to every point is done once: in a batch of usual size
    the number of operations costs as much as their work.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, c: Tensor, out: torch.dtype, ball: bool, sign: int) -> Tensor:
        r, n = c.sqrt(), len(x)
        points = torch.cat([x, y]).to(r.dtype)
        size, cosh, above, pull = _hyperboloid(points, r, ball)
        (above_x, above_y), (points_x, points_y) = _parted(above, n), _parted(points, n)
        u = torch.addcmul(above_y.T, above_x, cosh[n:].T)
        u = u.addmm_(points_x, points_y.T, alpha=-1).to(out)
        # What is no larger than the error of the product is taken as 0, with its slope. A comparison in
        # place makes a 0-1 mask faster than a fill, and a NaN stays one.
        size_x, size_y = _parted(size.to(out), n)
        apart = size_x * (envelope(points) / 2) * size_y.T
        apart.lt_(u)
        u.mul_(apart)
        root = u.sqrt().mul_((u + 2).sqrt_())  # sinh; two roots, as u² would overflow float32
        slope = apart.div_(root.clamp_min(torch.finfo(out).tiny))
        signed = root.add_(u).log1p_().div_(sign * r)
        ctx.sign, ctx.dtypes = sign, (x.dtype, y.dtype)
        # Only the curvature's gradient reads the distances; their memory is soon used again if nothing holds it.
        kept = signed if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(u, slope, kept, r, points.to(out), cosh.to(out), pull)
        return signed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Autocast would round the products, should a caller ask for gradients inside it.
        with torch.autocast(grad.device.type, enabled=False):
            return HyperbolicDistances._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, slope, signed, r, points, cosh, pull = ctx.saved_tensors
        n, sign = len(grad), ctx.sign
        # r d loss / d u, but for the sign; r x is what u depends on, so the two r cancel in the gradient.
        (points_x, points_y), (cosh_x, cosh_y) = _parted(points, n), _parted(cosh, n)
        weight = grad * slope
        ratio = torch.cat([weight @ cosh_y, weight.T @ cosh_x]).mul_(sign).div_(cosh)
        gradient = points * ratio
        gradient_x, gradient_y = _parted(gradient, n)
        gradient_x.addmm_(weight, points_y, alpha=-sign)
        gradient_y.addmm_(weight.T, points_x, alpha=-sign)
        lever = weight.addcmul_(weight, u)
        w_cosh_d = torch.cat([lever.sum(1), lever.sum(0)]).mul_(sign).unsqueeze(1)
        gradient, on = _carried(gradient, w_cosh_d.sub_(ratio), points, cosh, pull)
        grad_c = None
        if ctx.needs_input_grad[2]:
            # Of 1 / r, and of r x and r y, of which the gradient's products with them are known; dr = dc / 2r.
            grad_c = (on.sum() / r - (grad * signed).sum()) / (2 * r * r)
        grad_x, grad_y = _parted(gradient, n)
        return grad_x.to(ctx.dtypes[0]), grad_y.to(ctx.dtypes[1]), grad_c, None, None, None


def _parted(rows: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The first n rows, and the others, in one operation."""
    first, others = rows.split_with_sizes([n, len(rows) - n])
    return first, others


def _carried(
    gradient: Tensor, along: Tensor, x: Tensor, cosh: Tensor, pull: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The gradient x_i Σ_j w_ij C_j / C_i - Σ_j w_ij y_j, to the ball if there is ``pull``; its product with the point.

    Far out the two terms nearly cancel along x_i. There the gradient's product with x_i is taken from ``along``,
    Σ_j w_ij (cosh d_ij - C_j / C_i), the same by definition of u, whose terms are small for near pairs. What is
    missing is spread over C² = 1 + |x|² instead of |x|²: all of it far out, and no division by 0 at the origin.
    """
    missing = along - (x * gradient).sum(-1, keepdim=True)
    correction = missing.div_(cosh * cosh)
    if pull is None:
        return gradient.addcmul_(x, correction), along
    # x = s p with s = C + 1 and ds = s² p·dp, so d loss / dp = s (gradient + along x / s), whose product with p is
    # along C. A point that was pulled inside loses that part: it is free to move on the sphere only.
    pull, scale = pull.to(x.dtype), cosh + 1
    along = along * (pull == 1)
    correction.addcdiv_(along, scale)
    return gradient.addcmul_(x, correction).mul_(scale.mul_(pull)), along * cosh


def hyperbolic_pairwise(
    x: Float[Tensor, "... _"],
    y: Float[Tensor, "... _"],
    curv: float | Float[Tensor, ""],
    dist: Callable[[Tensor, Tensor, Tensor], Tensor],
    refine: bool,
    ball: bool,
    sign: int = 1,
) -> Float[Tensor, "n m"]:
    """Distances, times ``sign``, of points of the ball or the Lorentz model; ``dist`` refines near pairs."""
    check_points("matrix", x=x, y=y)
    c, out = as_curvature(curv, x), result_dtype(x, y)
    with torch.autocast(x.device.type, enabled=False):
        distances = HyperbolicDistances.apply(x, y, c, out, ball, sign)
        if not refine:
            return distances
        root = c.detach().sqrt()
        cosh_x, cosh_y = (_hyperboloid(p.detach().to(c.dtype, copy=True), root, ball)[1] for p in (x, y))
        u = 2 * torch.sinh(root * distances.detach() / 2).square()
        near = u < envelope(x.to(c.dtype)) / tolerance(out) * cosh_x * cosh_y.T
        return refined(distances, near, x, y, lambda p, q: dist(p, q, c))


class CosineMatrix(torch.autograd.Function):
    """All cosines X̂ Ŷᵀ, X̂ = x / |x|, and 0 with gradient 0 where a vector is 0.

    With W the gradient of the cosines, that of x is (W Ŷ - X̂ (X̂·W Ŷ)) / |x|, row by row.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor) -> Tensor:
        (x, shrink_x), (y, shrink_y) = _unit(x), _unit(y)
        ctx.save_for_backward(x, y, shrink_x, shrink_y)
        return x @ y.T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, y, shrink_x, shrink_y = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            return _across(x, grad @ y, shrink_x), _across(y, grad.T @ x, shrink_y)


def _unit(x: Tensor) -> tuple[Tensor, Tensor]:
    """x / |x| and 1 / |x|, both 0 where x is 0."""
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    shrink = torch.where(length == 0, 0, 1 / length)
    return x * shrink, shrink


def _across(x: Tensor, gradient: Tensor, shrink: Tensor) -> Tensor:
    """The part of the gradient across the unit vectors x, by the lengths they had."""
    along = (gradient * x).sum(-1, keepdim=True)
    return gradient.addcmul(x, along, value=-1).mul_(shrink)


def envelope(x: Float[Tensor, "n d"]) -> float:
    """Bound on the error of a product over d terms, as a share of their size: eps (4 + √d)."""
    return torch.finfo(x.dtype).eps * (4 + x.shape[1] ** 0.5)


def tolerance(out: torch.dtype) -> float:
    """Relative error of u that refining leaves: one rounding of the result, or 1e-9 in float64."""
    return max(torch.finfo(out).eps, 1e-9)


def refined(
    distances: Float[Tensor, "n m"],
    near: Bool[Tensor, "n m"],
    x: Float[Tensor, "n d"],
    y: Float[Tensor, "m d"],
    dist: Callable[[Tensor, Tensor], Tensor],
) -> Float[Tensor, "n m"]:
    """Replace the distances of the pairs ``near`` by elementwise ones; only those pairs are gathered."""
    i, j = torch.nonzero(near, as_tuple=True)
    return distances.index_put((i, j), dist(x[i], y[j]).to(distances.dtype))
