"""Bars, bands and dots of the audit figures stand where the numbers say."""

import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
import pytest

from hacore.errors import HacoreError
from hacore.plots import attacks, confusion_flow, radii, radius_histograms
from hacore.plots.forgetting import FORGET
from hacore.results import interval

CLASSES = ["cat", "dog", "ship", "truck"]
SHARES = {
    "original": [(0, 90, 10, 0), (0, 94, 6, 0)],
    "retrain": [(30, 0, 50, 20), (40, 0, 50, 10)],
    "coun": [(0, 4, 0, 96), (0, 0, 0, 100)],
}
GAPS = {"original": [91.0, 93.0], "retrain": [0.0, 0.0], "coun": [80.0, 90.0]}


def frame(space="poincare", lift="clipped"):
    rows = [
        {"space": space, "lift": lift, "method": method, "seed": seed, "confusion_gap": GAPS[method][seed]}
        | {f"forget_test_as_{k}": float(share) for k, share in enumerate(shares)}
        for method, runs in SHARES.items()
        for seed, shares in enumerate(runs)
    ]
    return pd.DataFrame(rows)


def bars(axes):
    """label -> left end and width of each row's segment."""
    return {c.get_label(): [(bar.get_x(), bar.get_width()) for bar in c.patches] for c in axes.containers}


def test_flow_stacks_mean_shares_to_100_with_retrain_on_top():
    (axes,) = confusion_flow(frame(), CLASSES, forget=1).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["retrain", "original", "coun"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is at the top
    segments = bars(axes)
    # The forgotten class first, then by Retrain's shares.
    assert list(segments) == ["dog", "ship", "cat", "truck"]
    assert segments["dog"] == [(0, 0), (0, 92), (0, 2)]
    assert segments["ship"] == [(0, 50), (92, 8), (2, 0)]
    assert segments["cat"] == [(50, 35), (100, 0), (2, 0)]
    assert segments["truck"] == [(85, 15), (100, 0), (2, 98)]
    np.testing.assert_allclose(sum(np.array(s)[:, 1] for s in segments.values()), 100)
    first = axes.containers[0].patches[1]
    assert mcolors.same_color(first.get_facecolor(), FORGET)
    assert first.get_hatch()


def test_flow_prints_the_gap_with_its_interval_beside_its_bar():
    (axes,) = confusion_flow(frame(), CLASSES, forget=1).axes
    gaps = {round(t.get_position()[1], 6): t.get_text() for t in axes.texts if t.get_position()[0] > 100}
    half = interval(GAPS["coun"])["high"] - 85
    assert gaps == {
        0: "0.0 ± 0.0",
        1: f"92.0 ± {interval([91.0, 93.0])['high'] - 92:.1f}",
        2: f"85.0 ± {half:.1f}",
    }
    (axes,) = confusion_flow(frame(), CLASSES, forget=1, gap=None).axes
    assert not [t for t in axes.texts if t.get_position()[0] > 100]


def test_flow_names_wide_segments_and_pools_small_classes():
    (axes,) = confusion_flow(frame(), CLASSES, forget=1, shown=1).axes
    segments = bars(axes)
    assert list(segments) == ["dog", "ship", "others"]
    assert segments["others"] == [(50, 50), (100, 0), (2, 98)]
    inside = {(t.get_text(), *t.get_position()) for t in axes.texts if t.get_position()[0] < 100}
    assert ("ship", 25, 0) in inside
    assert ("dog", 46, 1) in inside
    assert ("dog", 1, 2) not in inside


def test_flow_sets_geometries_apart_and_may_forget_several_classes():
    both = pd.concat([frame(), frame(lift="free")], ignore_index=True)
    (axes,) = confusion_flow(both, CLASSES, forget=[1, 3]).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == [
        f"{method} (poincare {lift})"
        for lift in ("clipped", "free")
        for method in ("retrain", "original", "coun")
    ]
    assert np.diff(axes.get_yticks()) == pytest.approx([1, 1, 1.4, 1, 1])
    assert list(bars(axes))[:2] == ["dog", "truck"]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (frame().drop(columns="forget_test_as_3"), "forget_test_as_3"),
        (frame().drop(columns="confusion_gap"), "confusion_gap"),
        (frame().head(0), "any rows"),
        (frame().assign(forget_test_as_0=1.0), "add up to 100"),
        (frame().assign(forget_test_as_0=np.nan), "add up to 100"),
    ],
)
def test_flow_refuses_what_it_cannot_draw(bad, message):
    with pytest.raises(HacoreError, match=message):
        confusion_flow(bad, CLASSES, forget=1)


AUCS = {
    ("euclidean", "original"): ([80.0, 84.0], [90.0, 91.0]),
    ("euclidean", "retrain"): ([50.0, 52.0], [49.0, 51.0]),
    ("lorentz", "retrain"): ([51.0, 55.0], [50.0, 53.0]),
}


def attacked(*spaces):
    rows = [
        {
            "space": space,
            "method": method,
            "seed": seed,
            "attack_logits_auc": a,
            "attack_modified_entropy_auc": b,
        }
        for (space, method), columns in AUCS.items()
        for seed, (a, b) in enumerate(zip(*columns, strict=True))
        if space in spaces
    ]
    return pd.DataFrame(rows)


