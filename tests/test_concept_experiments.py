"""Runs that forget concepts: names, records with their curve, grids, requests in turn, the command line, searches."""

import json
import shlex
from dataclasses import replace

import pytest
import torch
from tiny_world import tiny_concept_run, tiny_world

from hacore import experiments, results, search
from hacore.__main__ import main, parser
from hacore.errors import HacoreError
from hacore.experiments import Run, concept_split, prepare, run_grid, settings
from hacore.experiments import run as do
from hacore.experiments.perform import LOOKS, _original, _watched, checkpoint
from hacore.models import HIERARCHY
from hacore.unlearning import METHODS

KIND = {"scenario": "concepts", "data": "world", "recipe": "image-text", "lift": "free", "forget": "star"}


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("HACORE_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def profile(monkeypatch):
    """``quick`` of two epochs for the command line, whose runs have the profile's settings."""
    made = tiny_concept_run().resolved()
    plain = replace(made, unlearning=METHODS["original"])
    monkeypatch.setitem(settings.PROFILES, "quick", {"world": lambda recipe: replace(plain, head=recipe)})
    monkeypatch.setitem(settings.UNLEARNING_CONCEPTS, "quick", {"epochs": 1, "batch_size": 32})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"recipe": "generalising"}, "scenario 'concepts' does not go with recipe 'generalising'"),
        (
            {"scenario": "single-class", "forget": 5},
            "scenario 'single-class' does not go with recipe 'image-text'",
        ),
        ({"forget": 5}, "5 cannot be forgotten in scenario 'concepts': concepts are named"),
        (
            {"recipe": "generalising", "scenario": "single-class"},
            "'star' cannot be forgotten in scenario 'single-cl",
        ),
        ({"profile": "standard"}, "profile 'standard' has no settings for 'world'"),
    ],
)
def test_runs_that_cannot_be_are_refused(fields, message):
    with pytest.raises(HacoreError, match=message):
        Run(**KIND | fields)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("trianlge", "no concept 'trianlge'; did you mean one of: triangle"),
        ("star,nothing", "no concept 'nothing'"),
        ("thing", "cannot be forgotten; choose at least one, but not all"),
        ("", "cannot be forgotten; choose at least one"),
        (",", "cannot be forgotten; choose at least one"),
    ],
)
@pytest.mark.parametrize("scenario", ["concepts", "concepts-in-turn"])
def test_bad_concept_names_are_one_sentence(names, message, scenario):
    with pytest.raises(HacoreError, match=message):
        prepare(tiny_concept_run(forget=names, scenario=scenario))


def test_a_concept_is_all_leaves_below_it():
    data = tiny_world()
    split = concept_split(data, ("star", "disc"), 0)
    names = {data.classes[k] for k in split.forget_classes}
    assert names == {"caltrop", "sparkle", "pentagram", "sunburst", "disc"}
    assert not set(split.retain.tolist()) & set(split.forget.tolist())


def test_the_recipe_and_the_space_make_the_model():
    made = {}
    for space, recipe in (("euclidean", "image-text"), ("lorentz", "image-text"), ("lorentz", "hierarchy")):
        run = tiny_concept_run(space, recipe=recipe)
        assert run.kind == "image-text"
        data, split = experiments.perform.load(run)
        made[space, recipe] = experiments.build(run, data, split.retain)
    clip, meru, tree = made.values()
    assert not clip.objective.curved
    assert meru.objective.entailment == 0.2
    assert tree.objective == HIERARCHY
    assert (meru.space.learnable, tree.space.learnable) == (True, False)
    assert torch.equal(clip.visual_proj.weight, meru.visual_proj.weight), (
        "geometries start from the same weights"
    )


def test_names_tell_runs_apart_and_orders_of_requests_too():
    base = tiny_concept_run(forget="star,disc")
    others = [
        tiny_concept_run(forget="disc,star"),
        tiny_concept_run(forget="star,disc", scenario="concepts-in-turn"),
        tiny_concept_run("lorentz", forget="star,disc"),
        tiny_concept_run("lorentz", recipe="hierarchy", forget="star,disc"),
    ]
    assert len({one.name for one in [base, *others]}) == 5
    assert base.concepts == ("star", "disc")


