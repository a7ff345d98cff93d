"""Figures of the class-forgetting chapters: the forget-retain plane, and embeddings in two dimensions."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Rectangle

from hacore.errors import HacoreError
from hacore.plots.looks import (
    geometries,
    geometry_colours,
    heading,
    method_looks,
    mixed,
    needs,
    spread_labels,
)
from hacore.plots.style import GREY, INK, RED, new_figure
from hacore.results import summary

FORGET = RED
# Retained classes only need to be told from their neighbours, so they share one hue; labels name them.
MUTED = ("#5b7ea6", "#a9bdd3", "#6f93a8", "#93b5c0", "#7d8fb3", "#b3c3cf", "#62889c", "#87a3c4", "#9fa8c7")


def plane(
    frame: pd.DataFrame,
    x: str = "forget_test_accuracy",
    y: str = "retain_test_accuracy",
    reference: str = "retrain",
    zoom: float | int | None = None,
    labels: bool | None = None,
) -> Figure:
    """The forget-retain plane: a point per method and geometry, with its interval on both axes.

    Points are means over seeds, bars 95 % Student-t intervals, faint dots the single runs. Dotted
    lines go through the mean of the reference method, over all its runs: the place to be. In one geometry,
    colours and symbols are the methods', in several the colours are the geometries'; symbols of
    geometries that coincide are nested, the first the largest.

    Args:
        frame: a table from :func:`hacore.results.load`, with columns ``space``, ``method``, ``x``, ``y``.
        x, y: metrics, those in percent for a zoom.
        reference: the method the dotted lines belong to.
        zoom: a second panel shows the square of this half-width, in percentage points, around the
            reference; the names of methods in it stand there only.
        labels: whether names stand beside their points instead of in a legend; None puts them there
            when all points are of one geometry.

    Raises:
        HacoreError: if a column is missing, the frame holds no run, or there is no reference to zoom to.
    """
    needs(frame, ("space", "method", x, y), "the plane needs runs with")
    frame = frame.assign(geometry=geometries(frame))
    target = frame.loc[frame["method"] == reference, [x, y]].mean()
    if zoom is not None and target.isna().any():
        raise HacoreError(f"there is no run of {reference!r} to zoom to; load it too or leave zoom out")
    looks = method_looks(list(frame["method"].unique()))
    colours = geometry_colours(list(frame["geometry"].unique()))
    labels = len(colours) == 1 if labels is None else labels

    figure = new_figure(7.2, 3.8)
    panels = list(figure.subplots(1, 1 if zoom is None else 2, squeeze=False)[0])
    for axes in panels:
        if target.notna().all():
            axes.axvline(target[x], color=GREY, lw=0.8, ls=":")
            axes.axhline(target[y], color=GREY, lw=0.8, ls=":")
        _crosses(axes, frame, x, y, looks, colours)
        axes.set(xlabel=heading(x))
    panels[0].set_ylabel(heading(y))
    if zoom is not None:
        # Nothing lies below 0 or above 100 %; a margin keeps symbols at the border whole.
        margin = 0.15 * zoom
        (x0, y0), (x1, y1) = (
            np.clip(target - zoom, -margin, None),
            np.clip(target + zoom, None, 100 + margin),
        )
        panels[1].set(xlim=(x0, x1), ylim=(y0, y1))
        panels[0].add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=GREY, lw=0.8))
        panels[1].set_title("the framed region", fontsize=9, color=GREY)
        for spine in panels[1].spines.values():
            spine.set(visible=True, color=GREY)
    if labels:
        _names(panels, frame, x, y, looks, colours)
    if labels and len(colours) == 1:
        return figure
    keys = [Line2D([], [], color=colour, marker="o", ls="", label=name) for name, colour in colours.items()]
    if not labels:
        own = len(colours) == 1
        keys = keys[own:] + [
            Line2D([], [], color=colour if own else GREY, marker=marker, ls="", label=name)
            for name, (marker, colour) in looks.items()
        ]
    small = 9 if len(keys) < 14 else 7.5
    figure.legend(handles=keys, loc="outside right upper", frameon=False, fontsize=small)
    return figure


def _crosses(
    axes: Axes,
    frame: pd.DataFrame,
    x: str,
    y: str,
    looks: Mapping[str, tuple[Any, str]],
    colours: Mapping[str, str],
) -> None:
    """Single runs, means and intervals of a frame with a column ``geometry``."""
    own = len(colours) == 1
    shades = [
        looks[method][1] if own else colours[geometry]
        for geometry, method in zip(frame["geometry"], frame["method"], strict=True)
    ]
    axes.scatter(frame[x], frame[y], s=9, c=shades, alpha=0.35, lw=0)
    across, up = (summary(frame, metric, ("geometry", "method")) for metric in (x, y))
    # Symbols shrink from one geometry to the next, so that those at the same place stay visible.
    sizes = dict(zip(colours, np.linspace(7.5 if own else 11, 4, len(colours)), strict=True))
    for geometry, method in across.index:
        marker, colour = looks[method]
        h, v = across.loc[(geometry, method)], up.loc[(geometry, method)]
        axes.errorbar(
            h["mean"], v["mean"],
            xerr=[[h["mean"] - h["low"]], [h["high"] - h["mean"]]],
            yerr=[[v["mean"] - v["low"]], [v["high"] - v["mean"]]],
            marker=marker, ls="", color=colour if own else colours[geometry], lw=1.2,
            ms=sizes[geometry] * (1.4 if marker == "*" else 1),
            markeredgecolor="white" if own else colours[geometry], markeredgewidth=0.5 if own else 1,
            label=f"{geometry} {method}",
        )  # fmt: skip


def _names(
    panels: Sequence[Axes],
    frame: pd.DataFrame,
    x: str,
    y: str,
    looks: Mapping[str, tuple[Any, str]],
    colours: Mapping[str, str],
) -> None:
    """Write each method's name once, in the last panel whose limits hold its mean."""
    across, up = (summary(frame, metric, ("geometry", "method")) for metric in (x, y))
    means = pd.DataFrame({x: across["mean"], y: up["mean"]}).dropna()
    points = means.to_numpy()
    sides = pd.concat([across["low"], up["mean"], across["high"], up["mean"]], axis=1).to_numpy()
    uprights = pd.concat([across["mean"], up["low"], across["mean"], up["high"]], axis=1).to_numpy()
    bars = np.concatenate([sides, uprights])
    left = np.ones(len(points), dtype=bool)
    for axes in reversed(panels):
        (x0, x1), (y0, y1) = axes.get_xlim(), axes.get_ylim()
        axes.set(xlim=(x0, x1), ylim=(y0, y1))
        within = (points >= (x0, y0)).all(axis=1) & (points <= (x1, y1)).all(axis=1)
        here = left & within
        left &= ~within
        which = means.index[here]
        shades = [looks[m][1] if len(colours) == 1 else colours[g] for g, m in which]
        # Light inks are hard to read in small type; darken them all a little.
        shades = [mixed(shade, "black", 0.25) for shade in shades]
        spread_labels(axes, points[here], [m for _, m in which], shades, bars)


