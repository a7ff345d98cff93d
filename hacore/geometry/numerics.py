"""Precision, input checks and the few scalar functions every space shares.

One rule for every geometric function: inputs are raised to float64 (float32 on devices that have
no float64), autocast is switched off, and the result is returned in the wider of float32 and the
inputs' dtype. Formulas avoid cancellation on top of that, because float64 has a limit too and
because devices without it run the very same code.

Sub-gradients: where a norm or a distance is 0 its gradient is defined as 0; NaN inputs stay NaN.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from hacore.errors import HacoreError

MAX_RADIUS = 12.0
"""Largest geodesic radius, in units of 1/√c, that exp0 and project give.

Rounding coordinates to float32 moves a point at radius r by up to 2^-24 (1 + cosh(√c r)) / √c, radially
in the ball, sideways in the Lorentz model: 1e-7 near the origin, 9e-5 at 8, 0.005 at 12, 0.7 at 17. The
limit is the same in float64, so that a model means the same in either precision.
"""

R = TypeVar("R")


def work_dtype(device: torch.device) -> torch.dtype:
    """The precision geometry is computed in: float64, or float32 where the device has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """The precision geometry is returned in: that of the inputs, but never below float32."""
    return functools.reduce(torch.promote_types, (t.dtype for t in tensors), torch.float32)


def check_curvature(curv: Any) -> float:
    """Return ``curv`` as a float, or raise HacoreError unless it is finite and positive."""
    if not (isinstance(curv, int | float) and math.isfinite(curv) and curv > 0):
        raise HacoreError(f"curvature {curv!r} is not usable: pass c > 0 (the space then has curvature -c)")
    return float(curv)


def as_curvature(curv: Any, like: Tensor) -> Float[Tensor, ""]:
    """Return ``curv`` as a checked scalar on the device of ``like``, in working precision.

    A curvature that lives on an accelerator is not read back (the host would have to wait for the
    device); it comes from a Space, which keeps it positive by construction.
    """
    if not isinstance(curv, Tensor):
        return torch.tensor(check_curvature(curv), dtype=work_dtype(like.device), device=like.device)
    if curv.numel() != 1:
        raise HacoreError(f"curvature has shape {tuple(curv.shape)}: pass one number for all points")
    if curv.device.type == "cpu":
        check_curvature(curv.item())
    if curv.dim():
        curv = curv.reshape(())
    return curv.to(device=like.device, dtype=work_dtype(like.device))


def check_points(leading: str = "broadcast", **points: Tensor) -> None:
    """Raise HacoreError unless all ``points`` are floating, of one dimension, and fit each other.

    ``leading`` says what the dimensions before the last must be: "broadcast", "matrix" (exactly one
    each, any sizes) or "any".
    """
    for name, tensor in points.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or tensor.dim() < 1:
            raise HacoreError(f"{name} must be a floating-point tensor of shape (..., d)")
        if leading == "matrix" and tensor.dim() != 2:
            raise HacoreError(f"{name} has shape {tuple(tensor.shape)}: pass a matrix of points, (n, d)")
    shapes = [tuple(tensor.shape) for tensor in points.values()]
    if len(set(shapes)) == 1:
        return
    problem = f"{', '.join(points)} of shapes {', '.join(map(str, shapes))} do not fit"
    if len({shape[-1] for shape in shapes}) > 1:
        raise HacoreError(f"{problem}: the last dimension, d, must be the same")
    if leading == "broadcast":
        try:
            torch.broadcast_shapes(*shapes)
        except RuntimeError as error:
            raise HacoreError(f"{problem}: leading dimensions must be equal or 1") from error


def check_min_radius(min_radius: float) -> None:
    """Raise HacoreError unless the K of entailment cones, 2K / √c being where they begin, is positive."""
    if not min_radius > 0:
        raise HacoreError(f"min_radius {min_radius!r} is not usable: pass a positive number, MERU uses 0.1")


def precise(*points: str, leading: str = "broadcast") -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Decorate a geometric function: check the arguments named, then run it in working precision.

    The arguments ``points`` must pass :func:`check_points`; one called ``curv`` becomes a checked
    scalar tensor. Every floating tensor among the arguments is raised to working precision, and a
    result that is a tensor is brought back to :func:`result_dtype` of the points.
    """

    def decorate(function: Callable[..., R]) -> Callable[..., R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> R:
            bound = signature.bind(*args, **kwargs)
            arguments: dict[str, Any] = bound.arguments
            given = {name: arguments[name] for name in points}
            check_points(leading, **given)
            first, out = given[points[0]], result_dtype(*given.values())
            for name, value in arguments.items():
                if name == "curv":
                    arguments[name] = as_curvature(value, first)
                elif isinstance(value, Tensor) and value.is_floating_point():
                    arguments[name] = value.to(work_dtype(first.device))
            with torch.autocast(first.device.type, enabled=False):
                result: Any = function(*bound.args, **bound.kwargs)
            return result.to(out)

        return wrapper

    return decorate


def norm(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
    """Euclidean norm over the last dimension, with gradient 0 at 0."""
    return torch.linalg.vector_norm(x, dim=-1)


def safe_sqrt(s: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Square root of s >= 0 with gradient 0, instead of infinity, at 0."""
    zero = s == 0
    return torch.where(zero, s, torch.where(zero, 1, s).sqrt())


