"""Figures of an owner's audit: matrices of alignment, drops image by image, the images that changed most and least."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.forgetting import FORGET
from hacore.plots.style import BLUE, GREY, INK, new_figure

SHOWN = 60  # rows of a matrix that a page can still show one by one
Array = NDArray[np.floating]


def spaced(n: int, shown: int = SHOWN) -> NDArray[np.int64]:
    """Which of ``n`` images a matrix of at most ``shown`` rows shows: all, or evenly spaced ones, in their order."""
    return np.linspace(0, n - 1, min(n, shown)).round().astype(np.int64)


def matrices(before: Array, after: Array, shown: int = SHOWN, unit: str = "similarity") -> Figure:
    """Alignment matrices before and after, in one scale of colours, and their change around white.

    Row i is image i in its first view, column j image j in its second; true pairs are the diagonal. An image that
    the service treats as one of its own has a bright place there, and forgetting it takes the brightness away.

    Args:
        before, after: similarities (n, n), from :func:`hacore.evaluate.alignment.alignment_matrix`.
        shown: of more images than that, so many are drawn, evenly spaced (:func:`spaced`).
        unit: what the numbers are, for the bar of colours.

    Raises:
        HacoreError: if the matrices are not square, empty, differ in size or hold numbers that are not finite.
    """
    if before.ndim != 2 or before.shape != after.shape or len(before) != before.shape[1] or not len(before):
        raise HacoreError(
            f"alignment matrices of shapes {before.shape} and {after.shape} cannot be drawn side by side; "
            "give two square ones of the same images"
        )
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        raise HacoreError("the alignment matrices hold NaN or infinite numbers; check the embeddings")
    n = len(before)
    chosen = spaced(n, shown)
    before, after = (matrix[np.ix_(chosen, chosen)] for matrix in (before, after))
    change = after - before
    low, high = min(before.min(), after.min()), max(before.max(), after.max())
    most = np.abs(change).max() or 1.0
    figure = new_figure(8.4, 2.9)
    grid = figure.subplots(1, 3)
    panels = (
        ("before", before, "cividis", low, high), ("after", after, "cividis", low, high),
        ("change: after − before", change, "PuOr_r", -most, most),
    )  # fmt: skip
    for axes, (title, matrix, colours, least, largest) in zip(grid, panels, strict=True):
        image = axes.imshow(matrix, cmap=colours, vmin=least, vmax=largest, interpolation="nearest")
        axes.set_title(title)
        axes.set(xticks=[], yticks=[], xlabel="image, second view")
        for spine in axes.spines.values():
            spine.set(visible=True, color=GREY, alpha=0.4)
        if title != "before":
            bar = figure.colorbar(image, ax=[grid[0], axes] if title == "after" else axes, shrink=0.75)
            bar.set_label(unit if title == "after" else f"change of {unit}", fontsize=8.5)
            bar.ax.tick_params(labelsize=8)
    grid[0].set_ylabel("image, first view")
    if len(chosen) < n:
        figure.suptitle(f"{len(chosen)} of {n} images, evenly spaced", fontsize=9, color=GREY)
    return figure


def drops(
    own: Array,
    others: Array,
    names: tuple[str, str] = ("your images", "control images"),
    level: float | None = 0.95,
) -> Figure:
    """How far the agreement of each image's two views dropped: the owner's images against others.

    Solid lines are the means, whose distance is the score. The dotted line shows what a rule for single images
    could do: it has a share ``level`` of the others at its left, and calls what lies at its right changed.

    Args:
        own, others: drops (n,) and (m,), in standard deviations of mismatched pairs.
        names: of the two, for the legend.
        level: share of the others at the left of the threshold; None draws no threshold.

    Raises:
        HacoreError: if a side is empty or holds numbers that are not finite.
    """
    for name, values in zip(names, (own, others), strict=True):
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
            raise HacoreError(f"there are no finite drops of {name} to draw; check the embeddings")
    low, high = min(own.min(), others.min()), max(own.max(), others.max())
    if high - low < 1e-9:  # nothing changed: a bar of some width all the same
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, int(np.clip(2 * np.sqrt(len(own)), 12, 40)) + 1).tolist()
    figure = new_figure(7.2, 3.0)
    axes = figure.add_subplot()
    for name, values, colour, hatch in ((names[1], others, BLUE, None), (names[0], own, FORGET, "///")):
        weights = np.full(len(values), 100 / len(values))
        axes.hist(
            values, edges, weights=weights, color=colour, alpha=0.45, label=name, hatch=hatch,
            edgecolor=colour, linewidth=0.6,
        )  # fmt: skip
        axes.axvline(values.mean(), color=colour, lw=2)
    if level is not None:
        cut = float(np.quantile(others, level))
        beyond = 100 * float((own > cut).mean())
        axes.axvline(cut, color=INK, lw=1.2, ls=":")
        axes.set_title(
            f"{100 * level:g} % of {names[1]} lie left of the dotted line, "
            f"{beyond:.0f} % of {names[0]} right of it",
            fontsize=9.5,
        )
    axes.set(xlabel="drop of the agreement (standard deviations of mismatched pairs)", ylabel="images (%)")
    axes.legend(fontsize=9)
    return figure


def gallery(rows: Sequence[tuple[str, Sequence[NDArray[np.uint8]], Sequence[str]]]) -> Figure:
    """Small images in rows, each with a title, its pictures (h, w, 3) and their captions.

    Raises:
        HacoreError: if there are no pictures, or not one caption for each.
    """
    if not rows or any(not pictures or len(pictures) != len(captions) for _, pictures, captions in rows):
        raise HacoreError("a gallery needs pictures in every row and one caption for each; check the rows")
    width = max(len(pictures) for _, pictures, _ in rows)
    figure = new_figure(max(3.0, 1.05 * width), 1.5 * len(rows))
    parts = figure.subfigures(len(rows), 1, squeeze=False)[:, 0]
    for part, (title, pictures, captions) in zip(parts, rows, strict=True):
        part.suptitle(title, fontsize=10)
        grid = part.subplots(1, width, squeeze=False)[0]
        for axes in grid:
            axes.set_axis_off()
        for axes, picture, caption in zip(grid, pictures, captions, strict=False):
            axes.imshow(picture, interpolation="nearest")
            # Names of files are no formulas.
            axes.set_title(caption, fontsize=7, color=GREY, parse_math=False)
    return figure
