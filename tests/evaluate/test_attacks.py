"""Membership attacks: each number worked by hand, each attacker on data where its success is known."""

import math

import pytest
import torch

from hacore.errors import HacoreError
from hacore.evaluate import attacks
from hacore.evaluate.outputs import Outputs


def outputs(logits, labels):
    return Outputs(logits, logits, logits, torch.as_tensor(labels))


def test_log_odds_by_hand():
    # p = (0.7, 0.2, 0.1): log(0.7 / 0.3) and log(0.1 / 0.9).
    logits = torch.tensor([0.7, 0.2, 0.1]).log().repeat(2, 1)
    expected = torch.tensor([math.log(7 / 3), math.log(1 / 9)]).double()
    torch.testing.assert_close(attacks.log_odds(logits, torch.tensor([0, 2])), expected, rtol=1e-6, atol=1e-6)


def test_log_odds_where_the_probability_rounds_to_one():
    # Two classes 100 apart: p = 1 - 4e-44, and the log-odds are the difference of the logits.
    assert attacks.log_odds(torch.tensor([[100.0, 0.0]]), torch.tensor([0])).item() == 100


def test_entropy_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, -1000.0]])
    assert attacks.entropy(logits).tolist() == pytest.approx([math.log(2), 0.0])


def test_modified_entropy_by_hand():
    # p = (0.7, 0.2, 0.1), class 0: 0.3 * 0.356675 + 0.2 * 0.223144 + 0.1 * 0.105361 = 0.162167. The version
    # that is copied around gives the first of three rows, whose labels are 0, 1, 2,
    # 0.3 * 0.356675 + 0.8 * 1.609438 + 0.9 * 2.302585 = 3.466879.
    p = torch.tensor([[0.7, 0.2, 0.1]] * 3)
    log_p = p.log()
    copied, copied_log, labels = p.clone(), log_p.clone(), torch.arange(3)
    copied[:, labels] = (1 - p)[:, labels]
    copied_log[:, labels] = log_p[:, labels]
    assert -(copied * copied_log).sum(1)[0].item() == pytest.approx(3.466879, abs=1e-5)

    mentr = attacks.modified_entropy(log_p, labels)
    assert mentr[0].item() == pytest.approx(0.162167, abs=1e-5)
    # Class 1: 0.8 * 1.609438 + 0.7 * 1.203973 + 0.1 * 0.105361; class 2: 0.9 * 2.302585 + 0.7 * ... + 0.2 * ...
    assert mentr[1].item() == pytest.approx(2.140868, abs=1e-5)
    assert mentr[2].item() == pytest.approx(2.959736, abs=1e-5)


def test_modified_entropy_of_certain_answers():
    # Certain and right: 0. Certain and wrong, with logits 100 apart: 1 * 100 for the class, 1 * 100 for the other.
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0]])
    assert attacks.modified_entropy(logits, torch.tensor([0, 1])).tolist() == pytest.approx([0.0, 200.0])


def test_auc_by_hand():
    # Of 2 x 2 pairs, members win 2 > 1 and tie 1 = 1, and lose 1 < 3 and 2 < 3: 1.5 / 4.
    assert attacks.auc(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])) == 37.5


def test_cross_validated_auc_of_known_data():
    stream = torch.Generator().manual_seed(0)
    noise = torch.randn(400, 3, generator=stream)
    # Two unit Gaussians a distance of 1 apart: AUC = Phi(1 / sqrt 2) = 76.0 %.
    apart = noise.clone()
    apart[:200, 1] += 1
    assert attacks.cross_validated_auc(apart[:200], apart[200:]) == pytest.approx(76.0, abs=5)
    assert attacks.cross_validated_auc(noise[:200], noise[200:]) == pytest.approx(50, abs=7)
    assert attacks.cross_validated_auc(noise[:200] + 100, noise[200:]) == 100


def test_cross_validation_does_not_learn_the_images_by_heart():
    # 300 columns separate 40 images perfectly in the fit; out of the fold there is nothing to find.
    noise = torch.randn(40, 300, generator=torch.Generator().manual_seed(1))
    assert attacks.cross_validated_auc(noise[:20], noise[20:]) < 75


def test_two_images_a_side_are_the_least():
    with pytest.raises(HacoreError, match="two members and two non-members"):
        attacks.cross_validated_auc(torch.zeros(1, 2), torch.zeros(5, 2))


