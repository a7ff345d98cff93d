"""Where forgotten images go, counted by hand."""

import pytest
import torch

from hacore.evaluate.confusion import confusion, predicted_shares, total_variation
from hacore.evaluate.outputs import Outputs


def answers(*classes):
    logits = torch.nn.functional.one_hot(torch.tensor(classes), 3).float()
    return Outputs(logits, logits, logits, torch.zeros(len(classes), dtype=torch.long))


def test_shares_and_distance_by_hand():
    assert predicted_shares(answers(0, 1, 1, 1).logits).tolist() == [25, 75, 0]
    # (|25 - 50| + |75 - 0| + |0 - 50|) / 2
    assert total_variation(torch.tensor([25.0, 75.0, 0.0]), torch.tensor([50.0, 0.0, 50.0])) == 75


def test_confusion_by_hand():
    seen = {
        "forget_train": answers(0, 1, 1, 1),
        "forget_test": answers(2, 2, 0, 0),
        "retain_test": answers(0),
    }
    reference = {"forget_train": answers(2, 0, 2, 0)}
    assert confusion(seen, reference) == pytest.approx(
        {
            "forget_train_as_0": 25, "forget_train_as_1": 75, "forget_train_as_2": 0,
            "forget_test_as_0": 50, "forget_test_as_1": 0, "forget_test_as_2": 50,
            "confusion_gap": 75,
        }
    )  # fmt: skip
    assert set(confusion({"forget_train": answers(0, 1)})) == {f"forget_train_as_{k}" for k in range(3)}
