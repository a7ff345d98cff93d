"""Zero-shot accuracy, ranks and a prompt's AUC, counted by hand."""

import pytest
import torch

from hacore.errors import HacoreError
from hacore.evaluate.zero_shot import (
    mean_rank,
    prompt_auc,
    prompt_scores,
    separability,
    zero_shot,
    zero_shot_accuracy,
)

# Four images, three classes. Places of the true class: 1, 2, 3, and 1 or 2 (a tie of two).
SIMILARITY = torch.tensor([[0.9, 0.1, 0.2], [0.5, 0.4, 0.1], [0.3, 0.2, 0.1], [0.1, 0.7, 0.7]])
LABELS = torch.tensor([0, 1, 2, 1])


def test_accuracy_by_hand():
    # Right: one, and the tie for a half.
    assert zero_shot_accuracy(SIMILARITY, LABELS) == pytest.approx(100 * 1.5 / 4)
    # Without class 0 images 1 is right, 3 still half.
    some = torch.tensor([False, True, True])
    assert zero_shot_accuracy(SIMILARITY[1:], LABELS[1:], some) == pytest.approx(100 * 1.5 / 3)


def test_mean_rank_by_hand():
    assert mean_rank(SIMILARITY, LABELS) == pytest.approx((1 + 2 + 3 + 1.5) / 4)
    some = torch.tensor([False, True, True])
    assert mean_rank(SIMILARITY[1:], LABELS[1:], some) == pytest.approx((1 + 2 + 1.5) / 3)


def test_a_collapsed_model_guesses():
    alike, labels = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
    assert zero_shot_accuracy(alike, labels) == 25
    assert mean_rank(alike, labels) == 2.5


def test_zero_shot_by_hand():
    forgotten = torch.tensor([True, False, False])
    assert zero_shot(SIMILARITY, LABELS, forgotten) == pytest.approx(
        {
            "zero_shot_forget_accuracy": 100,  # image 0
            "zero_shot_forget_rank": 1,
            "zero_shot_retain_accuracy": 100 * 0.5 / 3,  # images 1, 2, 3
            "zero_shot_retain_accuracy_among_retain": 100 * 1.5 / 3,
            "zero_shot_retain_rank": 6.5 / 3,
        }
    )
    # Two forgotten classes can be told from each other: image 0 from class 1, image 3 from 0, image 1 not.
    two = zero_shot(SIMILARITY, LABELS, torch.tensor([True, True, False]))
    assert two["zero_shot_forget_accuracy_among_forget"] == pytest.approx(200 / 3)


def test_prompt_auc_by_hand():
    # Pairs of one of (0.3, 0.8) with one of (0.1, 0.3, 0.9): wins 1, ties 1, loses 1; wins 2, loses 1.
    similarity = torch.tensor([0.3, 0.8, 0.1, 0.3, 0.9])
    mine = torch.tensor([True, True, False, False, False])
    assert prompt_auc(similarity, mine) == pytest.approx(100 * 3.5 / 6)
    # A concept that is turned away is found by the opposite sign.
    turned = prompt_scores(torch.tensor([-1.0, -1.0, 0.5, 0.5]), torch.tensor([True, True, False, False]))
    assert turned == {"prompt_auc": 0, "prompt_separability": 100}
    assert separability(42.0) == 58
    assert separability(58.0) == 58


def test_bad_input():
    none = torch.zeros(4, dtype=torch.bool)
    with pytest.raises(HacoreError, match="no images of the forget classes"):
        zero_shot(SIMILARITY, LABELS, none[:3])
    with pytest.raises(HacoreError, match="both kinds"):
        prompt_auc(torch.ones(4), none)
    with pytest.raises(HacoreError, match="not all finite"):
        prompt_auc(torch.tensor([1.0, torch.nan]), torch.tensor([True, False]))
    with pytest.raises(HacoreError, match="not all finite"):
        zero_shot_accuracy(SIMILARITY * torch.nan, LABELS)
    with pytest.raises(HacoreError, match="not among those allowed"):
        zero_shot_accuracy(SIMILARITY, LABELS, torch.tensor([True, True, False]))
    with pytest.raises(HacoreError, match="prompts of 3 classes"):
        mean_rank(SIMILARITY, LABELS + 1)
    with pytest.raises(HacoreError, match="no images"):
        mean_rank(SIMILARITY[:0], LABELS[:0])