def clip_norm(x: Float[Tensor, "*n d"], limit: Float[Tensor, ""]) -> Float[Tensor, "*n d"]:
    """Scale vectors longer than ``limit`` back to it; they keep no gradient along themselves."""
    length = norm(x)
    outside = length > limit
    return x * torch.where(outside, limit / torch.where(outside, length, 1), 1).unsqueeze(-1)


def wedge_squared(a: Float[Tensor, "*#n d"], b: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n"]:
    """Squared area |a ∧ b|² = |a|²|b|² - (a·b)² of the parallelogram, without that subtraction.

    It is |b|² times the squared part of a orthogonal to b, which is formed explicitly.
    """
    b2 = (b * b).sum(-1)
    along = (a * b).sum(-1) / torch.where(b2 == 0, 1, b2)
    across = a - along.unsqueeze(-1) * b
    return (across * across).sum(-1) * b2


def _even(
    function: Callable[[Tensor], Tensor], first: float, second: float
) -> Callable[[Float[Tensor, "*n"]], Float[Tensor, "*n"]]:
    """f(√w)/√w as a function of w >= 0, smooth at 0, where it is 1 + first w + second w² + O(w³)."""

    def even(w: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        near = w < 3e-6
        root = torch.where(near, 1, w).sqrt()
        return torch.where(near, 1 + w * (first + second * w), function(root) / root)

    return even


sinhc = _even(torch.sinh, 1 / 6, 1 / 120)
asinhc = _even(torch.asinh, -1 / 6, 3 / 40)
atanhc = _even(torch.atanh, 1 / 3, 1 / 5)


class Radial(torch.autograd.Function):
    """v f(t) / t, t = √c |v| cut at :data:`MAX_RADIUS`, and 0 for v = 0: the maps from the tangent space at the origin.

    ``function`` gives f(t) and f'(t). Across v the gradient is scaled by f / t, along it by f', or by 0 where t
    was cut; written down, it takes half the time of what autograd would record. It can be differentiated again.
    Computed in the precision of c, returned in ``out``.
    """

    @staticmethod
    def forward(
        ctx: Any,
        v: Tensor,
        c: Tensor,
        function: Callable[[Tensor], tuple[Tensor, Tensor]],
        out: torch.dtype,
    ) -> Tensor:
        wide = v.to(c.dtype)
        factors = Radial._factors(wide, c, function)
        ctx.function = function
        ctx.save_for_backward(v, c, *factors)
        return (wide * factors[0]).to(out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        v, c, across, slope, t = ctx.saved_tensors
        wide, grad = v.to(c.dtype), grads[0].to(c.dtype)
        if torch.is_grad_enabled():
            # To be differentiated again: the saved factors do not know where they are from.
            across, slope, t = Radial._factors(wide, c, ctx.function)
        along = (wide * grad).sum(-1, keepdim=True) * (slope - across)
        # One after the other: t² would underflow float32.
        grad_v = torch.addcmul(across * grad, wide, along / t * (c / t))
        grad_c = along.sum() / (2 * c) if ctx.needs_input_grad[1] else None
        return grad_v.to(v.dtype), grad_c, None, None

    @staticmethod
    def _factors(
        v: Tensor, c: Tensor, function: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """f / t, f' and t, which is kept off 0, where f / t is 1."""
        t = (torch.linalg.vector_norm(v, dim=-1, keepdim=True) * c.sqrt()).clamp(min=1e-18)
        f, slope = function(t.clamp(max=MAX_RADIUS))
        return f / t, slope * (t <= MAX_RADIUS), t


def radial(
    v: Float[Tensor, "*n d"], curv: Any, function: Callable[[Tensor], tuple[Tensor, Tensor]]
) -> Float[Tensor, "*n d"]:
    """:class:`Radial` up to the largest radius, of checked arguments, in working precision as by :func:`precise`."""
    check_points(v=v)
    c = as_curvature(curv, v)
    with torch.autocast(v.device.type, enabled=False):
        mapped: Tensor = Radial.apply(v, c, function, result_dtype(v))
    return mapped


def coshc(w: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """cosh(√w), smooth at w = 0: cosh z = 1 + 2 sinh²(z/2)."""
    return 1 + w / 2 * sinhc(w / 4).square()


def just_inside(w: Float[Tensor, "*n"]) -> tuple[Float[Tensor, "*n"], Float[Tensor, "*n"]]:
    """For squared norms w: the factor that pulls points of norm >= 1 just inside 1, and w < 1 after that."""
    most = 1 - torch.finfo(w.dtype).eps
    return (most / w.clamp(min=most)).sqrt(), w.clamp(max=most)


def mean_weights(x: Tensor, weights: Tensor | None) -> Tensor:
    """Weights (..., m, 1) of a mean over the m points of x (..., m, d), summing to 1."""
    if x.dim() < 2 or (weights is not None and weights.shape[-1:] != x.shape[-2:-1]):
        raise HacoreError("a mean takes points (..., m, d) and, if any, one weight for each of the m points")
    w = torch.ones_like(x[..., 0]) if weights is None else weights.to(x.dtype)
    return (w / w.sum(-1, keepdim=True)).unsqueeze(-1)


def unit(x: Float[Tensor, "*n d"]) -> Float[Tensor, "*n d"]:
    """x / |x|, and 0 with gradient 0 where x is 0."""
    length = norm(x)
    return x / torch.where(length == 0, 1, length).unsqueeze(-1)
