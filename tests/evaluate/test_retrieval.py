"""Recall by hand, against a slow loop, and with ties that must not help."""

import pytest
import torch

from hacore.errors import HacoreError
from hacore.evaluate import retrieval
from hacore.evaluate.retrieval import first_rank, recall_at_k

# Three images, four texts: 0 and 1 are true of image 0, 2 of image 1, 3 of image 2.
TRUE = torch.tensor(
    [[True, True, False, False], [False, False, True, False], [False, False, False, True]]
)  # fmt: skip
SIMILARITY = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.8, 0.2, 0.5, 0.6], [0.3, 0.1, 0.4, 0.7]])


def test_recall_by_hand():
    # Image 0 finds text 1 first, image 1 finds 0 and 3 before 2, image 2 finds 3.
    assert first_rank(SIMILARITY, TRUE).tolist() == [1, 3, 1]
    # Text 0 finds images 1, 2, then 0; text 1 image 0; text 2 image 1; text 3 image 2.
    assert first_rank(SIMILARITY.T, TRUE.T).tolist() == [3, 1, 1, 1]
    assert retrieval.retrieval(SIMILARITY, TRUE, cuts=(1, 2, 3)) == pytest.approx(
        {
            "image_to_text_recall_1": 200 / 3, "image_to_text_recall_2": 200 / 3, "image_to_text_recall_3": 100,
            "text_to_image_recall_1": 75, "text_to_image_recall_2": 75, "text_to_image_recall_3": 100,
        }
    )  # fmt: skip


def test_who_asks_is_chosen_and_all_are_candidates():
    image, texts = torch.tensor([False, True, False]), torch.tensor([True, True, False, False])
    assert retrieval.retrieval(SIMILARITY, TRUE, image, texts, cuts=(1, 2)) == {
        "image_to_text_recall_1": 0, "image_to_text_recall_2": 0,
        "text_to_image_recall_1": 50, "text_to_image_recall_2": 50,
    }  # fmt: skip


def test_ties_are_the_worst_case():
    # All alike: the true one of four stands last. Other true ones do not stand in its way.
    alike = torch.zeros(3, 4)
    assert first_rank(alike, TRUE).tolist() == [3, 4, 4]
    assert recall_at_k(alike, TRUE, (1, 3, 4)) == pytest.approx({1: 0, 3: 100 / 3, 4: 100})


def test_queries_without_a_true_answer_do_not_count():
    true = TRUE.clone()
    true[1] = False
    assert first_rank(SIMILARITY, true).tolist() == [1, 5, 1]
    assert recall_at_k(SIMILARITY, true, (1,)) == {1: 100}


@pytest.mark.parametrize("largest", [1, 40, 2**22])
def test_recall_is_that_of_a_slow_loop_in_pieces_of_any_size(monkeypatch, largest):
    monkeypatch.setattr(retrieval, "LARGEST", largest)
    stream = torch.Generator().manual_seed(0)
    # Few values, so that there are ties.
    similarity = torch.randint(0, 12, (30, 17), generator=stream).float()
    true = torch.rand(30, 17, generator=stream) < 0.1
    for scores, right in ((similarity, true), (similarity.T, true.T)):
        hits = {1: [], 5: []}
        for row, mine in zip(scores.tolist(), right.tolist(), strict=True):
            if any(mine):
                # Sorted by similarity, of equals the wrong ones first.
                order = sorted(range(len(row)), key=lambda j: (-row[j], mine[j]))
                for k, found in hits.items():
                    found.append(any(mine[j] for j in order[:k]))
        expected = {k: 100 * sum(found) / len(found) for k, found in hits.items()}
        assert recall_at_k(scores, right, (1, 5)) == pytest.approx(expected)


def test_bad_input():
    with pytest.raises(HacoreError, match="k = 1 or more"):
        recall_at_k(SIMILARITY, TRUE, (0, 1))
    with pytest.raises(HacoreError, match="k = 1 or more"):
        recall_at_k(SIMILARITY, TRUE, ())
    with pytest.raises(HacoreError, match="no query has a true answer"):
        recall_at_k(SIMILARITY, torch.zeros_like(TRUE))
    with pytest.raises(HacoreError, match="not all finite"):
        recall_at_k(SIMILARITY * torch.inf, TRUE)
