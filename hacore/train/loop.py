"""The loop: ``fit`` trains a model, resumes a training that was killed, and stops one that diverges."""

import contextlib
import math
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    broadcast,
    broadcast_object_list,
    send_to_device,
)
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from hacore.errors import HacoreError
from hacore.train.checkpoint import Checkpoints, digest, layout
from hacore.train.config import TrainConfig, device, lr_factor, optimizers, quiet, seed_everything

# Looking at a number on a GPU makes the CPU wait for it; on the CPU every step is looked at.
LOOK_EVERY = 50
# fp16 scales the loss down while gradients overflow; below this they do so at any scale.
SMALLEST_SCALE = 1e-6
NEVER = 2**62

Loss = Callable[[Any, Any], Any]


@runtime_checkable
class EpochSource(Protocol):
    """What ``fit`` trains on: batches whose order depends on the epoch alone.

    A batch is a tensor or a (named) tuple of tensors and batches; the first tensor of each tuple
    counts its images. A source with an attribute ``divided`` that is true has batches for this process alone, as a
    stream has; any other one yields the same batches in every process, which are divided here.
    """

    def __len__(self) -> int:
        """Batches per epoch."""

    def epoch(self, epoch: int, skip: int = 0) -> Iterator[Any]:
        """The batches of one epoch from the ``skip``-th on."""


@dataclass(frozen=True)
class Fit:
    """What a training cost and how it went."""

    seconds: float  # of training and stopping rule; without start-up and checkpoints
    steps: int
    flops: float  # of matrix products and convolutions, forward and backward; without the stopping rule
    images_per_second: float  # images the loss saw, of all processes
    peak_memory_bytes: int  # allocated on the GPU; on the CPU the largest resident size of the process
    stopped: bool  # by the stopping rule
    history: list[dict[str, float]]  # per epoch: epoch, lr of its last step, means of the loss and its parts


@dataclass
class _State:
    """What a checkpoint keeps besides tensors."""

    step: int = 0  # steps done
    seconds: float = 0.0
    images: int = 0
    flops: float = 0.0
    flops_per_image: dict[str, float] = field(default_factory=dict)  # by kind of batch
    peak: int = 0
    stopped: bool = False
    complete: bool = False
    sums: dict[str, float] = field(default_factory=dict)  # of the loss and its parts in this epoch
    history: list[dict[str, float]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)  # of fp16


