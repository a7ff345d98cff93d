"""The owner's audit: scores by hand, p-values by enumeration, false alarms at their nominal rate, and power."""

import itertools
import math
from dataclasses import FrozenInstanceError

import pytest
import torch

from hacore.errors import HacoreError
from hacore.evaluate import auditing
from hacore.evaluate.auditing import FORGOTTEN, LIKE_CONTROL, UNCHANGED, audit, false_alarm_rate
from hacore.geometry import space

NAMES = ["euclidean", "lorentz", "poincare"]


def two_views(where, n, noise, seed, of=0):
    """Two noisy views of n images, as points; ``of`` chooses the images."""
    images = torch.randn(n, 6, generator=torch.Generator().manual_seed(1000 + of))
    stream = torch.Generator().manual_seed(seed)
    noise = torch.as_tensor(noise).reshape(-1, 1)
    return [where.exp0(0.4 * (images + noise * torch.randn(n, 6, generator=stream))) for _ in range(2)]


def four(where, n, before, after, seed, of=0):
    """Views before and after, with the noise of each."""
    return (*two_views(where, n, before, 2 * seed, of), *two_views(where, n, after, 2 * seed + 1, of))


def similarities(first, second, where):
    """Slow and in float64: the matrix, and the mean and deviation of its off-diagonal entries."""
    matrix = where.similarity(first.double(), second.double())
    off = torch.tensor(
        [matrix[i, j] for i in range(len(first)) for j in range(len(first)) if i != j]
    ).double()
    return matrix, off.mean(), off.std(correction=0)


@pytest.mark.parametrize("name", NAMES)
def test_scores_with_a_control_by_a_slow_loop(name, monkeypatch):
    where = space(name)
    own, control = four(where, 12, 0.3, 0.8, 1), four(where, 15, 0.3, 0.4, 2, of=1)
    both = [torch.cat([mine, theirs]) for mine, theirs in zip(own, control, strict=True)]
    (s_b, mu_b, sd_b), (s_a, mu_a, sd_a) = (similarities(*both[k : k + 2], where) for k in (0, 2))
    drops = [((s_b[i, i] - mu_b) / sd_b - (s_a[i, i] - mu_a) / sd_a).item() for i in range(27)]
    monkeypatch.setattr(auditing, "ROWS", 5)  # several pieces of the matrix
    found = audit(*own, where, where, control)
    assert (found.n, found.n_control) == (12, 15)
    assert found.drop == pytest.approx(sum(drops[:12]) / 12, abs=1e-4)
    assert found.control_drop == pytest.approx(sum(drops[12:]) / 15, abs=1e-4)
    assert found.score == pytest.approx(found.drop - found.control_drop)
    assert found.raw == pytest.approx((s_b - s_a).diagonal()[:12].mean().item(), abs=1e-5)
    assert found.before == pytest.approx(s_b.diagonal()[:12].mean().item(), abs=1e-5)
    assert found.control_after == pytest.approx(s_a.diagonal()[12:].mean().item(), abs=1e-5)
    assert found.low < found.score < found.high
    assert found.raw_low < found.raw < found.raw_high
    assert found == audit(*own, where, where, control)
    assert found.high != audit(*own, where, where, control, seed=1).high


@pytest.mark.parametrize("name", NAMES)
def test_scores_without_a_control_by_a_slow_loop(name):
    where = space(name)
    own = four(where, 12, 0.3, 0.8, 1)
    (s_b, _, sd_b), (s_a, _, sd_a) = (similarities(*own[k : k + 2], where) for k in (0, 2))

    def apart(matrix, i, sd):
        return ((matrix[i, i] - (matrix[i].sum() - matrix[i, i]) / 11) / sd).item()

    drops = [apart(s_b, i, sd_b) - apart(s_a, i, sd_a) for i in range(12)]
    found = audit(*own, where, where)
    assert found.score == pytest.approx(sum(drops) / 12, abs=1e-4)
    assert (found.n_control, found.control_before, found.control_after) == (0, None, None)
    assert found.control_drop == pytest.approx(0, abs=1e-9)
    assert found.verdict == FORGOTTEN


def test_the_forgetting_score_by_hand():
    # Cosines of the ten true pairs are 1 before (views of different lengths), and 0.6 after for half of them.
    turn = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(5, 1)
    tilted = torch.where(torch.arange(10)[:, None] < 5, turn @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]]), turn)
    where = space("euclidean")
    found = audit(turn, 2 * turn, turn, tilted, where, where)
    assert found.before == pytest.approx(1)
    assert found.after == pytest.approx(0.8)
    assert found.raw == pytest.approx(0.2)
    # Resampled means of 0 and 0.4 with equal chance: a deviation of 0.2 / sqrt 10 each way, 1.96 times.
    assert found.raw_high - found.raw_low == pytest.approx(2 * 1.96 * 0.2 / math.sqrt(10), rel=0.2)


