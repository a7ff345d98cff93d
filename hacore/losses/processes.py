"""Rows of all processes of a distributed training, with and without a gradient; one process is its own world."""

from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, distributed

from hacore.errors import HacoreError


def world() -> tuple[int, int]:
    """The number of this process and how many there are; 0 and 1 where nothing is distributed."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def gather(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "all ..."]:
    """The rows of all processes, in the order of the processes, without a gradient.

    Every process must call it, with as many rows; the tensor itself comes back, detached, where there is
    one process. A host reads the shapes of the others, so that it waits for its accelerator here.

    Raises:
        HacoreError: in every process, if the shapes differ between processes.
    """
    if world()[1] == 1:
        return rows.detach()
    _check_shapes(rows)
    return _gathered(rows.detach())


def gather_with_gradient(rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "all ..."]:
    """As :func:`gather`, with the gradient that the losses of *all* processes have with respect to these rows.

    With L_r the loss of process r, rows receive the gradient of Σ_r L_r. Averaged over processes, as
    data-parallel training does, that is the gradient of the mean loss with respect to shared weights.
    """
    if world()[1] == 1:
        return rows
    _check_shapes(rows)
    gathered: Tensor = _Gather.apply(rows)
    return gathered


def mean_over_processes(counts: Shaped[Tensor, "n"]) -> Shaped[Tensor, "n"]:
    """The mean of numbers over all processes, without a gradient."""
    processes = world()[1]
    if processes == 1:
        return counts.detach()
    counts = counts.detach().clone()
    distributed.all_reduce(counts)
    return counts / processes


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = len(rows)
        return _gathered(rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(grad)
        return grad.split(ctx.rows)[world()[0]]


def _gathered(rows: Tensor) -> Tensor:
    rows = rows.contiguous()
    everyone = [torch.empty_like(rows) for _ in range(world()[1])]
    distributed.all_gather(everyone, rows)
    return torch.cat(everyone)


def _check_shapes(rows: Tensor) -> None:
    """Raise in every process if the shape is not the same in all: a collective would hang, or mix rows up."""
    mine = torch.tensor(rows.shape, device=rows.device)
    everyone = [torch.empty_like(mine) for _ in range(world()[1])]
    distributed.all_gather(everyone, mine)
    shapes = [tuple(shape.tolist()) for shape in everyone]
    if len(set(shapes)) > 1:
        raise HacoreError(
            f"the processes hold batches of different shapes, {', '.join(map(str, shapes))}: give every process "
            "as many images, by a batch size that is a multiple of the number of processes and no smaller last batch"
        )
