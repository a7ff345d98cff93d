"""Figures of tables on forgetting concepts: where images go, how strongly, how many concepts, and ablations."""

from collections.abc import Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.forgetting import FORGET
from hacore.plots.looks import (
    geometries,
    geometry_colours,
    heading,
    method_looks,
    mixed,
    needs,
    spread_labels,
)
from hacore.plots.style import BLUE, GREY, INK, ORANGE, SKY, new_figure
from hacore.results import against, summary

# Near to far in the tree; the concept itself is hatched as all that is forgotten.
PLACES = {
    "own": FORGET, "sibling": ORANGE, "parent": BLUE, "ancestor": SKY, "root": INK, "elsewhere": "#bdbdbd",
    "nowhere": "#ededed",
}  # fmt: skip
MEASURES = {"distance": "by distance", "angle": "by angle", "cone": "by cone"}
ENDS = ("original", "retrain")


def destinations(
    frame: pd.DataFrame,
    measures: Sequence[str] = tuple(MEASURES),
    methods: Sequence[str] | None = None,
) -> Figure:
    """Where forgotten images went, by three measures that can disagree: a bar of 100 % per method and geometry.

    Shares are means over seeds. Flat space has no cones and no exterior angles: a dash stands there.

    Args:
        frame: a table from :func:`hacore.results.load`, with the columns ``destination_MEASURE_PLACE`` of
            :func:`hacore.evaluate.destination.destination`.
        measures: a panel each.
        methods: which, in this order; None takes all, as they come.

    Raises:
        HacoreError: if a column or a method is missing, a group has several records of one seed, or shares do not
            add up to 100.
    """
    columns = {measure: [f"destination_{measure}_{place}" for place in PLACES] for measure in measures}
    needs(frame, ("space", "method", *chain(*columns.values())), "destinations need runs with")
    frame = frame.assign(geometry=geometries(frame))
    if methods is not None:
        if missing := [method for method in methods if method not in set(frame["method"])]:
            raise HacoreError(
                f"there are no runs of {', '.join(missing)}; load them or leave them out of methods"
            )
        order = {method: rank for rank, method in enumerate(methods)}
        frame = frame[frame["method"].isin(order)].sort_values(
            "method", key=lambda names: names.map(order), kind="stable"
        )
    several = frame["geometry"].nunique() > 1
    pairs = (
        frame[["geometry", "method"]]
        .drop_duplicates()
        .sort_values("geometry", kind="stable", key=_first_seen)
    )
    rows = pd.MultiIndex.from_frame(pairs)
    # Geometries stand a little apart.
    blocks = pairs["geometry"].ne(pairs["geometry"].shift()).cumsum().to_numpy()
    places = np.arange(len(rows)) + 0.5 * (blocks - 1)
    figure = new_figure(7.2, 1.3 + 0.27 * (places[-1] + 1))
    grid = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
    for axes, (measure, names) in zip(grid, columns.items(), strict=True):
        means = {name: summary(frame, name, ("geometry", "method"))["mean"] for name in names}
        shares = pd.DataFrame(means).loc[rows]
        there = shares.notna().all(axis=1).to_numpy()
        if not np.allclose(shares.sum(axis=1)[there], 100, atol=0.1):
            raise HacoreError(
                f"the shares {names[0]} to {names[-1]} of a run do not add up to 100; evaluate it again"
            )
        left = np.zeros(there.sum())
        for (place, colour), name in zip(PLACES.items(), names, strict=True):
            values = shares[name].to_numpy()[there]
            axes.barh(
                places[there], values, left=left, height=0.8, color=colour, ec="white", lw=0.6, label=place,
                hatch="////" if place == "own" else None,
            )  # fmt: skip
            left = left + values
        for at in places[~there].tolist():
            axes.text(50, at, "–", ha="center", va="center", color=GREY)
        axes.set(xlim=(0, 100), ylim=(places[-1] + 0.6, -0.6), xticks=(0, 50, 100))
        axes.set_title(MEASURES.get(measure, measure), fontsize=10)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(places, [f"{m} ({g})" if several else m for g, m in rows], fontsize=9)
    figure.supxlabel("forgotten images (%)", fontsize=10)
    keys = [
        Patch(facecolor=colour, edgecolor="white", hatch="////" if place == "own" else None, label=place)
        for place, colour in PLACES.items()
    ]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), fontsize=8.5, handlelength=1.2)
    return figure


def _first_seen(names: "pd.Series[str]") -> "pd.Series[int]":
    return names.map({name: rank for rank, name in enumerate(names.unique())})