def test_attacks_have_a_panel_each_with_points_intervals_chance_and_band():
    figure = attacks(attacked("euclidean"))
    assert [axes.get_title() for axes in figure.axes] == ["logits", "modified entropy"]
    assert [t.get_text() for t in figure.axes[0].get_yticklabels()] == ["original", "retrain"]
    for axes, which in zip(figure.axes, (0, 1), strict=True):
        assert axes.get_xlim() == figure.axes[0].get_xlim()
        assert list(axes.lines[0].get_xdata()) == [50, 50]
        for place, container in enumerate(axes.containers):
            values = AUCS[tuple(container.get_label().split(" "))][which]
            stat = interval(values)
            assert container[0].get_xydata().tolist() == [[stat["mean"], place]]
            ends = container[2][0].get_segments()[0][:, 0]
            assert ends == pytest.approx([stat["low"], stat["high"]])
        band = interval(AUCS["euclidean", "retrain"][which])
        (span,) = axes.patches
        assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((band["low"], band["high"]))


def test_attacks_of_several_geometries_have_a_lane_and_a_band_each():
    figure = attacks(attacked("euclidean", "lorentz"), {"attack_logits_auc": "logits"})
    (axes,) = figure.axes
    points = {c.get_label(): c[0].get_xydata()[0] for c in axes.containers if c.get_label() in
              ("euclidean original", "euclidean retrain", "lorentz retrain")}  # fmt: skip
    assert points["euclidean retrain"][1] < 1 < points["lorentz retrain"][1]
    band = interval(AUCS["lorentz", "retrain"][0])
    lanes = [p for p in axes.patches if p.get_x() == pytest.approx(band["low"])]
    assert [lane.get_y() + lane.get_height() / 2 for lane in lanes] == pytest.approx(
        [row + points["lorentz retrain"][1] - 1 for row in (0, 1)]
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["euclidean", "lorentz"]


def test_attacks_of_single_runs_have_no_band():
    figure = attacks(attacked("euclidean").query("seed == 0"))
    assert not any(axes.patches for axes in figure.axes)
    assert figure.axes[0].containers[0][0].get_xydata().tolist() == [[80, 0]]


@pytest.mark.parametrize(
    ("bad", "columns", "message"),
    [
        (attacked("euclidean"), {"attack_x_auc": "x"}, "attack_x_auc"),
        (attacked("euclidean")[["space", "method"]], None, "no column attack_"),
        (attacked(), None, "needs runs"),
    ],
)
def test_attacks_refuse_what_they_cannot_draw(bad, columns, message):
    with pytest.raises(HacoreError, match=message):
        attacks(bad, columns)


def measured():
    rows = [
        {"space": space, "lift": lift, "method": method, "seed": seed}
        | {
            f"radius_{part}_{q}": value + seed + 10 * (lift == "free") + 100 * (part == "forget")
            for part in ("retain", "forget")
            for q, value in (("q05", 1.0), ("median", 2.0), ("q95", 4.0))
        }
        for space, lift in (("euclidean", "clipped"), ("poincare", "clipped"), ("poincare", "free"))
        for method in ("original", "coun")
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows)


def test_radii_draw_quantiles_averaged_over_seeds_in_a_panel_per_geometry():
    figure = radii(measured(), limits={"poincare clipped": 4.0}, columns=2)
    shown = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title() for axes in shown] == ["euclidean", "poincare clipped", "poincare free"]
    assert [t.get_text() for t in shown[0].get_yticklabels()] == ["original", "coun"]
    free = shown[2]
    spans = [line.get_xdata().tolist() for line in free.lines if len(line.get_xdata()) == 2]
    assert spans == [[11.5, 14.5], [111.5, 114.5]] * 2
    medians = [line.get_xdata()[0] for line in free.lines if len(line.get_xdata()) == 1]
    assert medians == [12.5, 112.5] * 2
    limits = [[line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":"] for axes in shown]
    assert limits == [[], [4.0], []]
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["retained", "forgotten"]


def test_radii_refuse_missing_columns():
    with pytest.raises(HacoreError, match="radius_forget_q05"):
        radii(measured().drop(columns="radius_forget_q05"))


def test_histograms_are_shares_on_one_scale_with_the_limit():
    rows = {
        "free": {"retained": np.array([0.5, 1.5, 1.6, 9.0]), "forgotten": np.array([0.2])},
        "clipped": {"retained": np.array([4.0, 4.0])},
    }
    figure = radius_histograms(rows, limits={"clipped": 4.0}, bins=9)
    free, clipped = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["free", "clipped"]
    steps = [patch.get_data() for patch in free.patches[::2]]
    assert steps[0].values.tolist() == [25, 50, 0, 0, 0, 0, 0, 0, 25]
    assert steps[1].values.tolist() == [100, *[0] * 8]
    np.testing.assert_array_equal(clipped.patches[0].get_data().edges, steps[0].edges)
    assert clipped.patches[0].get_data().values.sum() == pytest.approx(100)
    assert [line.get_xdata()[0] for line in clipped.lines] == [4.0]
    assert not free.lines


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "no radii"),
        ({"free": {"retained": np.array([-1.0])}}, "from 0 on"),
        ({"free": {"retained": np.array([np.inf])}}, "finite"),
        ({"free": {"retained": np.zeros((2, 2))}}, "a list"),
        ({"free": {"retained": np.array([])}}, "a list"),
    ],
)
def test_histograms_refuse_what_are_no_radii(rows, message):
    with pytest.raises(HacoreError, match=message):
        radius_histograms(rows)
