"""Models over any :class:`hacore.geometry.Space`: classifiers, encoders without labels, images with texts."""

from hacore.models.base import MODES, ImageModel, Lift
from hacore.models.build import from_config
from hacore.models.classifier import HEADS, Classifier, Prototypes
from hacore.models.contrastive import CONTRASTIVE, ContrastiveEncoder, MoCo, SimCLR
from hacore.models.image_text import CLIP, HIERARCHY, MERU, ImageText, Objective
from hacore.models.released import load_released, save_released

__all__ = [
    "CLIP",
    "CONTRASTIVE",
    "HEADS",
    "HIERARCHY",
    "MERU",
    "MODES",
    "Classifier",
    "ContrastiveEncoder",
    "ImageModel",
    "ImageText",
    "Lift",
    "MoCo",
    "Objective",
    "Prototypes",
    "SimCLR",
    "from_config",
    "load_released",
    "save_released",
]
