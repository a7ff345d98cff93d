"""An interactive explorer over records: one piece of HTML that needs no kernel, no network and no library."""

import html
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import pandas as pd
from matplotlib.markers import MarkerStyle
from matplotlib.path import Path

from hacore.errors import HacoreError
from hacore.plots.looks import geometries, geometry_colours, method_looks, needs
from hacore.plots.style import INK
from hacore.results import summary

METRICS = {
    "forget_test_accuracy": "forget-test accuracy (%)",
    "forget_train_accuracy": "forget-train accuracy (%)",
    "retain_test_accuracy": "retain-test accuracy (%)",
    "average_gap": "average gap to Retrain (points)",
    "tow": "tug of war",
    "attack_logits_auc": "attack on logits, AUC (%)",
    "attack_features_auc": "attack on features, AUC (%)",
    "attack_confidence_auc": "attack on confidence, AUC (%)",
    "probe_forget_accuracy": "probe on forgotten images (%)",
    "confusion_gap": "confusion gap to Retrain (points)",
    "cka_forget": "CKA with Retrain, forgotten images (%)",
    "class_separation": "class separation",
    "radius_forget_median": "radius of forgotten images",
    "seconds": "seconds",
    "flops": "FLOPs",
}
"""What an explorer shows unless told otherwise: column of a table of records -> name."""
LOGARITHMIC = ("seconds", "flops", "steps", "relative_seconds", "relative_flops", "relative_steps")
KEYS = ("request", "data", "recipe", "geometry", "method")


@dataclass(frozen=True, repr=False)
class Explorer:
    """HTML to be shown, and in a few words what is in it."""

    html: str
    text: str

    def _repr_html_(self) -> str:
        return self.html

    def __repr__(self) -> str:
        return self.text