class _Step(nn.Module):
    """The loss as a module, so that autocast and gradient synchronisation cover all it calls on the model."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        result = self.loss(self.model, batch)
        total, parts = result if isinstance(result, tuple) else (result, {})
        if not isinstance(total, Tensor) or total.ndim or not total.requires_grad:
            raise HacoreError(
                "the loss must return a scalar tensor that depends on the model's parameters, or that and a "
                "dict of named parts; take the mean over the batch"
            )
        return total, {name: part.detach() for name, part in parts.items()}


class _Watch:
    """Remembers, on the device, the first step at which each watched number was not finite."""

    def __init__(self, parameters: dict[str, nn.Parameter], accelerator: Accelerator, method: str) -> None:
        self.parameters, self.accelerator, self.method = parameters, accelerator, method
        self.names: list[str] = []
        self.first: Tensor | None = None

    def note(self, step: int, losses: dict[str, Tensor]) -> None:
        """Take in the loss with its parts and, unless fp16 lets them overflow on purpose, the gradients."""
        values = list(losses.values())
        names = [f"the loss {name!r}" if name != "loss" else "the loss" for name in losses]
        if self.accelerator.scaler is None:
            zero = torch.zeros((), device=values[0].device)
            grads = [zero if p.grad is None else p.grad for p in self.parameters.values()]
            values += torch._foreach_norm(grads)
            names += [f"the gradient of {name!r}" for name in self.parameters]
        bad = ~torch.stack([value.detach().float() for value in values]).isfinite()
        if self.first is None or names != self.names:
            if self.first is not None:
                raise HacoreError("the loss must return the same named parts at every step")
            self.names, self.first = names, torch.full(bad.shape, NEVER, device=bad.device)
        self.first = torch.where(bad, self.first.clamp(max=step), self.first)

    def look(self, remedy: str) -> None:
        """Raise if anything watched was not finite, in any process."""
        if self.first is None:
            return
        first = self.accelerator.gather(self.first[None]).amin(dim=0).tolist()
        step = min(first)
        if step < NEVER:
            raise _diverged(step, self.method, self.names[first.index(step)], remedy)
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.get_scale() < SMALLEST_SCALE:
            raise HacoreError(
                f"the fp16 gradients of {self.method} overflow at any scale; use bf16; {remedy}"
            )


def _diverged(step: int, method: str, what: str, remedy: str) -> HacoreError:
    return HacoreError(f"step {step} of {method}: {what} is not finite; {remedy}")


def fit(
    model: nn.Module,
    batches: EpochSource,
    loss: Loss,
    config: TrainConfig,
    *,
    method: str = "train",
    checkpoint: Path | None = None,
    stop: Callable[[Any, int], bool] | None = None,
    progress: bool | None = None,
) -> Fit:
    """Train ``model`` in place; it ends on :func:`hacore.train.device` and in evaluation mode.

    The global random generators are seeded from (``config.seed``, step) before each step, so that
    dropout and the like do not depend on what happened before: a training that was killed at any
    moment, and is started again the same way with its ``checkpoint`` folder, ends on the CPU with
    bit-identical weights.

    With several processes (``accelerate launch``) each takes every k-th image of each batch and the
    gradients are averaged by share: a loss that is a mean over images has the gradient of the whole
    batch; the contrastive losses of ``hacore.losses`` compare with the images of all processes, which
    then need equally many. Batch normalisation sees the part of its process only. A batch of fewer
    images than processes is computed by all of them. The first process writes.

    A loss, part of it or gradient that is not finite stops training: on the CPU before the step
    changes a weight, on a GPU, which is not made to wait for each step, within 50 steps and always
    before a checkpoint is written.

    Args:
        model: any module.
        batches: an :class:`EpochSource`, such as ``hacore.data.Batches``.
        loss: of (model, batch): a scalar, or a scalar and a dict of its named parts (scalars, for
            the history and for messages).
        config: the settings.
        method: what this training is called in messages and on the progress bar.
        checkpoint: folder for checkpoints of this training alone; None keeps none. One that is
            complete is read back without a step.
        stop: of (model, steps done), asked after every step in training mode; True ends training.
        progress: show a bar with the time left on stderr; None asks :func:`hacore.train.quiet`.

    Returns:
        Cost and history. Seconds and steps of a resumed training include those before.

    Raises:
        HacoreError: if training diverges (the message names step, method and tensor, the last
            checkpoint stays), if the checkpoint is damaged or of another run, if it cannot be
            written, or if an argument does not fit.
    """
    per_epoch = len(batches)
    if per_epoch < 1:
        raise HacoreError(f"{method} has no batches to train on; check the split")
    total = config.epochs * per_epoch
    accelerator = _accelerator(config)
    here = accelerator.device
    model.to(here)
    made = optimizers(model, config)
    seed_everything(config.seed)
    state, store = _State(), None
    if checkpoint is not None:
        store = Checkpoints(checkpoint, _fingerprint(model, batches, config, method))
        found = store.restore(model, made)
        state = state if found is None else _State(**{name: found[name] for name in asdict(state)})
    if state.complete:
        model.eval()
        return _result(state)
    if accelerator.scaler is not None and state.scaler:
        accelerator.scaler.load_state_dict(state.scaler)
    step_module, *prepared = accelerator.prepare(_Step(model, loss), *made)
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    watch = _Watch(named, accelerator, method)
    remedy = "lower the learning rate, or set clip_norm" + (
        f"; the last good checkpoint, if any, is kept in {checkpoint}" if checkpoint else ""
    )
    _train_mode(model, config)
    if here.type == "cuda":
        torch.cuda.reset_peak_memory_stats(here)
    wide = torch.float32 if here.type == "mps" else torch.float64
    sums = {name: torch.tensor(number, dtype=wide, device=here) for name, number in state.sums.items()}
    bar = tqdm(
        total=total,
        initial=state.step,
        desc=method,
        unit="step",
        file=sys.stderr,
        disable=(quiet() if progress is None else not progress) or not accelerator.is_main_process,
    )
    began = time.perf_counter()
    with bar:
        for batch in _rest(batches, state.step, config.epochs, method):
            factor = lr_factor(config, state.step, total)
            for optimizer in prepared:
                optimizer.zero_grad()
                for group in optimizer.param_groups:
                    group["lr"] = factor * group["base_lr"]
            seed_everything(_step_seed(config.seed, state.step, accelerator.process_index))
            part, share, count = _part(send_to_device(batch, here), batches, accelerator)
            # Counting slows a step down, so the first one of its kind stands for all.
            kind = type(batch).__name__
            counter = None if kind in state.flops_per_image else FlopCounterMode(display=False)
            with counter or contextlib.nullcontext():
                value, parts = step_module(part)
                accelerator.backward(value if share == 1 else value * share)
            if counter:
                state.flops_per_image[kind] = counter.get_total_flops() / max(_images(part), 1)
            state.images += count
            state.flops += state.flops_per_image[kind] * count

            state.step += 1
            ends = state.step % per_epoch == 0
            saves = state.step % (config.checkpoint_every or per_epoch) == 0
            losses = {**parts, "loss": value.detach()}
            watch.note(state.step, losses)
            if ends or saves or here.type == "cpu" or state.step % LOOK_EVERY == 0:
                watch.look(remedy)
            if config.clip_norm is not None:
                accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            for optimizer in prepared:
                optimizer.step()
            for name, number in losses.items():
                sums[name] = number.to(wide) + sums.get(name, 0.0)
            bar.update()

            if stop is not None:
                state.stopped = _agreed(stop(model, state.step), accelerator)
                _train_mode(model, config)
            state.complete = state.stopped or state.step == total
            if not (ends or saves or state.complete):
                continue
            watch.look(remedy)
            state.sums = {name: accelerator.reduce(number, "mean").item() for name, number in sums.items()}
            if ends or state.complete:
                epoch = (state.step - 1) // per_epoch
                means = {name: n / (state.step - epoch * per_epoch) for name, n in state.sums.items()}
                rate = prepared[0].param_groups[0]["lr"]
                state.history.append({"epoch": float(epoch + 1), "lr": rate, **means})
                state.sums, sums = {}, {}
                bar.set_postfix(loss=f"{means['loss']:.3g}", refresh=False)
            if state.complete or (store and saves):
                state.seconds += elapsed(began, here)
                state.peak = max(state.peak, peak_memory(here))
                _check_weights(model, state.step, method, remedy)
                if accelerator.scaler is not None:
                    state.scaler = accelerator.scaler.state_dict()
                if store and accelerator.is_main_process:
                    store.save(state.step, model, made, asdict(state))
                began = time.perf_counter()
            if state.complete:
                break
    model.eval()
    return _result(state)


def _rest(batches: EpochSource, start: int, epochs: int, method: str) -> Iterator[Any]:
    """The batches of all epochs from step ``start`` on."""
    per_epoch = len(batches)
    first, skip = divmod(start, per_epoch)
    for epoch in range(first, epochs):
        count = skip
        for batch in batches.epoch(epoch, skip):
            count += 1
            if count > per_epoch:
                break
            yield batch
        if count != per_epoch:
            raise HacoreError(
                f"epoch {epoch} of {method} does not have the {per_epoch} batches that len() promised; "
                "make epoch() and len() agree"
            )
        skip = 0


def _result(state: _State) -> Fit:
    speed = state.images / state.seconds if state.seconds else math.inf
    return Fit(state.seconds, state.step, state.flops, speed, state.peak, state.stopped, state.history)


def _accelerator(config: TrainConfig) -> Accelerator:
    """A new accelerator for the device asked for, whatever an earlier one in this process had."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    cpu = device().type == "cpu"
    if config.precision == "fp16" and cpu:
        raise HacoreError("precision fp16 needs a GPU; use bf16 or no on the CPU")
    # A loss may leave parameters out, as one on embeddings leaves out the head.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(cpu=cpu, mixed_precision=config.precision, kwargs_handlers=[unused])


