"""Records and statistics, with every figure worked out by hand."""

import json
import math

import pytest

from hacore import results
from hacore.errors import HacoreError


def record(name="a", seed=0, method="original", accuracy=90.0, **extra):
    return {
        "schema": results.SCHEMA,
        "name": name,
        "run": {"seed": seed, "method": method, "space": "euclidean"},
        "metrics": {"retain_test_accuracy": accuracy, **extra},
        "cost": {"seconds": 1.5},
        "environment": {"hardware": "a machine", "torch": "2.13.0", "commit": "abc"},
    }


@pytest.fixture
def folder(tmp_path):
    for seed, (before, after) in enumerate([(90.0, 88.0), (92.0, 89.0), (94.0, 90.0)]):
        results.write(record(f"original-{seed}", seed, "original", before), tmp_path)
        results.write(record(f"retrain-{seed}", seed, "retrain", after, forget_test_accuracy=0.0), tmp_path)
    return tmp_path


def test_a_record_comes_back_as_written(tmp_path):
    path = results.write(record(accuracy=1 / 3), tmp_path)
    assert results.read(path) == record(accuracy=1 / 3)
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_load_flattens_and_filters(folder):
    frame = results.load(folder)
    assert len(frame) == 6
    assert frame.loc[0, "env_hardware"] == "a machine"
    assert results.load(folder, method="retrain")["retain_test_accuracy"].tolist() == [88.0, 89.0, 90.0]
    assert len(results.load(folder, method=["retrain", "original"], seed=[0, 2])) == 4


def test_curves_have_a_row_for_every_look(folder):
    for seed in (1, 0):
        looks = [{"step": float(step), "zero_shot_forget_accuracy": 50.0 / step - seed} for step in (1, 2)]
        results.write(record(f"ac-{seed}", seed, "ac") | {"curve": looks}, folder)
    frame = results.curves(folder)
    assert frame[["method", "seed", "step"]].to_numpy().tolist() == [
        ["ac", 0, 1.0], ["ac", 0, 2.0], ["ac", 1, 1.0], ["ac", 1, 2.0],
    ]  # fmt: skip
    assert frame["zero_shot_forget_accuracy"].tolist() == [50, 25, 49, 24]
    assert frame["record"].str.endswith("ac-1.json").tolist() == [False, False, True, True]
    assert len(results.curves(folder, seed=1)) == 2
    assert len(results.load(folder)) == 8  # records without a curve are rows as before
    with pytest.raises(HacoreError, match=r"has \{'method': 'retrain'\}"):
        results.curves(folder, method="retrain")


def test_curves_refuse_records_that_have_none(folder):
    with pytest.raises(HacoreError, match="has a curve"):
        results.curves(folder)


def test_interval_by_hand():
    # mean 92, s = 2, n = 3; t(0.975, 2) = 4.302653; half-width 4.302653 * 2 / sqrt(3) = 4.968276
    out = results.interval([90.0, 92.0, 94.0])
    assert out == pytest.approx({"mean": 92, "std": 2, "n": 3, "low": 87.031724, "high": 96.968276})


def test_one_value_has_no_interval():
    out = results.interval([90.0, math.nan])
    assert (out["mean"], out["n"]) == (90.0, 1)
    assert all(math.isnan(out[key]) for key in ("std", "low", "high"))


def test_summary_groups(folder):
    out = results.summary(results.load(folder), "retain_test_accuracy", ["method"])
    assert out.loc["original", "mean"] == 92
    assert out.loc["retrain", "mean"] == 89
    assert out.loc["retrain", "n"] == 3


def test_paired_by_hand(folder):
    # differences 2, 3, 4: mean 3, s = 1, t = 3 / (1 / sqrt 3) = 5.196152, two-sided p(2 df) = 0.035098
    frame = results.load(folder)
    out = results.paired(frame, "retain_test_accuracy", {"method": "original"}, {"method": "retrain"})
    assert (out["mean"], out["std"], out["n"]) == (3, 1, 3)
    assert out["p"] == pytest.approx(0.035098, abs=1e-5)
    assert out["low"] == pytest.approx(3 - 4.302653 / math.sqrt(3))


def test_paired_without_variation_has_no_p(folder):
    same = {"method": "original"}
    assert math.isnan(results.paired(results.load(folder), "retain_test_accuracy", same, same)["p"])


def test_table_and_provenance(folder):
    frame = results.load(folder)
    table = results.table(
        frame, {"retain_test_accuracy": "retain", "forget_test_accuracy": "forget"}, ["method"]
    )
    assert table.loc["original"].tolist() == ["92.0 ± 5.0", "–", 3]
    assert table.loc["retrain"].tolist() == ["89.0 ± 2.5", "0.0 ± 0.0", 3]
    line = results.provenance(frame)
    for part in ("6 runs", "seeds 0, 1, 2", "a machine", "2.13.0", "abc", "9 s"):
        assert part in line


