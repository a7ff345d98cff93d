"""Entailment cones in the Poincare disk: one cone, how it closes as its text moves out, a tree of them, forces.

Points are complex numbers as in :mod:`hacore.plots.disk`, angles radians, and K (``min_radius``) is that of
:func:`hacore.plots.disk.half_aperture`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib.colors as mcolors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from numpy.typing import NDArray

from hacore.errors import HacoreError
from hacore.plots.disk import Numbers, Points, bearing, cone, disk_axes, draw, geodesic, half_aperture, walk
from hacore.plots.looks import mixed, spread_labels
from hacore.plots.style import BLUE, GREY, INK, ORANGE, PALETTE, RED, new_figure, png, slider

SPREAD = 60  # images that a cone is tried on unless others are given


def exterior_angle(apex: Numbers, points: Numbers, curv: float = 1.0) -> NDArray[np.float64]:
    """The angle at ``apex`` between the way on from the origin and the way to each of ``points``, in [0, π]."""
    turn = bearing(apex, points, curv)[0] - np.angle(np.asarray(apex))
    return np.asarray(np.abs(np.angle(np.exp(1j * turn))))


def images_around(curv: float = 1.0, n: int = SPREAD) -> Points:
    """``n`` points that fill the disk evenly to the eye, in the turns of a sunflower."""
    k = np.arange(n)
    return walk(0, np.pi * (3 - np.sqrt(5)) * k, np.sqrt((k + 0.5) / n) * 3.4 / np.sqrt(curv), curv)


def cone_figure(
    radius: float | int,
    angle: float | int = 0.5,
    min_radius: float = 0.1,
    points: Points | None = None,
    curv: float = 1.0,
    name: str = "text",
    widest: float | int | None = None,
) -> Figure:
    """A text, its cone and the images inside and outside of it; at the right, how aperture depends on radius.

    Images inside are blue dots, those outside vermilion crosses, and the title counts them. The cone of a text
    whose radius r has :math:`\\sinh(\\sqrt c\\, r) \\le 2K` is a half-space.

    Args:
        radius: geodesic distance of the text from the origin.
        angle: its direction.
        min_radius: K.
        points: images, complex; None spreads :data:`SPREAD` of them over the disk.
        curv: c, the curvature is -c.
        name: of the text.
        widest: where the curve ends; None takes 3/√c or, if that is more, the radius.

    Raises:
        HacoreError: if the radius is not positive (the origin has no direction), or an image lies outside the disk.
    """
    if not radius > 0:
        raise HacoreError(f"a text at radius {radius} has no direction and no cone; give a positive radius")
    points = images_around(curv) if points is None else np.asarray(points, dtype=np.complex128)
    _within(points, curv)
    apex = complex(walk(0, angle, radius, curv))
    half = float(half_aperture(apex, curv, min_radius))
    inside = exterior_angle(apex, points, curv) <= half
    figure = new_figure(7.2, 3.7)
    axes, law = figure.subplots(1, 2, width_ratios=(1.25, 1))
    figure.suptitle(
        f"radius {radius:.2f}: half-aperture {np.degrees(half):.0f}°, "
        f"{inside.sum()} of {len(points)} images inside",
        fontsize=11,
    )
    disk_axes(axes, curv)
    _shade(axes, cone(apex, half, curv), ORANGE, 0.25)
    draw(axes, np.array([0, np.exp(1j * angle) / np.sqrt(curv)]), color=GREY, lw=0.8, ls=":")
    axes.scatter(points[inside].real, points[inside].imag, s=20, color=BLUE, zorder=3)
    axes.scatter(points[~inside].real, points[~inside].imag, s=16, color=RED, marker="x", lw=1.1, zorder=3)
    axes.scatter(0, 0, s=14, color=INK, zorder=4)
    _star(axes, apex, name)

    end = max(3.0 / np.sqrt(curv), radius) if widest is None else widest
    along = np.linspace(0, end, 300)
    apertures = np.degrees(half_aperture(walk(0, 0, along, curv), curv, min_radius))
    law.plot(along, apertures, color=ORANGE, lw=2)
    law.plot(radius, np.degrees(half), "*", color=INK, ms=12, mec="white", mew=0.6)
    least = np.arcsinh(2 * min_radius) / np.sqrt(curv)
    law.axvline(least, color=GREY, lw=0.8, ls=":")
    law.text(least, 90, " ← half-space", fontsize=8, color=GREY, va="center")
    law.set(xlim=(0, 1.03 * end), ylim=(0, 95), yticks=(0, 30, 60, 90))
    law.set(xlabel="radius of the text", ylabel="half-aperture (°)")
    return figure


def cone_explorer(
    alt: str,
    radii: Sequence[float] | None = None,
    angle: float = 0.5,
    min_radius: float = 0.1,
    points: Points | None = None,
    curv: float = 1.0,
    name: str = "text",
) -> Any:
    """A slider over the radius of a text, a :func:`cone_figure` each: the cone closes from a half-space to a ray.

    Args:
        alt: what is seen, in words.
        radii: of the text; None takes twelve up to 3/√c.
        angle, min_radius, points, curv, name: as in :func:`cone_figure`.
    """
    chosen = (np.geomspace(0.1, 3, 12) / np.sqrt(curv)).tolist() if radii is None else list(radii)
    widest = max([3 / float(np.sqrt(curv)), *chosen])
    frames = {}
    for radius in chosen:
        figure = cone_figure(radius, angle, min_radius, points, curv, name, widest)
        frames[f"{radius:.2f}"] = png(figure)
    return slider(frames, "radius", alt)


def tree_cones(
    names: Sequence[str],
    parents: Sequence[int],
    positions: Points,
    curv: float = 1.0,
    min_radius: float = 0.1,
    images: Points | None = None,
) -> Figure:
    """The cones of a small tree of texts, one in the other where the tree is embedded well.

    Each branch of the root has its colour; cones of deeper nodes lie on top and are darker. Nodes in whose
    parent's cone they do not lie are open circles.

    Args:
        names, parents: of the nodes, as in :class:`hacore.data.tree.Tree`: node 0 is the root, its parent -1, and
            every parent stands before its children.
        positions: (nodes,) complex.
        curv, min_radius: of the disk and its cones.
        images: (n,) complex, drawn as grey dots.

    Raises:
        HacoreError: if there is not one parent and one position for each name, a parent does not stand before its
            child, or a point lies outside the disk.
    """
    positions = np.asarray(positions, dtype=np.complex128)
    if not len(names) or not len(names) == len(parents) == len(positions):
        raise HacoreError(
            f"{len(names)} names, {len(parents)} parents and {len(positions)} positions make no tree; "
            "give one of each per node"
        )
    if parents[0] != -1 or any(not 0 <= parent < node for node, parent in enumerate(parents[1:], 1)):
        raise HacoreError(
            "the parents make no tree: node 0 must be the root (-1) and parents stand before children"
        )
    _within(positions, curv)
    depth, colour = [0], [INK]
    for node, parent in enumerate(parents[1:], 1):
        depth.append(depth[parent] + 1)
        branch = sum(p == 0 for p in parents[1:node])
        colour.append(colour[parent] if parent else PALETTE[branch % len(PALETTE)])
    halves = half_aperture(positions, curv, min_radius)
    figure = new_figure(5.8, 5.8)
    axes = disk_axes(figure.add_subplot(), curv)
    for node in range(1, len(names)):
        outline = cone(complex(positions[node]), float(halves[node]), curv)
        _shade(axes, outline, colour[node], 0.1 + 0.08 * min(depth[node], 4), lw=0.9)
    for node, parent in enumerate(parents[1:], 1):
        edge = geodesic(positions[parent], positions[node], curv)
        draw(axes, edge, color=mixed(colour[node], "black", 0.25), lw=1.0)
    if images is not None:
        _within(np.asarray(images), curv)
        axes.scatter(images.real, images.imag, s=7, color=GREY, alpha=0.6, lw=0, zorder=3)
    # At the origin there is no direction: the root's cone is the whole disk.
    held = [True] + [
        abs(positions[parent]) < 1e-9
        or float(exterior_angle(positions[parent], positions[node], curv)) <= halves[parent]
        for node, parent in enumerate(parents[1:], 1)
    ]
    dark = [mixed(shade, "black", 0.35) for shade in colour]
    faces = [shade if within else "white" for shade, within in zip(dark, held, strict=True)]
    axes.scatter(positions.real, positions.imag, s=26, c=faces, edgecolors=dark, lw=1.2, zorder=4)
    spread_labels(axes, np.stack([positions.real, positions.imag], axis=-1), names, dark, size=9.0)
    return figure


def force_field(
    gradients: Mapping[str, Callable[[Points], Points]],
    texts: Mapping[str, complex] | None = None,
    cone_of: str | None = None,
    min_radius: float = 0.1,
    anchors: Points | None = None,
    columns: int = 3,
    length: float = 0.35,
) -> Figure:
    r"""Where each term of a loss pushes an image, over the disk of curvature -1: a panel per term.

    Arrows show the force :math:`-\frac{(1 - |z|^2)^2}{4} \nabla f(z)`, which gradient descent follows. All are
    equally long in the metric of the disk; colours tell the strength in it, on one logarithmic scale. Where a term
    is silent, such as a hinge that is satisfied, there are dots.

    Args:
        gradients: name of a term -> function of points (n,), complex, that returns the gradient of the term at
            each in ball coordinates, as :math:`\partial f / \partial x + i\, \partial f / \partial y`.
        texts: name -> place of the texts, drawn as stars.
        cone_of: the text whose cone is drawn.
        min_radius: K of that cone.
        anchors: where arrows begin; None takes rings around the origin, and places in and beside the cone.
        columns: at most so many panels stand in a row.
        length: of every arrow.

    Raises:
        HacoreError: if there is no term, a text is not known, a point lies outside the disk, or a gradient is not
            finite or not one number per anchor.
    """
    texts = texts or {}
    if not gradients:
        raise HacoreError("there is no force to draw: pass the gradient of at least one term")
    if cone_of is not None and cone_of not in texts:
        raise HacoreError(f"there is no text {cone_of!r} whose cone could be drawn; it is none of texts")
    apex = None if cone_of is None else complex(texts[cone_of])
    _within(np.array(list(texts.values()), dtype=np.complex128), 1.0)
    half = 0.0 if apex is None else float(half_aperture(apex, 1.0, min_radius))
    if anchors is None:
        anchors = _rings() if apex is None else np.append(_rings(), _beside(apex, half))
    _within(anchors, 1.0)
    forces = {}
    for term, gradient in gradients.items():
        slope = np.asarray(gradient(anchors))
        if slope.shape != anchors.shape or not np.isfinite(slope).all():
            raise HacoreError(
                f"the gradient of {term!r} must be one finite complex number per anchor; leave out anchors "
                "where it has none"
            )
        forces[term] = -((1 - np.abs(anchors) ** 2) ** 2) / 4 * slope
    strengths = {term: 2 * np.abs(f) / (1 - np.abs(anchors) ** 2) for term, f in forces.items()}
    norm = _scale(np.concatenate(list(strengths.values())))
    width = min(columns, len(forces))
    height = -(-len(forces) // width)
    figure = new_figure(2.3 * width + 0.9, 2.5 * height)
    grid = figure.subplots(height, width, squeeze=False).ravel()
    for axes in grid[len(forces) :]:
        axes.set_axis_off()
    for axes, (term, force) in zip(grid, forces.items(), strict=False):
        disk_axes(axes)
        axes.set_title(term, fontsize=10)
        if apex is not None:
            _shade(axes, cone(apex, half), ORANGE, 0.2)
        moving = strengths[term] > 0
        starts = anchors[moving]
        chords = walk(starts, np.angle(force[moving]), length) - starts
        axes.quiver(
            starts.real, starts.imag, chords.real, chords.imag, strengths[term][moving], cmap="cividis", norm=norm,
            angles="xy", scale_units="xy", scale=1, width=0.009, zorder=3,
        )  # fmt: skip
        axes.scatter(anchors[~moving].real, anchors[~moving].imag, s=5, color=GREY, zorder=3)
        places = np.array([[place.real, place.imag] for place in texts.values()]).reshape(-1, 2)
        axes.plot(places[:, 0], places[:, 1], "*", color=INK, ms=10, mec="white", mew=0.6, zorder=5)
    bar = figure.colorbar(ScalarMappable(norm, "cividis"), ax=list(grid), shrink=0.7)
    bar.set_label("strength of the force")
    # The texts are the same in all panels: their names stand in the first.
    spread_labels(grid[0], places, list(texts), [INK] * len(texts), size=9.0)
    return figure


def _scale(strengths: NDArray[np.float64]) -> mcolors.LogNorm:
    """From the weakest force to the strongest, but at most three decades, and never none at all."""
    positive = strengths[strengths > 0]
    if not len(positive):
        return mcolors.LogNorm(0.5, 2)
    low, high = max(positive.min(), positive.max() / 1000), positive.max()
    return mcolors.LogNorm(low, high) if high > 1.05 * low else mcolors.LogNorm(low / 2, 2 * high)


def _rings() -> Points:
    return np.concatenate(
        [
            walk(0, 2 * np.pi * (np.arange(count) + 0.5 * (ring % 2)) / count, radius)
            for ring, (radius, count) in enumerate(((0.45, 6), (1.0, 11), (1.6, 16), (2.3, 20)))
        ]
    )


def _beside(apex: complex, half: float) -> Points:
    """Places just inside and just outside both edges of a cone, where its hinges act."""
    turns = np.array([-half - 0.12, -0.5 * half, 0.5 * half, half + 0.12])[:, None]
    return walk(apex, np.angle(apex) + turns, np.array([0.5, 1.2])).ravel()


def _within(points: NDArray[Any], curv: float) -> None:
    """Refuse points on or beyond the rim."""
    if not (np.abs(points) < 1 / np.sqrt(curv)).all():
        raise HacoreError(
            f"a point lies outside the disk of radius {1 / np.sqrt(curv):.3g}; give Poincare coordinates"
        )


def _shade(axes: Axes, outline: Points, colour: str, alpha: float, lw: float = 1.3) -> None:
    (wedge,) = axes.fill(
        outline.real, outline.imag, fc=mcolors.to_rgba(colour, alpha), ec=colour, lw=lw, zorder=1
    )
    wedge.set_clip_path(axes.patches[0])


def _star(axes: Axes, place: complex, name: str) -> None:
    """A text: a star with its name beside it, towards the middle, where there is room."""
    axes.plot(place.real, place.imag, "*", color=INK, ms=11, mec="white", mew=0.6, zorder=5)
    left = place.real > 0.35 * axes.get_xlim()[1]
    axes.annotate(
        name, (place.real, place.imag), xytext=(-5 if left else 5, 5), textcoords="offset points",
        ha="right" if left else "left", fontsize=8.5, color=INK, zorder=5,
        bbox={"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.75},
    )  # fmt: skip
