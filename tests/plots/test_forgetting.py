"""The chapter's figures put the right point, colour and label in the right place."""

import itertools

import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
import pytest
from matplotlib.markers import MarkerStyle

from hacore.errors import HacoreError
from hacore.plots import Panel, embeddings, plane, traces
from hacore.plots.forgetting import FORGET
from hacore.plots.looks import METHOD_LOOKS, SPACE_COLOURS
from hacore.results import interval
from hacore.unlearning import METHODS

RUNS = {
    ("euclidean", "original"): ([98.0, 97.0, 99.0], [95.0, 96.0, 94.0]),
    ("euclidean", "retrain"): ([0.0, 0.0, 0.0], [97.0, 98.0, 96.0]),
    ("poincare", "contrastive-unlearning"): ([4.0, 8.0, 6.0], [93.0, 96.0, 94.5]),
}


def frame():
    rows = [
        {"space": space, "method": method, "seed": seed, "forget_test_accuracy": f, "retain_test_accuracy": r}
        for (space, method), columns in RUNS.items()
        for seed, (f, r) in enumerate(zip(*columns, strict=True))
    ]
    return pd.DataFrame(rows)


def test_plane_puts_each_method_at_its_means_with_its_interval():
    axes = plane(frame()).axes[0]
    drawn = {container.get_label(): container for container in axes.containers}
    assert set(drawn) == {f"{space} {method}" for space, method in RUNS}
    for (space, method), (x, y) in RUNS.items():
        point, _, (horizontal, vertical) = drawn[f"{space} {method}"]
        assert point.get_xydata().tolist() == [pytest.approx([np.mean(x), np.mean(y)])]
        assert point.get_marker() == METHOD_LOOKS[method][0]
        assert mcolors.same_color(point.get_color(), SPACE_COLOURS[space])
        for bar, values, axis in ((horizontal, x, 0), (vertical, y, 1)):
            ends = [end[axis] for end in bar.get_segments()[0]]
            assert ends == pytest.approx([interval(values)["low"], interval(values)["high"]])
    sizes = [
        drawn[name][0].get_markersize() for name in ("euclidean original", "poincare contrastive-unlearning")
    ]
    assert sizes[0] > sizes[1]  # points at the same place would be nested


def test_plane_marks_the_reference_and_every_run():
    axes = plane(frame()).axes[0]
    crosshair = [line.get_xydata() for line in axes.lines if line.get_linestyle() == ":"]
    assert {line[0, 0] for line in crosshair} | {line[0, 1] for line in crosshair} >= {0.0, 97.0}
    dots = next(c for c in axes.collections if len(c.get_offsets()) == len(frame()))
    assert np.asarray(dots.get_offsets()).tolist() == (
        frame()[["forget_test_accuracy", "retain_test_accuracy"]].to_numpy().tolist()
    )
    assert "forget test accuracy (%)" in axes.get_xlabel()


def test_plane_shows_one_run_without_an_interval_and_methods_it_does_not_know():
    one = frame().head(1).assign(method="a new method", space="a new space")
    axes = plane(one).axes[0]
    assert [text.get_text() for text in axes.texts] == ["a new method"]
    (container,) = axes.containers
    assert container[0].get_xydata().tolist() == [[98.0, 95.0]]
    assert all(len(segment) == 0 for bars in container[2] for segment in bars.get_segments())


# A plane shows the methods of one table: those that answer for classifiers.
LOOKS = {name: METHOD_LOOKS[name] for name, one in METHODS.items() if one.fits("single-class")}


def many():
    """Their points in one geometry, half of them close together."""
    places = np.random.default_rng(0).uniform(0, 1, (len(LOOKS), 2))
    places[::2] *= 0.1
    rows = [
        {
            "space": "euclidean",
            "method": m,
            "forget_test_accuracy": 80 * f,
            "retain_test_accuracy": 60 + 20 * r,
        }
        for m, (f, r) in zip(LOOKS, places, strict=True)
    ]
    return pd.DataFrame(rows)


