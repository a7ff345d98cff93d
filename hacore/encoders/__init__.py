"""Encoders: images and texts to feature vectors."""

from hacore.encoders.images import Conv, Encoder
from hacore.encoders.make import ENCODERS, encoder
from hacore.encoders.text import TextEncoder
from hacore.encoders.vit import ViT

__all__ = ["ENCODERS", "Conv", "Encoder", "TextEncoder", "ViT", "encoder"]
