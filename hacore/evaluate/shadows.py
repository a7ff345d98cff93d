r"""Attacks that judge each image by itself, from the answers of many models: U-LiRA and KLoM.

Both read margins, the log-odds of the label (:func:`log_odds`), of shape (models, images).
"""

import math

import torch
from jaxtyping import Bool, Float
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from hacore.errors import HacoreError
from hacore.evaluate.attacks import log_odds
from hacore.evaluate.outputs import wide

__all__ = ["gaussian_kl", "histogram_kl", "klom", "log_odds", "ulira"]

MANY = 64  # models a side, from which on each image has a variance of its own
CLIP = 100.0  # largest margin, either sign, as in the code of KLoM
RARE = 1e-5  # least probability of a bin, as there
SMALLEST = 1e-12  # variance, so that models which agree to the last digit have a likelihood


def ulira(
    margins: Float[Tensor, "m n"], forgotten: Bool[Tensor, "m n"], fixed_variance: bool | None = None
) -> dict[str, float]:
    r"""The per-example attack U-LiRA of :cite:t:`hayes2024` on m models that each forgot some of n images.

    For image i let :math:`\mathcal N(\mu_i, \sigma_i^2)` be fitted to the margins of models that were
    trained on it and then forgot it, and :math:`\mathcal N(\nu_i, \tau_i^2)` to those of models that
    never saw it. The score of model k on image i, with margin :math:`\phi`, is

    .. math:: \Lambda = \log \mathcal N(\phi; \mu_i, \sigma_i^2) - \log \mathcal N(\phi; \nu_i, \tau_i^2)

    with k left out of the fit. The paper attacks models that are not among the shadow models; leaving one
    out makes every model a target, at one price: the side a model belongs to has one model less, which
    lowers the AUC of an answer that leaks nothing, to 47 with 4 models a side, 49.5 with 8. Images with
    too few models are left out.

    Args:
        margins: log-odds of the label, a row per model.
        forgotten: True where the model was trained on the image and then asked to forget it, False where
            it never saw it.
        fixed_variance: whether all images share one variance a side, which :cite:t:`carlini2022lira` advise
            where shadow models are few; None decides by 64 models for every image and side.

    Returns:
        In percent: ``auc`` over all pairs of model and image (50: nothing leaks), ``accuracy`` of the
        decision :math:`\Lambda > 0`, the mean of the shares of forgotten and of unseen pairs that are
        called right, and ``tpr_at_1_fpr``, the share of forgotten pairs that are found while at most
        1 % of the unseen ones are accused.

    Raises:
        HacoreError: if no image has enough models on both sides.
    """
    x, f = wide(margins), forgotten.cpu()
    sides = [_Moments(x, f), _Moments(x, ~f)]
    if fixed_variance is None:
        fixed_variance = min(side.n.min().item() for side in sides) < MANY
    # From the view of each pair: its own side, without this model, and the other one.
    own_n = torch.where(f, sides[0].n, sides[1].n)
    likelihoods, enough = [], torch.ones_like(f)
    for side, member in zip(sides, (f, ~f), strict=True):
        left = (own_n - 1).clamp(min=1)
        mean = torch.where(member, side.mean + (side.mean - x) / left, side.mean)
        change = torch.where(member, (x - side.mean).square() * own_n / left, 0.0)
        n = side.n - member.double()
        if fixed_variance:
            freedom = (side.n - 1).clamp(min=0).sum() - member.double()
            variance = (side.squares.sum() - change) / freedom.clamp(min=1)
            enough &= (n >= 1) & (freedom >= 1)
        else:
            variance = (side.squares - change) / (n - 1).clamp(min=1)
            enough &= n >= 2
        variance = variance.clamp(min=SMALLEST)
        likelihoods.append(-0.5 * variance.log() - (x - mean).square() / (2 * variance))
    truth, score = f[enough], (likelihoods[0] - likelihoods[1])[enough]
    if not truth.any() or truth.all():
        raise HacoreError(
            "no image has enough shadow models that forgot it and that never saw it; train more models"
        )
    called = (score > 0).double() + 0.5 * (score == 0).double()
    false, true, _ = roc_curve(truth.numpy(), score.numpy(), drop_intermediate=False)
    return {
        "auc": 100 * float(roc_auc_score(truth.numpy(), score.numpy())),
        "accuracy": 50 * (called[truth].mean() + 1 - called[~truth].mean()).item(),
        "tpr_at_1_fpr": 100 * float(true[false <= 0.01].max()),
    }