def request_records(folder, seed=0, space="euclidean"):
    """Original, a method and Retrain of one request, with costs and every accuracy a gap needs."""
    metrics = ("retain_train_accuracy", "forget_train_accuracy", "forget_test_accuracy", "attack_logits_auc")
    rows = {
        "original": (90.0, (99.0, 95.0, 90.0, 60.0), 50.0, 100),
        "magic": (87.0, (90.0, 10.0, 8.0, 55.0), 5.0, 10),
        "retrain": (89.0, (100.0, 0.0, 2.0, 51.0), 40.0, 80),
    }
    for method, (retain_test, others, seconds, steps) in rows.items():
        one = record(f"{method}-{seed}-{space}", seed, method, retain_test)
        one["run"]["space"] = space
        one["metrics"] |= dict(zip(metrics, others, strict=True))
        one["cost"] = {"seconds": seconds, "steps": steps, "flops": 1e6 * steps}
        results.write(one, folder)


def test_gaps_by_hand(tmp_path):
    request_records(tmp_path)
    frame = results.gaps(results.load(tmp_path)).set_index("method")
    magic = frame.loc["magic"]
    assert magic["retain_test_accuracy_gap"] == 2
    assert magic["forget_train_accuracy_gap"] == 10
    assert magic["forget_test_accuracy_gap"] == 6
    assert magic["attack_logits_auc_gap"] == 4
    assert magic["average_gap"] == (2 + 10 + 6 + 4) / 4
    # 1 - 0.1 on forget, 1 - 0.1 on retain, 1 - 0.02 on test
    assert magic["tow"] == pytest.approx(0.9 * 0.9 * 0.98)
    assert (magic["relative_seconds"], magic["relative_steps"], magic["relative_flops"]) == (12.5, 12.5, 12.5)
    assert frame.loc["original", "relative_seconds"] == 125
    assert frame.loc["retrain", ["average_gap", "tow", "relative_seconds"]].tolist() == [0, 1, 100]


def test_gaps_are_to_the_retrain_of_the_same_request(tmp_path):
    for seed in (0, 1):
        for space in ("euclidean", "lorentz"):
            request_records(tmp_path, seed, space)
    # One Retrain differs by 10: only its own rows may see that.
    off = results.read(tmp_path / "retrain-1-lorentz.json")
    off["metrics"]["retain_test_accuracy"] += 10
    results.write(off, tmp_path)
    frame = results.gaps(results.load(tmp_path)).set_index(["space", "seed", "method"])
    gaps = frame["retain_test_accuracy_gap"].xs("magic", level="method")
    assert gaps.to_dict() == {("euclidean", 0): 2, ("euclidean", 1): 2, ("lorentz", 0): 2, ("lorentz", 1): 12}
    # The table keeps its rows, and whoever has no Retrain has no gap.
    alone = results.load(tmp_path)
    alone = alone[~((alone["method"] == "retrain") & (alone["seed"] == 1))]
    rows = results.gaps(alone)
    assert rows.index.tolist() == alone.index.tolist()
    assert rows["average_gap"].isna().tolist() == (alone["seed"] == 1).tolist()


def test_random_samples_average_three_gaps(tmp_path):
    request_records(tmp_path)
    for path in tmp_path.iterdir():
        one = results.read(path)
        del one["metrics"]["forget_test_accuracy"]
        results.write(one, tmp_path)
    frame = results.gaps(results.load(tmp_path)).set_index("method")
    assert frame.loc["magic", "average_gap"] == pytest.approx((2 + 10 + 4) / 3)
    # Without the attack there is no average that could be compared with others'.
    for path in tmp_path.iterdir():
        one = results.read(path)
        del one["metrics"]["attack_logits_auc"]
        results.write(one, tmp_path)
    assert results.gaps(results.load(tmp_path))["average_gap"].isna().all()


def test_load_sorts_by_what_the_records_say(tmp_path):
    for number, (space, method, seed) in enumerate(
        [("lorentz", "retrain", 0), ("euclidean", "zeta", 10), ("euclidean", "zeta", 2), ("euclidean", "alpha", 0),
         ("euclidean", "retrain", 1), ("euclidean", "original", 3)]
    ):  # fmt: skip
        one = record(f"file-{number}", seed, method)
        one["run"]["space"] = space
        results.write(one, tmp_path)
    frame = results.load(tmp_path)
    assert list(zip(frame["space"], frame["method"], frame["seed"], strict=True)) == [
        ("euclidean", "original", 3), ("euclidean", "retrain", 1), ("euclidean", "alpha", 0),
        ("euclidean", "zeta", 2), ("euclidean", "zeta", 10), ("lorentz", "retrain", 0),
    ]  # fmt: skip


def test_holm_by_hand():
    # Ordered 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never below the one before.
    assert results.holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert results.holm([0.6, 0.7]) == [1.0, 1.0]
    out = results.holm([0.03, math.nan, 0.01])
    assert (out[0], out[2]) == pytest.approx((0.03, 0.02))
    assert math.isnan(out[1])
    assert results.holm([]) == []


