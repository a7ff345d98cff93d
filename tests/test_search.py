"""Searches: known optima, the same trials after a kill, failures kept, adoption, damage."""

import copy
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from tiny import tiny_run

from hacore import search as module
from hacore.errors import HacoreError
from hacore.experiments import Run, prepare, settings
from hacore.search import adopt, best, measure, objective, propose, read, search, search_all, searched
from hacore.unlearning import METHODS, Method, Outcome, Range, Request


@dataclass(frozen=True, kw_only=True)
class Known(Method):
    """Perfect at ``knob`` = 0.01 and worse in both directions; fails below 0.001."""

    name = "known"
    knob: float = 0.3
    search: ClassVar[dict[str, Range]] = {"knob": Range(1e-4, 1.0)}
    needs_class = True

    def answer(self, request: Request) -> Outcome:
        if self.knob < 1e-3:
            raise HacoreError("step 3 of known: the loss is not finite; choose a larger knob")
        off = abs(torch.tensor(self.knob).log10().item() + 2)
        model = copy.deepcopy(request.model)
        # The class is ruled out whatever the knob; turned wrong, class 0 is favoured instead.
        model.head.bias.data[request.split.forget_classes[0]] -= 1e4
        model.head.bias.data[0] += 20 * off
        return Outcome(model, replace(request.trained, seconds=1.0))


@pytest.fixture
def known(monkeypatch):
    monkeypatch.setitem(METHODS, "known", Known())
    return Run(method="known", seed=module.SEED, settings=tiny_run().resolved())


@pytest.fixture(scope="module")
def request_():
    return prepare(tiny_run(method="original", seed=module.SEED))


def params(record):
    return [trial["params"] for trial in record["trials"]]


def test_objective_of_known_accuracies():
    before = {"validation": 95.0, "forget": 99.0, "validation_forget": 90.0}
    answer = {"validation": 90.0, "forget": 10.0, "validation_forget": 20.0}
    assert objective(answer, before) == 5 + 15
    assert objective(answer | {"validation": 97.0}, before) == 15, "better than the original is no bonus"
    samples = {"validation": 95.0, "forget": 99.0}
    assert objective({"validation": 90.0, "forget": 98.0}, samples) == 5 + 8
    assert objective({"validation": 90.0, "forget": 82.0}, samples) == 5 + 8, "forgetting too much counts too"
    assert objective({"validation": 95.0, "forget": 95.0}, samples) == 0


def test_objective_of_concepts_is_won_neither_by_doing_nothing_nor_by_ruin():
    before = {"validation": 80.0, "forget": 90.0, "prompt": 99.0}
    answer = {"validation": 76.0, "forget": 20.0, "prompt": 70.0}
    assert objective(answer, before) == pytest.approx(100 * (1 - 0.8 * 0.6))
    assert objective(answer | {"prompt": 30.0}, before) == pytest.approx(52), "the sign can be flipped"
    assert objective(answer | {"validation": 73.0}, before) == pytest.approx(52 + 10 * 2), "dear"
    assert objective({"validation": 84.0, "forget": 0.0, "prompt": 50.0}, before) == 0, (
        "no bonus above the original"
    )
    assert objective(before, before) > 99
    assert objective({"validation": 0.0, "forget": 0.0, "prompt": 50.0}, before) > 100


