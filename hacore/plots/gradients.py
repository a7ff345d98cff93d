"""Which way a loss moves points: gradient fields in the plane and in the Poincare disk."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib.colors as mcolors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.disk import complex_points, disk_axes, walk
from hacore.plots.forgetting import FORGET, MUTED
from hacore.plots.style import GREY, INK, new_figure


@dataclass(frozen=True)
class Field:
    """Retained points (n, 2) with labels (n,), and steps (m, 2) that a loss asks of points at ``anchors`` (m, 2).

    In a disk all are Poincare coordinates of c = 1, and steps are tangent vectors in them, that is
    Riemannian: the Euclidean gradient times :math:`(1 - |z|^2)^2 / 4`. ``paths`` (k, t, 2), if any, are drawn as
    lines that end in an arrow head, such as what gradient descent made of k anchors.
    """

    title: str
    points: NDArray[np.floating]
    labels: NDArray[np.integer]
    anchors: NDArray[np.floating]
    steps: NDArray[np.floating]
    disk: bool = False
    paths: NDArray[np.floating] | None = None


def _lengths(field: Field) -> NDArray[np.float64]:
    """How long steps are where they start, in the metric of the space."""
    norms = np.linalg.norm(field.steps, axis=1)
    return 2 * norms / (1 - (field.anchors**2).sum(axis=1)) if field.disk else norms


def _check(field: Field) -> None:
    shapes = {
        "points": (field.points, (len(field.labels), 2)),
        "anchors": (field.anchors, (len(field.anchors), 2)),
        "steps": (field.steps, (len(field.anchors), 2)),
    }
    for name, (array, shape) in shapes.items():
        if array.shape != shape:
            raise HacoreError(f"{name} of the field {field.title!r} have shape {array.shape}, not {shape}")
        if not np.isfinite(array).all():
            raise HacoreError(f"{name} of the field {field.title!r} are not all finite; draw fewer anchors")
        if field.disk and name != "steps" and len(array) and (array**2).sum(axis=1).max() >= 1:
            raise HacoreError(
                f"{name} of the field {field.title!r} lie outside the unit disk; give Poincare coordinates"
            )


def fields(panels: Sequence[Field], length: float = 0.3, reach: float | None = None) -> Figure:
    """Gradient fields side by side: arrows of one length whose colour tells the strength.

    Every arrow has the same length in the metric of its space: in a disk it is the chord of a geodesic,
    so arrows shrink towards the rim as all things do. Colours are those of the steps' lengths in that
    metric, on one logarithmic scale for all panels; steps of no length are dots. Retained classes are
    muted clusters with a label at their median.

    Args:
        panels: at least one field.
        length: of every arrow, in the units of the space.
        reach: half the width of flat panels; None takes what holds points and anchors of all of them.

    Raises:
        HacoreError: if there is no panel, shapes do not fit, a number is not finite, or a point of a disk
            lies outside it.
    """
    if not panels:
        raise HacoreError("there is no field to draw: pass at least one")
    for panel in panels:
        _check(panel)
    strengths = np.concatenate([_lengths(panel) for panel in panels])
    positive = strengths[strengths > 0]
    # The few anchors where forces cancel would otherwise take most of the scale.
    low, high = (max(positive.min(), positive.max() / 1000), positive.max()) if len(positive) else (1.0, 1.0)
    # A field of nearly one strength keeps one colour instead of showing rounding as a pattern.
    low, high = (low, high) if high > 1.05 * low else (low / 2, 2 * high)
    norm = mcolors.LogNorm(low, high)
    flat = [np.abs(np.vstack([p.points, p.anchors])).max() for p in panels if not p.disk]
    half = reach if reach is not None else 1.05 * max(flat, default=1.0)
    figure = new_figure(3.2 * len(panels) + 0.9, 3.6)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(grid, panels, strict=True):
        if panel.disk:
            disk_axes(axes)
        else:
            axes.set(xlim=(-half, half), ylim=(-half, half), aspect="equal", xticks=[], yticks=[])
            for spine in axes.spines.values():
                spine.set(visible=True, color=GREY, alpha=0.4)
        axes.set_title(panel.title)
        _clusters(axes, panel)
        _arrows(axes, panel, length, norm)
        for path in () if panel.paths is None else panel.paths:
            axes.plot(path[:, 0], path[:, 1], color=FORGET, lw=1.2, zorder=4)
            axes.annotate(
                "",
                path[-1],
                xytext=path[-2],
                zorder=4,
                arrowprops={"arrowstyle": "->", "color": FORGET, "lw": 1.2},
            )
    bar = figure.colorbar(ScalarMappable(norm, "cividis"), ax=list(grid), shrink=0.8)
    bar.set_label("length of the step")
    return figure


def _clusters(axes: Axes, panel: Field) -> None:
    names = [int(label) for label in np.unique(panel.labels)]
    for colour, label in zip(itertools.cycle(MUTED), names):
        cluster = panel.points[panel.labels == label]
        axes.scatter(cluster[:, 0], cluster[:, 1], s=9, color=colour, alpha=0.6, lw=0, zorder=2)
    for label in names:
        place = np.median(panel.points[panel.labels == label], axis=0)
        axes.text(
            place[0], place[1], str(label), ha="center", va="center", fontsize=10, weight="bold", color=INK,
            bbox={"boxstyle": "circle,pad=0.15", "fc": "white", "ec": "none", "alpha": 0.75}, zorder=5,
        )  # fmt: skip


def _arrows(axes: Axes, panel: Field, length: float, norm: mcolors.LogNorm) -> None:
    strengths = _lengths(panel)
    moving = strengths > 0
    starts, steps = panel.anchors[moving], panel.steps[moving]
    if panel.disk:
        ends = walk(complex_points(starts), np.arctan2(steps[:, 1], steps[:, 0]), length)
        chords = np.stack([ends.real, ends.imag], axis=-1) - starts
    else:
        chords = length * steps / strengths[moving][:, None]
    axes.quiver(
        starts[:, 0], starts[:, 1], chords[:, 0], chords[:, 1], strengths[moving], cmap="cividis", norm=norm,
        angles="xy", scale_units="xy", scale=1, width=0.006, zorder=3,
    )  # fmt: skip
    still = panel.anchors[~moving]
    axes.scatter(still[:, 0], still[:, 1], s=6, color=INK, zorder=3)
