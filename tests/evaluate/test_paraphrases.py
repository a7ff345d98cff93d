"""What other words still find, counted by hand."""

import pytest
import torch

from hacore.errors import HacoreError
from hacore.evaluate.paraphrases import leakage

MINE = torch.tensor([True, True, False, False])


def test_leakage_by_hand():
    finds = torch.tensor([2.0, 3.0, 1.0, 0.0])  # AUC 100
    flipped = -finds  # AUC 0
    half = torch.tensor([0.0, 1.0, 0.0, 1.0])  # wins 1, ties 2, loses 1: AUC 50
    similarity = torch.stack([half, finds, flipped, finds], dim=1)
    kinds = {
        "prompt": torch.tensor([0]),
        "paraphrase": torch.tensor([1, 2, 0]),
        "hypernym": torch.tensor([3]),
        "sibling": torch.tensor([], dtype=torch.long),
    }
    assert leakage(similarity, MINE, kinds) == pytest.approx(
        {
            "leakage_prompt_auc": 50, "leakage_prompt_separability": 50, "leakage_prompt_most": 50,
            # Opposite errors cancel in the mean AUC, and only there.
            "leakage_paraphrase_auc": 50,
            "leakage_paraphrase_separability": 250 / 3,
            "leakage_paraphrase_most": 100,
            "leakage_hypernym_auc": 100, "leakage_hypernym_separability": 100, "leakage_hypernym_most": 100,
        }
    )  # fmt: skip


@pytest.mark.parametrize("texts", [[0, 3], [-1, 1]])
def test_texts_that_are_not_there(texts):
    with pytest.raises(HacoreError, match="'paraphrase' are numbered"):
        leakage(torch.ones(4, 3), MINE, {"paraphrase": torch.tensor(texts)})
