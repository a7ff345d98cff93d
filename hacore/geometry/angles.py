"""Exterior angles of many points, of all pairs or of one each, and cones, with hand-written gradients.

Only the product and what is subtracted from it need the working precision (see numerics.py).
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hacore.errors import HacoreError
from hacore.geometry.numerics import as_curvature, check_min_radius, check_points, result_dtype
from hacore.geometry.product import envelope


def _polar(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x̂ and 1 / |x|, both 0 where x is 0; sinh and cosh of √c times the radius."""
    x = x.to(r.dtype)
    length = (x * x).sum(-1, keepdim=True).sqrt_()
    shrink = torch.where(length == 0, 0, 1 / length)
    sinh = length.mul_(r)
    return x * shrink, shrink, sinh, (sinh * sinh + 1).sqrt_()


class ExteriorAngles(torch.autograd.Function):
    """The angle θ at x between the outward ray and the geodesic to y, of all pairs.

    With ρ the radii times √c, S, C, T their sinh, cosh, tanh, q = x̂·ŷ = cos φ and s = sin φ, the direction to y
    has the components S_y s across the ray and S_y C_x q - C_y S_x along it, whose squares sum to sinh²(√c d).
    Over C_x C_y they are T_y s / C_x and q T_y - T_x, at most 2 at any radius; let D be the sum of their
    squares. Then

        ∂θ/∂ρ_x = T_y s (1 - T_x T_y q) / (C_x D),    ∂θ/∂ρ_y = -s T_x / (C_x C_y² D),
        ∂θ/∂q = -T_y (T_y - T_x q) / (s C_x D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, out: torch.dtype) -> Tensor:
        (ray_x, shrink_x, sinh_x, cosh_x), (ray_y, shrink_y, sinh_y, cosh_y) = _polar(x, r), _polar(y, r)
        tanh_x, tanh_y = sinh_x / cosh_x, sinh_y / cosh_y
        # Entry (i, j) belongs to x_i and y_j: what belongs to y is a row.
        q, cosh_j, tanh_j = ray_x @ ray_y.T, cosh_y.T, tanh_y.T
        error = 2 * envelope(ray_x)  # of q²
        sine2 = (q * q).neg_().add_(1)
        # A comparison as a factor of 0 or 1 is faster than a fill, and a NaN stays one. Roots are slow in float64.
        sine = sine2.mul_(sine2 > error).abs_().to(out).sqrt_()  # of -0, atan2 would make -π
        across = (sine / cosh_x.to(out)).mul_(tanh_j.to(out))
        along = torch.addcmul(-tanh_x, q, tanh_j)
        squares = (along * along).add_(across.to(r.dtype).square())
        # What the product cannot tell from x, and an x that it cannot tell from the origin.
        defined = (squares > error / cosh_x / cosh_j).logical_and_(sinh_x.square() > error)
        inverse = squares.clamp_min_(torch.finfo(r.dtype).tiny).reciprocal_().mul_(defined)
        ctx.dtypes = x.dtype, y.dtype
        ctx.save_for_backward(
            ray_x, ray_y, shrink_x, shrink_y, cosh_x, cosh_y, tanh_x, tanh_y, q, sine, across, inverse, r
        )
        return torch.atan2(across, along.to(out)).mul_(defined)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Autocast would round the products, should a caller ask for gradients inside it.
        with torch.autocast(grad.device.type, enabled=False):
            return ExteriorAngles._backward(ctx, grad)

    @staticmethod
    def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ray_x, ray_y, shrink_x, shrink_y, cosh_x, cosh_y, tanh_x, tanh_y, q, sine, across, inverse, r) = (
            ctx.saved_tensors
        )
        tanh_j = tanh_y.T
        weight = grad * inverse
        on_x = weight * across * torch.addcmul(torch.ones_like(r), q, tanh_x * tanh_j, value=-1)
        on_y = weight * sine
        # On q, times s; where directions are the same or opposite there is no gradient across.
        on_q = weight.mul_(torch.addcmul(tanh_j, q, tanh_x, value=-1)).mul_(tanh_j)
        on_q = on_q.mul_(sine > 0).div_(sine.clamp_min(torch.finfo(sine.dtype).tiny)).div_(-cosh_x)
        on_x = on_x.sum(1, keepdim=True)
        on_y = on_y.T @ (tanh_x / cosh_x)
        turn_x, turn_y = on_q @ ray_y, on_q.T @ ray_x
        on_y = on_y / -cosh_y.square()
        grad_x = _carried(on_x * (r / cosh_x), turn_x, ray_x, shrink_x).to(ctx.dtypes[0])
        grad_y = _carried(on_y * (r / cosh_y), turn_y, ray_y, shrink_y).to(ctx.dtypes[1])
        grad_r = ((on_x * tanh_x).sum() + (on_y * tanh_y).sum()) / r if ctx.needs_input_grad[2] else None
        return grad_x, grad_y, grad_r, None


def _carried(along: Tensor, turn: Tensor, ray: Tensor, shrink: Tensor) -> Tensor:
    """The gradient of points, from those along their rays and of their directions; of the latter, what is across."""
    return (turn - (turn * ray).sum(-1, keepdim=True) * ray) * shrink + along * ray


class ConeExcess(torch.autograd.Function):
    """θ - η ψ of each x and its own y: :class:`ExteriorAngles` less ``slack`` times the half-aperture of the cone at x.

    With K = ``min_radius``, sin ψ = 2K / S_x and ∂ψ/∂ρ_x = -2K / (T_x √(S_x² - 4K²)); ψ = π/2 where S_x <= 2K.

    A pair has but one number, so that its gradients are a_x x + b y and a_y y + b x. These factors are written
    down along with the value, of rows (2, n) that hold what belongs to x and to y: for a batch of usual size the
    number of operations is what costs.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, y: Tensor, c: Tensor, out: torch.dtype, slack: float, min_radius: float
    ) -> Tensor:
        points, r = torch.stack([x, y]).to(c.dtype), c.sqrt()
        wide_x, wide_y = points.unbind()
        error = 2 * envelope(wide_x)  # of q²
        size = torch.linalg.vector_norm(points, dim=-1)
        shrink = _inverse(size)
        shrink_x, shrink_y = shrink.unbind()  # whose product could overflow
        sinh2 = (size * r).square_()
        cosh2 = sinh2 + 1
        cosh = cosh2.sqrt()
        tanh = sinh2.sqrt().div_(cosh)
        cosh_x, cosh_y = cosh.unbind()
        tanh_x, tanh_y = tanh.unbind()

        q = (wide_x * wide_y).sum(-1).mul_(shrink_x).mul_(shrink_y)
        sine2 = 1 - q * q
        # Directions that the product cannot tell from equal or opposite ones are taken as such.
        sine = torch.threshold(sine2, error, 0).sqrt_()
        across = (sine * tanh_y).div_(cosh_x)
        along = (q * tanh_y).sub_(tanh_x)
        squares = (along * along).addcmul_(across, across).mul_(cosh_x)  # D C_x
        # What the product cannot tell from x, and an x that it cannot tell from the origin.
        defined = (squares * cosh_y > error).logical_and_(sinh2[0] > error)
        excess = torch.atan2(across, along).mul_(defined)
        scale = sine * (defined / squares.clamp_min_(torch.finfo(c.dtype).tiny))  # s / C_x D
        scale_y = scale * tanh_y
        on_x = scale_y.addcmul(scale_y * tanh_y, tanh_x * q, value=-1)
        on_y = scale.mul_(tanh_x).div_(cosh2[1]).neg_()
        # Of those directions there is no gradient across: scale_y is 0.
        on_q = (tanh_x * q).sub_(tanh_y).mul_(scale_y).div_(sine2.clamp_min_(error))
        if slack:
            adjacent = (sinh2[0] - 4 * min_radius**2).clamp_min_(0).sqrt_()
            excess.sub_(torch.atan2(torch.full_like(adjacent, 2 * min_radius), adjacent), alpha=slack)
            on_x.add_(_inverse(adjacent * tanh_x), alpha=2 * min_radius * slack)

        # ρ = arsinh(√c |x|): its slope is √c / C by |x|, and T / 2c by c.
        on = torch.stack([on_x, on_y])
        turn = (on_q * shrink_x).mul_(shrink_y)
        own = (on * r).div_(cosh).addcmul_(on_q * q, shrink, value=-1).mul_(shrink)
        ctx.dtypes = x.dtype, y.dtype
        ctx.save_for_backward(points, own, turn, (on * tanh).sum(0).div_(2 * c))
        return excess.to(out)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        points, own, turn, on_c = ctx.saved_tensors
        x, y = points
        own, turn = (own * grad).unsqueeze(-1), (turn * grad).unsqueeze(-1)
        grad_x = (x * own[0]).addcmul_(y, turn).to(ctx.dtypes[0])
        grad_y = (y * own[1]).addcmul_(x, turn).to(ctx.dtypes[1])
        return grad_x, grad_y, (on_c * grad).sum(), None, None, None