def crossings(axes):
    """Pairs of texts that overlap, and texts that leave the axes."""
    axes.figure.draw_without_rendering()
    renderer = axes.figure.canvas.get_renderer()
    boxes = {t.get_text(): t.get_window_extent(renderer) for t in axes.texts if t.get_text()}
    frame = axes.get_window_extent(renderer)
    pairs = [(a, b) for a, b in itertools.combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    return pairs, [name for name, box in boxes.items() if box.x0 < frame.x0 - 2 or box.x1 > frame.x1 + 2]


def test_plane_names_every_method_beside_its_point_without_overlaps():
    figure = plane(many())
    (axes,) = figure.axes
    assert not figure.legends
    assert sorted(t.get_text() for t in axes.texts if t.get_text()) == sorted(LOOKS)
    assert crossings(axes) == ([], [])
    for container in axes.containers:
        method = container.get_label().removeprefix("euclidean ")
        assert mcolors.same_color(container[0].get_color(), METHOD_LOOKS[method][1])


def outline(marker):
    return MarkerStyle(marker).get_path().transformed(MarkerStyle(marker).get_transform()).vertices.tolist()


def test_plane_without_labels_has_a_legend_of_methods_in_their_colours():
    figure = plane(many(), labels=False)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(LOOKS)
    for key, (marker, colour) in zip(figure.legends[0].get_lines(), LOOKS.values(), strict=True):
        assert outline(key.get_marker()) == outline(marker)
        assert key.get_color() == colour


def test_plane_of_several_geometries_keys_spaces_by_colour_and_methods_by_marker():
    figure = plane(frame())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        "euclidean", "poincare", "original", "retrain", "contrastive-unlearning",
    ]  # fmt: skip


def test_plane_zooms_to_the_reference_and_names_each_method_once():
    runs = many()
    runs.loc[runs["method"] == "retrain", ["forget_test_accuracy", "retain_test_accuracy"]] = (30.0, 70.0)
    whole, zoomed = plane(runs, zoom=5).axes
    assert zoomed.get_xlim() == pytest.approx((25, 35))
    assert zoomed.get_ylim() == pytest.approx((65, 75))
    (square,) = whole.patches
    assert (*square.get_xy(), square.get_width(), square.get_height()) == pytest.approx((25, 65, 10, 10))
    names = [{t.get_text() for t in axes.texts} - {""} for axes in (whole, zoomed)]
    near = runs["forget_test_accuracy"].between(25, 35) & runs["retain_test_accuracy"].between(65, 75)
    assert names[1] == set(runs.loc[near, "method"])
    assert names[0] == set(runs.loc[~near, "method"])


def test_plane_does_not_zoom_beyond_what_accuracies_can_be():
    runs = many()
    runs.loc[runs["method"] == "retrain", ["forget_test_accuracy", "retain_test_accuracy"]] = (0.0, 99.0)
    zoomed = plane(runs, zoom=10).axes[1]
    assert zoomed.get_xlim() == pytest.approx((-1.5, 10))
    assert zoomed.get_ylim() == pytest.approx((89, 101.5))


def test_plane_refuses_to_zoom_to_nothing():
    with pytest.raises(HacoreError, match="no run of 'retrain' to zoom to"):
        plane(frame()[lambda f: f["method"] == "original"], zoom=5)


@pytest.mark.parametrize("bad", [frame().head(0), frame().drop(columns="space")])
def test_plane_refuses_what_it_cannot_draw(bad):
    with pytest.raises(HacoreError, match="plane needs runs"):
        plane(bad)


def test_traces_draw_both_accuracies_in_order_and_the_stop():
    rows = [("lorentz", 4, 50.0, 98.0), ("lorentz", 0, 100.0, 99.0), ("euclidean", 0, 100.0, 97.0)]
    steps = pd.DataFrame(rows, columns=["space", "step", "forget_train_accuracy", "retain_test_accuracy"])
    left, right = traces(steps, {"lorentz": 4}).axes
    assert (left.get_title(), right.get_title()) == ("lorentz", "euclidean")
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    assert lines["forget train"] == [[0, 100], [4, 50]]
    assert lines["retain test"] == [[0, 99], [4, 98]]
    assert lines["the rule stops"][0][0] == 4
    assert len(right.lines) == 2
    assert mcolors.same_color(left.lines[0].get_color(), SPACE_COLOURS["lorentz"])


