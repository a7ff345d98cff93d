"""How methods and geometries look, the same in every chapter, and labels that keep out of each other's way."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

import matplotlib.colors as mcolors
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.path import Path
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, SKY, YELLOW

T = TypeVar("T")


def _polygon(*corners: tuple[float | int, float | int]) -> Path:
    return Path([*corners, corners[0]], closed=True)


# One colour per family of methods and one marker per method: each method is known by either where the
# other is taken, as the colour is by the geometry in a figure of several. All markers can be filled.
METHOD_LOOKS: dict[str, tuple[Any, str]] = {
    "original": ("s", INK),
    "retrain": ("*", INK),
    "retrain-lifted": ((5, 1, 180), INK),
    "sisa": ("p", INK),
    "contrastive-unlearning": ("o", BLUE),
    "coun": ("D", BLUE),
    "contrastive-coun": ("h", BLUE),
    "alignment-calibration": ((8, 1, 0), BLUE),
    "image-contrast": ("H", BLUE),
    "ac": ((10, 1, 0), BLUE),
    "hac": (Path.wedge(45, 315), PURPLE),
    "hac-keep-parent": (Path.wedge(0, 180), PURPLE),
    "hac-without-negative": (_polygon((-1, -1), (0, -0.3), (1, -1), (0, 1)), PURPLE),
    "hac-without-positive": (_polygon((-1, -1), (1, -1), (1, 0), (0, 1), (-1, 0)), PURPLE),
    "hac-without-preserving": (Path.wedge(0, 90), PURPLE),
    "hac-without-entailment": (Path.wedge(180, 270), PURPLE),
    "hac-without-norm": (Path.wedge(180, 360), PURPLE),
    "finetune": (">", SKY),
    "l1-sparse": ("d", SKY),
    "gradient-ascent": ("v", RED),
    "neggrad-plus": ("P", RED),
    "random-relabel": ("^", GREEN),
    "salun": ("X", GREEN),
    "boundary-shrink": ("<", GREEN),
    "boundary-expansion": (Path.wedge(-90, 90), GREEN),
    "scrub": ((4, 1, 0), PURPLE),
    "bad-teacher": ((3, 1, 0), PURPLE),
    "fisher": (_polygon((-1, 1), (1, 1), (-1, -1), (1, -1)), ORANGE),
    "unsir": (_polygon((-1, 1), (1, -1), (1, 1), (-1, -1)), ORANGE),
    "lcodec": ((6, 1, 0), ORANGE),
    "head-reset": (_polygon((-1, -0.4), (1, -0.4), (1, 0.4), (-1, 0.4)), GREY),
    "null-space": (_polygon((0, -1), (0.35, 0), (0, 1), (-0.35, 0)), GREY),
    "row-replacement": (_polygon((-0.4, -1), (0.4, -1), (0.4, 1), (-0.4, 1)), GREY),
}
OTHER_METHODS: tuple[tuple[Any, str], ...] = (
    ((5, 0, 45), PURPLE), ((7, 1, 0), SKY), ("8", RED), ((4, 0, 20), GREEN), ((5, 1, 36), ORANGE),
)  # fmt: skip

SPACE_COLOURS = {"euclidean": BLUE, "lorentz": ORANGE, "poincare": GREEN}
OTHER_SPACES = (PURPLE, SKY, YELLOW)
# A lift changes how light the colour of its space is: towards black below 0, towards white above.
LIFT_SHADES = {"clipped": 0.0, "free": -0.45, "fixed": 0.45}


def _look(names: Sequence[str], known: Mapping[str, T], others: Sequence[T]) -> dict[str, T]:
    """A look for every name: the known ones keep theirs, the rest take the others in turn."""
    rest = itertools.cycle(others)
    return {name: known[name] if name in known else next(rest) for name in names}


def method_looks(names: Sequence[str]) -> dict[str, tuple[Any, str]]:
    """Marker and colour of each method; methods this book does not know take what is left, in turn."""
    return _look(names, METHOD_LOOKS, OTHER_METHODS)


def needs(frame: pd.DataFrame, columns: Sequence[str], who: str) -> None:
    """Refuse a frame that is empty or lacks columns.

    Raises:
        HacoreError: names what is missing; ``who`` begins the sentence, such as "the plane needs".
    """
    missing = [column for column in columns if column not in frame]
    if missing or frame.empty:
        raise HacoreError(f"{who} {', '.join(missing) or 'any rows'}; check the records")


def geometries(frame: pd.DataFrame) -> "pd.Series[str]":
    """The geometry of each row: its space, and what else differs among the rows of that space.

    "poincare" where all rows of the ball share one lift and curvature, else "poincare free", and with
    several curvatures "poincare free c=0.1".
    """
    names = frame["space"].astype(str)
    for column, text in (("lift", "{}"), ("curv", "c={:g}")):
        if column in frame:
            several = frame.groupby("space")[column].transform("nunique") > 1
            values = frame[column].map(text.format, na_action="ignore").fillna("")
            names = names.where(~several, names + " " + values)
    return names.str.strip()


def geometry_colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of :func:`geometries`: the hue is the space's, how light it is the lift's."""
    hues = _look(list(dict.fromkeys(name.split()[0] for name in names)), SPACE_COLOURS, OTHER_SPACES)
    out = {}
    for name in names:
        space, *rest = name.split()
        shade = LIFT_SHADES.get(rest[0], 0.0) if rest else 0.0
        out[name] = mixed(hues[space], "black" if shade < 0 else "white", abs(shade))
    return out