def traces(
    frame: pd.DataFrame,
    stops: Mapping[str, int | Mapping[str, int]],
    forget: str = "forget_train_accuracy",
    retain: str = "retain_test_accuracy",
    below: Sequence[str] = (),
    level: float | int | None = None,
) -> Figure:
    """What unlearning does step by step: a panel per geometry with two accuracies, and where rules stop.

    Args:
        frame: columns ``space``, ``step``, and the metrics in percent; one run per geometry.
        stops: space -> the step at which the stopping rule holds for the first time, or several: rule -> step.
        forget, retain: the metrics, drawn solid and dashed.
        below: more metrics, such as ``attack_logits_auc``, for a second row of panels.
        level: a value marked in the second row, such as 50 for a guessing attacker.

    Raises:
        HacoreError: if a column is missing, the frame holds no row, or a step of a geometry occurs twice.
    """
    needs(frame, ("space", "step", forget, retain, *below), "traces need rows with")
    if frame.duplicated(["space", "step"]).any():
        raise HacoreError("a step of one geometry occurs twice; traces draw one run per geometry, select one")
    spaces = list(frame["space"].unique())
    colours = geometry_colours(spaces)
    figure = new_figure(3.0 * len(spaces) if len(spaces) > 1 else 4.5, 4.4 if below else 2.8)
    grid = figure.subplots(
        1 + bool(below), len(spaces), sharex="col", sharey="row", squeeze=False,
        height_ratios=(3, 2) if below else None,
    )  # fmt: skip
    for column, space in zip(grid.T, spaces, strict=True):
        rows = frame[frame["space"] == space].sort_values("step")
        column[0].plot(rows["step"], rows[retain], color=colours[space], ls="--", label=_accuracy(retain))
        column[0].plot(rows["step"], rows[forget], color=colours[space], label=_accuracy(forget))
        column[0].set(title=space, ylim=(-3, 103))
        for axes in column[1:]:
            for style, metric in zip(itertools.cycle(("-", "--", "-.", ":")), below):
                axes.plot(
                    rows["step"],
                    rows[metric],
                    color=colours[space],
                    ls=style,
                    label=heading(metric, unit=False),
                )
            if level is not None:
                axes.axhline(level, color=GREY, lw=0.8)
        _stops(list(column), stops.get(space, {}))
        column[-1].set_xlabel("step")
    grid[0, 0].set_ylabel("accuracy (%)")
    if any(
        isinstance(rules, Mapping) for rules in dict(stops).values()
    ):  # their names stand where the legend would
        figure.legend(
            *grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9
        )
    else:
        grid[0, 0].legend(fontsize=9, loc="center right")
    if below:
        grid[1, 0].set_ylabel(heading(below[0]) if len(below) == 1 else "%")
        if len(below) > 1:
            grid[1, 0].legend(fontsize=8)
    return figure


