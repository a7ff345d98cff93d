"""Retrieval both ways: does an image find a text that is true of it, and a text an image it is true of?"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from hacore.errors import HacoreError
from hacore.evaluate.outputs import wide

LARGEST = 2**22  # similarities that are compared at a time
CUTS = (1, 5, 10)  # the numbers of candidates of image-text benchmarks


def first_rank(similarity: Float[Tensor, "q c"], true: Bool[Tensor, "q c"]) -> Int[Tensor, "q"]:
    """The place, from 1, of the best true candidate of each query; one more than all candidates if none is true.

    In case of a tie with candidates that are not true it stands behind all of them: a model that makes all
    points one retrieves nothing. In pieces of queries, so that memory stays that of the matrices.

    Args:
        similarity: of queries (rows) to candidates (columns).
        true: which candidates are true of which query; any number of them.

    Raises:
        HacoreError: if a similarity is not finite.
    """
    if not similarity.isfinite().all():
        raise HacoreError("the similarities of images and texts are not all finite; check the model")
    rows = max(1, LARGEST // max(1, similarity.shape[1]))
    ranks = []
    for scores, right in zip(similarity.split(rows), true.split(rows), strict=True):
        best = scores.where(right, -torch.inf).amax(1, keepdim=True)
        ranks.append(1 + ((scores >= best) & ~right).sum(1))
    return torch.cat(ranks).cpu()


def recall_at_k(
    similarity: Float[Tensor, "q c"], true: Bool[Tensor, "q c"], cuts: Sequence[int] = CUTS
) -> dict[int, float]:
    """Recall@k, by k: the share of queries with a true candidate among the k most similar, in percent.

    Queries of which no candidate is true are left out; :func:`first_rank` says how ties are broken.

    Args:
        similarity, true: as in :func:`first_rank`.
        cuts: every k that is asked for.

    Raises:
        HacoreError: if no query has a true candidate, a similarity is not finite, or a k is below 1.
    """
    if min(cuts, default=0) < 1:
        raise HacoreError(f"recall@k counts the k nearest, and k is one of {list(cuts)}; use k = 1 or more")
    asked = true.any(1)
    if not asked.any():
        raise HacoreError(
            "no query has a true answer among the candidates; check which texts are true of which image"
        )
    ranks = first_rank(similarity[asked], true[asked])
    return {k: 100 * wide(ranks <= k).mean().item() for k in cuts}


def retrieval(
    similarity: Float[Tensor, "n m"],
    true: Bool[Tensor, "n m"],
    images: Bool[Tensor, "n"] | None = None,
    texts: Bool[Tensor, "m"] | None = None,
    cuts: Sequence[int] = CUTS,
) -> dict[str, float]:
    """Recall both ways, in percent: ``image_to_text_recall_K`` and ``text_to_image_recall_K`` for every k of ``cuts``.

    Candidates are always all texts, and all images; only who asks is chosen. Several texts are true of
    one image (captions of every level, paraphrases), and one is enough.

    Args:
        similarity: of n images to m texts.
        true: which text is true of which image.
        images: the images that ask, such as the forgotten ones; None is all.
        texts: the texts that ask; None is all.
        cuts: every k.

    Raises:
        HacoreError: as :func:`recall_at_k`.
    """
    ways = {"image_to_text": (similarity, true, images), "text_to_image": (similarity.T, true.T, texts)}
    out: dict[str, float] = {}
    for way, (scores, right, asking) in ways.items():
        if asking is not None:
            scores, right = scores[asking], right[asking]
        out |= {f"{way}_recall_{k}": value for k, value in recall_at_k(scores, right, cuts).items()}
    return out
