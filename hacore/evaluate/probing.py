"""What a frozen representation tells of classes: a linear probe, and the nearest neighbours."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from scipy.optimize import minimize
from torch import Tensor, nn

from hacore.errors import HacoreError
from hacore.evaluate.outputs import evaluating, in_batches, wide
from hacore.geometry import Euclidean

ABSENT = -1000.0  # logit of a class that no image had: its probability is 0, its logarithm finite
STEPS = 5000  # of L-BFGS; 45,000 features of ResNet-18 take a few hundred
LARGEST = 2**24  # similarities in memory at a time


class Probed(nn.Module):
    """A classifier made of a frozen representation and linear logits, which every measure takes as a model.

    Points are the features, in flat space. It is always in evaluation mode and gives no gradient; the
    model below keeps its own mode and is not copied.

    Args:
        model: with ``features(images)``, images being floats in [0, 1].
        weight, bias: of the logits.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, model: nn.Module, weight: Float[Tensor, "classes d"], bias: Float[Tensor, "classes"]
    ) -> None:
        super().__init__()
        self.model, self.space = model, Euclidean().to(weight.device)
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.train(False)

    def train(self, mode: bool = True) -> "Probed":
        """Stay in evaluation mode, without a word to the model below."""
        self.training = False
        return self

    @torch.no_grad()
    def embed(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
        """The features of images in [0, 1], in float32 or better."""
        model: Any = self.model
        with evaluating(model):
            return self.space.exp0(model.features(images))

    def logits(self, points: Float[Tensor, "n d"]) -> Float[Tensor, "n classes"]:
        """Logits of features."""
        return self.space.affine(points, self.weight, self.bias)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of images in [0, 1]."""
        return self.logits(self.embed(images))


def probe(
    model: nn.Module,
    images: UInt8[Tensor, "n c h w"],
    labels: Int[Tensor, "m"],
    index: Int[Tensor, "k"],
    classes: int,
    precision: str = "no",
    l2: float = 1e-3,
) -> Probed:
    r"""A linear probe: multinomial logistic regression on the features of ``images[index]``, those alone.

    .. math:: \min_{W, b} \; \frac1k \sum_i -\log p_{y_i}(W \hat h_i + b) + \frac{\lambda}{2} \|W\|_F^2

    with :math:`\hat h` the standardised features; the standardisation is then folded into weight and bias.
    :cite:t:`wang2025muc` run 100 epochs of SGD with a learning rate of 1.0; we solve the convex problem to its
    one optimum instead, so that no learning rate, seed or number of epochs can favour a model.

    A class that no image has gets the logit -1,000 everywhere: it is never answered, and its probability is 0.

    Args:
        model: with ``features``; left as it is.
        images, labels, index: what is learned from, usually the retain part with its training labels.
        classes: how many classes there are.
        precision: that of the encoder, as in training.
        l2: :math:`\lambda > 0`. The logistic regression of scikit-learn with C has :math:`\lambda = 1 / (Ck)`.

    Raises:
        HacoreError: if there are no images, labels do not fit, fewer than two classes occur, features are not
            finite, or ``l2 <= 0``, where separable classes would have no optimum.
    """
    if len(labels) != len(images):
        raise HacoreError(f"{len(images)} images have {len(labels)} labels; give one label per image")
    if not l2 > 0:
        raise HacoreError(f"the probe's l2 weight must be positive, not {l2}; try l2=1e-3")
    network: Any = model
    with torch.no_grad():
        features = wide(in_batches(model, network.features, images, index, precision))
    _check_finite(features, "the model's features")
    known, answers = labels[index].cpu().unique(return_inverse=True)
    if len(known) < 2:
        raise HacoreError("a linear probe tells classes apart, but the images are of one; use more images")
    if known[0] < 0 or known[-1] >= classes:
        raise HacoreError(
            f"labels lie in {known[0]}..{known[-1]}, outside 0..{classes - 1}; check the number of classes"
        )
    mean, std = features.mean(0), features.std(0, correction=0)
    # A feature that never varies, but for rounding, says nothing: left as it is, its weight stays 0.
    std = torch.where(std > 1e-6 * mean.abs(), std, torch.ones_like(std))
    fitted, offset = _optimum((features - mean) / std, answers, len(known), l2)
    weight, bias = torch.zeros(classes, features.shape[1]).double(), torch.full((classes,), ABSENT).double()
    weight[known] = fitted / std
    bias[known] = offset - weight[known] @ mean
    return Probed(model, weight.float().to(images.device), bias.float().to(images.device))


def _optimum(
    x: Float[Tensor, "k d"], answers: Int[Tensor, "k"], classes: int, l2: float
) -> tuple[Float[Tensor, "classes d"], Float[Tensor, "classes"]]:
    """Weight and bias where the gradient of the penalised mean cross-entropy is at most 1e-6."""
    k, d = x.shape
    truth = F.one_hot(answers, classes).double()

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = torch.from_numpy(flat).split([classes * d, classes])
        weight = weight.view(classes, d)
        log_p = torch.addmm(bias, x, weight.T).log_softmax(1)
        value = l2 / 2 * weight.square().sum() - (truth * log_p).sum() / k
        error = (log_p.exp() - truth) / k
        gradient = torch.cat([(error.T @ x + l2 * weight).flatten(), error.sum(0)])
        return value.item(), gradient.numpy()

    # The tolerance on the objective is switched off: near the optimum it would stop before the gradient does.
    options = {"maxiter": STEPS, "maxfun": 2 * STEPS, "gtol": 1e-6, "ftol": 0.0, "maxcor": 20}
    found = minimize(objective, np.zeros(classes * (d + 1)), jac=True, method="L-BFGS-B", options=options)
    # A line search that finds nothing below the rounding of the objective has arrived, whatever it reports.
    if not np.abs(found.jac).max() < 1e-4:
        raise HacoreError(
            f"the linear probe did not reach its optimum in {found.nit} steps ({found.message}); raise l2"
        )
    weight, bias = torch.from_numpy(found.x).split([classes * d, classes])
    return weight.view(classes, d), bias - bias.mean()


def knn_accuracy(
    features: Float[Tensor, "n d"],
    labels: Int[Tensor, "_"],
    asked: Float[Tensor, "m _"],
    answers: Int[Tensor, "_"],
    k: int = 20,
    temperature: float = 0.1,
) -> float:
    r"""Accuracy in percent of the vote of the k nearest known images, by cosine, :math:`w_i = e^{s_i / T}`.

    The weighted vote of :cite:t:`wu2018`, Section 3.4, who take k = 200 and T = 0.07. Where fewer
    than k images are known, all of them vote. Of classes with equal votes the first is answered.

    Args:
        features, labels: of the known images.
        asked, answers: of the images that are asked for.
        k: how many vote.
        temperature: :math:`T > 0`.

    Raises:
        HacoreError: if a set is empty, sets do not fit each other, features are not finite, ``k < 1`` or
            ``temperature <= 0``.
    """
    for name, x, y in (("known", features, labels), ("asked", asked, answers)):
        if len(x) == 0:
            raise HacoreError(f"there are no {name} images for the nearest neighbours; check the split")
        if len(x) != len(y):
            raise HacoreError(f"{len(x)} {name} images have {len(y)} labels; give one label per image")
        _check_finite(x, f"the features of the {name} images")
    if features.shape[1] != asked.shape[1]:
        raise HacoreError(
            f"known features have {features.shape[1]} columns and asked ones {asked.shape[1]}; use one model"
        )
    if k < 1 or not temperature > 0:
        raise HacoreError(
            f"{k} neighbours at temperature {temperature} cannot vote; use k >= 1 and a positive temperature"
        )
    labels, answers = labels.to(features.device), answers.to(features.device)
    known = F.normalize(features.float(), dim=1)
    classes, right = 1 + int(max(labels.max(), answers.max())), 0
    rows = max(1, LARGEST // len(known))
    for some, truth in zip(asked.to(features.device).float().split(rows), answers.split(rows), strict=True):
        nearest = (F.normalize(some, dim=1) @ known.T).topk(min(k, len(known)), dim=1)
        # Relative to the nearest, so that no temperature overflows; the vote is the same.
        weight = ((nearest.values - nearest.values[:, :1]) / temperature).exp()
        votes = weight.new_zeros(len(some), classes).scatter_add_(1, labels[nearest.indices], weight)
        right += int((votes.argmax(1) == truth).sum())
    return 100 * right / len(asked)


def _check_finite(features: Tensor, name: str) -> None:
    if not features.isfinite().all():
        raise HacoreError(f"{name} hold NaN or infinite numbers; train with a smaller learning rate")
