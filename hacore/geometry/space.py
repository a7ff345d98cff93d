"""Space: one interface for Euclidean space, the Lorentz model and the Poincare ball.

Everything above this layer is written once, against a Space; the geometry is an argument. Points are
(..., d) tensors in every space. A hyperbolic space holds its curvature and passes it to the free
functions of :mod:`~hacore.geometry.lorentz` or :mod:`~hacore.geometry.poincare`, where formulas,
accuracy and errors are documented.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from hacore.errors import HacoreError
from hacore.geometry import lorentz, poincare
from hacore.geometry.numerics import (
    MAX_RADIUS,
    check_curvature,
    check_points,
    mean_weights,
    norm,
    precise,
    result_dtype,
    safe_sqrt,
    unit,
    work_dtype,
)
from hacore.geometry.product import CosineMatrix, envelope, refined, tolerance

if TYPE_CHECKING:
    import geoopt

# Any number of points; the last dimension is d. That two arguments agree in d is checked by the
# functions, which raise HacoreError.
Points = Float[Tensor, "... _"]

# The curvatures of spaces that are inside of one_curvature(), by whether gradients are recorded. Not kept in the
# modules: a tensor with a graph could not be copied with them, and other threads are to derive their own.
_derived: ContextVar[Mapping["Space", dict[bool, Tensor]]] = ContextVar(
    "_derived", default=MappingProxyType({})
)


class Space(nn.Module, ABC):
    """A geometry of constant curvature -c with the maps, distances and means that models need.

    The curvature is c0 10^tanh(θ): positive, within a factor of 10 of where it started, with a gradient
    that never vanishes (MERU clamps instead). θ is a parameter if ``learnable``, else a buffer; c0 is
    kept exactly and travels with the state dict, so that weights cannot be loaded into another curvature.

    Args:
        curv: c0 > 0, in 1 / length².
        learnable: train θ.

    Raises:
        HacoreError: curv not finite and positive.
    """

    name: ClassVar[str]

    def __init__(self, curv: float = 1.0, learnable: bool = False) -> None:
        super().__init__()
        self._start = check_curvature(curv)
        theta = torch.zeros(())
        if learnable:
            self.theta = nn.Parameter(theta)
        else:
            self.register_buffer("theta", theta)

    @property
    def learnable(self) -> bool:
        """Whether the curvature is trained."""
        return isinstance(self.theta, nn.Parameter)

    @property
    def curv(self) -> Float[Tensor, ""]:
        """c > 0; the space has curvature -c. A scalar in working precision, see :meth:`one_curvature`."""
        derived = _derived.get().get(self)
        if derived is None:
            return self._curv()
        # One without a graph must not be taken where gradients are wanted.
        recorded = torch.is_grad_enabled()
        if recorded not in derived:
            derived[recorded] = self._curv()
        return derived[recorded]

    def _curv(self) -> Float[Tensor, ""]:
        return self._start * 10 ** torch.tanh(self.theta.to(work_dtype(self.theta.device)))

    @contextmanager
    def one_curvature(self) -> Iterator[None]:
        """Inside of it the curvature is derived from θ once, instead of by each method that needs it.

        For one loss: its values and gradients are the same, in fewer steps. Leave it before θ changes, and before
        there is another loss: the parts that share a curvature share its graph, which a backward pass frees.
        Nested ones share the outermost one's. Each thread has its own.
        """
        spaces = _derived.get()
        token = _derived.set(spaces if self in spaces else {**spaces, self: {}})
        try:
            yield
        finally:
            _derived.reset(token)

    @property
    def max_radius(self) -> Float[Tensor, ""]:
        """The geodesic radius that ``exp0`` and ``project`` cut to: where float32 stops resolving points."""
        return MAX_RADIUS / self.curv.sqrt()

    def get_extra_state(self) -> Tensor:
        """The starting curvature, stored beside θ in the state dict."""
        return torch.tensor(self._start, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Check that a state dict was made with the same starting curvature."""
        if float(state) != self._start:
            raise HacoreError(
                f"these weights were made with starting curvature {float(state)}, this space has "
                f"{self._start}: build the space with the curvature of the checkpoint"
            )

    def extra_repr(self) -> str:
        """Curvature, for ``print(model)``."""
        return f"curv={float(self.curv.detach()):g}, learnable={self.learnable}"

    @abstractmethod
    def exp0(self, v: Points) -> Points:
        """The points at distance |v| from the origin in the directions v, both (..., d)."""

    @abstractmethod
    def log0(self, x: Points) -> Points:
        """The inverse of :meth:`exp0`: tangent vectors at the origin, as long as their points' radii."""

    @abstractmethod
    def project(self, x: Points) -> Points:
        """Cut points beyond :attr:`max_radius` back to it."""

    @abstractmethod
    def radius(self, x: Points) -> Float[Tensor, "..."]:
        """Geodesic distance from the origin, (..., d) to (...)."""

    @abstractmethod
    def dist(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """Geodesic distance over the last dimension, broadcasting; 0 with gradient 0 for equal points."""

    @abstractmethod
    def pairwise(self, x: Points, y: Points, refine: bool = False) -> Float[Tensor, "n m"]:
        """All distances between two sets of points by one matrix product; ``refine`` near pairs."""

    @abstractmethod
    def similarity(self, x: Points, y: Points) -> Float[Tensor, "n m"]:
        """All similarities between two sets of points, larger being nearer."""

    def paired_similarity(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """The similarity of each point of x with its counterpart in y, the diagonal of :meth:`similarity`."""
        return -self.dist(x, y)

    @abstractmethod
    def geodesic(self, x: Points, y: Points, t: float | Float[Tensor, "..."]) -> Points:
        """The points at share t of the way from x to y; t broadcasts with the leading dimensions."""

    @abstractmethod
    def midpoint(self, x: Points, weights: Float[Tensor, "..."] | None = None, iterations: int = 0) -> Points:
        """Weighted mean over the second to last dimension, (..., m, d) to (..., d).

        The Einstein midpoint, or the Frechet mean by ``iterations`` Karcher steps from it.
        """

    @abstractmethod
    def affine(
        self, x: Points, weight: Float[Tensor, "k _"], bias: Float[Tensor, " k"]
    ) -> Float[Tensor, "... k"]:
        """k logits of a linear classifier: |z_k| times the signed distance to hyperplane k.

        z_k = ``weight[k]`` is its normal. In Euclidean space that is z·x + bias; in hyperbolic space
        ``bias`` is the hyperplane's signed distance from the origin (Shimizu et al. 2021).
        """

    def half_aperture(self, x: Points, min_radius: float = 0.1) -> Float[Tensor, "..."]:
        """Half-aperture of the entailment cone at x; raises HacoreError where space is flat."""
        raise HacoreError(f"{self.name} space has no entailment cones: choose a hyperbolic space")

    def exterior_angle(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """Angle at x between the outward ray and the geodesic to y; raises HacoreError where space is flat."""
        raise HacoreError(f"{self.name} space has no entailment cones: choose a hyperbolic space")

    def pairwise_exterior_angle(self, x: Points, y: Points) -> Float[Tensor, "n m"]:
        """All exterior angles at x (n, d) towards y (m, d); raises HacoreError where space is flat."""
        raise HacoreError(f"{self.name} space has no entailment cones: choose a hyperbolic space")

    def paired_exterior_angle(self, x: Points, y: Points) -> Float[Tensor, "n"]:
        """The diagonal of :meth:`pairwise_exterior_angle`; raises HacoreError where space is flat."""
        raise HacoreError(f"{self.name} space has no entailment cones: choose a hyperbolic space")

    def cone_excess(
        self, x: Points, y: Points, slack: float = 1.0, min_radius: float = 0.1
    ) -> Float[Tensor, "n"]:
        """How far each y is outside of the entailment cone of its x; raises HacoreError where space is flat."""
        raise HacoreError(f"{self.name} space has no entailment cones: choose a hyperbolic space")

    @abstractmethod
    def manifold(self, dtype: torch.dtype = torch.float32) -> "geoopt.manifolds.Manifold":
        """The matching geoopt manifold, for Riemannian optimisers; see :meth:`parameter`."""

    def random(
        self,
        n: int,
        d: int,
        max_radius: float = 2.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Float[Tensor, "{n} {d}"]:
        """n points in d dimensions: direction uniform, radius uniform in [0, max_radius]."""
        direction = torch.randn(n, d, generator=generator, dtype=dtype, device=device)
        length = torch.rand(n, 1, generator=generator, dtype=dtype, device=device) * max_radius
        return self.exp0(F.normalize(direction, dim=-1) * length)

    def parameter(self, x: Points) -> "geoopt.ManifoldParameter":
        """Points as a trainable geoopt parameter on :meth:`manifold`, read back by :meth:`points`.

        In the Lorentz model geoopt wants the time component too, so the parameter is (..., d + 1) there.
        geoopt's own limits apply: its float32 ball ends at radius 6.2/√c.

        Raises:
            HacoreError: the curvature is learnable; geoopt would keep the old one.
        """
        import geoopt

        return geoopt.ManifoldParameter(self._to_geoopt(x.detach()), manifold=self.manifold(x.dtype))

    def points(self, parameter: Points) -> Points:
        """The points (..., d) that a :meth:`parameter` holds."""
        return parameter

    def _to_geoopt(self, x: Points) -> Points:
        return x


class Euclidean(Space):
    """Flat space, R^d. The curvature is accepted, so that spaces are interchangeable, and has no effect.

    Args:
        similarity: "cosine" (0 where a vector is 0), "dot", or "distance" (minus the distance).

    Raises:
        HacoreError: curv not positive, or an unknown similarity.
    """

    name: ClassVar[str] = "euclidean"

    def __init__(self, curv: float = 1.0, learnable: bool = False, similarity: str = "cosine") -> None:
        super().__init__(curv, learnable)
        kinds = ("cosine", "dot", "distance")
        if similarity not in kinds:
            raise HacoreError(f"unknown similarity {similarity!r}: choose one of {', '.join(kinds)}")
        self.kind = similarity

    @property
    def max_radius(self) -> Float[Tensor, ""]:
        """Infinite: nothing is cut."""
        return torch.full_like(self.curv.detach(), math.inf)

    def exp0(self, v: Points) -> Points:
        """The identity, in float32 or better."""
        check_points(v=v)
        return v.to(result_dtype(v))

    def log0(self, x: Points) -> Points:
        """The identity, in float32 or better."""
        return self.exp0(x)

    def project(self, x: Points) -> Points:
        """The identity, in float32 or better."""
        return self.exp0(x)

    def radius(self, x: Points) -> Float[Tensor, "..."]:
        """|x|, with gradient 0 at 0."""
        return self.dist(x, torch.zeros_like(x))

    def dist(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """|x - y| over the last dimension; 0 with gradient 0 for equal points."""
        return _euclidean_dist(x, y)

    def pairwise(self, x: Points, y: Points, refine: bool = False) -> Float[Tensor, "n m"]:
        """All |x - y| by one product: squares wrong by at most eps (4 + √d) (|x|² + |y|²), eps as in Lorentz."""
        check_points("matrix", x=x, y=y)
        dtype, out = work_dtype(x.device), result_dtype(x, y)
        with torch.autocast(x.device.type, enabled=False):
            a, b = x.to(dtype), y.to(dtype)
            a2, b2 = (a * a).sum(-1)[:, None], (b * b).sum(-1)[:, None]
            left = torch.cat([-2 * a, a2, torch.ones_like(a2)], dim=1)
            squared = left @ torch.cat([b, torch.ones_like(b2), b2], dim=1).T
            distances = safe_sqrt(squared.clamp_min(0).to(out))
            if not refine:
                return distances
            near = squared < envelope(a) / tolerance(out) * (a2 + b2.T)
            return refined(distances, near, x, y, self.dist)

    def similarity(self, x: Points, y: Points) -> Float[Tensor, "n m"]:
        """Cosine, dot product or minus the distance, as chosen at construction."""
        if self.kind == "distance":
            return -self.pairwise(x, y)
        check_points("matrix", x=x, y=y)
        out = result_dtype(x, y)
        with torch.autocast(x.device.type, enabled=False):
            x, y = x.to(out), y.to(out)
            return CosineMatrix.apply(x, y) if self.kind == "cosine" else x @ y.T

    def paired_similarity(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """Cosine, dot product or minus the distance of each point of x with its counterpart in y."""
        if self.kind == "distance":
            return -self.dist(x, y)
        return _paired_cosine(x, y) if self.kind == "cosine" else _paired_product(x, y)

    def geodesic(self, x: Points, y: Points, t: float | Float[Tensor, "..."]) -> Points:
        """(1 - t) x + t y."""
        return _euclidean_geodesic(x, y, t)

    def midpoint(self, x: Points, weights: Float[Tensor, "..."] | None = None, iterations: int = 0) -> Points:
        """The weighted mean; the Frechet mean is the same."""
        check_points(x=x)
        w = mean_weights(x, weights).to(result_dtype(x))
        return (w * x).sum(-2)

    def affine(
        self, x: Points, weight: Float[Tensor, "k _"], bias: Float[Tensor, " k"]
    ) -> Float[Tensor, "... k"]:
        """z·x + bias, in float32 or better."""
        check_points("any", x=x, weight=weight)
        out = result_dtype(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(x.to(out), weight.to(out), bias.to(out))

    def manifold(self, dtype: torch.dtype = torch.float32) -> "geoopt.manifolds.Manifold":
        """geoopt.Euclidean."""
        import geoopt

        return geoopt.Euclidean(ndim=1)


@precise("x", "y")
def _euclidean_dist(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n"]:
    return norm(x - y)


@precise("x", "y")
def _paired_cosine(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n"]:
    return (unit(x) * unit(y)).sum(-1)


@precise("x", "y")
def _paired_product(x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"]) -> Float[Tensor, "*n"]:
    return (x * y).sum(-1)


@precise("x", "y")
def _euclidean_geodesic(
    x: Float[Tensor, "*#n d"], y: Float[Tensor, "*#n d"], t: float | Float[Tensor, "..."]
) -> Float[Tensor, "... d"]:
    t = torch.as_tensor(t, dtype=x.dtype, device=x.device).unsqueeze(-1)
    return (1 - t) * x + t * y


class Hyperbolic(Space):
    """What the two hyperbolic models share: each method calls the model's free function with ``curv``."""

    functions: ClassVar[ModuleType]

    def exp0(self, v: Points) -> Points:
        """Points at distance |v| from the origin; lengths above :attr:`max_radius` are cut to it."""
        return self.functions.exp0(v, self.curv)

    def log0(self, x: Points) -> Points:
        """The inverse of :meth:`exp0`."""
        return self.functions.log0(x, self.curv)

    def project(self, x: Points) -> Points:
        """Cut points beyond :attr:`max_radius` back to it, along their ray."""
        return self.functions.project(x, self.curv)

    def radius(self, x: Points) -> Float[Tensor, "..."]:
        """Geodesic distance from the origin."""
        return self.functions.radius(x, self.curv)

    def dist(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """Geodesic distance over the last dimension, broadcasting; no cancellation."""
        return self.functions.dist(x, y, self.curv)

    def pairwise(self, x: Points, y: Points, refine: bool = False) -> Float[Tensor, "n m"]:
        """All distances by one matrix product; error envelope in :func:`hacore.geometry.lorentz.pairwise`."""
        return self.functions.pairwise(x, y, self.curv, refine)

    def similarity(self, x: Points, y: Points) -> Float[Tensor, "n m"]:
        """Minus the distance."""
        return self.functions.similarity(x, y, self.curv)

    def geodesic(self, x: Points, y: Points, t: float | Float[Tensor, "..."]) -> Points:
        """The points at share t of the way from x to y."""
        return self.functions.geodesic(x, y, t, self.curv)

    def midpoint(self, x: Points, weights: Float[Tensor, "..."] | None = None, iterations: int = 0) -> Points:
        """Einstein midpoint (..., m, d) to (..., d), or Frechet mean by that many Karcher steps."""
        return self.functions.midpoint(x, self.curv, weights, iterations)

    def half_aperture(self, x: Points, min_radius: float = 0.1) -> Float[Tensor, "..."]:
        """Half-aperture of the entailment cone at x, radians in (0, π/2], as in MERU."""
        return self.functions.half_aperture(x, self.curv, min_radius)

    def exterior_angle(self, x: Points, y: Points) -> Float[Tensor, "..."]:
        """Angle at x between the outward ray and the geodesic to y, radians in [0, π], as in MERU."""
        return self.functions.exterior_angle(x, y, self.curv)

    def pairwise_exterior_angle(self, x: Points, y: Points) -> Float[Tensor, "n m"]:
        """All exterior angles at x (n, d) towards y (m, d), radians, by one matrix product."""
        return self.functions.pairwise_exterior_angle(x, y, self.curv)

    def paired_exterior_angle(self, x: Points, y: Points) -> Float[Tensor, "n"]:
        """The angle at each x towards its counterpart in y, faster than :meth:`exterior_angle` and less exact."""
        return self.functions.paired_exterior_angle(x, y, self.curv)

    def cone_excess(
        self, x: Points, y: Points, slack: float = 1.0, min_radius: float = 0.1
    ) -> Float[Tensor, "n"]:
        """The angle at each x towards its counterpart in y, less ``slack`` half-apertures; radians."""
        return self.functions.cone_excess(x, y, self.curv, slack, min_radius)

    def affine(
        self, x: Points, weight: Float[Tensor, "k _"], bias: Float[Tensor, " k"]
    ) -> Float[Tensor, "... k"]:
        """|z| times the signed distance to the hyperplanes of normals z at distances ``bias``."""
        distance = self.functions.hyperplane_distance(x, weight, bias, self.curv)
        return _euclidean_dist(weight, torch.zeros_like(weight)).to(distance.dtype) * distance

    def convert(self, x: Points, target: "Hyperbolic") -> Points:
        """The same points in the coordinates of ``target``, a space of the same curvature.

        Raises:
            HacoreError: the curvatures differ; distances would change silently.
        """
        mine, other = float(self.curv.detach()), float(target.curv.detach())
        if mine != other:
            raise HacoreError(
                f"points of curvature {mine:g} cannot become points of curvature {other:g}: "
                "use log0 and exp0 if you mean to change their distances"
            )
        if self.name == target.name:
            return x
        if self.name == "lorentz":
            return poincare.lorentz_to_poincare(x, self.curv)
        return poincare.poincare_to_lorentz(x, self.curv)

    def _fixed_curvature(self) -> Tensor:
        if self.learnable:
            raise HacoreError(
                "geoopt parameters need a fixed curvature: use learnable=False, or train tangent vectors"
            )
        return self.curv


class Lorentz(Hyperbolic):
    """The hyperboloid in R^(d+1); points are their d space components, of any size."""

    name: ClassVar[str] = "lorentz"
    functions: ClassVar[ModuleType] = lorentz

    def manifold(self, dtype: torch.dtype = torch.float32) -> "geoopt.manifolds.Manifold":
        """geoopt.Lorentz(k = 1/c)."""
        import geoopt

        return geoopt.Lorentz(k=1 / self._fixed_curvature().to(dtype))

    def points(self, parameter: Points) -> Points:
        """Drop the time component that geoopt stores first."""
        return parameter[..., 1:]

    def _to_geoopt(self, x: Points) -> Points:
        return torch.cat([lorentz.time(x, self.curv).unsqueeze(-1), x], dim=-1)


class Poincare(Hyperbolic):
    """The unit ball, scaled by 1/√c; points are ball coordinates."""

    name: ClassVar[str] = "poincare"
    functions: ClassVar[ModuleType] = poincare

    def manifold(self, dtype: torch.dtype = torch.float32) -> "geoopt.manifolds.Manifold":
        """geoopt.PoincareBall(c); it changes the tensor it is given, so it gets a copy."""
        import geoopt

        return geoopt.PoincareBall(c=self._fixed_curvature().to(dtype, copy=True))


SPACES: dict[str, type[Space]] = {kind.name: kind for kind in (Euclidean, Lorentz, Poincare)}


def space(name: str, curv: float = 1.0, learnable: bool = False) -> Space:
    """The space called ``name``; raises HacoreError, listing the names, for an unknown one."""
    if name not in SPACES:
        raise HacoreError(f"unknown space {name!r}: choose one of {', '.join(SPACES)}")
    return SPACES[name](curv, learnable)