def test_the_original_is_shared_by_all_requests_and_retrain_by_all_orders(tmp_path):
    one = tiny_concept_run(forget="star,disc")
    turn = replace(tiny_concept_run(forget="disc,star", scenario="concepts-in-turn"))
    assert _original(one).name == _original(turn).name
    for method in ("retrain", "retrain-lifted"):
        ours, theirs = (
            checkpoint(tmp_path, tiny_concept_run(forget=run.forget, scenario=run.scenario, method=method))
            for run in (one, turn)
        )
        assert ours == theirs
    assert checkpoint(tmp_path, one) != checkpoint(tmp_path, turn), "what is unlearned depends on the order"


def test_a_command_makes_its_record_again():
    run = Run(
        **KIND | {"forget": "round shape,disc", "method": "hac", "space": "lorentz", "seed": 3, "curv": 0.5}
    )
    arguments = parser().parse_args(shlex.split(run.command)[1:])
    assert arguments.forget == "round shape,disc"
    fields = {
        name: getattr(arguments, name)
        for name in (
            "scenario",
            "data",
            "profile",
            "recipe",
            "method",
            "space",
            "lift",
            "seed",
            "forget",
            "curv",
        )
    }
    assert Run(**fields).name == run.name


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Two concepts, asked for at once, with checkpoints."""
    cache = tmp_path_factory.mktemp("cache")
    run = tiny_concept_run("lorentz", forget="triangle,disc", method="hac")
    return run, experiments.Prepared(replace(run, method="retrain"), prepare(run, cache)), cache


def test_a_record_has_its_curve_and_comes_out_again(asked):
    run, prepared, _ = asked
    record = do(run, prepared)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    steps = [look["step"] for look in record["curve"]]
    assert steps == [float(step) for step in LOOKS if step <= record["cost"]["steps"]]
    assert {"prompt_auc", "zero_shot_forget_accuracy"} <= record["curve"][0].keys()
    assert record["cost"]["seconds"] > 0
    assert record["cost"]["images_per_second"] > 0
    assert record["metrics"]["cka_before_forget"] <= 100.001
    again = do(run, prepared)
    assert (again["metrics"], again["curve"]) == (record["metrics"], record["curve"])


def test_what_trains_nothing_or_is_no_unlearning_has_no_curve(asked):
    run, prepared, _ = asked
    assert "curve" not in do(replace(run, method="null-space"), prepared)
    request = prepared.request
    assert "curve" not in do(replace(run, method="original"), prepared)
    curve = []
    _watched(METHODS["null-space"], request, curve)
    assert curve == []


def test_in_turn_and_at_once_share_original_and_retrain(asked):
    run, prepared, cache = asked
    assert prepared.retrained.fit.steps > 0
    turn = tiny_concept_run("lorentz", forget="disc,triangle", scenario="concepts-in-turn", method="hac")
    before = {path.name for path in cache.iterdir()}
    second = experiments.Prepared(
        replace(turn, method="retrain"), prepare(replace(turn, method="retrain"), cache)
    )
    ours = prepare(replace(run, method="retrain"), cache)
    assert second.request.checkpoint == ours.checkpoint
    assert second.request.trained.seconds == prepared.request.trained.seconds, "read back, not trained again"
    record = do(turn, second)
    assert "curve" not in record
    assert record["cost"]["steps"] > 0
    assert len({path.name for path in cache.iterdir()} - before) <= 1, "nothing but one Retrain is new"


def test_a_grid_goes_on_where_it_stopped(tmp_path):
    runs = [tiny_concept_run(method=name) for name in ("original", "null-space")]
    first = list(run_grid(runs, tmp_path / "out", tmp_path / "trainings"))
    path = tmp_path / "out" / f"{runs[1].name}.json"
    path.unlink()
    kept = tmp_path / "out" / f"{runs[0].name}.json"
    stamp = kept.stat().st_mtime_ns
    second = list(run_grid(runs, tmp_path / "out", tmp_path / "trainings"))
    assert [one["metrics"] for one in second] == [one["metrics"] for one in first]
    assert kept.stat().st_mtime_ns == stamp
    frame = results.load(tmp_path / "out")
    assert set(frame["forget"]) == {"triangle"}


def test_the_command_line_runs_concepts(tmp_path, capsys, profile):
    folder = tmp_path / "records"
    arguments = ["run", "concepts", "--forget", "star", "--method", "null-space", "--results", str(folder)]
    assert main(arguments) == 0
    (path,) = folder.iterdir()
    record = json.loads(path.read_text())
    assert record["run"] == record["run"] | {
        "data": "world",
        "recipe": "image-text",
        "lift": "free",
        "forget": "star",
    }
    out = capsys.readouterr().out
    for part in ("retain zero-shot %", "forget zero-shot %", "prompt AUC %", "null-space"):
        assert part in out
    assert main([*shlex.split(record["command"])[1:], "--results", str(folder)]) == 0
    assert len(list(folder.iterdir())) == 1, "the command of a record names that record"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "concepts", "--forget", "7"], "concepts are named"),
        (["run", "concepts", "--forget", "sphere"], "no concept 'sphere'"),
        (["run", "concepts", "--method", "ac,hac"], "hac needs cones, and euclidean space has none"),
        (["run", "concepts", "--recipe", "simclr"], "does not go with recipe 'simclr'"),
        (["run", "concepts", "--profile", "standard"], "no settings for 'world'"),
        (["run", "single-class", "--recipe", "hierarchy"], "does not go with recipe 'hierarchy'"),
        (["shadows", "concepts", "--method", "ac"], "shadow models need random samples"),
        (["tune", "concepts", "--method", "null-space"], "null-space has nothing to search"),
        (
            ["tune", "concepts", "--method", "hac"],
            "hac does not answer concepts for models of kind image-text in euclidean",
        ),
        (["tune", "concepts", "--method", "salun"], "salun does not answer concepts"),
    ],
)
def test_the_command_line_refuses_in_one_line(arguments, message, tmp_path, capsys, profile, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_all_methods_means_those_that_fit_the_space(profile):
    from hacore.__main__ import chosen_runs, fitting_methods

    arguments = parser().parse_args(["run", "concepts", "--space", "euclidean,lorentz"])
    arguments.data, arguments.recipe, arguments.lift, arguments.forget = "world", "image-text", "free", "star"
    runs = chosen_runs(arguments, fitting_methods(arguments), [0])
    names = {space: {run.method for run in runs if run.space == space} for space in ("euclidean", "lorentz")}
    assert {"ac", "null-space", "retrain-lifted", "finetune"} <= names["euclidean"]
    assert names["lorentz"] - names["euclidean"] == {name for name in METHODS if name.startswith("hac")}


def test_a_search_of_two_trials_reads_validation_images_only(tmp_path, monkeypatch):
    run = tiny_concept_run("lorentz", method="hac", seed=search.SEED)
    chosen = replace(run.resolved().unlearning, epochs=1)
    run = replace(run, settings=replace(run.resolved(), unlearning=chosen))
    request = prepare(run)
    blind = replace(request.dataset, test_images=torch.zeros_like(request.dataset.test_images))
    record = search.search(run, 2, tmp_path, prepared=lambda: replace(request, dataset=blind))
    assert [trial["state"] for trial in record["trials"]] == ["complete", "complete"]
    assert set(record["ranges"]) == {"lr", "negative", "positive", "preserving", "entailment"}
    assert record["ranges"]["lr"]["high"] == 3e-3, "AdamW goes on, and not SGD"
    assert record["objective"] == search.OBJECTIVE["concepts"]
    for trial in record["trials"]:
        assert trial["objective"] == search.objective(trial["accuracies"], record["original"])
    assert search.searched("concepts", "image-text", "euclidean") == [
        name for name in search.searched("concepts", "image-text") if not name.startswith("hac")
    ]
    assert record["trials"] == search.search(run, 2, tmp_path, prepared=lambda: request)["trials"]
    monkeypatch.setattr(settings, "TUNED", tmp_path / "tuned")
    settings._tuned_values.cache_clear()


def test_in_turn_goes_by_the_values_searched_at_once(tmp_path, monkeypatch):
    values = {"lorentz free hac": {"lr": 0.0012}}
    (tmp_path / "concepts-world-quick-image-text.json").write_text(json.dumps(values))
    monkeypatch.setattr(settings, "TUNED", tmp_path)
    settings._tuned_values.cache_clear()
    for scenario in ("concepts", "concepts-in-turn"):
        run = Run(**KIND | {"scenario": scenario, "space": "lorentz", "method": "hac"})
        assert run.resolved().unlearning.lr == 0.0012
    settings._tuned_values.cache_clear()


def test_methods_over_retain_pairs_walk_over_them_once():
    for name, epochs in (
        ("finetune", 1),
        ("neggrad-plus", 1),
        ("l1-sparse", 1),
        ("ac", 6),
        ("gradient-ascent", 6),
    ):
        assert Run(**KIND | {"method": name}).resolved().unlearning.epochs == epochs
