"""Models over any :class:`hacore.geometry.Space`: classifiers, and encoders that learn without labels."""

from hacore.models.base import MODES, ImageModel, Lift
from hacore.models.build import from_config
from hacore.models.classifier import HEADS, Classifier, Prototypes
from hacore.models.contrastive import CONTRASTIVE, ContrastiveEncoder, MoCo, SimCLR

__all__ = [
    "CONTRASTIVE",
    "HEADS",
    "MODES",
    "Classifier",
    "ContrastiveEncoder",
    "ImageModel",
    "Lift",
    "MoCo",
    "Prototypes",
    "SimCLR",
    "from_config",
]