def test_scale_does_not_matter_to_the_calibrated_score():
    # The geometry changes and so does the unit of similarity; the arrangement is the same.
    before, after = space("lorentz"), space("lorentz", curv=1e-4)
    first, second = two_views(space("euclidean"), 40, 0.3, 0)
    v, w = 0.01 * first, 0.01 * second
    points = before.exp0(v), before.exp0(w), after.exp0(100 * v), after.exp0(100 * w)
    found = audit(*points, before, after)
    assert found.after == pytest.approx(100 * found.before, rel=1e-2)
    assert abs(found.raw) > 0.1
    assert found.score == pytest.approx(0, abs=1e-2)


def test_permutation_p_values_by_enumeration():
    own = torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 0.0]])
    control = torch.tensor([[0.0, 1.0], [3.0, 2.0], [1.5, 3.0]])
    found = auditing.permutation_p_values(own, control)
    both = torch.cat([own, control])
    for column in range(2):
        sums = [both[list(some), column].sum() for some in itertools.combinations(range(6), 3)]
        exact = sum(s >= own[:, column].sum() for s in sums) / 20
        # Six standard errors of 9,999 draws.
        assert found[column].item() == pytest.approx(float(exact), abs=0.03)
    assert found[1] == pytest.approx(1)  # as low as can be, ties with itself and others included
    few = auditing.permutation_p_values(own, control, permutations=3)
    assert set((4 * few).round(decimals=9).tolist()) <= {1.0, 2.0, 3.0, 4.0}
    # The p-value is never 0: 20 images against 20 far below.
    far = auditing.permutation_p_values(torch.ones(20, 1), torch.zeros(20, 1))
    assert far.item() == 1 / 10_000


def test_sign_flip_p_values_by_enumeration():
    drops = torch.tensor([[1.0, -1.0], [0.5, -2.0], [-0.25, -1.0], [2.0, 3.0], [0.1, 0.0], [0.7, 0.0]])
    found = auditing.sign_flip_p_values(drops)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=6)))
    for column in range(2):
        exact = (signs @ drops[:, column] >= drops[:, column].sum() - 1e-6).double().mean().item()
        assert found[column].item() == pytest.approx(exact, abs=0.03)


def test_sums_that_differ_by_rounding_are_ties():
    # All the same number: every permutation is as extreme as the observation, whatever its sum rounds to.
    same = torch.full((30, 1), 0.1).double()
    assert auditing.permutation_p_values(same[:10], same[10:]).item() == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_drop_on_own_images_is_seen_and_a_common_one_is_not(name):
    where = space(name)
    steady, worse = four(where, 40, 0.3, 0.3, 3, of=1), four(where, 40, 0.3, 0.9, 4, of=1)
    seen = audit(*four(where, 30, 0.3, 0.9, 5), where, where, steady)
    assert seen.verdict == FORGOTTEN
    assert seen.low > 0
    assert seen.p_value == 1 / 10_000
    alike = audit(*four(where, 30, 0.3, 0.9, 5), where, where, worse)
    assert alike.verdict == LIKE_CONTROL
    assert alike.p_value > 0.05
    nothing = audit(*four(where, 30, 0.3, 0.3, 7), where, where, steady)
    assert nothing.verdict == UNCHANGED
    # One-sided: own images that are remembered better are not forgotten.
    better = audit(*four(where, 30, 0.9, 0.3, 5), where, where, steady)
    assert better.verdict == LIKE_CONTROL
    assert better.score < 0
    assert better.p_value > 0.95


def test_without_a_control_a_change_on_all_images_passes_for_forgetting():
    where = space("euclidean")
    worse = four(where, 30, 0.3, 0.9, 5)
    assert audit(*worse, where, where).verdict == FORGOTTEN
    assert audit(*worse, where, where, four(where, 30, 0.3, 0.9, 6, of=1)).verdict == LIKE_CONTROL