def five_methods(folder):
    """Differences to "zero" by hand: of "plus" 2, 3, 4, of "minus" -2, -3, -4, of "noise" -1, 0, 1, of "same" 5."""
    changes = {
        "zero": (0, 0, 0),
        "plus": (2, 3, 4),
        "minus": (-2, -3, -4),
        "noise": (-1, 0, 1),
        "same": (5,) * 3,
    }
    for method, differences in changes.items():
        for seed, difference in enumerate(differences):
            results.write(record(f"{method}-{seed}", seed, method, 50.0 + 10 * seed + difference), folder)
    return results.load(folder)


def test_against_by_hand(tmp_path):
    frame = five_methods(tmp_path)
    # p = 0.035098 as above for plus and minus: times 2 it is more than 0.05, alone it is not.
    out = results.against(frame, "retain_test_accuracy", "zero", ["plus", "minus"])
    assert out.index.tolist() == ["plus", "minus"]
    assert out["mean"].tolist() == [3, -3]
    assert out["p"].tolist() == [0.035, 0.035]
    assert out["p Holm"].tolist() == [0.07, 0.07]
    assert out["verdict"].tolist() == ["no difference shown"] * 2
    alone = [results.against(frame, "retain_test_accuracy", "zero", [name]) for name in ("plus", "minus")]
    assert [one["verdict"].item() for one in alone] == ["higher", "lower"]
    assert [one["n"].item() for one in alone] == [3, 3]


def test_against_everybody_else(tmp_path):
    out = results.against(five_methods(tmp_path), "retain_test_accuracy", "zero")
    assert out.index.tolist() == ["minus", "noise", "plus", "same"]
    # No test can be made where nothing varies; it counts among the comparisons all the same.
    assert out.loc["same", ["mean", "p", "p Holm", "verdict"]].tolist() == [5, 1, 1, "no difference shown"]
    assert out.loc["plus", "p Holm"] == pytest.approx(4 * 0.035098, abs=1e-3)


def test_compare_keeps_names_of_several_parts(tmp_path):
    zero = {"method": "zero"}
    pairs = {("x", "up"): ({"method": "plus"}, zero), ("x", "down"): ({"method": "minus"}, zero)}
    out = results.compare(five_methods(tmp_path), "retain_test_accuracy", pairs)
    assert out.loc["x"].loc["down", "mean"] == -3
    assert list(out) == ["mean", "low", "high", "p", "p Holm", "n", "verdict"]


def test_sources_link_to_every_record(folder):
    frame = results.load(folder)
    text = results.sources({"first": frame, "second": frame.head(1)})
    one, two = text.split("\n\n")
    assert one.startswith(f"**first**: {results.provenance(frame)}.")
    assert one.count("](") == 6
    assert two.startswith("**second**: 1 runs")
    assert f"[original-0]({frame['record'][0]})" in two


def two_lifts(folder):
    for lift in ("free", "clipped"):
        one = record(f"lift-{lift}", 0, "original")
        one["run"]["lift"] = lift
        results.write(one, folder)


def test_groups_by_more_columns_are_not_refused(tmp_path):
    two_lifts(tmp_path)
    out = results.summary(results.load(tmp_path), "retain_test_accuracy", ["lift", "method"])
    assert out["n"].tolist() == [1, 1]


def break_json(folder):
    (folder / "retrain-0.json").write_text("{")


def break_schema(folder):
    (folder / "retrain-0.json").write_text(json.dumps(record() | {"schema": 0}))


def duplicate_seed(folder):
    results.write(record("again", 0, "original"), folder)


@pytest.mark.parametrize(
    ("damage", "action", "message"),
    [
        (break_json, results.load, "not valid JSON"),
        (break_schema, results.load, "not a hacore record"),
        (
            two_lifts,
            lambda f: results.summary(results.load(f), "retain_test_accuracy"),
            r"several records of one seed.*\(lift differ\)",
        ),
        (
            two_lifts,
            lambda f: results.table(results.load(f), {"retain_test_accuracy": "retain"}),
            "several records of one seed",
        ),
        (None, lambda f: results.gaps(results.load(f, method="original")), "no record of retrain"),
        (
            lambda f: results.write(record("again", 0, "retrain"), f),
            lambda f: results.gaps(results.load(f)),
            "two records of retrain",
        ),
        (None, lambda f: results.holm([0.5, 1.5]), "outside"),
        (None, lambda f: results.load(f / "missing"), "no records in"),
        (None, lambda f: results.load(f, colour="red"), "no column 'colour'"),
        (None, lambda f: results.load(f, method="magic"), "no record in"),
        (None, lambda f: results.write(record(accuracy=math.nan), f), "not finite"),
        (
            duplicate_seed,
            lambda f: results.paired(
                results.load(f), "retain_test_accuracy", {"method": "original"}, {"method": "retrain"}
            ),
            "several records of one seed",
        ),
        (
            None,
            lambda f: results.paired(
                results.load(f),
                "retain_test_accuracy",
                {"method": "original", "seed": 0},
                {"method": "retrain", "seed": 1},
            ),
            "share no seed",
        ),
    ],
)
def test_bad_input_gets_one_sentence(folder, damage, action, message):
    if damage:
        damage(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(HacoreError, match=message):
        action(folder)
    assert sorted(folder.iterdir()) == before