def _fingerprint(model: nn.Module, batches: EpochSource, config: TrainConfig, method: str) -> dict[str, Any]:
    """What makes two trainings the same; the first batch stands for the data and their order.

    Where each process has batches of its own, that of the first one.
    """
    settings = asdict(config)
    del settings["checkpoint_every"]  # changes nothing but how much a kill costs
    weights = model.state_dict()
    first = [[_summary(tensor) for tensor in _tensors(next(iter(batches.epoch(0, 0))))]]
    return {
        "method": method,
        "config": settings,
        "batches per epoch": len(batches),
        "model": layout(weights),
        "initial weights": digest(weights),
        "first batch": broadcast_object_list(first)[0] if getattr(batches, "divided", False) else first[0],
    }


def _summary(tensor: Tensor) -> float:
    """One number that depends on every entry and its place."""
    values = tensor.detach().cpu().double().flatten()
    return (values * torch.linspace(1, 2, len(values), dtype=torch.float64)).sum().item()


def _tensors(batch: Any) -> list[Tensor]:
    return [batch] if isinstance(batch, Tensor) else [tensor for part in batch for tensor in _tensors(part)]


def _images(batch: Any) -> int:
    if isinstance(batch, Tensor):
        return len(batch)
    return len(batch[0]) if isinstance(batch[0], Tensor) else sum(map(_images, batch))