def test_columns_by_hand():
    columns = attacks.logit_columns(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]))
    odds = 2 - math.log(1 + math.e)
    assert columns.tolist()[0] == pytest.approx([0, 2, 1, 2, 1, 0, odds])
    # Known features of class 0 have mean (1, 0), of class 1 there are none.
    known = torch.tensor([[0.0, 0.0], [2.0, 0.0]])
    features = torch.tensor([[1.0, 3.0], [3.0, 4.0]])
    columns = attacks.feature_columns(features, torch.tensor([0, 1]), known, torch.zeros(2, dtype=torch.long))
    assert columns.tolist() == [[1, 3, 3], [3, 4, 5]]
    seen = attacks.softmax_features(torch.tensor([[0.1, 0.7, 0.2]]).log(), torch.tensor([2]))
    assert seen.tolist()[0] == pytest.approx([0.7, 0.2, 0.1, 0.2])


def test_attackers_call_what_they_were_fitted_to():
    # Members are certain of their class, non-members undecided: (0.99, 0.01) against (0.5, 0.5).
    members, others = torch.tensor([[0.99, 0.01, 0.99]] * 9), torch.tensor([[0.5, 0.5, 0.5]] * 9)
    asked = torch.tensor([[0.98, 0.02, 0.98], [0.97, 0.03, 0.97], [0.97, 0.03, 0.97], [0.52, 0.48, 0.52]])
    assert attacks.member_rate(attacks.attack_model(members, others), asked) == 75
    svc = attacks.confidence_svc(members[:, -1], others[:, -1])
    assert attacks.member_rate(svc, asked[:, -1:]) == 75
    # Most confident and yet beyond the midpoint 0.745: a non-member.
    assert attacks.member_rate(svc, torch.tensor([[0.7]])) == 0


def some(n, value):
    return outputs(torch.full((n, 2), float(value)), torch.zeros(n, dtype=torch.long))


def test_unseen_images_carry_the_noise_of_the_members():
    seen = {
        "retain_validation": some(1, 1), "retain_test": some(2, 2),
        "forget_validation": some(3, 3), "forget_test": some(4, 4),
    }  # fmt: skip
    forgotten, retained = attacks.unseen(seen, clean=True)
    assert (len(forgotten.labels), len(retained.labels)) == (7, 3)
    forgotten, retained = attacks.unseen(seen, clean=False)
    assert (forgotten.logits.unique().tolist(), retained.logits.unique().tolist()) == ([3.0], [1.0])
    samples = {name: seen[name] for name in ("retain_validation", "retain_test")}
    forgotten, retained = attacks.unseen(samples, clean=True)
    assert torch.equal(forgotten.logits, retained.logits)


def sure(n, odds, seed):
    """Answers with log-odds around ``odds`` for the right one of two classes."""
    stream = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=stream)
    margin = odds + torch.randn(n, generator=stream)
    signs = 2.0 * torch.nn.functional.one_hot(labels, 2) - 1
    return outputs(signs * margin[:, None] / 2, labels)


@pytest.mark.parametrize("leaks", [True, False])
def test_membership_of_a_model_that_leaks_and_of_one_that_does_not(leaks):
    seen = {
        "retain_train": sure(400, 6, 0), "retain_validation": sure(200, 0, 1), "retain_test": sure(1, 0, 2),
        "forget_train": sure(100, 6 if leaks else 0, 3),
    }  # fmt: skip
    scores = attacks.membership(seen, clean=False)
    assert attacks.membership(seen, clean=False) == scores
    for name in ("logits", "features", "confidence", "entropy", "modified_entropy"):
        if leaks:
            assert scores[f"attack_{name}_auc"] > 95, name
        else:
            assert abs(scores[f"attack_{name}_auc"] - 50) < 9, name
    assert scores["attack_member_rate_retain"] > 90
    assert (scores["attack_member_rate_forget"] > 90) == leaks
    assert (scores["svc_forget_nonmember_rate"] < 10) == leaks


def test_a_large_side_is_drawn_from(monkeypatch):
    asked = []
    monkeypatch.setattr(attacks, "LARGEST", 50)
    monkeypatch.setattr(attacks, "auc", lambda a, b: asked.append((len(a), len(b))) or 50.0)
    attacks.membership(
        {
            "retain_train": sure(400, 6, 0),
            "retain_validation": sure(200, 0, 1),
            "forget_train": sure(30, 6, 3),
        },
        clean=True,
    )
    assert asked == [(30, 50)] * 3
