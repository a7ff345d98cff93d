"""Unlearning methods: each turns a trained model and a request to forget into a new model.

A method is a frozen dataclass: its fields are its settings, and calling it with a :class:`Request`
answers that. To add one, derive from :class:`Descent` (most methods are a loss handed to the one
loop), and enter it in :data:`METHODS`.
"""

from hacore.errors import HacoreError
from hacore.unlearning.ascent import GradientAscent, NegGradPlus
from hacore.unlearning.base import (
    KINDS,
    Descent,
    Method,
    Outcome,
    Range,
    Request,
    Training,
    train_on,
    training_loss,
    walk,
)
from hacore.unlearning.calibration import AlignmentCalibration
from hacore.unlearning.concepts import (
    AC,
    HAC,
    HACKeepParent,
    HACWithoutEntailment,
    HACWithoutNegative,
    HACWithoutNorm,
    HACWithoutPositive,
    HACWithoutPreserving,
    ImageContrast,
    NullSpace,
)
from hacore.unlearning.contrastive import ContrastiveUnlearning, forgotten
from hacore.unlearning.coun import ContrastiveCoUn, CoUn
from hacore.unlearning.distillation import BadTeacher, Scrub
from hacore.unlearning.exact import Original, Retrain, RetrainLifted
from hacore.unlearning.finetuning import Finetune, HeadReset, L1Sparse, RowReplacement
from hacore.unlearning.fisher import Fisher
from hacore.unlearning.impair import Unsir
from hacore.unlearning.newton import Lcodec
from hacore.unlearning.relabelling import BoundaryExpansion, BoundaryShrink, RandomRelabel, SalUn
from hacore.unlearning.sisa import Sisa

# Each with its default settings; dataclasses.replace varies them.
METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Original(),
        Retrain(),
        ContrastiveUnlearning(),
        CoUn(),
        ContrastiveCoUn(),
        Finetune(),
        GradientAscent(),
        NegGradPlus(),
        RandomRelabel(),
        Fisher(),
        L1Sparse(),
        Scrub(),
        BadTeacher(),
        BoundaryShrink(),
        BoundaryExpansion(),
        Unsir(),
        Lcodec(),
        SalUn(),
        Sisa(),
        AlignmentCalibration(),
        RetrainLifted(),
        AC(),
        HAC(),
        HACKeepParent(),
        HACWithoutNegative(),
        HACWithoutPositive(),
        HACWithoutPreserving(),
        HACWithoutEntailment(),
        HACWithoutNorm(),
        ImageContrast(),
        NullSpace(),
        HeadReset(),
        RowReplacement(),
    )
}


def method(name: str) -> Method:
    """The method called ``name``, with its default settings.

    Raises:
        HacoreError: if there is none; the message lists those there are.
    """
    if name not in METHODS:
        raise HacoreError(f"there is no method {name!r}; choose one of {', '.join(METHODS)}")
    return METHODS[name]


__all__ = [
    "AC",
    "HAC",
    "KINDS",
    "METHODS",
    "AlignmentCalibration",
    "BadTeacher",
    "BoundaryExpansion",
    "BoundaryShrink",
    "CoUn",
    "ContrastiveCoUn",
    "ContrastiveUnlearning",
    "Descent",
    "Finetune",
    "Fisher",
    "GradientAscent",
    "HACKeepParent",
    "HACWithoutEntailment",
    "HACWithoutNegative",
    "HACWithoutNorm",
    "HACWithoutPositive",
    "HACWithoutPreserving",
    "HeadReset",
    "ImageContrast",
    "L1Sparse",
    "Lcodec",
    "Method",
    "NegGradPlus",
    "NullSpace",
    "Original",
    "Outcome",
    "RandomRelabel",
    "Range",
    "Request",
    "Retrain",
    "RetrainLifted",
    "RowReplacement",
    "SalUn",
    "Scrub",
    "Sisa",
    "Training",
    "Unsir",
    "forgotten",
    "method",
    "train_on",
    "training_loss",
    "walk",
]
