"""Attacks by many models, on ensembles drawn from distributions that are known."""

import math

import pytest
import torch
from scipy import stats

from hacore.errors import HacoreError
from hacore.evaluate.shadows import gaussian_kl, histogram_kl, klom, ulira


def normal(models, images, seed, mean=0.0, std=1.0):
    stream = torch.Generator().manual_seed(seed)
    return mean + std * torch.randn(models, images, generator=stream).double()


def halves(models, images):
    """Every image forgotten by every other model."""
    return (torch.arange(models)[:, None] + torch.arange(images)) % 2 == 0


def test_gaussian_kl_by_hand():
    # KL(N(1, 1) | N(0, 4)) = (1/4 + 1/4 - 1 + log 4) / 2; KL(N(0, 4) | N(0, 1)) = (4 - 1 - log 4) / 2.
    zero, one, four = torch.zeros(1), torch.ones(1), torch.full((1,), 4.0)
    assert gaussian_kl(one, one, zero, four).item() == pytest.approx((math.log(4) - 0.5) / 2)
    assert gaussian_kl(zero, four, zero, one).item() == pytest.approx((3 - math.log(4)) / 2)
    assert gaussian_kl(one, zero, one, zero).item() == 0


def test_klom_of_known_samples():
    # Margins (0, 2) and (1, 5): means 1 and 3, variances 2 and 8: (2/8 + 4/8 - 1 + log 4) / 2 = 0.568147.
    p, q = torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])
    assert klom(p, q)["mean"] == pytest.approx((math.log(4) - 0.25) / 2)
    # A third model that does not count changes nothing.
    kept = torch.tensor([[True], [True], [False]])
    assert klom(torch.cat([p, p + 9]), q, torch.cat([kept[:2], kept[:1] & False, kept[:1] & False]))[
        "mean"
    ] == pytest.approx((math.log(4) - 0.25) / 2)


def test_klom_of_ensembles():
    same = klom(normal(400, 50, 0), normal(400, 50, 1))
    assert same["mean"] < 0.01
    # A standard deviation apart: 1 / 2.
    assert klom(normal(400, 50, 0, mean=1), normal(400, 50, 1))["mean"] == pytest.approx(0.5, abs=0.05)
    # One image in ten is off by far: the mean sees a tenth of the highest value, the 95 % quantile all of it.
    far = normal(400, 50, 0)
    far[:, :5] += 50
    out = klom(far, normal(400, 50, 1))
    assert out["q95"] == pytest.approx(math.log(1e5))
    assert out["mean"] == pytest.approx(math.log(1e5) / 10, abs=0.01)


def test_margins_are_clipped():
    p = torch.tensor([[101.0], [500.0], [99.0]])
    assert klom(p, p.clamp(max=100))["mean"] == 0


def test_histogram_by_hand():
    # Two bins on [0, 4]: P has shares (3/4, 1/4), Q (1/4, 3/4): 3/4 log 3 - 1/4 log 3.
    p, q = torch.tensor([[0.0], [1.0], [1.0], [4.0]]), torch.tensor([[0.0], [3.0], [3.0], [3.0]])
    every = torch.ones(4, 1, dtype=torch.bool)
    assert histogram_kl(p, q, every, 2).item() == pytest.approx(math.log(3) / 2)
    # Only P's two middle samples count: P (1, 0) on [0, 3], and Q is (1/4, 3/4).
    some = torch.tensor([[False], [True], [True], [False]])
    assert histogram_kl(p, q, some, 2).item() == pytest.approx(math.log(4))
    # Nothing of Q where P is: the least probability decides.
    assert histogram_kl(p * 0, q * 0 + 1, every, 20).item() == pytest.approx(math.log(1e5))
    assert histogram_kl(p * 0, q * 0, every, 20).item() == 0
    assert klom(p, q, bins=2)["mean"] == pytest.approx(math.log(3) / 2)


