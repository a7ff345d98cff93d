"""Figures of what audits find: attacks, where forgotten images go, and how far out embeddings lie."""

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.forgetting import FORGET
from hacore.plots.looks import geometries, geometry_colours, method_looks, needs
from hacore.plots.style import BLUE, GREY, INK, new_figure
from hacore.results import summary

BY = ("geometry", "method")
OTHERS = "others"


def confusion_flow(
    frame: pd.DataFrame,
    classes: Sequence[str],
    forget: int | Sequence[int],
    part: str = "forget_test",
    gap: str | None = "confusion_gap",
    shown: int = 9,
    reference: str = "retrain",
) -> Figure:
    """Where forgotten images go: a bar of 100 % per method and geometry, split by predicted class.

    Shares are means over seeds. The forgotten classes come first, hatched; the others follow in the
    order of the reference's shares, dark to light, so a bar that forgets as the reference does looks
    like it. At the right stands the mean of ``gap`` with its 95 % interval.

    Args:
        frame: a table from :func:`hacore.results.load`, with columns ``PART_as_K`` in percent for every
            class K (see :func:`hacore.evaluate.confusion.confusion`).
        classes: name of each class.
        forget: the forgotten class, or several.
        part: "forget_test" or "forget_train".
        gap: column of the distance to the reference; ``confusion_gap`` is measured on training images,
            whatever the part. None leaves it out.
        shown: of the other classes, how many get a segment of their own; the rest are pooled.
        reference: the method whose bar is at the top, if the frame has it.

    Raises:
        HacoreError: if a column or a value is missing, or shares do not add up to 100.
    """
    columns = [f"{part}_as_{k}" for k in range(len(classes))]
    needs(frame, ("space", "method", *columns, *([gap] if gap else [])), "the flow needs runs with")
    frame = frame.assign(geometry=geometries(frame))
    shares = frame.groupby(list(BY), sort=False)[columns].mean()
    if not np.allclose(shares.sum(axis=1, min_count=len(columns)), 100, atol=0.1):
        raise HacoreError(
            f"the shares {columns[0]} to {columns[-1]} of a run do not add up to 100; load runs that forgot "
            "classes of this data set, or pass part='forget_train'"
        )
    shares.columns = pd.RangeIndex(len(classes))
    shares = _first(shares, reference)
    gone = [forget] if isinstance(forget, int) else list(forget)
    known = shares[shares.index.get_level_values("method") == reference]
    order = (known if len(known) else shares).mean().drop(gone).sort_values(ascending=False, kind="stable")
    kept = list(order.index[:shown])
    split = shares[gone + kept].rename(columns=dict(enumerate(classes)))
    if len(order) > shown:
        split[OTHERS] = shares[list(order.index[shown:])].sum(axis=1)

    several = shares.index.get_level_values("geometry").nunique() > 1
    figure = new_figure(7.2, 1.0 + 0.34 * len(split))
    axes = figure.add_subplot()
    ramp = mpl.colormaps["cividis"](np.linspace(0.05, 0.95, max(1, len(kept))))
    fills = [FORGET] * len(gone) + [mcolors.to_hex(c) for c in ramp[: len(kept)]] + ["#d9d9d9"]
    # Geometries stand a little apart.
    blocks = np.unique(split.index.get_level_values("geometry"), return_inverse=True)[1]
    places = np.arange(len(split)) + 0.4 * np.cumsum(np.diff(blocks, prepend=blocks[0]) != 0)
    left = np.zeros(len(split))
    for i, (name, fill) in enumerate(zip(split, fills, strict=False)):
        values = split[name].to_numpy()
        bars = axes.barh(
            places, values, left=left, color=fill, ec="white", lw=0.8, height=0.8, label=name,
            hatch="///" if i < len(gone) else None,
        )  # fmt: skip
        _inside(axes, bars.patches, str(name), fill, several)
        left = left + values
    axes.set_yticks(places, [f"{m} ({g})" if several else m for g, m in split.index])
    axes.set(xlim=(0, 100), xlabel=f"predicted class of {part.replace('_', ' ')} images (%)")
    axes.set_ylim(places[-1] + 0.6, places[0] - 0.6)
    axes.tick_params(axis="y", length=0)
    if gap is not None:
        stat = summary(frame, gap, BY)
        axes.set_title(f"gap to {reference}", loc="right", fontsize=9, color=GREY)
        for place, key in zip(places.tolist(), split.index, strict=True):
            axes.text(100.8, place, _amount(stat.loc[key]), va="center", fontsize=8.5, color=INK)
    return figure


def _first(table: pd.DataFrame, method: str) -> pd.DataFrame:
    """Rows by geometry, those of ``method`` first in each, all else in the order it has."""
    rank = {geometry: i for i, geometry in enumerate(table.index.unique("geometry"))}
    keys = [(rank[g], m != method) for g, m in table.index]
    return table.iloc[sorted(range(len(keys)), key=keys.__getitem__)]


