"""L-CODEC: a Newton step that removes images, on the few filters their loss depends on."""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from hacore.data import as_float
from hacore.data.dataset import generator
from hacore.encoders import Conv
from hacore.errors import HacoreError
from hacore.models import Classifier
from hacore.unlearning.base import Method, Outcome, Range, Request
from hacore.unlearning.cost import Work

CHUNK = 2**24  # distances held at a time


def codec(
    y: Float[Tensor, " n"], z: Float[Tensor, "n p"], x: Float[Tensor, "n q"] | None = None
) -> Float[Tensor, " p"]:
    r"""How much y depends on each column of z, given x: 0 in the limit if not at all, 1 if y is a function.

    With :math:`R_i = \#\{j : y_j \leq y_i\}`, :math:`L_i = \#\{j : y_j \geq y_i\}`, and the nearest
    neighbours :math:`N(i)` of :math:`x_i` and :math:`M(i)` of :math:`(x_i, z_i)`,

    .. math:: T_n(Y, Z | X) = \frac{\sum_i \min(R_i, R_{M(i)}) - \min(R_i, R_{N(i)})}
              {\sum_i R_i - \min(R_i, R_{N(i)})}, \quad
              T_n(Y, Z) = \frac{\sum_i n \min(R_i, R_{M(i)}) - L_i^2}{\sum_i L_i (n - L_i)}.

    Source: :cite:t:`azadkia2021`. Of equally near neighbours the first counts; they draw
    one. Columns should have one scale, since neighbours are taken over all of x and z. Where y is
    constant, or a function of x already, nothing is left to explain and the value is 0.

    Raises:
        HacoreError: if there are fewer than two observations.
    """
    n = len(y)
    if n < 2:
        raise HacoreError("the conditional dependence coefficient needs two observations; give more images")
    rank = torch.searchsorted(y.sort().values, y, side="right").to(torch.float64)
    base = torch.zeros(n, n, dtype=torch.float64, device=y.device)
    if x is not None:
        # Differences of columns: a product would lose small distances to rounding.
        for column in x.double().unbind(1):
            base += (column[:, None] - column).square()
    base.fill_diagonal_(math.inf)
    columns = z.double().T.split(max(1, CHUNK // n**2))
    nearest = torch.cat([(base + (c[:, :, None] - c[:, None]).square()).argmin(2) for c in columns])
    least = torch.minimum(rank, rank[nearest])  # (p, n)
    if x is None:
        up = n - torch.searchsorted(y.sort().values, y, side="left").to(torch.float64)
        above, below = n * least - up.square(), (up * (n - up)).sum()
    else:
        alone = torch.minimum(rank, rank[base.argmin(1)])
        above, below = least - alone, (rank - alone).sum()
    return torch.where(below > 0, above.sum(1) / below, 0.0)


def foci(y: Float[Tensor, " n"], z: Float[Tensor, "n p"], limit: int) -> list[int]:
    """The columns of z that y depends on, best first, at most ``limit``: FOCI of :cite:t:`azadkia2021`.

    The first is the one with the largest :func:`codec`; the next always the one with the largest given
    those chosen, until none is positive. Columns are scaled to unit deviation. As in the code of
    L-CODEC the first is taken even if its value is not positive.
    """
    z = z.double()
    z = (z - z.mean(0)) / z.std(0).clamp(min=1e-12)
    chosen: list[int] = []
    while len(chosen) < min(limit, z.shape[1]):
        scores = codec(y, z, z[:, chosen] if chosen else None)
        scores[chosen] = -math.inf
        best = int(scores.argmax())
        if chosen and scores[best] <= 0:
            break
        chosen.append(best)
    return chosen


def conjugate_gradients(
    product: Callable[[Float[Tensor, " d"]], Float[Tensor, " d"]],
    target: Float[Tensor, " d"],
    damping: float,
    iterations: int,
) -> Float[Tensor, " d"]:
    r"""Solve :math:`(H + \lambda I) s = g` by conjugate gradients, given products with :math:`H`.

    The Hessian of a network need not be positive definite: as usual for truncated Newton methods, the
    search ends at the first direction of negative curvature, with :math:`g / \lambda`, where the
    curvature is ignored, if that is the very first.
    """
    solution, residual = torch.zeros_like(target), target.clone()
    direction, size = residual, residual @ residual
    goal = 1e-12 * size
    for iteration in range(iterations):
        if size <= goal:
            break
        image = product(direction) + damping * direction
        curvature = direction @ image
        if curvature <= 0:
            return target / damping if iteration == 0 else solution
        length = size / curvature
        solution = solution + length * direction
        residual = residual - length * image
        size, before = residual @ residual, size
        direction = residual + (size / before) * direction
    return solution


class Block:
    """A layer as rows of parameters, one for each output unit: filters, neurons, classes of the head."""

    def __init__(self, layer: nn.Module, units: int) -> None:
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
        self.layer, self.units = layer, units
        self.weights = [p for p in own if p.ndim and len(p) == units]


def blocks(model: Classifier) -> list[Block]:
    """The convolutions and linear layers of the encoder, and the head."""
    layers = [m for m in model.encoder.modules() if isinstance(m, Conv | nn.Conv2d | nn.Linear)]
    return [*(Block(m, len(m.weight)) for m in layers), Block(model.head, model.classes)]


@contextmanager
def activations(layers: list[Block]) -> Iterator[list[Tensor]]:
    """Within this context, a forward pass leaves each layer's outputs (n, units) here, averaged over pixels."""
    seen = [torch.empty(0)] * len(layers)

    def noting(place: int) -> Callable[[nn.Module, object, Tensor], None]:
        # By place: the layers need not be called in the order they are defined in.
        def note(_layer: nn.Module, _inputs: object, out: Tensor) -> None:
            seen[place] = out.detach().flatten(2).mean(2) if out.ndim > 2 else out.detach()

        return note

    hooks = [block.layer.register_forward_hook(noting(place)) for place, block in enumerate(layers)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


class Selection:
    """Some rows of parameters as one vector."""

    def __init__(self, layers: list[Block], units: list[int]) -> None:
        chosen = torch.zeros(sum(block.units for block in layers), dtype=torch.bool)
        chosen[units] = True
        parts = zip(layers, chosen.split([block.units for block in layers]), strict=True)
        rows = [(block, part.nonzero().squeeze(1)) for block, part in parts if part.any()]
        self.weights = [weight for block, _ in rows for weight in block.weights]
        self.rows = [row.to(weight.device) for block, row in rows for weight in block.weights]

    def vector(self, tensors: tuple[Tensor, ...] | list[Tensor]) -> Float[Tensor, " d"]:
        """These rows of tensors shaped like ``weights``."""
        return torch.cat([t[row].flatten() for t, row in zip(tensors, self.rows, strict=True)])

    def spread(self, vector: Float[Tensor, " d"]) -> list[Tensor]:
        """Tensors shaped like ``weights`` that hold the vector in these rows and 0 elsewhere."""
        shapes = [(len(row), *weight.shape[1:]) for weight, row in zip(self.weights, self.rows, strict=True)]
        out = [torch.zeros_like(weight) for weight in self.weights]
        pieces = vector.split([math.prod(shape) for shape in shapes])
        for tensor, row, piece, shape in zip(out, self.rows, pieces, shapes, strict=True):
            tensor[row] = piece.view(shape)
        return out


def removal(
    model: nn.Module,
    chosen: Selection,
    forget: tuple[Tensor, Tensor],
    retain: tuple[Tensor, Tensor],
    left: int,
    damping: float,
    iterations: int,
    work: Work,
) -> Float[Tensor, " d"]:
    r"""The damped Newton step that removes ``forget``, with ``left`` images left after it.

    .. math:: \Delta w = \frac{1}{n - m} (H + \lambda I)^{-1} \sum_{i = 1}^m \nabla \ell_i(w)

    At a minimum of the mean loss over all :math:`n` images this is one Newton step on the loss of the other
    :math:`n - m`, since the two sums of gradients cancel; for :math:`m = 1` it is the update of
    :cite:t:`mehta2022lcodec`. :math:`H`, of the mean loss over ``retain`` (images in [0, 1], labels), which
    stand for all that are left, and the gradients are restricted to the ``chosen`` weights.
    """

    def slope(images: Tensor, labels: Tensor, graph: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(cross_entropy(model(images), labels), chosen.weights, create_graph=graph)

    m, r = len(forget[1]), len(retain[1])
    target = chosen.vector(work.do("gradient", m, lambda: slope(*forget, graph=False)))
    gradient = work.do("gradient", r, lambda: slope(*retain, graph=True))

    def product(vector: Tensor) -> Tensor:
        along = chosen.spread(vector)
        return chosen.vector(
            work.do(
                "curvature", r,
                lambda: torch.autograd.grad(gradient, chosen.weights, along, retain_graph=True),
            )
        )  # fmt: skip

    return m / left * conjugate_gradients(product, target, damping, iterations)


@dataclass(frozen=True, kw_only=True)
class Lcodec(Method):
    r"""Find the filters that the loss of forget images depends on, and remove the images from these.

    For each forget batch: perturb the images with Gaussian noise, choose the filters whose mean activation
    explains the loss (:func:`foci` with the conditional dependence coefficient), take a damped
    Newton step on their weights (:func:`removal`). With ``epsilon``, noise of deviation

    .. math:: \sigma = \frac{2 M L^2 m^2}{n^2 \lambda^3 \epsilon} \sqrt{2 \ln (1.25 / \delta)},
              \quad M = 0.25, \; L = 1

    follows, as :cite:t:`sekhari2021` ask for. It certifies nothing for a network, whose loss is not strongly
    convex, and for :math:`\lambda = 0.01` it drowns the weights: it is off unless asked for.

    Source: :cite:t:`mehta2022lcodec` and its code. They go through the forget images one by one, each with
    many perturbations; we take ``batch_size`` at once, as their code can, but do not average them: an
    image with its own perturbation is one observation of activations and loss. They take
    the Hessian from differences of gradients that the training kept; we have products with the exact one, on
    ``images`` retain images, in :func:`conjugate_gradients`. Steps are taken with all of
    batch normalisation frozen, which has no filter of its own to choose.
    """

    name = "lcodec"

    damping: float = 0.01  # lambda
    batch_size: int = 512  # forget images a step
    observations: int = 256  # perturbed images a selection
    noise: float = 0.1  # deviation of the perturbation, in pixels of [0, 1]
    blocks: int = 20  # filters a step, at most
    images: int = 128  # retain images for the Hessian
    iterations: int = 10  # of conjugate gradients
    epsilon: float | None = None  # of the privacy noise; None adds none
    delta: float = 0.01

    search: ClassVar[dict[str, Range]] = {"damping": Range(1e-3, 1.0), "noise": Range(0.01, 0.3)}

    def answer(self, request: Request) -> Outcome:
        if min(self.damping, self.batch_size, self.images, self.blocks) <= 0 or self.observations < 2:
            raise HacoreError("lcodec needs positive settings and two observations or more; change them")
        data, split, seed = request.dataset, request.split, request.training.loop.seed
        model = copy.deepcopy(request.model).eval()
        layers = blocks(model)

        def some(index: Int64[Tensor, "k"]) -> tuple[Tensor, Tensor]:
            return as_float(data.train_images[index]), split.labels[index]

        def shuffled(index: Int64[Tensor, "k"], *key: int | str) -> Int64[Tensor, "k"]:
            return index[
                torch.randperm(len(index), generator=generator(seed, "lcodec", *key)).to(index.device)
            ]

        left = len(split.retain) + len(split.forget)
        with Work(split.labels.device) as work:
            for step, part in enumerate(shuffled(split.forget, "forget").split(self.batch_size)):
                forget, stream = some(part), generator(seed, "lcodec", "noise", step)
                left -= len(part)
                chosen = Selection(layers, self.select(model, layers, *forget, stream, work))
                retain = some(shuffled(split.retain, "retain", step)[: self.images])
                change = removal(
                    model, chosen, forget, retain, left, self.damping, self.iterations, work
                )  # fmt: skip
                change += self.deviation(len(part), left) * torch.randn(len(change), generator=stream).to(
                    change
                )
                for weight, piece in zip(chosen.weights, chosen.spread(change), strict=True):
                    weight.data += piece
        return Outcome(model, work.fit())

    @torch.no_grad()
    def select(
        self,
        model: Classifier,
        layers: list[Block],
        images: Float[Tensor, "m c h w"],
        labels: Int64[Tensor, "m"],
        stream: torch.Generator,
        work: Work,
    ) -> list[int]:
        """The units, counted through all layers, that the loss of perturbed images depends on."""
        index = torch.arange(self.observations, device=labels.device) % len(labels)
        shape = (self.observations, *images.shape[1:])
        perturbed = images[index] + self.noise * torch.randn(shape, generator=stream).to(images)
        with activations(layers) as seen:
            logits = work.do("forward", self.observations, lambda: model(perturbed))
        return foci(cross_entropy(logits, labels[index], reduction="none"), torch.cat(seen, 1), self.blocks)

    def deviation(self, m: int, left: int) -> float:
        """Standard deviation of the privacy noise for ``m`` removed images."""
        if self.epsilon is None:
            return 0.0
        gamma = 2 * 0.25 * m**2 / ((left + m) ** 2 * self.damping**3)
        return gamma / self.epsilon * math.sqrt(2 * math.log(1.25 / self.delta))