def strengths(
    curves: Mapping[str, pd.DataFrame],
    x: str = "zero_shot_forget_accuracy",
    y: str = "zero_shot_retain_accuracy",
    ends: pd.DataFrame | None = None,
) -> Figure:
    """Paths through the forget-retain plane as methods go on: compare them where they have kept equally much.

    Lines are means over seeds of the steps that all seeds have, faint lines the single runs, and symbols the looks at
    1, 2, 4, ... steps. All begin at Original, the square; the star is Retrain. At the end stands how many steps it is.

    Args:
        curves: method -> its rows of :func:`hacore.results.curves`, with ``seed``, ``step``, ``x`` and ``y``.
        x, y: metrics.
        ends: a table from :func:`hacore.results.load` with the runs of original and retrain.

    Raises:
        HacoreError: if there is no curve, a column is missing, a seed has two rows of one step, or the seeds of a
            method share no step.
    """
    if not curves:
        raise HacoreError("there are no curves to draw: pass those of at least one method")
    known = {}
    if ends is not None:
        needs(ends, ("method", x, y), "the ends of curves need runs with")
        known = {
            name: rows[[x, y]].mean().to_numpy() for name, rows in ends.groupby("method") if name in ENDS
        }
    looks = method_looks([*ENDS, *curves])
    figure = new_figure(7.2, 4.4)
    axes = figure.add_subplot()
    labels: list[tuple[NDArray[np.float64], str, str]] = []
    bars: list[NDArray[np.float64]] = []
    for method, frame in curves.items():
        needs(frame, ("seed", "step", x, y), f"the curve of {method} needs rows with")
        if frame.duplicated(["seed", "step"]).any():
            raise HacoreError(f"the curve of {method} has two rows of one seed and step; load one request")
        marker, colour = looks[method]
        seeds = [rows.sort_values("step").set_index("step")[[x, y]] for _, rows in frame.groupby("seed")]
        steps = sorted(set.intersection(*(set(rows.index) for rows in seeds)))
        if not steps:
            raise HacoreError(f"the seeds of {method} share no step; run them with the same settings")
        start = [known["original"]] if "original" in known else []
        mean = np.vstack([*start, *(np.mean([rows.loc[step] for rows in seeds], axis=0) for step in steps)])
        if len(seeds) > 1:
            for rows in seeds:
                axes.plot(rows[x], rows[y], color=colour, lw=0.7, alpha=0.3)
        axes.plot(
            mean[:, 0], mean[:, 1], color=colour, lw=1.5, marker=marker, ms=7.5, mec="white", mew=0.5, label=method,
            markevery=slice(len(start), None), zorder=3,
        )  # fmt: skip
        # Short pieces, so that the boxes a label keeps clear of are no larger than the line.
        even = np.linspace(0, len(mean) - 1, 12 * len(mean))
        pieces = np.stack([np.interp(even, np.arange(len(mean)), column) for column in mean.T], axis=-1)
        bars.append(np.hstack([np.minimum(pieces[:-1], pieces[1:]), np.maximum(pieces[:-1], pieces[1:])]))
        labels.append((mean[-1], f"{method}, {steps[-1]:g}", mixed(colour, "black", 0.25)))
    for name, place in known.items():
        marker, colour = looks[name]
        size = 13 if name == "retrain" else 8
        axes.plot(*place, marker, color=colour, ms=size, mec="white", mew=0.6, zorder=4, label=name)
        labels.append((place, name, colour))
    axes.set(xlabel=heading(x), ylabel=heading(y))
    axes.margins(0.08)
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())
    ends_at, texts, inks = zip(*labels, strict=True)
    spread_labels(axes, np.array(ends_at), texts, inks, np.concatenate(bars), size=8.0)
    return figure


