"""Alignment Calibration: forget images are un-paired, and paired with others, where retained ones are contrasted."""

import math

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from hacore.errors import HacoreError
from hacore.losses.contrast import Terms
from hacore.losses.processes import mean_over_processes


def alignment_calibration(
    terms: Terms,
    forget: Shaped[Tensor, "mask"],
    true_alignment: Float[Tensor, "images"],
    negative: float = 1.0,
    positive: float = 1.0,
    preserving: float | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    r"""Alignment Calibration (AC), the unlearning loss of MUC, from the terms of a contrast over a mixed batch.

    For a forget anchor the positive of that contrast is a view of a *random other* forget image, so that its
    alignment :math:`a_i` is that of a mismatched pair, which its spread :math:`r_i` contains as it does for
    any positive; for a retain anchor all is as in training. With :math:`n_R` and :math:`n_U` the retain and
    forget anchors, :math:`U` the forget images and :math:`x, x^+` two views of the same one,

    .. math:: L = \frac{\sum_{i \in R} (r_i - a_i) + \sum_{i \in U} (\gamma r_i - \alpha a_i)}{n_R + \alpha n_U}
              + \beta \, \frac{n_U}{n_U + n_R} \, \operatorname{mean}_{U} s(x, x^+).

    Each term is a force on pairs:

    - *retain* pulls the two views of a retained image together and pushes everything apart, as training did;
    - *negative calibration*, :math:`\alpha`, pulls a forget image to other forget images by
      :math:`\alpha / \tau` a pair: pairs that training pushed apart become alike;
    - *preserving*, :math:`\gamma`, pushes a forget image from everything it is compared with, each by its share
      of the softmax. It keeps the pull of :math:`\alpha` within bounds: with :math:`\gamma = \alpha` pull and
      push on the pairs of an anchor sum to zero, and both fade once the mismatched pair has all of the softmax;
    - *positive calibration*, :math:`\beta`, pushes the two views of a forget image from each other, the pull
      of training undone. The push is constant in units of similarity: only other terms stop it where views are
      as unlike as those of different images, and where similarity is minus a distance, it has no end of its own.

    A weight of 0 takes its term away. :math:`\alpha` also counts forget anchors in the denominator, so that
    it moves weight from the retain term to them. With several processes counts are those of all, so that
    the mean over processes is the loss of the whole batch.

    Args:
        terms: of all anchors, from :func:`~hacore.losses.nt_xent_terms` or :func:`~hacore.losses.queue_terms`.
        forget: which anchors are forget ones, Boolean.
        true_alignment: similarity, *not* divided by the temperature, of two views of each forget image in the
            batch; empty if there is none.
        negative: :math:`\alpha \ge 0`.
        positive: :math:`\beta \ge 0`.
        preserving: :math:`\gamma \ge 0`; None takes :math:`\alpha`.

    Returns:
        The loss and, without their weights, its parts: "retain" is the mean of :math:`r_i - a_i` over retain
        anchors, "negative calibration" of :math:`-a_i` and "preserving" of :math:`r_i` over forget anchors,
        "positive calibration" the mean similarity of two views of a forget image. A part is 0 in a batch
        without such anchors.

    Raises:
        HacoreError: if a weight is negative or not finite, the mask is not Boolean or not one per anchor, there
            are no anchors, or there are forget anchors and no true alignment to calibrate.

    Source: :cite:t:`wang2025muc`. With :math:`\gamma = \alpha` this is the loss in the code of its authors, who
    take NT-Xent or a queue, and cosines. Which of the paper's three terms each part is, and a :math:`\gamma` of
    its own, are our reading: the paper's exact formula was not available to us.
    """
    gamma = negative if preserving is None else preserving
    for name, weight in (("negative", negative), ("positive", positive), ("preserving", gamma)):
        if not (math.isfinite(weight) and weight >= 0):
            raise HacoreError(
                f"the {name} weight is {weight}: give a finite number, 0 to switch the term off"
            )
    alignment, spread = terms
    if not len(alignment) == len(spread) > 0:
        raise HacoreError(
            f"{len(alignment)} alignments came with {len(spread)} spreads; give one of each for every anchor"
        )
    if forget.dtype != torch.bool:
        raise HacoreError(f"the mask of forget anchors is of type {forget.dtype}: give True and False")
    if forget.shape != alignment.shape:
        raise HacoreError(
            f"{len(alignment)} anchors came with a mask for {len(forget)}; give one entry an anchor"
        )
    # The host reads the mask only if something looks wrong: it would have to wait for its accelerator.
    if positive > 0 and len(true_alignment) == 0 and bool(forget.any()):
        raise HacoreError(
            "there are forget anchors and no true alignment to calibrate: give the similarity of two views of "
            "each forget image, or set the positive weight to 0"
        )

    of_forget, of_retain = forget.to(spread.dtype), (~forget).to(spread.dtype)
    images = torch.tensor(float(len(true_alignment)), dtype=spread.dtype, device=spread.device)
    counts = mean_over_processes(torch.stack([of_retain.sum(), of_forget.sum(), images]))
    n_retain, n_forget, _ = counts
    per_retain, per_forget, per_image = torch.where(counts > 0, 1 / counts, 0)
    parts = {
        "retain": (of_retain * (spread - alignment)).sum() * per_retain,
        "negative calibration": -(of_forget * alignment).sum() * per_forget,
        "positive calibration": true_alignment.sum() * per_image,
        "preserving": (of_forget * spread).sum() * per_forget,
    }
    forget_loss = gamma * parts["preserving"] + negative * parts["negative calibration"]
    weight = n_retain + negative * n_forget
    total = (n_retain * parts["retain"] + n_forget * forget_loss) / torch.where(weight > 0, weight, 1)
    share = n_forget / (n_forget + n_retain)
    return total + positive * share * parts["positive calibration"], parts
