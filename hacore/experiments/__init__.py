"""Experiments: a :class:`Run` says what is done, :func:`run` does it and returns its record.

The only place that puts data, model, method and evaluation together.
"""

from hacore.experiments.cost import GPU, paper_commands, paper_cost
from hacore.experiments.perform import (
    Prepared,
    build,
    checkpoint,
    concept_split,
    grid,
    prepare,
    run,
    run_grid,
    training_flops,
)
from hacore.experiments.provenance import CODE, COMMIT, environment
from hacore.experiments.settings import (
    CONCEPTS,
    IMAGE_TEXT,
    PROFILES,
    RECIPES,
    SCENARIOS,
    PairSettings,
    Run,
    Settings,
    model_kind,
    profile,
    tuned,
    varied,
)
from hacore.experiments.shadows import shadow_splits, shadows

__all__ = [
    "CODE",
    "COMMIT",
    "CONCEPTS",
    "GPU",
    "IMAGE_TEXT",
    "PROFILES",
    "RECIPES",
    "SCENARIOS",
    "PairSettings",
    "Prepared",
    "Run",
    "Settings",
    "build",
    "checkpoint",
    "concept_split",
    "environment",
    "grid",
    "model_kind",
    "paper_commands",
    "paper_cost",
    "prepare",
    "profile",
    "run",
    "run_grid",
    "shadow_splits",
    "shadows",
    "training_flops",
    "tuned",
    "varied",
]
