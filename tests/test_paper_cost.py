"""What the papers' size would cost: sums worked by hand, and commands that the command line understands."""

import shlex
from dataclasses import fields, replace

import pandas as pd
import pytest

from hacore import experiments
from hacore.__main__ import chosen_runs, parser
from hacore.errors import HacoreError
from hacore.experiments import Run, cost
from hacore.experiments.settings import Settings

CONCEPT = {
    "scenario": "concepts",
    "recipe": "image-text",
    "forget": "dog",
    "space": "lorentz",
    "lift": "free",
}
FLOPS = {"original": 110.0, "retrain": 100.0, "finetune": 5.0}


def records(seeds=2, **changes):
    """Runs of three methods, of which Retrain takes 100 FLOPs in 4 seconds."""
    shared = {"scenario": "single-class", "recipe": "generalising", "forget": 5, "space": "euclidean"}
    shared |= {"lift": "clipped", "seconds": 4.0, "retain_test_accuracy": 90.0} | changes
    rows = [
        shared
        | {"method": m, "seed": s, "flops": f, "forget_train_accuracy": 0.0, "retain_train_accuracy": 0.0}
        for s in range(seeds)
        for m, f in FLOPS.items()
    ]
    return pd.DataFrame(rows)


def test_cost_by_hand():
    # Two seeds of 1.1 + 1 + 0.05 trainings; a GPU that does one training in an hour; a CPU with 25 FLOP/s.
    each = experiments.training_flops(Run(method="retrain", data="cifar10", profile="paper"))
    out = experiments.paper_cost(records(), ["cifar10"], ["resnet18"], gpu=each / 3600)
    row = out.loc[("cifar10", "resnet18")]
    assert row["trainings"] == pytest.approx(4.3)
    assert row["PFLOP each"] == pytest.approx(each / 1e15)
    assert row["GPU-hours"] == pytest.approx(4.3)
    assert row["CPU-days"] == pytest.approx(4.3 * each / 25 / 86400)


def test_images_and_encoders_of_the_papers_count():
    out = experiments.paper_cost(records(), ["cifar10", "svhn"], ["resnet18", "resnet34"])["PFLOP each"]
    assert out["svhn", "resnet18"] / out["cifar10", "resnet18"] == pytest.approx(65_931 / 45_000)
    assert out["cifar10", "resnet34"] > 1.5 * out["cifar10", "resnet18"]


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, {"forget": 5, "scenario": "single-class", "recipe": "generalising"}),
        (
            {
                "scenario": "random-samples",
                "forget": 0.1,
                "recipe": "memorising",
                "space": "poincare",
                "lift": "free",
            },
            {
                "forget": 0.1,
                "scenario": "random-samples",
                "recipe": "memorising",
                "space": "poincare",
                "lift": "free",
            },
        ),
        (CONCEPT, CONCEPT),
    ],
)
def test_the_commands_make_those_runs(changes, what):
    made = []
    for command in experiments.paper_commands(records(**changes), ["svhn"]):
        arguments = parser().parse_args(shlex.split(command)[1:])
        assert str(arguments.results) == "book/results"
        made += chosen_runs(arguments, arguments.method.split(","), range(arguments.seeds))
    expected = [Run(method=m, seed=s, data="svhn", profile="paper", **what) for s in range(2) for m in FLOPS]
    assert {run.name for run in made} == {run.name for run in expected}


def test_all_methods_have_a_short_command():
    every = [n for n, m in cost.METHODS.items() if m.fits("random-samples")]
    frame = pd.concat(
        [records(1, scenario="random-samples", forget=500).iloc[:1].assign(method=n) for n in every]
    )
    (command,) = experiments.paper_commands(frame, ["cifar100"])
    assert "--method all " in command
    assert "--forget 500 --seeds 1" in command


def test_texts_cost_something_too():
    pair = Run(**CONCEPT, method="retrain", data="cifar10", profile="paper")
    narrow = replace(pair, settings=replace(pair.resolved(), text_width=64, text_layers=2))
    image = Run(method="retrain", data="cifar10", profile="paper", settings=pair.resolved())
    alone = replace(
        image, settings=Settings(**{f.name: getattr(pair.resolved(), f.name) for f in fields(Settings)})
    )
    wide, slim, without = (experiments.training_flops(run) for run in (pair, narrow, alone))
    assert wide > slim > without


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pd.concat([records(), records(forget=1)]), "several requests"),
        (records().iloc[:0], "several requests"),
        (records().assign(seed=3), "seeds from 0 on"),
    ],
)
def test_bad_input_gets_one_sentence(frame, message):
    with pytest.raises(HacoreError, match=message):
        experiments.paper_commands(frame)


def test_every_data_set_of_the_profile_has_a_number_of_images():
    assert set(cost.IMAGES) == set(experiments.PROFILES[cost.PAPER])
    settings = [Run(method="retrain", data=name, profile="paper").resolved() for name in cost.IMAGES]
    assert all(one == settings[0] for one in settings)
