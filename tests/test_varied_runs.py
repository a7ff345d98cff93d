"""Runs with settings other than their profile's: what changes, what the command says, and bad input."""

import pytest

from hacore.errors import HacoreError
from hacore.experiments import Run, varied

CONCEPTS = Run(
    scenario="concepts", data="world", recipe="image-text", space="lorentz", lift="free", method="hac", forget="star"
)  # fmt: skip


def test_a_setting_changes_alone():
    run = varied(CONCEPTS, {"dim": "16", "learnable": "False"})
    assert run.resolved().dim == 16
    assert run.resolved().learnable is False
    assert run.resolved().unlearning == CONCEPTS.resolved().unlearning
    assert run.name != CONCEPTS.name


def test_a_field_of_the_method_changes_alone():
    run = varied(CONCEPTS, {"entailment": "0.5"})
    assert run.resolved().unlearning.entailment == 0.5
    assert run.resolved().training == CONCEPTS.resolved().training


def test_the_command_names_what_changed():
    run = varied(CONCEPTS, {"dim": "16", "positive": "0.25"})
    assert run.command.startswith(CONCEPTS.command)
    assert run.command.endswith("--set dim=16 --set positive=0.25")
    assert varied(run, {}) == run


def test_runs_of_one_setting_share_their_gold_standard():
    first, second = (
        varied(Run(**{**vars(CONCEPTS), "method": name}), {"dim": "16"}) for name in ("ac", "hac")
    )
    assert first.settings == second.settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"dims": "16"}, "have 'dims'"), ({"dim": "big"}, "dim is int"), ({"objective": "x"}, "objective is")],
)
def test_bad_changes(changes, message):
    with pytest.raises(HacoreError, match=message):
        varied(CONCEPTS, changes)
