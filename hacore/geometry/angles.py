"""Exterior angles of many points from one product of directions, with a hand-written gradient.

Only the product and what is subtracted from it need the working precision (see numerics.py).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from hacore.errors import HacoreError
from hacore.geometry.numerics import as_curvature, check_points, result_dtype
from hacore.geometry.product import envelope


def _polar(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x̂ and 1 / |x|, both 0 where x is 0; sinh and cosh of √c times the radius."""
    x = x.to(r.dtype)
    length = (x * x).sum(-1, keepdim=True).sqrt_()
    shrink = torch.where(length == 0, 0, 1 / length)
    sinh = length.mul_(r)
    return x * shrink, shrink, sinh, (sinh * sinh + 1).sqrt_()


class ExteriorAngles(torch.autograd.Function):
    """The angle θ at x between the outward ray and the geodesic to y, of all pairs or of each x with its own y.

    With S, C, T = sinh, cosh, tanh of √c times the radii ρ, q = x̂·ŷ = cos φ and s = sin φ, the direction to y
    has the components S_y s across the ray and S_y C_x q - C_y S_x along it, whose squares sum to sinh²(√c d).
    Over C_x C_y they are T_y s / C_x and q T_y - T_x, at most 2 at any radius; let D be the sum of their
    squares. Then

        √c ∂θ/∂ρ_x = T_y s (1 - T_x T_y q) / (C_x D),    √c ∂θ/∂ρ_y = -s T_x / (C_x C_y² D),
        ∂θ/∂q = -T_y (T_y - T_x q) / (s C_x D).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, r: Tensor, out: torch.dtype, paired: bool) -> Tensor:
        (ray_x, shrink_x, sinh_x, cosh_x), (ray_y, shrink_y, sinh_y, cosh_y) = _polar(x, r), _polar(y, r)
        tanh_x, tanh_y = sinh_x / cosh_x, sinh_y / cosh_y
        # Entry (i, j) belongs to x_i and y_j: what belongs to y is a row, unless pairs are a column.
        q = (ray_x * ray_y).sum(-1, keepdim=True) if paired else ray_x @ ray_y.T
        cosh_j, tanh_j = (cosh_y, tanh_y) if paired else (cosh_y.T, tanh_y.T)
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
        ctx.paired, ctx.dtypes = paired, (x.dtype, y.dtype)
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
        tanh_j = tanh_y if ctx.paired else tanh_y.T
        weight = grad * inverse
        on_x = weight * across * torch.addcmul(torch.ones_like(r), q, tanh_x * tanh_j, value=-1)
        on_y = weight * sine
        # On q, times s; where directions are the same or opposite there is no gradient across.
        on_q = weight.mul_(torch.addcmul(tanh_j, q, tanh_x, value=-1)).mul_(tanh_j)
        on_q = on_q.mul_(sine > 0).div_(sine.clamp_min(torch.finfo(sine.dtype).tiny)).div_(-cosh_x)
        if ctx.paired:
            on_y *= tanh_x / cosh_x
            turn_x, turn_y = on_q * ray_y, on_q * ray_x
        else:
            on_x = on_x.sum(1, keepdim=True)
            on_y = on_y.T @ (tanh_x / cosh_x)
            turn_x, turn_y = on_q @ ray_y, on_q.T @ ray_x
        on_y = on_y / -cosh_y.square()
        grad_x = _carried(on_x * (r / cosh_x), turn_x, ray_x, shrink_x).to(ctx.dtypes[0])
        grad_y = _carried(on_y * (r / cosh_y), turn_y, ray_y, shrink_y).to(ctx.dtypes[1])
        grad_r = ((on_x * tanh_x).sum() + (on_y * tanh_y).sum()) / r if ctx.needs_input_grad[2] else None
        return grad_x, grad_y, grad_r, None, None


def _carried(along: Tensor, turn: Tensor, ray: Tensor, shrink: Tensor) -> Tensor:
    """The gradient of points, from those along their rays and of their directions; of the latter, what is across."""
    return (turn - (turn * ray).sum(-1, keepdim=True) * ray) * shrink + along * ray


def exterior_angles(
    x: Float[Tensor, "... _"], y: Float[Tensor, "... _"], curv: float | Float[Tensor, ""], paired: bool
) -> Float[Tensor, "..."]:
    """Exterior angles at points x of the Lorentz model: (n, m), or (n,) if ``paired``."""
    check_points("matrix", x=x, y=y)
    if paired and len(x) != len(y):
        raise HacoreError(f"{len(x)} points came with {len(y)} to pair with: give one for each")
    root = as_curvature(curv, x).sqrt()
    with torch.autocast(x.device.type, enabled=False):
        angles: Tensor = ExteriorAngles.apply(x, y, root, result_dtype(x, y), paired)
    return angles.squeeze(-1) if paired else angles