def test_traces_draw_more_curves_below_and_name_several_rules_at_their_lines():
    steps = pd.DataFrame(
        {
            "space": "poincare",
            "step": [0, 8],
            "forget_train_accuracy": [100.0, 0.0],
            "retain_test_accuracy": [99.0, 98.0],
            "attack_logits_auc": [70.0, 55.0],
        }
    )
    rules = {"Eq. 8": 2, "nothing left": 6}
    above, below = traces(steps, {"poincare": rules}, below=["attack_logits_auc"], level=50).axes
    assert {text.get_text(): text.xy[0] for text in above.texts} == rules
    for axes in (above, below):
        upright = [line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1]
        assert upright == [2, 6]
    assert below.lines[0].get_xydata().tolist() == [[0, 70], [8, 55]]
    assert [50, 50] in [list(line.get_ydata()) for line in below.lines]
    assert below.get_ylabel() == "attack logits AUC (%)"
    assert below.get_xlabel() == "step"


def test_traces_refuse_two_runs_of_one_geometry():
    rows = pd.DataFrame(
        {"space": "lorentz", "step": [0, 0], "forget_train_accuracy": 1, "retain_test_accuracy": 1}
    )
    with pytest.raises(HacoreError, match="occurs twice"):
        traces(rows, {})


@pytest.mark.parametrize("bad", [frame().head(0), frame()])
def test_traces_refuse_what_they_cannot_draw(bad):
    with pytest.raises(HacoreError, match="traces need rows"):
        traces(bad, {})


LABELS = np.array([0, 0, 1, 1, 2, 2])


def cloud(seed=0, scale=0.5):
    return scale * np.random.default_rng(seed).uniform(-1, 1, (6, 2)) / 2**0.5


def test_embeddings_draw_every_point_with_the_forgotten_class_on_top():
    panels = [Panel("before", cloud(0), disk=True), Panel("after", cloud(1), disk=True)]
    figure = embeddings([panels], LABELS, forget=1)
    for axes, panel in zip(figure.axes, panels, strict=True):
        assert axes.get_title() == panel.title
        drawn = [np.asarray(c.get_offsets()) for c in axes.collections]
        for offsets, label in zip(drawn, (0, 2, 1), strict=True):
            np.testing.assert_allclose(offsets, panel.points[label == LABELS])
        assert mcolors.same_color(axes.collections[-1].get_facecolor()[0, :3], FORGET)
        places = {text.get_text(): text.get_position() for text in axes.texts}
        for label in range(3):
            assert places[str(label)] == pytest.approx(np.median(panel.points[label == LABELS], axis=0))


def test_the_disk_has_its_boundary_and_rings_at_geodesic_radii():
    axes = embeddings([[Panel("now", cloud(), disk=True)]], LABELS, 1, rings=(1.0,)).axes[0]
    assert [circle.get_radius() for circle in axes.patches] == pytest.approx([1.0, np.tanh(0.5)])
    assert axes.get_xlim() == pytest.approx((-1.02, 1.02))


@pytest.mark.parametrize(("reach", "expected"), [(None, 1.05 * np.abs(30 * cloud(1)).max()), (9.0, 9.0)])
def test_flat_panels_share_limits_that_hold_all_points(reach, expected):
    figure = embeddings([[Panel("a", cloud())], [Panel("b", 30 * cloud(1))]], LABELS, 0, reach)
    for axes in figure.axes:
        assert axes.get_xlim() == axes.get_ylim() == pytest.approx((-expected, expected))
        assert not axes.patches


@pytest.mark.parametrize(
    ("panel", "message"),
    [
        (Panel("x", np.zeros((6, 3))), "not \\(6, 2\\)"),
        (Panel("x", np.zeros((5, 2))), "one point per label"),
        (Panel("x", 9 * cloud(), disk=True), "outside the unit disk"),
    ],
)
def test_embeddings_refuse_wrong_shapes_and_points_outside_the_disk(panel, message):
    with pytest.raises(HacoreError, match=message):
        embeddings([[panel]], LABELS, 1)