def _part(batch: Any, batches: EpochSource, accelerator: Accelerator) -> tuple[Any, float, int]:
    """This process's part of a batch, its weight in the mean over processes, and the images of all parts."""
    processes, index = accelerator.num_processes, accelerator.process_index
    whole = _images(batch)
    if getattr(batches, "divided", False):
        return batch, 1.0, whole * processes
    if processes == 1 or min(len(tensor) for tensor in _tensors(batch)) < processes:
        return batch, 1.0, whole

    def cut(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[index::processes]
        parts = [cut(part) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)

    part = cut(batch)
    return part, _images(part) * processes / whole, whole


def _agreed(answer: bool, accelerator: Accelerator) -> bool:
    """The first process's answer: processes that disagree by rounding would wait for each other forever."""
    if accelerator.num_processes == 1:
        return bool(answer)
    return bool(broadcast(torch.tensor(int(answer), device=accelerator.device)).item())


def _train_mode(model: nn.Module, config: TrainConfig) -> None:
    model.train()
    if config.freeze_norm:
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.eval()


def _step_seed(seed: int, step: int, process: int) -> int:
    return zlib.crc32(f"{seed}/{step}/{process}".encode())


def _check_weights(model: nn.Module, step: int, method: str, remedy: str) -> None:
    """Finite gradients can still overflow a weight; no such model is kept."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise _diverged(step, method, f"the tensor {name!r}", remedy)


def elapsed(began: float, here: torch.device) -> float:
    """Seconds since ``began`` (of ``time.perf_counter``), once the device has done what it was given."""
    if here.type == "cuda":
        torch.cuda.synchronize(here)
    return time.perf_counter() - began


def peak_memory(here: torch.device) -> int:
    """Bytes: the most that was allocated on a GPU, on the CPU the largest resident size of the process."""
    if here.type == "cuda":
        return torch.cuda.max_memory_allocated(here)
    import resource  # not on Windows

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024