def mixed(colour: str, other: str, share: float) -> str:
    """``colour`` with a ``share`` of the ``other`` in it."""
    a, b = mcolors.to_rgb(colour), mcolors.to_rgb(other)
    red, green, blue = ((1 - share) * p + share * q for p, q in zip(a, b, strict=True))
    return mcolors.to_hex((red, green, blue))


NO_PERCENT = ("seconds", "flops", "steps", "tow", "radius", "class_separation")


def heading(metric: str, unit: bool = True) -> str:
    """A metric's column name as words for an axis, with "(%)" after all that are in percent."""
    words = metric.replace("_", " ").replace(" auc", " AUC").replace("flops", "FLOPs")
    return words + " (%)" * (unit and not metric.startswith(NO_PERCENT))


def spread_labels(
    axes: Axes,
    points: NDArray[np.float64],
    texts: Sequence[str],
    colours: Sequence[str],
    bars: NDArray[np.float64] | None = None,
    size: float = 7.5,
) -> None:
    """Write a text next to each point (n, 2), where it covers no other text and as few points as it can.

    Each text, those in the thick of it first, takes the best of a hundred places around its point; a thin
    line leads to it if it had to move away. ``bars`` (m, 4), from x, y to x, y, are kept clear like points.
    Limits and layout of the axes must be final.
    """
    figure = cast(Figure, axes.figure)
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    pixel = figure.dpi / 72  # pixels a point
    at = axes.transData.transform(points)
    frame = axes.get_window_extent(renderer)
    radius = 4.5 * pixel
    boxes = np.column_stack([at - radius, at + radius])  # what is taken: left, bottom, right, top
    if bars is not None:
        ends = axes.transData.transform(bars.reshape(-1, 2)).reshape(-1, 4)
        ends = ends[np.isfinite(ends).all(axis=1)] + pixel * np.array([-1, -1, 1, 1])
        # Beyond the frame nothing is drawn, and a bar that is clipped there takes no place.
        ends = np.clip(ends, [frame.x0, frame.y0] * 2, [frame.x1, frame.y1] * 2)
        boxes = np.vstack([boxes, ends])
    crowd = (np.linalg.norm(at[:, None] - at[None], axis=-1) < 60 * pixel).sum(axis=1)
    angles = np.arange(16) * np.pi / 8
    for i in np.argsort(-crowd, kind="stable"):
        text = axes.annotate(
            texts[i], points[i], xytext=(0, 0), textcoords="offset points", fontsize=size,
            color=colours[i], ha="center", va="center", annotation_clip=False,
        )  # fmt: skip
        text.set_in_layout(False)
        box = text.get_window_extent(renderer)
        half = np.array([box.width, box.height]) / 2 + pixel
        best, chosen = np.inf, np.zeros(2)
        for reach in np.array([0.0, 5, 12, 20, 30, 42, 56, 72]) * pixel:
            direction = np.column_stack([np.cos(angles), np.sin(angles)])
            # Far enough that the box begins beyond the marker in this direction.
            edge = np.min(half / np.maximum(np.abs(direction), 1e-9), axis=1, keepdims=True)
            offsets = direction * (edge + radius + reach)
            for offset in offsets:
                low, high = at[i] + offset - half, at[i] + offset + half
                across = np.minimum(high[0], boxes[:, 2]) - np.maximum(low[0], boxes[:, 0])
                up = np.minimum(high[1], boxes[:, 3]) - np.maximum(low[1], boxes[:, 1])
                covered = (across.clip(0) * up.clip(0)).sum()
                outside = max(0, frame.x0 - low[0], high[0] - frame.x1, frame.y0 - low[1], high[1] - frame.y1)
                cost = 1000 * (covered + outside) + reach
                if cost < best:
                    best, chosen = cost, offset
        text.set_position(tuple(chosen / pixel))
        boxes = np.vstack([boxes, [*(at[i] + chosen - half), *(at[i] + chosen + half)]])
        if np.linalg.norm(chosen) > np.linalg.norm(half) + radius + 10 * pixel:
            line = axes.annotate(
                "", points[i], xytext=tuple(chosen / pixel), textcoords="offset points", zorder=1,
                arrowprops={"arrowstyle": "-", "color": colours[i], "lw": 0.5, "alpha": 0.6, "shrinkB": 3},
            )  # fmt: skip
            line.set_in_layout(False)
            text.set_bbox({"fc": "white", "ec": "none", "pad": 0.5, "alpha": 0.9})
