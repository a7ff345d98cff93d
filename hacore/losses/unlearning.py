"""Contrastive unlearning: forget points away from their own class and towards the others."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from hacore.errors import HacoreError
from hacore.geometry import Space
from hacore.losses.checks import check_temperature

FAR = 1e30  # subtracted from a logit, it leaves nothing of it in a softmax, and float32 reaches further


def contrastive_unlearning(
    z_forget: Float[Tensor, "forget dim"],
    y_forget: Int[Tensor, "forget_labels"],
    z_retain: Float[Tensor, "retain dim"],
    y_retain: Int[Tensor, "retain_labels"],
    space: Space,
    temperature: float,
) -> Float[Tensor, ""]:
    r"""Push each forget embedding away from its own class and pull it towards the others.

    For anchor :math:`i` with positives :math:`P_i` (retain points of its class) and negatives
    :math:`N_i` (all other retain points), and :math:`s` the similarity of the space,

    .. math:: \ell_i = -\frac{1}{|N_i|} \sum_{a \in N_i} \frac{s(z_i, z_a)}{\tau}
              + \log \sum_{p \in P_i} e^{s(z_i, z_p) / \tau}.

    An anchor without positives, as in single-class forgetting, has :math:`\log |N_i|` as its
    second term: a constant, so it shifts the value and leaves the gradient alone.

    Args:
        z_forget: points of the space, the anchors (Algorithm 1's :math:`X^u`).
        y_forget: their labels.
        z_retain: points of the space from retained data (:math:`X^r`).
        y_retain: their labels.
        space: the geometry both sets of points live in.
        temperature: :math:`\tau > 0`, in units of similarity.

    Returns:
        The mean of :math:`\ell_i` over the anchors that have a negative; 0 if none has one,
        since Eq. 5 sums over an empty set then.

    Raises:
        HacoreError: if a batch is empty, labels do not match points, or ``temperature <= 0``.

    Source: :cite:t:`lee2024contrastive`, Eq. 5 (with positives) and Eq. 6 (without); derived in
    the chapter *Contrastive unlearning*.
    """
    if len(z_forget) == 0 or len(z_retain) == 0:
        raise HacoreError(
            "contrastive unlearning needs at least one forget and one retain embedding in a batch"
        )
    if len(y_forget) != len(z_forget) or len(y_retain) != len(z_retain):
        raise HacoreError(
            f"{len(z_forget)} forget and {len(z_retain)} retain embeddings came with "
            f"{len(y_forget)} and {len(y_retain)} labels; give one label per embedding"
        )
    check_temperature(temperature)

    similarity = space.similarity(z_forget, z_retain)
    return ContrastiveLoss.apply(similarity, y_forget, y_retain, temperature)


class ContrastiveLoss(torch.autograd.Function):
    r"""The loss of a matrix of similarities, its gradient being written down as the value is computed.

    With :math:`\pi_{ij}` the softmax of row i over its positives and :math:`w_i` the anchor's share
    of the mean, :math:`\partial \ell / \partial s_{ij} = w_i \pi_{ij} / \tau` for a positive and
    :math:`-w_i / (\tau |N_i|)` for a negative. What costs time is each pass over the matrix; these are
    by arithmetic, mostly in place, because fills by a Boolean mask are slower and exp of -inf slower yet.
    """

    @staticmethod
    def forward(
        ctx: Any, similarity: Tensor, y_forget: Tensor, y_retain: Tensor, temperature: float
    ) -> Tensor:
        # 1 for a negative, else 0; compared into bytes, which turn into floats much faster than Booleans do.
        negative = torch.empty_like(similarity, dtype=torch.uint8)
        negative = torch.ne(y_forget[:, None], y_retain, out=negative).to(similarity.dtype)
        n_negative = negative.sum(dim=1, keepdim=True)
        has_positive = n_negative < len(y_retain)
        share = n_negative.sign()
        share /= share.sum().clamp_(min=1)

        # Far below, negatives have no weight in the softmax, and a row of them only is finite still. Weights
        # end at e^-50, which is nothing beside the greatest, 1: arithmetic is slow where it underflows.
        logits = (similarity * (1 / temperature)).sub_(negative, alpha=FAR)
        greatest = logits.amax(dim=1, keepdim=True)
        weights = logits.sub_(greatest).clamp_(min=-50).exp_()
        total = weights.sum(dim=1, keepdim=True)
        # Without a positive all weights are 1: the logarithm of their sum is that of |N|, and nothing is added.
        push = greatest.mul_(has_positive).add_(total.log())

        pull = share / (n_negative.clamp(min=1) * temperature)
        gradient = weights.mul_(share * has_positive / (total * temperature))
        gradient.addcmul_(negative, pull, value=-1)
        value = (share * push - pull * negative.mul_(similarity).sum(dim=1, keepdim=True)).sum()
        ctx.save_for_backward(gradient)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return grad * ctx.saved_tensors[0], None, None, None