def test_measures_are_of_training_images_and_given_labels_only(request_):
    found = measure(request_.model, request_)
    assert set(found) == {"validation", "forget", "validation_forget"}
    data, split = request_.dataset, request_.split
    assert found["validation"] > 80
    blind = replace(data, test_images=torch.zeros_like(data.test_images))
    assert measure(request_.model, replace(request_, dataset=blind)) == found
    shifted = replace(split, labels=split.labels.clone())
    shifted.labels[split.forget[: len(split.forget) // 2]] += 1
    assert measure(request_.model, replace(request_, split=shifted))["forget"] < found["forget"]


def test_logits_that_are_not_finite_are_no_answer(request_):
    model = copy.deepcopy(request_.model)
    model.head.weight.data.fill_(float("nan"))
    with pytest.raises(HacoreError, match="not finite"):
        measure(model, request_)


def test_proposals_approach_a_known_minimum():
    ranges = {"lr": Range(1e-5, 1.0), "steps": Range(1.0, 9.0, log=False)}
    trials = []
    for _ in range(40):
        tried = propose(ranges, ["steps"], trials, seed=1)
        value = (torch.tensor(tried["lr"]).log10().item() + 3) ** 2 + abs(tried["steps"] - 4)
        trials.append({"params": tried, "state": "complete", "objective": value, "seconds": 1.0})
    for tried in params({"trials": trials}):
        assert 1e-5 <= tried["lr"] <= 1
        assert tried["lr"] == float(f"{tried['lr']:.3g}"), "what is tried is rounded"
        assert isinstance(tried["steps"], int)
        assert 1 <= tried["steps"] <= 9
    found = best({"trials": trials})["params"]
    assert found["steps"] == 4
    assert 3e-4 < found["lr"] < 3e-3
    # The later half knows where to look; independent draws would not.
    late = [abs(torch.tensor(t["params"]["lr"]).log10().item() + 3) for t in trials[20:]]
    early = [abs(torch.tensor(t["params"]["lr"]).log10().item() + 3) for t in trials[:8]]
    assert sum(late) / len(late) < sum(early) / len(early)


def test_proposals_keep_away_from_failures():
    trials = []
    for _ in range(40):
        tried = propose({"lr": Range(1e-4, 1.0)}, [], trials, seed=0)
        bad = tried["lr"] > 0.01
        trials.append({"params": tried, "state": "failed"} if bad else
                      {"params": tried, "state": "complete", "objective": -tried["lr"]})  # fmt: skip
    assert sum(trial["state"] == "failed" for trial in trials[20:]) < 10, "half of the range fails"


def test_a_start_outside_the_ranges_is_no_obstacle():
    ranges = {"weight": Range(0.02, 2.0)}
    outside = {"params": {"weight": 3.0}, "state": "complete", "objective": 0.0}
    assert 0.02 <= propose(ranges, [], [outside], 0)["weight"] <= 2


@pytest.mark.parametrize("name", [key for key, value in METHODS.items() if value.search])
def test_every_method_can_be_searched(name):
    chosen = METHODS[name]
    assert set(chosen.search) <= set(asdict(chosen))
    tried = propose(chosen.search, [], [], 0)
    assert replace(chosen, **tried) != chosen


def test_the_best_of_a_known_method_is_found_and_recorded(known, tmp_path, request_):
    record = search(known, 12, tmp_path, prepared=lambda: request_)
    assert json.loads((tmp_path / f"{module.name(known)}.json").read_text()) == record
    first, found = record["trials"][0], best(record)
    assert first["params"] == {"knob": 0.3}, "the first trial is the defaults"
    assert found == record["best"]
    assert found["objective"] < first["objective"]
    assert 0.002 < found["params"]["knob"] < 0.05
    failed = [trial for trial in record["trials"] if trial["state"] == "failed"]
    assert failed, "a quarter of the range fails"
    assert all(
        trial["params"]["knob"] < 1e-3 and "loss is not finite" in trial["message"] for trial in failed
    )
    for trial in record["trials"]:
        if trial["state"] == "complete":
            assert trial["objective"] == objective(trial["accuracies"], record["original"])
    assert record["budget"] == len(record["trials"]) == 12
    assert record["environment"]["commit"] == first["commit"]
    line = module.summary(record)
    assert f": knob {found['params']['knob']:g}: {found['objective']:.2f} " in line
    assert line.endswith(f"(first trial: {first['objective']:.2f}; trials: 12)")


def test_equal_objectives_go_to_the_fastest():
    trials = [
        {"number": i, "state": "complete", "objective": value, "seconds": seconds}
        for i, (value, seconds) in enumerate([(2.0, 1.0), (1.0, 9.0), (1.0, 3.0)])
    ]
    assert best({"trials": [*trials, {"number": 3, "state": "failed"}]})["number"] == 2
    assert best({"trials": [{"number": 0, "state": "failed"}]}) is None


def test_a_killed_search_goes_on_with_the_same_trials(known, tmp_path, monkeypatch, request_):
    whole = search(known, 12, tmp_path / "whole", prepared=lambda: request_)
    real, calls = Known.answer, []

    def killed(self, request):
        calls.append(self.knob)
        if len(calls) == 10:
            raise KeyboardInterrupt
        return real(self, request)

    monkeypatch.setattr(Known, "answer", killed)
    with pytest.raises(KeyboardInterrupt):
        search(known, 12, tmp_path / "parts", prepared=lambda: request_)
    path = tmp_path / "parts" / f"{module.name(known)}.json"
    assert params(read(path)) == params(whole)[:9]
    parts = search(known, 12, tmp_path / "parts", prepared=lambda: request_)
    assert params(parts) == params(whole)
    assert [t.get("objective") for t in parts["trials"]] == [t.get("objective") for t in whole["trials"]]
    assert len(calls) == 13, "only what was missing is tried"

    def never():
        raise AssertionError("a finished search prepares nothing")

    assert search(known, 12, tmp_path / "parts", prepared=never) == parts
    assert params(search(known, 13, tmp_path / "parts", prepared=lambda: request_))[:12] == params(whole)


def test_searches_share_the_original_and_never_retrain(known, tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(module, "prepare", lambda run, cache: prepared.append(run) or prepare(run, cache))

    def answer(self, request):
        raise AssertionError("a search does not know Retrain")

    monkeypatch.setattr(type(METHODS["retrain"]), "answer", answer)
    real = tiny_run(method="contrastive-unlearning", seed=module.SEED)
    runs = [known, replace(real, settings=replace(real.settings, unlearning=replace(
        real.settings.unlearning, epochs=2)))]  # fmt: skip
    first, second = search_all(runs, 2, tmp_path)
    assert len(prepared) == 1
    assert first["original"] == second["original"]
    assert second["trials"][0]["state"] == "complete"
    assert second["trials"][1]["params"] != second["trials"][0]["params"]


def test_random_samples_are_searched_too(tmp_path):
    run = tiny_run(method="contrastive-unlearning", scenario="random-samples", forget=40, seed=module.SEED)
    run = replace(run, settings=replace(run.settings, unlearning=replace(
        run.settings.unlearning, epochs=2)))  # fmt: skip
    record = search(run, 1, tmp_path)
    assert set(record["trials"][0]["accuracies"]) == {"validation", "forget"}
    assert "forget images - accuracy on validation" in record["objective"]


def written(folder: Path, **changes):
    """A finished search of contrastive unlearning in the profile's settings, without the training."""
    run = Run(seed=module.SEED, **{"profile": "quick", **changes})
    record = module._begin(run, run.resolved().unlearning)
    values = {"lr": 0.0123, "temperature": 0.456, "weight_ul": 0.0789}
    record |= {"budget": 2, "original": {"validation": 90.0, "forget": 90.0}, "environment": {"commit": "x"}}
    for number, (value, tried) in enumerate([(9.0, dict.fromkeys(values, 0.1)), (3.0, values)]):
        record["trials"].append({"number": number, "params": tried, "state": "complete",
                                 "objective": value, "seconds": 1.0})  # fmt: skip
    path = folder / f"{module.name(run)}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(record))
    return path, values


@pytest.fixture
def tuned(monkeypatch, tmp_path):
    folder = tmp_path / "tuned"
    folder.mkdir()
    monkeypatch.setattr(settings, "TUNED", folder)
    settings._tuned_values.cache_clear()
    yield folder
    settings._tuned_values.cache_clear()


def test_adopted_values_are_what_runs_go_by(tmp_path, tuned):
    old = {"lorentz free finetune": {"lr": 0.5}, "euclidean clipped contrastive-unlearning": {"omega": 2}}
    file = tuned / "single-class-digits-quick-generalising.json"
    file.write_text(json.dumps(old))
    assert Run().resolved().unlearning.omega == 2
    path, values = written(tmp_path / "searches")
    assert adopt(path.parent) == [file]
    stored = json.loads(file.read_text())
    assert stored["euclidean clipped contrastive-unlearning"] == {"omega": 2, **values}
    assert stored["lorentz free finetune"] == {"lr": 0.5}, "what was not searched stays"
    assert list(stored) == sorted(stored)
    chosen = Run(forget=3).resolved().unlearning
    assert {field: getattr(chosen, field) for field in values} == values, "other classes use the same"
    before = file.read_text()
    adopt(path.parent)
    assert file.read_text() == before
    # A search that goes on after its values were adopted is still the same search.
    run = Run(seed=module.SEED)
    assert search(run, 2, path.parent) == read(path)


def test_values_found_beside_other_settings_are_not_adopted(tmp_path, tuned):
    path, _ = written(tmp_path / "searches")
    record = json.loads(path.read_text())
    record["settings"]["unlearning"]["omega"] += 1
    path.write_text(json.dumps(record))
    with pytest.raises(HacoreError, match="searched with other settings"):
        adopt(path.parent)
    assert list(tuned.iterdir()) == []


def test_two_searches_of_one_entry_or_unequal_budgets_are_not_adopted(tmp_path, tuned):
    path, _ = written(tmp_path / "searches")
    other, _ = written(tmp_path / "searches", forget=3)
    with pytest.raises(HacoreError, match="keep one"):
        adopt(path.parent)
    other.unlink()
    other, _ = written(tmp_path / "searches", space="lorentz")
    record = json.loads(other.read_text())
    record["trials"].pop()
    other.write_text(json.dumps(record))
    with pytest.raises(HacoreError, match="1 of 2 trials"):
        adopt(path.parent)
    other.write_text(json.dumps(record | {"budget": 1}))
    with pytest.raises(HacoreError, match="same number"):
        adopt(path.parent)
    with pytest.raises(HacoreError, match="no searches in"):
        adopt(tmp_path / "empty")


@pytest.mark.parametrize(
    "damage",
    [
        lambda record: "{",
        lambda record: "[]",
        lambda record: json.dumps(record | {"schema": 0}),
        lambda record: json.dumps({k: v for k, v in record.items() if k != "trials"}),
        lambda record: json.dumps(record | {"trials": record["trials"][1:]}),
        lambda record: json.dumps(record | {"trials": [record["trials"][0] | {"objective": None}]}),
        lambda record: json.dumps(record | {"trials": [record["trials"][0] | {"params": {}}]}),
        lambda record: json.dumps(record | {"trials": [record["trials"][0] | {"state": "odd"}]}),
        lambda record: json.dumps(record | {"run": {}}),
    ],
)
def test_a_damaged_record_is_named(damage, tmp_path):
    path, _ = written(tmp_path / "searches")
    path.write_text(damage(json.loads(path.read_text())))
    for use in (lambda: search(Run(seed=module.SEED), 2, path.parent), lambda: adopt(path.parent)):
        with pytest.raises(HacoreError, match=rf"{path.name}.*(damaged|cannot be read).*move it away"):
            use()


def test_a_record_of_another_search_is_not_continued(tmp_path):
    path, _ = written(tmp_path / "searches")
    with pytest.raises(HacoreError, match="another 'run'"):
        search(Run(seed=module.SEED, curv=2.0), 3, path.parent)
    run = Run(seed=module.SEED)
    fields = replace(run.resolved(), radius=3.0)
    with pytest.raises(HacoreError, match="another 'settings'"):
        search(replace(run, settings=fields), 3, path.parent)


def test_what_cannot_be_searched_is_said_before_anything_is_trained(known, tmp_path):
    for run, trials, message in (
        (known, 0, "at least 1 trial, not 0"),
        (Run(method="retrain"), 3, "retrain has nothing to search; choose one of contrastive-unlearning"),
        (
            replace(known, scenario="random-samples"),
            3,
            "does not answer random-samples for models of kind classifier",
        ),
    ):
        with pytest.raises(HacoreError, match=message):
            next(search_all([run], trials, tmp_path))
        with pytest.raises(HacoreError, match=message):
            search(run, trials, tmp_path)
    assert "known" in searched("single-class")
    assert not {"known", "retrain", "original"} & set(searched("random-samples"))


def test_a_search_in_which_all_trials_fail_says_why(known, tmp_path, tuned, monkeypatch, request_):
    def diverges(self, request):
        raise HacoreError("step 1 of known: the loss is not finite; lower lr")

    monkeypatch.setattr(Known, "answer", diverges)
    record = search(known, 2, tmp_path / "searches", prepared=lambda: request_)
    assert record["best"] is None
    assert module.summary(record).endswith(
        "all 2 trials failed, the first with: step 1 of known: the loss is not finite; lower lr"
    )
    assert adopt(tmp_path / "searches") == []
