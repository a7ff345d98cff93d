"""Losses: pure functions of embeddings and a :class:`~hacore.geometry.Space`.

A loss never asks which geometry it is in: it sees similarities, and the space says what
similar means (cosine or inner product in the plane, negative geodesic distance in curved space).
"""

from hacore.losses.calibration import alignment_calibration
from hacore.losses.contrast import Terms, info_nce, nt_xent, nt_xent_terms, queue_terms
from hacore.losses.hyperbolic_calibration import (
    Weights,
    cone_calibration,
    hyperbolic_alignment_calibration,
    negative_calibration,
    norm_regularisation,
    parent_calibration,
    performance_preserving,
    positive_calibration,
    similarity_floor,
)
from hacore.losses.image_text import (
    angle_loss,
    angle_similarity,
    clip_loss,
    entailment,
    exclusion,
    image_text_contrast,
    positives,
    radius_floor,
)
from hacore.losses.processes import gather
from hacore.losses.unlearning import ContrastiveLoss, contrastive_unlearning

__all__ = [
    "ContrastiveLoss",
    "Terms",
    "Weights",
    "alignment_calibration",
    "angle_loss",
    "angle_similarity",
    "clip_loss",
    "cone_calibration",
    "contrastive_unlearning",
    "entailment",
    "exclusion",
    "gather",
    "hyperbolic_alignment_calibration",
    "image_text_contrast",
    "info_nce",
    "negative_calibration",
    "norm_regularisation",
    "nt_xent",
    "nt_xent_terms",
    "parent_calibration",
    "performance_preserving",
    "positive_calibration",
    "positives",
    "queue_terms",
    "radius_floor",
    "similarity_floor",
]