@pytest.mark.parametrize("fixed_variance", [True, False])
def test_nothing_leaks(fixed_variance):
    out = ulira(normal(80, 60, 0), halves(80, 60), fixed_variance)
    assert out["auc"] == pytest.approx(50, abs=2.5)
    assert out["accuracy"] == pytest.approx(50, abs=2.5)
    assert out["tpr_at_1_fpr"] < 4


@pytest.mark.parametrize("fixed_variance", [True, False, None])
def test_everything_leaks(fixed_variance):
    forgotten = halves(20, 30)
    # Images have means of their own, far wider than what unlearning leaves behind: no common threshold helps.
    margins = normal(1, 30, 1, std=100) + normal(20, 30, 0, std=0.1) + 5 * forgotten
    assert ulira(margins, forgotten, fixed_variance) == {"auc": 100, "accuracy": 100, "tpr_at_1_fpr": 100}


def test_a_known_leak():
    # A standard deviation d = 1 apart, known Gaussians: accuracy Phi(1/2) = 69.1 %, AUC Phi(1/sqrt 2) = 76.0 %,
    # and at 1 % false positives Phi(1 - 2.326) = 9.2 %.
    forgotten = halves(200, 100)
    out = ulira(normal(200, 100, 2) + forgotten, forgotten)
    assert out["accuracy"] == pytest.approx(100 * stats.norm.cdf(0.5), abs=1.5)
    assert out["auc"] == pytest.approx(100 * stats.norm.cdf(0.5**0.5), abs=1.5)
    assert out["tpr_at_1_fpr"] == pytest.approx(100 * stats.norm.cdf(1 - stats.norm.ppf(0.99)), abs=2)


@pytest.mark.parametrize("fixed_variance", [True, False])
def test_scores_are_those_of_a_slow_loop(fixed_variance):
    """Leave one model out, fit both Gaussians anew, by the letter."""
    forgotten = normal(9, 5, 4) > 0
    forgotten[:3], forgotten[3:6] = True, False
    margins = normal(9, 5, 3) + 0.7 * forgotten
    scores, truth = [], []
    for k in range(9):
        for i in range(5):
            likelihoods = []
            for side in (forgotten, ~forgotten):
                use = side.clone()
                use[k, i] = False
                mean = margins[use[:, i], i].mean()
                variance = margins[use[:, i], i].var()
                if fixed_variance:
                    off = sum(((m := margins[use[:, j], j]) - m.mean()).square().sum() for j in range(5))
                    variance = off / sum(use[:, j].sum() - 1 for j in range(5))
                likelihoods.append(stats.norm.logpdf(margins[k, i], mean, variance**0.5))
            scores.append(likelihoods[0] - likelihoods[1])
            truth.append(forgotten[k, i].item())
    wins = [
        (a > b)
        for a, t in zip(scores, truth, strict=True)
        if t
        for b, u in zip(scores, truth, strict=True)
        if not u
    ]
    out = ulira(margins, forgotten, fixed_variance)
    assert out["auc"] == pytest.approx(100 * sum(wins) / len(wins))
    right = [
        [(s > 0) == t for s, t in zip(scores, truth, strict=True) if t == kind] for kind in (True, False)
    ]
    assert out["accuracy"] == pytest.approx(50 * sum(sum(side) / len(side) for side in right))


def test_images_with_too_few_models_are_left_out():
    forgotten = halves(12, 6)
    margins = normal(12, 6, 5) + forgotten
    # A seventh image that only one model forgot.
    lone = torch.zeros(12, 1, dtype=torch.bool)
    lone[0] = True
    wide, asked = torch.cat([margins, 1000 * lone], 1), torch.cat([forgotten, lone], 1)
    alone = ulira(margins, forgotten, fixed_variance=False)
    beside = ulira(wide, asked, fixed_variance=False)
    # Its eleven models that never saw it have no counterpart either.
    assert beside == pytest.approx(alone)


def test_too_few_models_are_an_error():
    with pytest.raises(HacoreError, match="train more models"):
        ulira(torch.zeros(2, 3), torch.tensor([[True] * 3, [False] * 3]))
    with pytest.raises(HacoreError, match="train more models"):
        klom(torch.zeros(1, 3), torch.zeros(5, 3))
