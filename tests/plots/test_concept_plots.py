"""Figures of forgotten concepts show the numbers they are given, and say what they cannot draw."""

import base64
import io
import re

import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hacore.errors import HacoreError
from hacore.geometry import Lorentz, Poincare
from hacore.plots import (
    ablation,
    destinations,
    embedding_film,
    levels,
    many,
    strengths,
    to_disk,
    traversals,
)
from hacore.plots.concepts import PLACES
from hacore.plots.disk import geodesic
from hacore.plots.looks import METHOD_LOOKS, SPACE_COLOURS
from hacore.plots.style import RED
from hacore.results import interval

RNG = np.random.default_rng(0)


def went(space, method, seed, shares):
    """A run whose images went to the places in PLACES, in percent, by every measure its space has."""
    row = {"space": space, "method": method, "seed": seed}
    for measure in ("distance", "angle", "cone"):
        known = shares if space != "euclidean" or measure == "distance" else [np.nan] * len(PLACES)
        row |= {
            f"destination_{measure}_{place}": float(share) for place, share in zip(PLACES, known, strict=True)
        }
    return row


def moves():
    return pd.DataFrame(
        [
            went("lorentz", "original", 0, [90, 10, 0, 0, 0, 0, 0]),
            went("lorentz", "retrain", 0, [0, 60, 20, 10, 5, 5, 0]),
            went("lorentz", "retrain", 1, [10, 40, 30, 10, 5, 0, 5]),
            went("euclidean", "retrain", 0, [0, 100, 0, 0, 0, 0, 0]),
        ]
    )


