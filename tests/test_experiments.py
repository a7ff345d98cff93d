"""Runs: determinism, pairing, names, records, resumable grids."""

import json
from dataclasses import replace

import pytest
import torch
from tiny import tiny_run

from hacore import experiments, results
from hacore.errors import HacoreError
from hacore.experiments import Run, build, grid, prepare, provenance, run_grid, settings
from hacore.experiments import run as do
from hacore.geometry import SPACES


@pytest.fixture(scope="module")
def record():
    return do(tiny_run())


def test_the_same_run_gives_the_same_numbers(record):
    again = do(tiny_run())
    assert again["metrics"] == record["metrics"]
    assert again["history"] == record["history"]


def test_a_record_says_everything(record):
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record["run"]["space"] == "euclidean"
    assert record["settings"]["unlearning"]["omega"] == 4
    assert record["cost"]["steps"] > 0
    assert record["environment"]["torch"] == torch.__version__
    assert set(record["environment"]) >= {"hardware", "commit", "python", "code", "created"}
    assert record["command"].startswith("hacore run single-class --data digits --profile quick")


def test_the_original_is_the_same_for_every_method_and_request():
    one, other = (prepare(tiny_run(forget=k, method=m)) for k, m in [(5, "retrain"), (3, "original")])
    for a, b in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_seeds_and_geometries_start_from_their_own_weights():
    request = prepare(tiny_run())
    first = {}
    for key in [("euclidean", 0), ("euclidean", 1), ("lorentz", 0)]:
        model = build(tiny_run(key[0], seed=key[1]), request.dataset, request.split.retain)
        first[key] = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert not torch.equal(first["euclidean", 0], first["euclidean", 1])
    assert first["euclidean", 0][0] == first["lorentz", 0][0], "the encoders start alike in every geometry"


def test_names_tell_runs_apart():
    base = tiny_run()
    others = [
        replace(base, **change)
        for change in (
            {"seed": 1},
            {"forget": 3},
            {"method": "retrain"},
            {"curv": 2.0},
            {"scenario": "random-samples"},
            {"lift": "free"},
            {"recipe": "memorising"},
        )
    ]
    others.append(replace(base, settings=replace(base.resolved(), radius=3.0)))
    assert len({each.name for each in [base, *others]}) == 9
    assert tiny_run().name == base.name


def test_grid_keeps_runs_with_one_original_together():
    runs = grid(["original", "retrain"], ["lorentz", "poincare"], seeds=[0, 1], forget=3)
    assert [(r.space, r.seed, r.method) for r in runs[:3]] == [
        ("lorentz", 0, "original"), ("lorentz", 0, "retrain"), ("lorentz", 1, "original"),
    ]  # fmt: skip
    assert len(runs) == 8
    assert {r.forget for r in runs} == {3}


def test_a_grid_redoes_only_what_is_missing(tmp_path):
    runs = [tiny_run(method=m) for m in ("original", "contrastive-unlearning")]
    first = list(run_grid(runs, tmp_path / "out", tmp_path / "cache"))
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    assert len(files) == 2
    (tmp_path / "out" / f"{runs[1].name}.json").unlink()
    second = list(run_grid(runs, tmp_path / "out", tmp_path / "cache"))
    assert [r["metrics"] for r in second] == [r["metrics"] for r in first]
    changed = {path.name for path in (tmp_path / "out").iterdir() if path.stat().st_mtime_ns != files[path]}
    assert changed == {f"{runs[1].name}.json"}
    # The original was read back from its checkpoint, with the cost of its real training.
    assert prepare(runs[0], tmp_path / "cache").trained.seconds == first[0]["cost"]["seconds"]
    list(run_grid(runs[1:], tmp_path / "out", tmp_path / "cache", redo=True))
    assert results.read(tmp_path / "out" / f"{runs[1].name}.json")["environment"] is not None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "magic"}, "no method 'magic'"),
        ({"space": "flat"}, "no geometry 'flat'; choose one of euclidean"),
        ({"data": "mnist"}, "no data set 'mnist'"),
        ({"scenario": "everything"}, "no scenario 'everything'"),
        ({"profile": "huge"}, "no profile 'huge'"),
        ({"profile": "quick", "data": "svhn"}, "has no settings for 'svhn'"),
        ({"seed": -1}, "seed"),
    ],
)
def test_unknown_names_get_the_list(fields, message):
    with pytest.raises(HacoreError, match=message):
        Run(**fields)


@pytest.mark.parametrize("name", experiments.PROFILES)
def test_every_profile_builds_settings_for_every_geometry(name):
    for data, made in experiments.PROFILES[name].items():
        for space in SPACES:
            run = Run(data=data, profile=name, space=space, seed=3)
            assert run.resolved().training.loop.seed == 3
            assert made("memorising").encoder == run.resolved().encoder


def test_the_commit_is_known_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance._commit().startswith("v")


def test_a_recipe_may_noise_labels():
    run = tiny_run(scenario="random-samples", forget=0.1, recipe="memorising")
    request = prepare(run)
    split, data = request.split, request.dataset
    assert (split.labels != data.train_labels).double().mean().item() == pytest.approx(0.3, abs=0.002)
    assert len(split.forget) == pytest.approx(0.1 * (len(split.forget) + len(split.retain)), abs=1)


def test_retrain_is_trained_once_for_all_methods_of_a_grid(tmp_path):
    runs = [tiny_run(method=m) for m in ("original", "retrain", "contrastive-unlearning")]
    prepared = experiments.Prepared(runs[0], prepare(runs[0]))
    assert prepared.retrained is prepared.retrained
    record = do(runs[1], prepared)
    assert record["cost"]["seconds"] == prepared.retrained.fit.seconds


def test_tuned_values_replace_the_defaults(tmp_path, monkeypatch):
    values = {"euclidean clipped contrastive-unlearning": {"lr": 0.02, "omega": 2}}
    (tmp_path / "single-class-digits-quick-generalising.json").write_text(json.dumps(values))
    monkeypatch.setattr(settings, "TUNED", tmp_path)
    chosen, other = Run().resolved().unlearning, Run(space="lorentz").resolved().unlearning
    assert (chosen.lr, chosen.omega) == (0.02, 2)
    assert other.omega == 4


def test_what_was_searched_on_cifar10_serves_cifar100_until_it_has_a_search_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "TUNED", tmp_path)
    run = Run(data="cifar100", profile="standard")
    for data, omega in (("cifar10", 2), ("cifar100", 3)):
        values = {"euclidean clipped contrastive-unlearning": {"omega": omega}}
        (tmp_path / f"single-class-{data}-standard-generalising.json").write_text(json.dumps(values))
        settings._tuned_values.cache_clear()  # of the files as they were
        assert run.resolved().unlearning.omega == omega
    settings._tuned_values.cache_clear()


def test_flops_of_a_training_are_those_the_loop_counts():
    run = tiny_run(method="original")
    request = prepare(run)
    images = len(request.split.retain) + len(request.split.forget)
    # The loop counts the head too: a matrix product of 32 x 10, forward, and backward to both factors.
    head = 3 * 2 * 32 * 10 * images * run.resolved().training.loop.epochs
    estimate = experiments.training_flops(run, images, channels=1, size=8)
    assert estimate + head == pytest.approx(request.trained.flops, rel=0.02)