def many(
    frame: pd.DataFrame,
    y: str,
    x: str = "k",
    by: Sequence[str] = ("space", "method"),
    panel: str = "relation",
    reference: str = "retrain",
) -> Figure:
    """A metric against how many concepts are forgotten, with 95 % intervals over seeds: a panel per kind of set.

    In one geometry colours and symbols are the methods', in several the colours are the geometries' and the symbols
    the methods'. The reference is dashed.

    Args:
        frame: a table from :func:`hacore.results.load`, to which the columns ``x`` and ``panel`` were added.
        y: the metric.
        x: the column with the number of concepts.
        by: what makes a line, ``space`` and ``method`` among it.
        panel: the column that says of what kind a set is, such as "related" or "unrelated"; without it there is one.
        reference: the method to come close to.

    Raises:
        HacoreError: if a column is missing, or a point would be the mean of several records of one seed.
    """
    needs(frame, (*by, x, y), "the figure of many concepts needs runs with")
    if not {"space", "method"} <= set(by):
        raise HacoreError(f"lines by {', '.join(by)} have no look; take space and method among them")
    frame = frame.assign(geometry=geometries(frame))
    group = ["geometry", *(column for column in by if column != "space")]
    looks = method_looks(list(frame["method"].unique()))
    colours = geometry_colours(list(frame["geometry"].unique()))
    own = len(colours) == 1
    kinds = list(frame[panel].unique()) if panel in frame else [""]
    figure = new_figure(7.2, 3.6)
    grid = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for axes, kind in zip(grid, kinds, strict=True):
        shown = frame[frame[panel] == kind] if panel in frame else frame
        lines = list(summary(shown, y, [*group, x]).groupby(group, sort=False))
        # Side by side, so that intervals of the same number can be told apart.
        offsets = np.linspace(-0.12, 0.12, len(lines)) if len(lines) > 1 else np.zeros(1)
        for offset, (key, stat) in zip(offsets.tolist(), lines, strict=True):
            geometry, method = key[0], key[group.index("method")]
            marker, shade = looks[method]
            numbers = stat.index.get_level_values(x).to_numpy(dtype=float)
            order = np.argsort(numbers)
            numbers, stat = numbers[order], stat.iloc[order]
            axes.errorbar(
                numbers + offset, stat["mean"], yerr=[stat["mean"] - stat["low"], stat["high"] - stat["mean"]],
                color=shade if own else colours[geometry], marker=marker, ms=8, mec="white", mew=0.4,
                lw=1.4, elinewidth=0.9, ls="--" if method == reference else "-", label=" ".join(map(str, key)),
            )  # fmt: skip
        axes.set(title=kind, xlabel="forgotten concepts")
        axes.set_xticks(sorted(frame[x].unique()))
        axes.grid(axis="y", color=GREY, alpha=0.15)
    grid[0].set_ylabel(heading(y))
    keys = [] if own else [Line2D([], [], color=c, lw=2, label=name) for name, c in colours.items()]
    keys += [
        Line2D(
            [], [], color=colour if own else GREY, marker=marker, ms=8, ls="--" if name == reference else "-",
            label=name,
        )
        for name, (marker, colour) in looks.items()
    ]  # fmt: skip
    figure.legend(handles=keys, loc="outside lower center", ncols=4, fontsize=8.5)
    return figure


def ablation(
    frame: pd.DataFrame,
    metrics: Mapping[str, str] | Sequence[str],
    full: str = "hac",
    variants: Sequence[str] | None = None,
) -> Figure:
    """What each part is good for: every variant minus the full method, paired by seed, with 95 % intervals.

    Filled dots are differences whose p-value is below 0.05 after Holm's correction for the variants of a panel;
    the others are open. The line is no difference.

    Args:
        frame: a table from :func:`hacore.results.load` of one request and geometry.
        metrics: a panel each: column -> title, or columns.
        full: the method without anything taken away.
        variants: methods, in this order; None takes those whose names begin with ``full-``.

    Raises:
        HacoreError: if a column or a method is missing, or a side has several records of one seed.
    """
    titles = dict(metrics) if isinstance(metrics, Mapping) else {name: heading(name) for name in metrics}
    needs(frame, ("method", "seed", *titles), "the ablation needs runs with")
    there = list(frame["method"].unique())
    variants = [name for name in there if name.startswith(f"{full}-")] if variants is None else list(variants)
    missing = [name for name in (full, *variants) if name not in there]
    if missing or not titles or not variants:
        raise HacoreError(
            f"the ablation of {full} has no {', '.join(missing) or 'variants or metrics'}; load those runs, "
            "or name variants and metrics"
        )
    colours = {name: colour for name, (_, colour) in method_looks(variants).items()}
    figure = new_figure(7.2, 1.0 + 0.32 * len(variants))
    grid = figure.subplots(1, len(titles), sharey=True, squeeze=False)[0]
    for axes, (metric, title) in zip(grid, titles.items(), strict=True):
        table = against(frame, metric, full, variants)
        axes.axvline(0, color=GREY, lw=0.9)
        for place, (name, row) in enumerate(table.iterrows()):
            colour = colours[str(name)]
            sure = row["p Holm"] < 0.05
            axes.errorbar(
                row["mean"], place, xerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]], marker="o",
                color=colour, mfc=colour if sure else "white", ms=7, lw=1.2, ls="", label=str(name),
            )  # fmt: skip
        axes.set_title(title, fontsize=9.5)
        axes.grid(axis="y", color=GREY, alpha=0.15)
    grid[0].set_yticks(range(len(variants)), [_shorter(name, full) for name in variants])
    grid[0].set_ylim(len(variants) - 0.5, -0.5)
    figure.supxlabel(f"difference to {full}", fontsize=10)
    return figure


def _shorter(name: str, full: str) -> str:
    return name.removeprefix(f"{full}-").replace("-", " ")
