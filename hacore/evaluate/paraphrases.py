"""Leakage: what other words still find of a forgotten concept."""

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.errors import HacoreError
from hacore.evaluate.zero_shot import prompt_auc, separability


def leakage(
    similarity: Float[Tensor, "n t"],
    is_concept: Bool[Tensor, "n"],
    kinds: Mapping[str, Int[Tensor, "_"]],
) -> dict[str, float]:
    """How well each kind of text tells a concept's images from all others, by similarity alone.

    For every KIND of ``kinds`` (such as ``prompt``, ``paraphrase``, ``hypernym`` or ``sibling``), in percent:

    - ``leakage_KIND_auc``: mean :func:`~hacore.evaluate.zero_shot.prompt_auc` of its texts;
    - ``leakage_KIND_separability``: mean of their max(AUC, 100 - AUC), which texts that err in
      opposite directions do not average away;
    - ``leakage_KIND_most``: that of the text that tells most, which is the one an attacker uses.

    A kind without texts is absent. What is left is leakage only beyond what Retrain has: a hypernym *should*
    find the images of its concepts, and a sibling those that look alike.

    Args:
        similarity: of n images to t texts.
        is_concept: which images show the concept.
        kinds: which texts (columns) are of which kind.

    Raises:
        HacoreError: as :func:`~hacore.evaluate.zero_shot.prompt_auc`, or if there is no such text.
    """
    out: dict[str, float] = {}
    for kind, index in kinds.items():
        texts = torch.as_tensor(index).tolist()
        if not texts:
            continue
        if min(texts) < 0 or max(texts) >= similarity.shape[1]:
            raise HacoreError(
                f"the texts of kind {kind!r} are numbered {min(texts)}..{max(texts)}, but there are similarities "
                f"to {similarity.shape[1]}; number the columns from 0"
            )
        scores = [prompt_auc(similarity[:, text], is_concept) for text in texts]
        told = [separability(score) for score in scores]
        out[f"leakage_{kind}_auc"] = sum(scores) / len(scores)
        out[f"leakage_{kind}_separability"] = sum(told) / len(told)
        out[f"leakage_{kind}_most"] = max(told)
    return out
