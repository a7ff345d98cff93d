"""Speed against peers measured in the same run: ``python -m bench`` prints ratios, not verdicts.

Each row times one forward and backward pass over 256 forget x 256 retain embeddings, float32, of 128
dimensions and of the 512 that ResNet-18 has, and divides by the time of a cosine-similarity matrix of that
size. Variants take turns, so that a busy machine slows them all; the median of the rounds counts, and the
fastest stands beside it, as a machine that is shared interrupts a long variant more often than a short one.
"""

import statistics
import sys
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import normalize

from bench import steps
from hacore.geometry import SPACES, Space, space
from hacore.losses import contrastive_unlearning
from hacore.train import device

N, DIMS, ROUNDS, TEMPERATURE = 256, (128, 512), 15, 0.5
Data = tuple[Tensor, Tensor, Tensor, Tensor]


def cosine_matrix(z_forget: Tensor, y_forget: Tensor, z_retain: Tensor, y_retain: Tensor) -> Tensor:
    """The yardstick: what any contrastive loss must compute at least."""
    return normalize(z_forget, dim=1) @ normalize(z_retain, dim=1).T


def ours(manifold: Space, *data: Tensor) -> Tensor:
    """The library's loss."""
    return contrastive_unlearning(*data, manifold, TEMPERATURE)


def anchor_loop(
    manifold: Space, z_forget: Tensor, y_forget: Tensor, z_retain: Tensor, y_retain: Tensor
) -> Tensor:
    """Eq. 5 one anchor at a time, as the predecessors' code does it."""
    total = z_forget.new_zeros(())
    for z, y in zip(z_forget, y_forget, strict=True):
        similarity = -manifold.dist(z, z_retain) / TEMPERATURE
        positive = y_retain == y
        total = total + similarity[positive].logsumexp(0) - similarity[~positive].mean()
    return total / len(z_forget)


def geoopt_broadcast(
    ball: object, z_forget: Tensor, y_forget: Tensor, z_retain: Tensor, y_retain: Tensor
) -> Tensor:
    """All pairs by geoopt's broadcast distance on the Poincare ball: (n, m, d) intermediates."""
    return ball.dist(z_forget[:, None], z_retain[None])  # type: ignore[attr-defined]


def textbook(
    manifold: Space, z_forget: Tensor, y_forget: Tensor, z_retain: Tensor, y_retain: Tensor
) -> Tensor:
    """All pairs by acosh of the clamped Lorentz product, MERU's form."""
    times = [(1 + z.square().sum(1)).sqrt() for z in (z_forget, z_retain)]
    return (torch.outer(*times) - z_forget @ z_retain.T).clamp(min=1 + 1e-6).acosh()


def sample(manifold: Space, dim: int, where: torch.device) -> Data:
    """Points of radius about 2 with labels of ten classes."""
    generator = torch.Generator().manual_seed(0)
    points = [manifold.random(N, dim, generator=generator).to(where).requires_grad_() for _ in range(2)]
    labels = [torch.randint(10, (N,), generator=generator).to(where) for _ in range(2)]
    return points[0], labels[0], points[1], labels[1]


def milliseconds(function: Callable[..., Tensor], data: Data) -> float:
    """One forward and backward pass; waits for the accelerator."""
    start = time.perf_counter()
    out = function(*data)
    # A gradient for every entry, as a loss would send; that of sum() is one number with strides of 0.
    torch.autograd.grad(out, (data[0], data[2]), torch.ones_like(out))
    if data[0].is_cuda:
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def table(dim: int, where: torch.device) -> None:
    """Time all variants on embeddings of ``dim`` dimensions and print the table."""
    import geoopt

    spaces = {name: space(name).to(where) for name in SPACES}
    data = {name: sample(manifold, dim, where) for name, manifold in spaces.items()}
    variants: dict[str, tuple[Callable[..., Tensor], Data]] = {
        "cosine matrix": (cosine_matrix, data["euclidean"]),
        **{f"loss, {name}": (partial(ours, spaces[name]), data[name]) for name in spaces},
        "textbook acosh matrix": (partial(textbook, spaces["lorentz"]), data["lorentz"]),
        "geoopt broadcast": (partial(geoopt_broadcast, geoopt.PoincareBall().to(where)), data["poincare"]),
        "anchor loop, poincare": (partial(anchor_loop, spaces["poincare"]), data["poincare"]),
    }
    for function, inputs in variants.values():
        milliseconds(function, inputs)
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(ROUNDS):
        for name, (function, inputs) in variants.items():
            # Once unmeasured: what the variant before left in the caches is not this one's cost.
            milliseconds(function, inputs)
            times[name].append(milliseconds(function, inputs))
    print(
        f"forward + backward, {N} x {N} pairs, {dim} dimensions, {where}, {torch.get_num_threads()} thread(s)"
    )
    print(f"{'':24} {'ms':>9} {'ratio':>8} {'fastest':>9} {'ratio':>8}")
    for name, taken in times.items():
        row = ""
        for summary in (statistics.median, min):
            row += f" {summary(taken):9.3f} {summary(taken) / summary(times['cosine matrix']):8.2f}"
        print(f"{name:24}{row}")


def main() -> int:
    """Print a table for each number of dimensions, and one of steps of models of images and texts."""
    for dim in DIMS:
        table(dim, device())
        print()
    steps.table(device())
    return 0


if __name__ == "__main__":
    sys.exit(main())