def test_false_alarms_come_at_their_nominal_rate():
    where = space("euclidean")
    # Noise of its own for each image, and a service that changed on all of them.
    noise = torch.rand(1500, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.2
    pool = four(where, 1500, noise, 2 * noise, 8)
    found = false_alarm_rate(*pool, where, where, own=20, control=30, repeats=400)
    assert found.rate == 100 * found.alarms / found.repeats
    # Of 400 audits 20 are expected, with a deviation of sqrt(400 * 0.05 * 0.95) = 4.4; four of them.
    assert 3 <= found.alarms <= 37
    assert found == false_alarm_rate(*pool, where, where, own=20, control=30, repeats=400)
    # Without a control every one of these audits is wrong.
    assert false_alarm_rate(*pool, where, where, own=20, control=0, repeats=50).rate == 100


def test_sign_flips_keep_their_level_where_nothing_changed():
    where, n, drops = space("euclidean"), 50, []
    for seed in range(200):
        noise = torch.rand(n, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.2
        own = list(four(where, n, noise, noise, seed, of=seed))
        parts = auditing._standardised(own, (where, where), torch.ones(n, 1, dtype=torch.bool))
        drops.append(parts.drop - parts.own_mismatched)
    alarms = (auditing.sign_flip_p_values(torch.cat(drops, dim=1)) <= 0.05).sum()
    # Of 200 services 10 are expected, with a deviation of 3.1; four of them, as below 1 is not possible.
    assert 1 <= alarms <= 22


def test_false_alarms_are_those_of_single_audits():
    where = space("lorentz")
    pool, controls = four(where, 60, 0.3, 0.45, 1), four(where, 50, 0.3, 0.4, 2, of=1)
    found = false_alarm_rate(*pool, where, where, own=12, control=10, repeats=8, seed=4, controls=controls)
    stream, alarms = auditing.generator(4, "false alarms"), []
    own, others = (torch.rand(n, 8, generator=stream, dtype=torch.float64).argsort(0) for n in (60, 50))
    for k in range(8):
        mine = [points[own[:12, k]] for points in pool]
        theirs = tuple(points[others[:10, k]] for points in controls)
        alarms.append(audit(*mine, where, where, theirs, seed=4).verdict == FORGOTTEN)
    assert 0 < sum(alarms) < 8
    assert found.alarms == sum(alarms)


def test_sentences_say_what_was_found_and_what_was_not():
    where = space("euclidean")
    steady, worse = four(where, 40, 0.3, 0.3, 3, of=1), four(where, 40, 0.3, 0.9, 4, of=1)
    seen = audit(*four(where, 30, 0.3, 0.9, 5), where, where, steady)
    assert f"each of your 30 images dropped by {seen.score:.2f} standard deviations more" in seen.sentence()
    assert "that of 40 control images: your images were visibly forgotten." in seen.sentence()
    alike = audit(*four(where, 30, 0.3, 0.9, 5), where, where, worse).sentence()
    assert "it changed, but not on your images in particular" in alike
    nothing = audit(*four(where, 30, 0.3, 0.3, 7), where, where, steady).sentence()
    assert "there is no visible change" in nothing
    lonely = audit(*four(where, 30, 0.3, 0.9, 5), where, where).sentence()
    for sentence in (seen.sentence(), alike, nothing, lonely):
        assert "A visible change does not prove that your images are forgotten" in sentence
        assert ("There were no control images" in sentence) == (sentence == lonely)
    with pytest.raises(FrozenInstanceError):
        seen.score = 0.0


def test_embeddings_may_change_their_width():
    flat, bent = space("euclidean"), space("lorentz")
    before = two_views(flat, 30, 0.3, 0)
    after = [torch.cat([x, torch.zeros(30, 2)], dim=1) for x in two_views(bent, 30, 0.3, 1)]
    assert math.isfinite(audit(*before, *after, flat, bent).score)


def test_embeddings_that_cannot_be_audited():
    where = space("euclidean")
    good = four(where, 12, 0.3, 0.9, 0)

    def refused(match, *points, **rest):
        with pytest.raises(HacoreError, match=match):
            audit(*points, where, where, **rest)

    a, b, c, d = good
    refused("12, 12, 11, 11 own images", a, b, c[:11], d[:11])
    refused("12, 11, 12, 12 own images", a, b[:11], c, d)
    refused("9 own images are too few", *(points[:9] for points in good))
    refused("9 control images are too few", *good, control=tuple(points[:9] for points in good))
    refused("own images after hold NaN", a, b, c, d * torch.nan)
    refused("views before of the own images are identical", a, a.clone(), c, d)
    refused("views after of the own images are identical", a, b, c, c)
    # Before and after mixed up, where the two services have different widths.
    wide = torch.cat([c, d], dim=1)
    refused("views before have 6 and 12 dimensions", a, wide, b, wide)
    refused(r"shape \(n, d\), got \(12,\)", a[:, 0], b, c, d)
    refused("6 dimensions and control ones of 5", *good, control=tuple(points[:, :5] for points in good))
    same = torch.ones(12, 6)
    refused("equally similar", a, b, same, 2 * same)
    refused("between 0 and 1", *good, level=95.0)


def test_false_alarms_of_too_few_images():
    where = space("euclidean")
    pool = four(where, 25, 0.3, 0.3, 0)
    for own, control, match in ((15, 11, "cannot be drawn"), (5, 10, "5 own"), (10, 5, "5 control")):
        with pytest.raises(HacoreError, match=match):
            false_alarm_rate(*pool, where, where, own=own, control=control)
    with pytest.raises(HacoreError, match="at least one repeat"):
        false_alarm_rate(*pool, where, where, own=10, control=10, repeats=0)
    assert false_alarm_rate(*pool, where, where, own=15, control=10, repeats=3).repeats == 3