def _inverse(t: Tensor) -> Tensor:
    """1 / t, and 0 where t is 0, for t >= 0."""
    return t.reciprocal().nan_to_num_(nan=math.nan, posinf=0)


def exterior_angles(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Float[Tensor, ""]
) -> Float[Tensor, "n m"]:
    """Exterior angles at points x (n, d) of the Lorentz model towards points y (m, d)."""
    check_points("matrix", x=x, y=y)
    root = as_curvature(curv, x).sqrt()
    with torch.autocast(x.device.type, enabled=False):
        angles: Tensor = ExteriorAngles.apply(x, y, root, result_dtype(x, y))
    return angles


def cone_excess(
    x: Float[Tensor, "... _"],
    y: Float[Tensor, "... _"],
    curv: float | Float[Tensor, ""],
    slack: float,
    min_radius: float,
) -> Float[Tensor, "n"]:
    """:class:`ConeExcess` of points (n, d) and (n, d) of the Lorentz model; of slack 0, their exterior angles."""
    check_points("matrix", x=x, y=y)
    check_min_radius(min_radius)
    if len(x) != len(y):
        raise HacoreError(f"{len(x)} points came with {len(y)} to pair with: give one for each")
    c = as_curvature(curv, x)
    with torch.autocast(x.device.type, enabled=False):
        excess: Tensor = ConeExcess.apply(x, y, c, result_dtype(x, y), slack, min_radius)
    return excess