def _amount(row: "pd.Series[float]") -> str:
    half = row["high"] - row["mean"]
    if np.isnan(row["mean"]):
        return "–"
    return f"{row['mean']:.1f}" if np.isnan(half) else f"{row['mean']:.1f} ± {half:.1f}"


def _inside(axes: Axes, bars: Sequence[Rectangle], name: str, fill: str, several: bool) -> None:
    """Name the segments that are wide enough for it."""
    ink = "white" if np.dot(mcolors.to_rgb(fill), (0.299, 0.587, 0.114)) < 0.55 else INK
    for bar in bars:
        if bar.get_width() > 2 + (2.0 if several else 1.5) * len(name):
            x, y = bar.get_center()
            text = axes.text(x, y, name, ha="center", va="center", fontsize=7.5, color=ink)
            if bar.get_hatch():
                text.set_bbox({"fc": fill, "ec": "none", "pad": 1})


def attacks(
    frame: pd.DataFrame,
    columns: Mapping[str, str] | None = None,
    reference: str = "retrain",
    chance: float | int = 50.0,
) -> Figure:
    """How well attackers do: a panel per attack, a row per method, its mean and 95 % interval.

    The line is a guessing attacker, the band the interval of the reference, which is what an attacker
    finds in a model that never saw the images: the place to be, below it as little as above it.

    Args:
        frame: a table from :func:`hacore.results.load`.
        columns: metric in percent -> title; None takes all columns ``attack_..._auc``.
        reference: the method the band belongs to.
        chance: where guessing ends.

    Raises:
        HacoreError: if a column is missing or there is no attack.
    """
    if columns is None:
        found = [c for c in frame if c.startswith("attack_") and c.endswith("_auc")]
        columns = {c: c.removeprefix("attack_").removesuffix("_auc").replace("_", " ") for c in found}
    needs(frame, ("space", "method", *columns), "the dot plot of attacks needs runs with")
    if not columns:
        raise HacoreError("the table has no column attack_..._auc; name the attacks to draw in columns")
    frame = frame.assign(geometry=geometries(frame))
    looks = method_looks(list(frame["method"].unique()))
    colours = geometry_colours(list(frame["geometry"].unique()))
    offsets = dict(
        zip(colours, np.linspace(-0.3, 0.3, len(colours)) if len(colours) > 1 else [0.0], strict=True)
    )
    rows = {method: place for place, method in enumerate(looks)}
    figure = new_figure(7.2, 1.1 + max(0.24, 0.14 * len(colours)) * len(rows))
    grid = figure.subplots(1, len(columns), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (metric, title) in zip(grid, columns.items(), strict=True):
        stat = summary(frame, metric, BY)
        axes.axvline(chance, color=GREY, lw=0.8, ls=":")
        for geometry, offset in offsets.items():
            band = stat[["low", "high"]].loc[stat.index == (geometry, reference)].dropna()
            for low, high in band.to_numpy():
                if len(colours) == 1:
                    axes.axvspan(low, high, color=GREY, alpha=0.18, lw=0)
                else:  # each geometry has its lane in every row, and its reference's band along it
                    places = np.arange(len(rows)) + offset
                    axes.barh(
                        places, high - low, left=low, height=0.6 / len(colours), color=colours[geometry],
                        alpha=0.2, lw=0,
                    )  # fmt: skip
        for (geometry, method), row in stat.iterrows():
            marker, own = looks[method]
            colour = own if len(colours) == 1 else colours[geometry]
            axes.errorbar(
                row["mean"], rows[method] + offsets[geometry],
                xerr=[[row["mean"] - row["low"]], [row["high"] - row["mean"]]],
                marker=marker, ls="", color=colour, lw=1.1, ms=6, label=f"{geometry} {method}",
            )  # fmt: skip
        axes.set_title(title, fontsize=10)
        axes.grid(axis="y", color=GREY, alpha=0.15)
    grid[0].set_yticks(range(len(rows)), list(rows))
    grid[0].set_ylim(len(rows) - 0.4, -0.6)
    figure.supxlabel("AUC of the attack (%)", fontsize=10)
    if len(colours) > 1:
        _geometry_key(figure, colours)
    return figure


def _geometry_key(figure: Figure, colours: Mapping[str, str]) -> None:
    keys = [Line2D([], [], color=colour, marker="o", ls="", label=name) for name, colour in colours.items()]
    figure.legend(handles=keys, loc="outside lower center", ncols=4, frameon=False, fontsize=8.5)


def radii(
    frame: pd.DataFrame,
    parts: Mapping[str, str] | None = None,
    limits: Mapping[str, float] | None = None,
    columns: int = 3,
) -> Figure:
    """How far from the origin points lie: a panel per geometry, per method the median and the 5-95 % range.

    All three quantiles are means over seeds.

    Args:
        frame: a table from :func:`hacore.results.load`, with columns ``PREFIX_median``, ``PREFIX_q05`` and
            ``PREFIX_q95`` in geodesic length.
        parts: what is drawn -> prefix, one or two; None takes retained and forgotten images as
            :func:`hacore.evaluate.embeddings.embeddings` names them.
        limits: geometry -> radius that is marked, such as where a clipped lift ends.
        columns: at most so many panels stand in a row.

    Raises:
        HacoreError: if a column is missing or the frame holds no run.
    """
    parts = {"retained": "radius_retain", "forgotten": "radius_forget"} if parts is None else parts
    names = [f"{prefix}_{q}" for prefix in parts.values() for q in ("median", "q05", "q95")]
    needs(frame, ("space", "method", *names), "the radii need runs with")
    frame = frame.assign(geometry=geometries(frame))
    means = frame.groupby(list(BY), sort=False)[names].mean()
    spaces = list(frame["geometry"].unique())
    rows = {method: place for place, method in enumerate(frame["method"].unique())}
    width = min(columns, len(spaces))
    height = -(-len(spaces) // width)
    figure = new_figure(7.2, 0.6 + height * (0.7 + 0.3 * len(rows)))
    grid = figure.subplots(height, width, sharey=True, squeeze=False).ravel()
    shades = dict(zip(parts, (BLUE, FORGET, INK), strict=False))
    offsets = dict(zip(parts, np.linspace(-0.16, 0.16, len(parts)) if len(parts) > 1 else [0.0], strict=True))
    for axes, geometry in zip(grid, spaces, strict=False):
        for method, row in means.loc[geometry].iterrows():
            for part, prefix in parts.items():
                low, middle, high = (row[f"{prefix}_{q}"] for q in ("q05", "median", "q95"))
                place = rows[str(method)] + offsets[part]
                axes.plot([low, high], [place, place], color=shades[part], lw=2.2, alpha=0.45)
                axes.plot(middle, place, "o" if part != "forgotten" else "D", color=shades[part], ms=5)
        if limits and geometry in limits:
            axes.axvline(limits[geometry], color=GREY, lw=0.9, ls=":")
        axes.set(title=geometry, xlim=(0, None), ylim=(len(rows) - 0.5, -0.5))
        axes.grid(axis="y", color=GREY, alpha=0.15)
    for axes in grid[len(spaces) :]:
        axes.set_axis_off()
    grid[0].set_yticks(range(len(rows)), list(rows))
    keys = [
        Line2D([], [], color=shades[part], marker="o" if part != "forgotten" else "D", lw=2.2, label=part)
        for part in parts
    ]
    figure.legend(handles=keys, loc="outside lower right", ncols=len(keys), frameon=False, fontsize=8.5)
    figure.supxlabel("distance from the origin", fontsize=10)
    return figure


def radius_histograms(
    rows: Mapping[str, Mapping[str, NDArray[np.floating]]],
    limits: Mapping[str, float] | None = None,
    bins: int = 40,
) -> Figure:
    """How far from the origin points lie, as shares per bin: a row per variant, such as per lift, one scale.

    Args:
        rows: variant -> part ("retained" first, then "forgotten") -> radii (n,).
        limits: variant -> radius that is marked, such as where a clipped lift ends.
        bins: how many share the range from 0 to the largest radius of all.

    Raises:
        HacoreError: if there is nothing to draw, or a radius is negative or not finite.
    """
    for variant, parts in rows.items():
        for part, values in parts.items():
            if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or values.min() < 0:
                raise HacoreError(
                    f"radii of {variant!r}, {part!r} must be a list of finite numbers from 0 on; check the points"
                )
    if not rows:
        raise HacoreError("there are no radii to draw: pass at least one variant")
    widest = max(float(values.max()) for parts in rows.values() for values in parts.values())
    edges = np.linspace(0, 1.02 * widest if widest > 0 else 1.0, bins + 1)
    figure = new_figure(7.2, 0.9 + 1.05 * len(rows))
    grid = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (variant, parts) in zip(grid, rows.items(), strict=True):
        for shade, (part, values) in zip((BLUE, FORGET, INK), parts.items(), strict=False):
            share = 100 * np.histogram(values, edges)[0] / len(values)
            axes.stairs(share, edges, color=shade, fill=True, alpha=0.3)
            axes.stairs(share, edges, color=shade, lw=1.3, label=part)
        if limits and variant in limits:
            axes.axvline(limits[variant], color=GREY, lw=0.9, ls=":")
        axes.set_ylabel(variant, rotation=0, ha="right", va="center")
        axes.set_yticks([])
        axes.spines["left"].set_visible(False)
    grid[0].legend(fontsize=8.5)
    grid[-1].set_xlabel("distance from the origin")
    return figure