def _accuracy(metric: str) -> str:
    return heading(metric, unit=False).replace(" accuracy", "")


def _stops(column: Sequence[Axes], stops: int | Mapping[str, int]) -> None:
    """Vertical lines through a column of panels: one rule explained in the legend, several named at the line."""
    rules = stops if isinstance(stops, Mapping) else {"the rule stops": stops}
    several = isinstance(stops, Mapping)
    for style, (rule, step) in zip(
        itertools.cycle((":", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))), rules.items()
    ):
        for axes in column:
            name = rule if axes is column[0] else "_" + rule
            axes.axvline(step, color=GREY, lw=0.9, ls=style, label="_" + rule if several else name)
        if several:
            column[0].annotate(
                rule, (step, 0.25), xycoords=("data", "axes fraction"), xytext=(-2, 0),
                textcoords="offset points", rotation=90, ha="right", va="bottom", fontsize=7.5, color=INK,
                bbox={"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.8},
            )  # fmt: skip


@dataclass(frozen=True)
class Panel:
    """One embedding in two dimensions: a title and (n, 2) points, in a disk the Poincare coordinates of c = 1."""

    title: str
    points: np.ndarray
    disk: bool = False


def embeddings(
    rows: Sequence[Sequence[Panel]],
    labels: np.ndarray,
    forget: int,
    reach: float | None = None,
    rings: Sequence[float] = (1.0, 2.0, 3.0),
) -> Figure:
    """Two-dimensional embeddings as small multiples, one row of panels under the other.

    Retained classes are drawn in muted colours and carry their label at their median; the forgotten
    class is drawn last, in vermilion. All flat panels share their axes, so that points can be followed
    from one to the next.

    Args:
        rows: equally long rows of panels.
        labels: (n,) class of each point, the same in all panels.
        forget: the forgotten class.
        reach: half the width of the flat panels; None takes what holds the points of all of them.
        rings: geodesic radii at which circles are drawn in the disks.

    Raises:
        HacoreError: if shapes do not fit, or a point of a disk lies outside it.
    """
    panels = [panel for row in rows for panel in row]
    for panel in panels:
        if panel.points.shape != (len(labels), 2):
            raise HacoreError(
                f"panel {panel.title!r} holds points of shape {panel.points.shape}, not ({len(labels)}, 2); "
                "embed in two dimensions, one point per label"
            )
        if panel.disk and (panel.points**2).sum(axis=1).max() > 1:
            raise HacoreError(
                f"panel {panel.title!r} has points outside the unit disk; give Poincare coordinates"
            )
    if reach is None:
        reach = 1.05 * max(
            (float(np.abs(panel.points).max()) for panel in panels if not panel.disk), default=1.0
        )
    figure = new_figure(3.0 * len(rows[0]), 3.25 * len(rows))
    grid = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=True):
        _scatter(axes, panel.points, labels, forget)
        if panel.disk:
            _disk(axes, rings)
        half = 1.02 if panel.disk else reach
        axes.set(
            xlim=(-half, half), ylim=(-half, half), aspect="equal", title=panel.title, xticks=[], yticks=[]
        )
        for spine in axes.spines.values():
            spine.set(color=GREY, alpha=0.4, visible=not panel.disk)
    return figure


def _scatter(axes: Axes, points: np.ndarray, labels: np.ndarray, forget: int) -> None:
    retained = [int(label) for label in np.unique(labels) if label != forget]
    for colour, label in zip(itertools.cycle(MUTED), retained):
        axes.scatter(
            points[labels == label, 0], points[labels == label, 1], s=8, color=colour, alpha=0.55, lw=0
        )
    axes.scatter(
        points[labels == forget, 0], points[labels == forget, 1], s=13, color=FORGET, alpha=0.8, lw=0
    )
    for label in [*retained, forget]:
        # The median point, not the mean: a few strays would pull the label off its cluster.
        place = np.median(points[labels == label], axis=0)
        colour = FORGET if label == forget else INK
        axes.text(
            place[0], place[1], str(label), ha="center", va="center", fontsize=10, weight="bold", color=colour,
            bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75},
        )  # fmt: skip


def _disk(axes: Axes, rings: Sequence[float]) -> None:
    axes.add_patch(Circle((0, 0), 1, fill=False, ec=GREY, lw=1.2))
    for radius in rings:
        # In the ball of curvature -1 the circle of geodesic radius r has Euclidean radius tanh(r/2).
        axes.add_patch(
            Circle((0, 0), float(np.tanh(radius / 2)), fill=False, ec=GREY, lw=0.6, ls=":", alpha=0.7)
        )
