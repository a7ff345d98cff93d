"""How to train: settings, learning-rate schedules, optimisers, seeds and the device."""

import math
import os
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from hacore.encoders import Conv
from hacore.errors import HacoreError

# Muon takes the matrices of hacore.encoders.Conv, and SGD or AdamW the rest.
OPTIMIZERS = ("sgd", "adamw", "muon", "muon-adamw")
SCHEDULES = ("cosine", "one-cycle", "linear", "constant")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training; vary one with :func:`dataclasses.replace`.

    Raises:
        HacoreError: if a name is unknown or a number is out of range.
    """

    epochs: int = 10
    lr: float = 0.1  # the schedule's highest
    optimizer: str = "sgd"  # or another of OPTIMIZERS
    momentum: float = 0.9  # of SGD; beta_1 of AdamW
    nesterov: bool = True
    weight_decay: float = 0.0  # of weights; biases, normalisations and curvatures have none
    muon_lr: float = 0.24  # the schedule's highest for Muon; spectral norm of one update
    muon_momentum: float = 0.6
    schedule: str = "cosine"
    warmup: float = 0.0  # share of all steps during which the rate rises from 0; one-cycle has its own 0.3
    clip_norm: float | None = None  # largest norm of the whole gradient
    freeze_norm: bool = False  # batch normalisation keeps the statistics it has
    precision: str = "no"  # autocast: "bf16", "fp16" (GPU only); parameters stay float32
    seed: int = 0
    checkpoint_every: int = 0  # steps; 0: at the end of each epoch

    def __post_init__(self) -> None:
        for kind, name, names in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("schedule", self.schedule, SCHEDULES),
            ("precision", self.precision, PRECISIONS),
        ):
            if name not in names:
                raise HacoreError(f"there is no {kind} {name!r}; choose one of {', '.join(names)}")
        for field, fits, range_ in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("lr", 0 < self.lr < math.inf, "positive and finite"),
            ("muon_lr", 0 < self.muon_lr < math.inf, "positive and finite"),
            ("momentum", 0 <= self.momentum < 1, "in [0, 1)"),
            ("muon_momentum", 0 <= self.muon_momentum < 1, "in [0, 1)"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "positive, or None"),
            ("seed", 0 <= self.seed < 2**32, "in [0, 2**32)"),
            ("checkpoint_every", self.checkpoint_every >= 0, "0 or more"),
        ):
            if not fits:
                raise HacoreError(f"{field} is {getattr(self, field)}; it must be {range_}")
        if self.optimizer.startswith("muon") and self.precision == "fp16":
            # accelerate would adapt the loss scale between the two optimisers of one step.
            raise HacoreError("muon does not train in fp16; use precision bf16")
        if self.schedule == "one-cycle" and self.warmup:
            raise HacoreError("one-cycle has its own warm-up; leave warmup at 0 or choose another schedule")


def lr_factor(config: TrainConfig, step: int, total: int) -> float:
    r"""The share of the highest learning rate that step ``step`` of ``total`` uses.

    With :math:`t` the share of the steps after warm-up that is done: ``"cosine"``
    :math:`(1 + \cos \pi t) / 2`, ``"linear"`` :math:`1 - t`, ``"constant"`` 1. ``"one-cycle"`` (Smith &
    Topin, 2018) rises by a cosine from 1/25 during 30 % of the steps and falls by one to 1/250,000;
    the momentum stays. A pure function, so that a resumed run needs no state of a scheduler.
    """
    if config.schedule == "one-cycle":
        peak, last = 0.3 * total - 1, total - 1
        if step <= peak:
            return _cosine(1 / 25, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, 1 / 250_000, (step - max(peak, 0)) / max(last - max(peak, 0), 1))
    warm = round(config.warmup * total)
    if step < warm:
        return (step + 1) / warm
    done = (step - warm) / (total - warm)
    return {"cosine": _cosine(1.0, 0.0, done), "linear": 1 - done, "constant": 1.0}[config.schedule]


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


class _RenormalisedMuon(torch.optim.Muon):
    r"""Muon that first brings every matrix back to Frobenius norm :math:`\sqrt{rows}`, as airbench does.

    Batch normalisation after the convolution undoes the scale, so only the relative size of the
    updates changes: without this the weights grow and the learning rate fades.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(len(weight) ** 0.5 / weight.norm().clamp(min=1e-12))
        return super().step(closure)


def optimizers(model: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """The optimisers of all trainable parameters, each parameter in exactly one.

    Every group carries ``base_lr``, which the loop multiplies with :func:`lr_factor`.

    Raises:
        HacoreError: if nothing is trainable, or Muon finds no matrix of an ``encoders.Conv``.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    if not trainable:
        raise HacoreError("the model has no trainable parameter; unfreeze some with requires_grad_()")
    made: list[Optimizer] = []
    if config.optimizer.startswith("muon"):
        matrices = [m.weight for m in model.modules() if isinstance(m, Conv) and m.weight.requires_grad]
        if not matrices:
            raise HacoreError(
                "muon found no trainable hacore.encoders.Conv in this model; use sgd or adamw, "
                "or an encoder made of them, such as resnet9"
            )
        made.append(
            _RenormalisedMuon(matrices, lr=config.muon_lr, weight_decay=0.0, momentum=config.muon_momentum)
        )
        taken = {id(p) for p in matrices}
        trainable = [p for p in trainable if id(p) not in taken]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if groups and config.optimizer.endswith("adamw"):
        made.append(torch.optim.AdamW(groups, lr=config.lr, betas=(config.momentum, 0.999)))
    elif groups:
        nesterov = config.nesterov and config.momentum > 0
        made.append(torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=nesterov))
    for optimizer in made:
        for group in optimizer.param_groups:
            group["base_lr"] = group["lr"]
    return made


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch, on every device.

    Raises:
        HacoreError: if the seed is not in [0, 2**32), all that numpy takes.
    """
    if not 0 <= seed < 2**32:
        raise HacoreError(f"a seed is a number in [0, 2**32), not {seed}")
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  the global generator is the one libraries draw from unasked
    # torch.manual_seed does the same for every backend it knows, at ten times the cost on a CPU.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


def device() -> torch.device:
    """The device to compute on: the environment variable ``HACORE_DEVICE``, or the best there is.

    ``auto`` (the default) takes CUDA, else Apple's MPS, else the CPU.

    Raises:
        HacoreError: if the variable names an unknown device, or one that this machine lacks.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    asked = os.environ.get("HACORE_DEVICE", "auto").lower() or "auto"
    if asked == "auto":
        asked = next(name for name, available in there.items() if available)
    if asked not in there:
        raise HacoreError(f"HACORE_DEVICE is {asked!r}; set it to auto, {', '.join(there)}")
    if not there[asked]:
        raise HacoreError(
            f"HACORE_DEVICE is {asked!r}, which this machine or this torch lacks; set it to auto"
        )
    return torch.device(asked)


def fast_precision() -> str:
    """ "bf16" where :func:`device` computes it natively (CUDA from Ampere on, a CPU with AMX), else "no"."""
    kind = device().type
    if kind == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if kind == "cpu" and torch.cpu._is_amx_tile_supported() else "no"


def quiet() -> bool:
    """Whether to keep progress bars away: under CI, and where stderr is no terminal, as in a notebook."""
    return bool(os.environ.get("CI")) or not sys.stderr.isatty()
