"""What changed inside a model of images and texts: levels of the tree, the disk before and after, ways to the root."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.disk import Points, bearing, complex_points, disk_axes, walk
from hacore.plots.forgetting import FORGET
from hacore.plots.looks import mixed
from hacore.plots.style import BLUE, GREY, INK, ORANGE, new_figure, png, slider

Array = NDArray[np.floating]


def levels(
    radii: Mapping[str, Mapping[str, Array]],
    apertures: Mapping[str, Mapping[str, Array]] | None = None,
    limit: float | int | None = None,
) -> Figure:
    """How far out the points of each level of a tree lie, and how wide their cones are, before and after.

    Violins with their medians; where all values of a level are one, a dot.

    Args:
        radii: model, such as "before" and "after" -> level, such as "group" or "images", the root first -> radii (n,).
        apertures: the same of half-apertures in degrees; images have none. None leaves the panel out.
        limit: a radius that is marked, such as the one below which cones are half-spaces.

    Raises:
        HacoreError: if there are no models or levels, models differ in their levels, or values are not finite.
    """
    quantities = {"distance from the origin": radii} | ({"half-aperture (°)": apertures} if apertures else {})
    for what, models in quantities.items():
        _check_levels(what, models)
    counts = [len(next(iter(models.values()))) for models in quantities.values()]
    shades = dict(zip(radii, (BLUE, FORGET, ORANGE, INK), strict=False))
    figure = new_figure(7.2, 3.2)
    grid = figure.subplots(1, len(quantities), width_ratios=counts, squeeze=False)[0]
    for axes, (what, models) in zip(grid, quantities.items(), strict=True):
        offsets = (np.arange(len(models)) - (len(models) - 1) / 2) * 0.8 / len(models)
        for offset, (model, groups) in zip(offsets.tolist(), models.items(), strict=True):
            for place, values in enumerate(groups.values()):
                _violin(
                    axes, place + offset, np.asarray(values, dtype=float), 0.72 / len(models), shades[model]
                )
        axes.set_xticks(range(len(groups)), list(groups), fontsize=8.5)
        axes.set(ylabel=what, ylim=(0, None), xlim=(-0.6, len(groups) - 0.4))
        axes.grid(axis="y", color=GREY, alpha=0.15)
    if limit is not None:
        grid[0].axhline(limit, color=GREY, lw=0.9, ls=":")
    keys = [Patch(facecolor=shade, alpha=0.6, label=model) for model, shade in shades.items()]
    figure.legend(handles=keys, loc="outside upper center", ncols=len(keys), fontsize=9)
    return figure


def _check_levels(what: str, models: Mapping[str, Mapping[str, Array]]) -> None:
    names = [list(groups) for groups in models.values()]
    if not names or not names[0] or any(other != names[0] for other in names):
        raise HacoreError(f"every model needs the {what} of the same levels, at least one; it got {names}")
    for model, groups in models.items():
        for level, values in groups.items():
            if np.ndim(values) != 1 or not len(values) or not np.isfinite(values).all():
                raise HacoreError(
                    f"the {what} of level {level!r}, {model!r}, must be a list of finite numbers"
                )


def _violin(axes: Axes, place: float, values: Array, width: float, colour: str) -> None:
    if np.ptp(values) > 1e-6:
        parts = axes.violinplot(values, [place], widths=width, showextrema=False)
        for body in parts["bodies"]:  # type: ignore[attr-defined]
            body.set(facecolor=colour, edgecolor=colour, alpha=0.45)
    axes.plot(place, np.median(values), "o", color=mixed(colour, "black", 0.2), ms=4.5, mec="white", mew=0.5)


def to_disk(points: Array, curv: float = 1.0) -> Array:
    """A picture in two dimensions of a hyperbolic embedding in d: true radii, directions as near as two can be.

    The distance of every point from the origin is kept exactly. Its direction is not: it is that of the first two
    principal components of all directions (unit tangent vectors at the origin, centred), so that what is near in
    the picture may be far apart in d dimensions, and angles are no true angles. With d = 2 the picture is exact.

    Clouds that are to be compared, such as before and after, need the same axes: concatenate them, and split what
    comes back.

    Args:
        points: (n, d) space components on the hyperboloid.
        curv: c, the curvature is -c.

    Returns:
        Poincare coordinates (n, 2) in the disk of the same curvature.

    Raises:
        HacoreError: if points are not (n, d) with d at least 2, or not finite.
    """
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or not len(points) or points.shape[1] < 2 or not np.isfinite(points).all():
        raise HacoreError(
            f"points of shape {points.shape} make no picture; give finite ones, (n, d) with d >= 2"
        )
    norms = np.linalg.norm(points, axis=1, keepdims=True)
    directions = points / np.where(norms > 0, norms, 1)
    if points.shape[1] > 2:
        centred = directions - directions.mean(axis=0)
        axes = np.linalg.svd(centred, full_matrices=False)[2][:2]
        if len(axes) < 2:  # a single point has no spread
            axes = np.eye(2, points.shape[1])
        # Components have no sign of their own; the largest entry is made positive.
        axes *= np.sign(np.take_along_axis(axes, np.abs(axes).argmax(axis=1)[:, None], axis=1))
        directions = centred @ axes.T
    angle = np.arctan2(directions[:, 1], directions[:, 0])
    flat = walk(0, angle, np.arcsinh(np.sqrt(curv) * norms[:, 0]) / np.sqrt(curv), curv)
    return np.stack([flat.real, flat.imag], axis=-1)


def embedding_film(
    before: Array,
    after: Array,
    labels: NDArray[np.integer],
    forget: int | Collection[int],
    alt: str,
    texts: Mapping[str, tuple[Array, Array]] | None = None,
    curv: float = 1.0,
    frames: int = 12,
) -> Any:
    """A slider from before to after: every point walks along the geodesic, at its own constant speed.

    Only the first and the last frame are models; the ones between show what became of what. Images of forgotten
    classes are vermilion, their starting points hollow, all others grey; texts are stars.

    Args:
        before, after: (n, 2) Poincare coordinates of the same images, such as from :func:`to_disk`.
        labels: (n,) their classes.
        forget: the forgotten class, or several.
        alt: what is seen, in words.
        texts: name -> coordinates (2,) before and after.
        curv: c, the curvature is -c.
        frames: how many, both ends among them.

    Raises:
        HacoreError: if shapes do not fit, a point lies outside the disk, no image is of a forgotten class, or there
            are fewer than two frames.
    """
    names = list(texts or {})
    words = [np.array([pair[side] for pair in (texts or {}).values()]).reshape(-1, 2) for side in (0, 1)]
    for what, cloud, n in (
        ("before", before, len(labels)), ("after", after, len(labels)),
        ("texts before", words[0], len(names)), ("texts after", words[1], len(names)),
    ):  # fmt: skip
        if cloud.shape != (n, 2) or not (curv * (cloud**2).sum(axis=1) < 1).all():
            raise HacoreError(
                f"points {what} of shape {cloud.shape} are not ({n}, 2) Poincare coordinates inside the disk; "
                "make them with to_disk"
            )
    gone = np.isin(labels, [forget] if isinstance(forget, int) else list(forget))
    if frames < 2 or not gone.any():
        raise HacoreError(
            f"{frames} frames of {gone.sum()} forgotten images make no film; take two or more of some"
        )
    starts, ends = complex_points(before), complex_points(after)
    first, last = complex_points(words[0]), complex_points(words[1])
    pictures = {}
    for share in np.linspace(0, 1, frames).tolist():
        figure = _film_frame(
            _part_way(starts, ends, share, curv),
            gone,
            starts[gone],
            _part_way(first, last, share, curv),
            names,
            curv,
        )
        label = {0.0: "before", 1.0: "after"}.get(share, f"{100 * share:.0f} % of the way")
        pictures[label] = png(figure, colors=128)
    return slider(pictures, "model", alt)


def _part_way(starts: Points, ends: Points, share: float, curv: float) -> Points:
    angle, length = bearing(starts, ends, curv)
    return walk(starts, angle, share * length, curv)


def _film_frame(
    points: Points, gone: NDArray[np.bool_], starts: Points, texts: Points, names: Sequence[str], curv: float
) -> Figure:
    figure = new_figure(5.0, 5.0)
    axes = disk_axes(figure.add_subplot(), curv)
    for radius in (1.0, 2.0, 3.0):
        ring = walk(0, np.linspace(0, 2 * np.pi, 120), radius / np.sqrt(curv), curv)
        axes.plot(ring.real, ring.imag, color=GREY, lw=0.6, ls=":", alpha=0.7)
    axes.scatter(points[~gone].real, points[~gone].imag, s=10, color="#9aa5b1", alpha=0.6, lw=0, zorder=2)
    axes.scatter(
        starts.real, starts.imag, s=14, facecolor="none", edgecolor=FORGET, lw=0.6, alpha=0.35, zorder=3
    )
    axes.scatter(points[gone].real, points[gone].imag, s=15, color=FORGET, lw=0, zorder=4)
    # The same side in every frame: a label that looked for room would jump.
    for name, text in zip(names, texts, strict=True):
        axes.annotate(
            name, (text.real, text.imag), xytext=(0, 7), textcoords="offset points", ha="center", fontsize=9, color=INK,
            zorder=5, bbox={"fc": "white", "ec": "none", "pad": 0.3, "alpha": 0.6},
        )  # fmt: skip
    axes.scatter(texts.real, texts.imag, s=110, marker="*", color=INK, edgecolor="white", lw=0.6, zorder=6)
    return figure


def traversals(
    before: Sequence[Sequence[str]],
    after: Sequence[Sequence[str]],
    pictures: Sequence[NDArray[np.uint8]] | None = None,
    forgotten: Collection[str] = (),
) -> Figure:
    """The texts from images to the root, before and after: a row per image, the image's nearest text first.

    Args:
        before, after: for each image the texts of :func:`hacore.evaluate.destination.traversal`.
        pictures: the images (h, w, 3), one a row; None draws the texts alone.
        forgotten: texts that speak of the forgotten concepts, set in vermilion.

    Raises:
        HacoreError: if there are no images, or not as many ways before and after and pictures.
    """
    if not before or len(before) != len(after) or (pictures is not None and len(pictures) != len(before)):
        raise HacoreError(
            f"{len(before)} ways before, {len(after)} after and {0 if pictures is None else len(pictures)} pictures "
            "cannot stand side by side; give one of each per image"
        )
    lengths = [max(len(a), len(b), 1) for a, b in zip(before, after, strict=True)]
    with_pictures = pictures is not None
    figure = new_figure(7.2, 0.5 + sum(0.24 * length + 0.3 for length in lengths))
    grid = figure.subplots(
        len(before), 2 + with_pictures, squeeze=False, height_ratios=[0.24 * n + 0.3 for n in lengths],
        width_ratios=(0.28, 1, 1) if with_pictures else (1, 1),
    )  # fmt: skip
    for row, (ways, length) in enumerate(zip(zip(before, after, strict=True), lengths, strict=True)):
        if pictures is not None:
            grid[row, 0].imshow(pictures[row], interpolation="nearest")
            grid[row, 0].set_axis_off()
        for axes, way, title in zip(grid[row, -2:], ways, ("before", "after"), strict=True):
            axes.set(xlim=(0, 1), ylim=(length - 0.4, -0.6))
            axes.set_axis_off()
            if row == 0:
                axes.set_title(title, fontsize=10, color=GREY)
            if not way:
                axes.text(0.06, 0, "no text", fontsize=9, color=GREY, va="center", style="italic")
                continue
            axes.plot(np.full(len(way), 0.025), np.arange(len(way)), "o-", color=GREY, ms=4, lw=0.9)
            for place, text in enumerate(way):
                gone = text in forgotten
                axes.text(
                    0.06, place, text, fontsize=9, va="center", color=mixed(FORGET, "black", 0.15) if gone else INK,
                    weight="bold" if gone else "normal", parse_math=False,
                )  # fmt: skip
    return figure
