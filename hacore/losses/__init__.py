"""Losses: pure functions of embeddings and a :class:`~hacore.geometry.Space`.

A loss never asks which geometry it is in: it sees similarities, and the space says what
similar means (cosine or inner product in the plane, negative geodesic distance in curved space).
"""

from hacore.losses.calibration import alignment_calibration
from hacore.losses.contrast import Terms, info_nce, nt_xent, nt_xent_terms, queue_terms
from hacore.losses.processes import gather
from hacore.losses.unlearning import ContrastiveLoss, contrastive_unlearning

__all__ = [
    "ContrastiveLoss",
    "Terms",
    "alignment_calibration",
    "contrastive_unlearning",
    "gather",
    "info_nce",
    "nt_xent",
    "nt_xent_terms",
    "queue_terms",
]