def test_destinations_stack_the_means_over_seeds():
    axes = destinations(moves()).axes
    assert [a.get_title() for a in axes] == ["by distance", "by angle", "by cone"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == [
        "original (lorentz)", "retrain (lorentz)", "retrain (euclidean)",
    ]  # fmt: skip
    drawn = {c.get_label(): c.patches for c in axes[0].containers}
    assert list(drawn) == list(PLACES)
    retrain = [drawn[place][1] for place in PLACES]
    assert [bar.get_width() for bar in retrain] == [5, 50, 25, 10, 5, 2.5, 2.5]
    assert [bar.get_x() for bar in retrain] == [0, 5, 55, 80, 90, 95, 97.5]
    assert mcolors.same_color(retrain[0].get_facecolor(), RED)
    assert retrain[0].get_hatch()
    assert not retrain[1].get_hatch()
    assert [len(c.patches) for c in axes[2].containers] == [2] * len(PLACES)  # flat space has no cones
    assert [t.get_text() for t in axes[2].texts] == ["–"]
    assert not axes[0].texts


def test_destinations_of_chosen_methods_in_their_order():
    lorentz = moves()[lambda f: f["space"] == "lorentz"]
    (axes,) = destinations(lorentz, ["cone"], ["retrain", "original"]).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == ["retrain", "original"]
    assert [bar.get_width() for bar in axes.containers[0]] == [5, 90]


def curve(method_seeds, values):
    return pd.DataFrame(
        [
            {
                "seed": seed,
                "step": step,
                "zero_shot_forget_accuracy": f + seed,
                "zero_shot_retain_accuracy": r,
            }
            for seed in method_seeds
            for step, f, r in values
        ]
    )


ENDS = pd.DataFrame(
    {
        "method": ["original", "original", "retrain"],
        "zero_shot_forget_accuracy": [90.0, 92.0, 4.0],
        "zero_shot_retain_accuracy": [88.0, 90.0, 86.0],
    }
)


def test_strengths_follow_the_mean_from_original_through_every_step():
    ac = pd.concat([curve([0, 2], [(1, 80, 87), (4, 40, 84)]), curve([0], [(8, 10, 80)])])
    ac = ac.sample(frac=1, random_state=0)
    (axes,) = strengths({"ac": ac, "hac": curve([0], [(1, 50, 80), (2, 20, 70)])}, ends=ENDS).axes
    lines = {line.get_label(): line for line in axes.lines}
    # Step 8, which one seed alone has, is no mean.
    assert lines["ac"].get_xydata().tolist() == [[91, 89], [81, 87], [41, 84]]
    assert lines["hac"].get_xydata().tolist() == [[91, 89], [50, 80], [20, 70]]
    for name in ("original", "retrain", "ac"):
        assert lines[name].get_marker() == METHOD_LOOKS[name][0]
    assert lines["retrain"].get_xydata().tolist() == [[4, 86]]
    single = [line.get_xydata().tolist() for line in axes.lines if line.get_label().startswith("_")]
    assert [[80, 87], [40, 84], [10, 80]] in single
    assert len(single) == 2  # a method of one seed has no faint lines
    texts = {text.get_text() for text in axes.texts} - {""}
    assert texts == {"ac, 4", "hac, 2", "original", "retrain"}


def test_strengths_begin_at_the_first_look_without_ends():
    (axes,) = strengths({"a new one": curve([0], [(1, 50, 80), (2, 20, 70)])}).axes
    assert axes.lines[0].get_xydata().tolist() == [[50, 80], [20, 70]]


def sets(space="lorentz"):
    return pd.DataFrame(
        [
            {
                "space": space,
                "method": m,
                "relation": rel,
                "k": k,
                "seed": seed,
                "auc": 90.0 - 5 * k * (m == "ac") + seed,
            }
            for m in ("retrain", "ac")
            for rel in ("related", "unrelated")
            for k in (4, 1, 2)
            for seed in range(3)
        ]
    )


def test_many_draws_means_and_intervals_against_the_number_of_concepts():
    figure = many(sets(), "auc")
    assert [a.get_title() for a in figure.axes] == ["related", "unrelated"]
    for axes in figure.axes:
        drawn = {c.get_label(): c for c in axes.containers}
        line, _, (bars,) = drawn["lorentz ac"]
        np.testing.assert_allclose(line.get_xdata(orig=False), [1, 2, 4], atol=0.13)
        np.testing.assert_allclose(line.get_ydata(orig=False), [86, 81, 71])
        ends = bars.get_segments()[0][:, 1]
        stat = interval([85.0, 86.0, 87.0])
        assert ends.tolist() == pytest.approx([stat["low"], stat["high"]])
        assert mcolors.same_color(line.get_color(), METHOD_LOOKS["ac"][1])
        assert (line.get_linestyle(), drawn["lorentz retrain"][0].get_linestyle()) == ("-", "--")


def test_many_of_several_geometries_colours_geometries():
    both = pd.concat([sets(), sets("euclidean")]).drop(columns="relation")
    both = both.drop_duplicates(["space", "method", "k", "seed"])
    figure = many(both, "auc")
    (axes,) = figure.axes
    for container in axes.containers:
        space = container.get_label().split()[0]
        assert mcolors.same_color(container[0].get_color(), SPACE_COLOURS[space])
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["lorentz", "euclidean", "retrain", "ac"]


def test_many_refuses_a_mean_over_different_requests():
    with pytest.raises(HacoreError, match="several records of one seed"):
        many(sets().drop(columns="relation"), "auc")


def test_ablation_shows_paired_differences_and_fills_the_sure_ones():
    noise = [0.0, 10.0, -7.0]
    rows = [("hac", s, 50 + n) for s, n in enumerate(noise)]
    rows += [("hac-without-norm", s, 60 + n + 0.1 * s) for s, n in enumerate(noise)]
    rows += [("hac-without-negative", s, 50 + n + 9 * (s - 1)) for s, n in enumerate(noise)]
    rows += [("ac", s, 0.0) for s in range(3)]
    runs = pd.DataFrame(rows, columns=["method", "seed", "auc"])
    (axes,) = ablation(runs, ["auc"]).axes
    drawn = {c.get_label(): c for c in axes.containers}
    assert list(drawn) == ["hac-without-norm", "hac-without-negative"]
    point, _, (bar,) = drawn["hac-without-norm"]
    assert point.get_xydata().tolist() == [[pytest.approx(10.1), 0]]
    stat = interval([10.0, 10.1, 10.2])
    assert bar.get_segments()[0][:, 0].tolist() == pytest.approx([stat["low"], stat["high"]], abs=2e-3)
    assert not mcolors.same_color(point.get_markerfacecolor(), "white")
    assert mcolors.same_color(drawn["hac-without-negative"][0].get_markerfacecolor(), "white")
    assert [t.get_text() for t in axes.get_yticklabels()] == ["without norm", "without negative"]


LEVELS = {"root": np.zeros(1), "group": np.linspace(0.4, 0.6, 9), "images": np.linspace(1, 2, 30)}


def test_levels_stand_side_by_side_with_their_medians():
    wider = {name: values + 0.5 for name, values in LEVELS.items()}
    angles = {
        model: {"root": np.array([90.0]), "group": np.array([10.0, 20.0, 40.0])}
        for model in ("before", "after")
    }
    figure = levels({"before": LEVELS, "after": wider}, angles, limit=0.2)
    radius, aperture = figure.axes
    assert len(radius.collections) == 4  # violins of all but the root, which is one point
    medians = [line.get_xydata()[0].tolist() for line in radius.lines[:-1]]
    assert medians == [
        pytest.approx(xy) for xy in [(-0.2, 0), (0.8, 0.5), (1.8, 1.5), (0.2, 0.5), (1.2, 1.0), (2.2, 2.0)]
    ]
    assert radius.lines[-1].get_ydata()[0] == 0.2
    assert [line.get_ydata()[0] for line in aperture.lines] == [90, 20, 90, 20]
    assert [t.get_text() for t in aperture.get_xticklabels()] == ["root", "group"]
    assert len(levels({"before": LEVELS}).axes) == 1


@pytest.mark.parametrize("curv", [0.1, 1.0, 4.0])
def test_to_disk_keeps_radii_exactly(curv):
    x = RNG.normal(size=(50, 12))
    x[0] = 0
    flat = to_disk(x, curv)
    mine = Poincare(curv).radius(torch.tensor(flat))
    np.testing.assert_allclose(mine, Lorentz(curv).radius(torch.tensor(x)), rtol=1e-9)


def test_to_disk_of_two_dimensions_is_the_isometry():
    x = torch.tensor(RNG.normal(size=(30, 2)))
    a, b = to_disk(x.numpy(), 2.0)[:15], to_disk(x.numpy(), 2.0)[15:]
    expected = Lorentz(2.0).dist(x[:15], x[15:])
    np.testing.assert_allclose(Poincare(2.0).dist(torch.tensor(a), torch.tensor(b)), expected, rtol=1e-9)


def test_to_disk_tells_the_widest_directions_apart():
    groups = np.repeat(np.eye(3), 20, axis=0)
    x = np.hstack([groups, 0.01 * RNG.normal(size=(60, 7))])
    flat = to_disk(x)
    angle = np.angle(flat[:, 0] + 1j * flat[:, 1]).reshape(3, 20)
    middle = np.angle(np.exp(1j * angle).mean(axis=1))
    assert np.abs(np.angle(np.exp(1j * (angle - middle[:, None])))).max() < 0.1
    assert np.abs(np.angle(np.exp(1j * (middle - np.roll(middle, 1))))).min() > 1.5
    assert to_disk(np.array([[0.0, 1.0, 0.0]])).shape == (1, 2)


AROUND = 0.05 * np.stack([np.cos(np.arange(6)), np.sin(np.arange(6))], axis=-1)  # six forgotten images


def film(**changes):
    values = {
        "before": np.vstack([np.add(AROUND, [0.5, 0.0]), [[0.0, 0.5], [0.1, 0.1]]]),
        "after": np.vstack([np.add(AROUND, [0.0, 0.5]), [[0.0, 0.5], [0.1, 0.1]]]),
        "labels": np.array([3] * 6 + [1] * 2), "forget": 3, "alt": "a film", "frames": 3,
        "texts": {"star": (np.array([0.2, 0.0]), np.array([0.3, 0.0]))},
    } | changes  # fmt: skip
    return embedding_film(**values)


def test_film_goes_from_before_to_after():
    controls, stack = film().children
    assert list(controls.children[1].options) == ["before", "50 % of the way", "after"]
    pictures = []
    for part, label in zip(stack.children, controls.children[1].options, strict=True):
        assert f'alt="a film; {label}"' in part.value
        source = re.search(r'base64,([^"]+)"', part.value)
        pictures.append(
            np.asarray(Image.open(io.BytesIO(base64.b64decode(source[1]))).convert("RGB"), dtype=int)
        )
    # Vermilion is where the geodesic has the images; the disk fills the picture.
    starts = 0.5 + AROUND[:, 0] + 1j * AROUND[:, 1]
    ends = 0.5j + AROUND[:, 0] + 1j * AROUND[:, 1]
    ways = np.array([geodesic(a, b, n=3) for a, b in zip(starts, ends, strict=True)]).T
    for picture, places in zip(pictures, ways, strict=True):
        height, width, _ = picture.shape
        for place in places:
            row, column = round(height * (0.5 - place.imag / 2.08)), round(width * (0.5 + place.real / 2.08))
            near = picture[row - 4 : row + 5, column - 4 : column + 5].reshape(-1, 3)
            assert (np.abs(near - np.array(mcolors.to_rgb(RED)) * 255).sum(axis=1) < 60).any()


def test_traversals_list_texts_and_mark_the_forgotten():
    pictures = [np.zeros((4, 4, 3), dtype=np.uint8)] * 2
    figure = traversals([["a star", "a thing"], ["a thing"]], [["a thing"], []], pictures, {"a star"})
    assert len(figure.axes) == 6
    texts = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert texts == [[], ["a star", "a thing"], ["a thing"], [], ["a thing"], ["no text"]]
    assert [axes.get_title() for axes in figure.axes[:3]] == ["", "before", "after"]
    star, thing = figure.axes[1].texts
    assert (star.get_fontweight(), thing.get_fontweight()) == ("bold", "normal")
    assert star.get_position()[1] < thing.get_position()[1]
    assert len(traversals([["a thing"]], [["a thing"]]).axes) == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: destinations(moves().drop(columns="destination_cone_root")), "destinations need runs with dest"),
        (lambda: destinations(moves(), methods=["retrain", "hac"]), "no runs of hac"),
        (lambda: destinations(moves().assign(destination_cone_own=50.0)), "do not add up to 100"),
        (lambda: destinations(pd.concat([moves(), moves()])), "several records of one seed"),
        (lambda: strengths({}), "no curves"),
        (lambda: strengths({"ac": curve([0], [(1, 2, 3)]).drop(columns="step")}), "curve of ac needs rows with step"),
        (lambda: strengths({"ac": curve([0, 0], [(1, 2, 3)])}), "two rows of one seed and step"),
        (lambda: strengths({"ac": pd.concat([curve([0], [(1, 2, 3)]), curve([1], [(2, 2, 3)])])}), "share no step"),
        (lambda: many(sets().drop(columns="k"), "auc"), "needs runs with k"),
        (lambda: many(sets(), "auc", by=["method"]), "space and method"),
        (lambda: ablation(sets(), ["auc"]), "ablation of hac has no hac"),
        (lambda: levels({}), "same levels"),
        (lambda: levels({"before": LEVELS, "after": {"root": np.zeros(1)}}), "same levels"),
        (lambda: levels({"before": {"root": np.array([np.nan])}}), "'root', 'before'"),
        (lambda: to_disk(np.zeros((3, 1))), "d >= 2"),
        (lambda: to_disk(np.full((3, 2), np.nan)), "finite"),
        (lambda: film(after=np.zeros((2, 2))), r"after of shape \(2, 2\) are not \(8, 2\)"),
        (lambda: film(after=np.ones((8, 2))), "inside the disk"),
        (lambda: film(forget=7), "3 frames of 0 forgotten"),
        (lambda: film(frames=1), "1 frames"),
        (lambda: traversals([["a"]], []), "1 ways before, 0 after"),
    ],
)  # fmt: skip
def test_bad_input(call, message):
    with pytest.raises(HacoreError, match=message):
        call()
