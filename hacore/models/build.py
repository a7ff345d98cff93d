"""Models from their configuration."""

from typing import Any

from hacore.data import Tokenizer
from hacore.encoders import TextEncoder, encoder
from hacore.errors import HacoreError
from hacore.geometry import space
from hacore.models.base import ImageModel, Lift
from hacore.models.classifier import Classifier
from hacore.models.contrastive import CONTRASTIVE
from hacore.models.image_text import ImageText, Objective

KINDS: dict[str, type[ImageModel]] = {"classifier": Classifier, **CONTRASTIVE, ImageText.kind: ImageText}


def from_config(config: dict[str, Any]) -> ImageModel:
    """An untrained model like the one whose ``config`` this is.

    Raises:
        HacoreError: if the configuration lacks an entry or holds an impossible one.
    """
    rest = dict(config)
    try:
        kind = rest.pop("kind")
        where = space(**rest.pop("space"))
        made = encoder(**rest.pop("encoder"))
        lift = Lift(where, **rest.pop("lift"))
        if kind == ImageText.kind:
            rest["text"] = TextEncoder(**rest["text"])
            rest["tokenizer"] = Tokenizer.from_config(rest["tokenizer"])
            rest["objective"] = Objective(**rest["objective"])
        return KINDS[kind](encoder=made, space=where, lift=lift, **rest)
    except (KeyError, TypeError) as error:
        raise HacoreError(
            f"this configuration does not describe a model ({error}); use one that a model's config gave"
        ) from error