def explorer(
    frame: pd.DataFrame,
    title: str,
    x: str = "forget_test_accuracy",
    y: str = "retain_test_accuracy",
    metrics: Mapping[str, str] | None = None,
    folder: str = "results",
) -> Explorer:
    """A scatter plot and a sortable table of records, to be filtered in the browser, without a kernel.

    Readers choose request, data, training recipe, geometry, two measures and the methods shown. Points and
    numbers are means over seeds with the half-widths of 95 % Student-t intervals, from
    :func:`hacore.results.summary`, rounded to four digits; every row links to its records. The HTML is the
    same for the same records, asks no other host for anything and takes the page's light or dark colours.

    Args:
        frame: a table from :func:`hacore.results.load`.
        title: a line above it.
        x, y: the measures shown first.
        metrics: column -> name of what can be chosen; None takes those of :data:`METRICS` that have values.
        folder: where the records lie, relative to the page.

    Raises:
        HacoreError: if a column is missing, the frame holds no run, x or y is no metric, or a group has
            several records of one seed.
    """
    metrics = METRICS if metrics is None else metrics
    needs(frame, ("scenario", "forget", "data", "space", "method", x, y), "the explorer needs runs with")
    metrics = {m: name for m, name in metrics.items() if m in frame and frame[m].notna().any()}
    for metric in (x, y):
        if metric not in metrics:
            raise HacoreError(
                f"the explorer cannot start with {metric!r}: it has no values or no name in metrics"
            )
    frame = frame.assign(**_choices(frame))
    groups = frame.groupby(list(KEYS), sort=False)
    stats = {metric: summary(frame, metric, KEYS) for metric in metrics}
    looks = method_looks(list(frame["method"].unique()))
    tables = {key: list(frame[key].unique()) for key in KEYS}
    colours = geometry_colours(tables["geometry"])
    page = {
        **{key: values for key, values in tables.items() if key != "method"},
        # The ink of a page is dark or light; null takes it.
        "methods": [[m, _outline(mark), None if c == INK else c] for m, (mark, c) in looks.items()],
        "colours": list(colours.values()),
        "metrics": [[name, metric in LOGARITHMIC] for metric, name in metrics.items()],
        "x": list(metrics).index(x),
        "y": list(metrics).index(y),
        "folder": folder,
        "groups": [
            [
                *(tables[key].index(value) for key, value in zip(KEYS, names, strict=True)),
                *_numbers([stat.loc[names] for stat in stats.values()]),
                _files(group),
            ]
            for names, group in groups
        ],
    }
    # Inside a script element only "<" could end it.
    data = json.dumps(page, separators=(",", ":"), allow_nan=False, ensure_ascii=False).replace(
        "<", "\\u003c"
    )
    here = files("hacore.plots")
    style, code = (here.joinpath(f"explorer.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    body = (
        '<div class="hacore-explorer tex2jax_ignore mathjax_ignore">\n'
        f'<style>\n{style}</style>\n<p class="title">{html.escape(title)}</p>\n'
        '<div class="controls"></div>\n<fieldset class="legend" aria-label="Methods shown"></fieldset>\n'
        # The script replaces this sentence, so it also stands where a viewer drops scripts but is able to run them.
        '<p class="status" role="status">Choosing and plotting need JavaScript, which does not run here; '
        f"the records themselves are in the folder {html.escape(folder)}.</p>\n"
        '<svg class="plot" role="img"></svg>\n'
        '<div class="wrap" tabindex="0" role="region" aria-label="Table of the means"><table></table></div>\n'
        f'<script type="application/json">{data}</script>\n</div>\n<script>\n{code}</script>\n'
    )
    return Explorer(body, f"Explorer: {len(frame)} records in {len(groups)} groups")


def _choices(frame: pd.DataFrame) -> dict[str, "pd.Series[Any]"]:
    """The columns :data:`KEYS` in words."""

    def words(column: str) -> "pd.Series[str]":
        if column not in frame:
            return pd.Series("", index=frame.index)
        return frame[column].astype(object).where(frame[column].notna(), "").astype(str)

    forget = frame["forget"].map(lambda value: f"{value:g}" if isinstance(value, float) else str(value))
    return {
        "request": words("scenario") + ", forget " + forget,
        "data": (words("data") + " " + words("profile")).str.strip(),
        "recipe": words("recipe").replace("", "–"),
        "geometry": geometries(frame),
    }


def _short(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


def _numbers(
    rows: list["pd.Series[float]"],
) -> tuple[list[float | None], list[float | None], int | list[int]]:
    """Means, half-widths, and how many runs; one number where all metrics have as many."""
    counts = [int(row["n"]) for row in rows]
    several = len(set(counts)) > 1
    means, halves = (
        [_short(row["mean"]) for row in rows],
        [_short(row["high"] - row["mean"]) for row in rows],
    )
    return means, halves, counts if several else counts[0]


def _files(group: pd.DataFrame) -> list[Any] | None:
    """What the names of a group's records begin with, and seed and rest of each."""
    if "record" not in group or "seed" not in group:
        return None
    names = [PurePath(record).stem for record in group["record"]]
    first, last = min(names), max(names)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    start = first[:shared]
    seeds = [int(seed) for seed in group["seed"]]
    return [start, [[seed, name.removeprefix(start)] for seed, name in zip(seeds, names, strict=True)]]


def _outline(marker: Any) -> str:
    """A matplotlib marker as an SVG path of width 1; SVG counts downwards."""
    style = MarkerStyle(marker)
    letters = {Path.MOVETO: "M", Path.LINETO: "L", Path.CURVE3: "Q", Path.CURVE4: "C", Path.CLOSEPOLY: "Z"}
    parts = []
    for vertices, code in style.get_path().transformed(style.get_transform()).iter_segments():
        points = (
            ""
            if code == Path.CLOSEPOLY
            else " ".join(f"{v:.3g}" for v in vertices * ([1, -1] * (len(vertices) // 2)))
        )
        parts.append(letters[code] + points)
    return "".join(parts)
