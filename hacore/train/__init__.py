"""The only optimisation loop: device, precision, processes, checkpoints, progress.

``fit`` trains any module on any batches with any loss; ``TrainConfig`` says how. ``save_model`` and
``load_model`` keep a finished model.
"""

from hacore.train.checkpoint import load_model, load_model_state, save_model
from hacore.train.config import (
    OPTIMIZERS,
    PRECISIONS,
    SCHEDULES,
    TrainConfig,
    device,
    fast_precision,
    lr_factor,
    optimizers,
    quiet,
    seed_everything,
)
from hacore.train.loop import EpochSource, Fit, fit

__all__ = [
    "OPTIMIZERS",
    "PRECISIONS",
    "SCHEDULES",
    "EpochSource",
    "Fit",
    "TrainConfig",
    "device",
    "fast_precision",
    "fit",
    "load_model",
    "load_model_state",
    "lr_factor",
    "optimizers",
    "quiet",
    "save_model",
    "seed_everything",
]
