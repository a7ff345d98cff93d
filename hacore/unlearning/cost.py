"""What unlearning costs outside the loop, and the cost of several trainings together."""

import math
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hacore.train import Fit
from hacore.train.loop import elapsed, peak_memory

T = TypeVar("T")


class Work:
    """A stretch of computing that is not a training, measured like one: use it as a context.

    FLOPs are counted at the first call of :meth:`do` of each kind, which stands for all of its kind:
    counting slows computing down.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds, self.flops, self.images, self.steps = 0.0, 0.0, 0, 0
        self._per_image: dict[str, float] = {}

    def __enter__(self) -> "Work":
        self._began = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += elapsed(self._began, self.device)

    def do(self, kind: str, images: int, function: Callable[[], Any]) -> Any:
        """What ``function`` returns; it computes on ``images`` images, and counts as one step."""
        if kind in self._per_image:
            result = function()
        else:
            with FlopCounterMode(display=False) as counter:
                result = function()
            self._per_image[kind] = counter.get_total_flops() / images
        self.steps, self.images = self.steps + 1, self.images + images
        self.flops += self._per_image[kind] * images
        return result

    def fit(self) -> Fit:
        """The cost so far."""
        speed = self.images / self.seconds if self.seconds else math.inf
        return Fit(self.seconds, self.steps, self.flops, speed, peak_memory(self.device), False, [])


def timed(work: Callable[[], T], model: nn.Module) -> tuple[T, Fit]:
    """Do ``work`` once; what it returns, and its cost as a fit of no steps.

    The model says on which device the work is done.
    """
    cost = Work(next(model.parameters()).device)
    with cost:
        result = cost.do("work", 1, work)
    return result, replace(cost.fit(), steps=0, images_per_second=0.0)


def combined(*fits: Fit) -> Fit:
    """The cost of trainings done one after the other; their histories follow each other.

    Seconds, steps and FLOPs add up, the peak is the highest, the speed is that of all images in all seconds.
    """
    seconds = sum(fit.seconds for fit in fits)
    images = sum(fit.seconds * fit.images_per_second for fit in fits if fit.seconds)
    return Fit(
        seconds=seconds,
        steps=sum(fit.steps for fit in fits),
        flops=sum(fit.flops for fit in fits),
        images_per_second=images / seconds if seconds else math.inf,
        peak_memory_bytes=max(fit.peak_memory_bytes for fit in fits),
        stopped=any(fit.stopped for fit in fits),
        history=[entry for fit in fits for entry in fit.history],
    )