def klom(
    unlearned: Float[Tensor, "m n"],
    retrained: Float[Tensor, "k n"],
    kept: Bool[Tensor, "m n"] | None = None,
    bins: int | None = None,
) -> dict[str, float]:
    r"""KLoM, the KL divergence of margins (:cite:t:`georgiev2025`), of m unlearned and k retrained models.

    For each image, :math:`D_{KL}(P \| Q)` in nats of the distribution P of the unlearned models' margins
    from Q, that of the retrained ones, margins clipped to :math:`\pm 100`; 0 where the answers are those
    of Retrain. By default both are Gaussian; ``bins`` makes histograms, 20 in the authors' code, which
    need their hundred models: two ensembles of 16 of one distribution have a mean of 0.15 as Gaussians and
    3.9 as histograms, of 128 0.02 and 0.26. Compare answers at one number of models only. Both end at 11.5,
    which is :math:`-\log 10^{-5}`, the most that a histogram with the authors' least probability can give.

    Args:
        unlearned, retrained: log-odds of the label, a row per model.
        kept: which models count for which image; None is all.
        bins: of the histograms; None for Gaussians.

    Returns:
        ``mean`` and ``q95``, the 95 % quantile, over the images that have two models on both sides.

    Raises:
        HacoreError: if no image has.
    """
    p, q = wide(unlearned).clamp(-CLIP, CLIP), wide(retrained).clamp(-CLIP, CLIP)
    use = torch.ones_like(p, dtype=torch.bool) if kept is None else kept.cpu()
    enough = (use.sum(0) >= 2) & (len(q) >= 2)
    if not enough.any():
        raise HacoreError("no image has two unlearned and two retrained models to compare; train more models")
    p, q, use = p[:, enough], q[:, enough], use[:, enough]
    if bins is None:
        ours, theirs = _Moments(p, use), _Moments(q, torch.ones_like(q, dtype=torch.bool))
        kl = gaussian_kl(ours.mean, ours.squares / (ours.n - 1), theirs.mean, theirs.squares / (theirs.n - 1))
    else:
        kl = histogram_kl(p, q, use, bins)
    kl = kl.clamp(max=-math.log(RARE))
    return {"mean": kl.mean().item(), "q95": kl.quantile(0.95).item()}


def gaussian_kl(
    mean_p: Float[Tensor, "n"],
    variance_p: Float[Tensor, "n"],
    mean_q: Float[Tensor, "n"],
    variance_q: Float[Tensor, "n"],
) -> Float[Tensor, "n"]:
    r"""KL divergence of Gaussians in nats.

    .. math:: D_{KL}(P \| Q) = \frac12 \left( \frac{\sigma_P^2 + (\mu_P - \mu_Q)^2}{\sigma_Q^2} - 1
              - \log \frac{\sigma_P^2}{\sigma_Q^2} \right)
    """
    variance_p, variance_q = variance_p.clamp(min=SMALLEST), variance_q.clamp(min=SMALLEST)
    ratio = variance_p / variance_q
    return 0.5 * (ratio + (mean_p - mean_q).square() / variance_q - 1 - ratio.log())


def histogram_kl(
    p: Float[Tensor, "m n"], q: Float[Tensor, "k n"], use: Bool[Tensor, "m n"], bins: int
) -> Float[Tensor, "n"]:
    """KL divergence in nats of two samples per column, by histograms over the range of both.

    A bin that Q never falls into has probability 1e-5 there, as in the authors' code. That code loses the
    largest sample of all, which falls on the last edge; here the last bin holds it. It also scales Q,
    with these additions, back to one; here Q stays, so that the largest value is known.

    Args:
        p, q: samples; ``use`` says which of p count.
        use: boolean, shaped like p.
        bins: how many.
    """
    low = torch.minimum(p.where(use, torch.inf).amin(0), q.amin(0))
    high = torch.maximum(p.where(use, -torch.inf).amax(0), q.amax(0))
    width = (high - low).where(high > low, 1.0) / bins

    def shares(x: Tensor, counted: Tensor) -> Tensor:
        place = ((x - low) / width).long().clamp(0, bins - 1)
        counts = torch.zeros(bins, x.shape[1], dtype=x.dtype).scatter_add_(0, place, counted.to(x.dtype))
        return counts / counts.sum(0)

    ours, theirs = shares(p, use), shares(q, torch.ones_like(q))
    return (ours.xlogy(ours) - ours.xlogy(theirs.clamp(min=RARE))).sum(0)


class _Moments:
    """Count, mean and sum of squared deviations of each column, over the rows that ``use`` names."""

    def __init__(self, x: Tensor, use: Tensor) -> None:
        weight = use.double()
        self.n = weight.sum(0)
        self.mean = (x * weight).sum(0) / self.n.clamp(min=1)
        self.squares = ((x - self.mean).square() * weight).sum(0)
