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


def _hyperboloid(p: Tensor, r: Tensor, ball: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Points X on the hyperboloid of curvature -1, with two free columns on their right, and A = X_t - 1.

    Lorentz points p become r p. Ball points become r p (A + 2), where A + 2 = 2 / (1 - |r p|²), those on
    or outside the sphere being pulled just inside it first, by a factor <= 1, returned too.
    """
    factor = torch.empty(len(p), p.shape[1] + 2, dtype=r.dtype, device=p.device)
    points = factor[:, :-2].copy_(p)
    w = (points * points).sum(-1, keepdim=True) * r.square()
    if not ball:
        points.mul_(r)
        return factor, w / ((1 + w).sqrt() + 1), None
    pull, w = just_inside(w)
    a = 2 * w / (1 - w)
    points.mul_((a + 2) * (r * pull))
    return factor, a, pull


class HyperbolicDistances(torch.autograd.Function):
    """All distances arcosh(1 + u) / r, r = √c, u = C_x C_yᵀ - 1 - X Yᵀ with r x, r y as X, Y on the hyperboloid.

    With A = C_x - 1 and B = C_y - 1, u = X·(-Y) + A (1 + B) + B is one product of the factors [X, A, 1]
    and [-Y, 1 + B, B]: nothing is subtracted from 1. Pairs that the product cannot tell from equal points
    get distance 0 and gradient 0. Gradients run in the precision of the result. ``sign`` = -1 gives minus
    the distances, the similarity, without another pass over the matrix.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, out: torch.dtype, ball: bool, sign: int) -> Tensor:
        left, a, pull_x = _hyperboloid(x, r, ball)
        right, b, pull_y = _hyperboloid(y, -r, ball)
        left[:, -2:-1], left[:, -1] = a, 1
        right[:, -2:-1], right[:, -1:] = 1 + b, b
        u = (left @ right.T).to(out)
        # What is no larger than the error of the product is taken as 0, with its slope. A comparison in
        # place makes a 0-1 mask faster than a fill, and a NaN stays one. |X|² = A (A + 2).
        size_x, size_y = (a * (a + 2)).sqrt(), (b * (b + 2)).sqrt()
        apart = (size_x * (envelope(left[:, :-2]) / 2)).to(out) * size_y.to(out).T
        apart.lt_(u)
        u.mul_(apart)
        root = u.sqrt().mul_((u + 2).sqrt_())  # sinh; two roots, as u² would overflow float32
        slope = apart.div_(root.clamp_min(torch.finfo(out).tiny))
        signed = root.add_(u).log1p_().div_(sign * r.to(out))
        ctx.sign, ctx.dtypes = sign, (x.dtype, y.dtype)
        ctx.save_for_backward(u, slope, signed, r, left.to(out), right.to(out), pull_x, pull_y)
        return signed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Autocast would round the products, should a caller ask for gradients inside it.
        with torch.autocast(grad.device.type, enabled=False):
            return HyperbolicDistances._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        u, slope, signed, r, left, right, pull_x, pull_y = ctx.saved_tensors
        weight = grad * slope  # r d loss / d u; r x is what u depends on, so the two r cancel in grad_x
        lever = torch.addcmul(weight, weight, u)
        x, y = left[:, :-2], right[:, :-2]  # y stands for -Y: its gradient, too, has the other sign
        cosh_x, cosh_y = left[:, -2:-1] + 1, right[:, -2:-1]
        from_x, from_y = weight.T @ left, weight @ right
        w_cosh_x = from_x[:, -2:-1] + from_x[:, -1:]
        grad_x, on_x = _gradient(
            x, cosh_x, from_y[:, :-2], from_y[:, -2:-1], lever.sum(1, keepdim=True), pull_x
        )
        grad_y, on_y = _gradient(y, cosh_y, from_x[:, :-2], w_cosh_x, lever.sum(0).unsqueeze(1), pull_y)
        grad_r = None
        if ctx.needs_input_grad[2]:
            # Of 1 / r, and of r x and r y, of which the gradient's products with them are known.
            grad_r = (ctx.sign * (on_x.sum() + on_y.sum()) / r - (grad * signed).sum()) / r
        grad_x, grad_y = ctx.sign * grad_x, -ctx.sign * grad_y
        return grad_x.to(ctx.dtypes[0]), grad_y.to(ctx.dtypes[1]), grad_r, None, None, None


def _gradient(
    x: Tensor, cosh_x: Tensor, wy: Tensor, w_cosh: Tensor, w_cosh_d: Tensor, pull: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Σ_j w_ij y_j + x_i Σ_j w_ij C_j / C_i, carried to the ball if there is ``pull``, and its product with the point.

    Far out the two terms nearly cancel along x_i. There the gradient's product with x_i is taken from
    Σ_j w_ij (cosh d_ij - C_j / C_i), the same by definition of u, whose terms are small for near pairs.
    """
    ratio = w_cosh / cosh_x
    along = w_cosh_d - ratio
    gradient = torch.addcmul(wy, x, ratio)
    x2 = (cosh_x - 1) * (cosh_x + 1)
    missing = along - (x * gradient).sum(-1, keepdim=True)
    correction = torch.where(x2 > 1, missing / x2.clamp_min(1), 0)
    if pull is None:
        return gradient.addcmul_(x, correction), along
    # x = s p with ds = s² p·dp, so d loss / dp = s (gradient + along x / s), whose product with p is
    # along C. A point that was pulled inside loses that part: it is free to move on the sphere only.
    pull = pull.to(x.dtype)
    scale, radial, inside = cosh_x + 1, along * cosh_x, pull == 1
    outward = torch.where(inside, 0, radial * scale / x2)
    along = pull * (scale * correction + along - outward)
    return gradient.mul_(pull * scale).addcmul_(x, along), torch.where(inside, radial, 0)


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
    root = c.sqrt()
    with torch.autocast(x.device.type, enabled=False):
        distances = HyperbolicDistances.apply(x, y, root, out, ball, sign)
        if not refine:
            return distances
        cosh_x, cosh_y = (_hyperboloid(p.detach(), root, ball)[1] + 1 for p in (x, y))
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
