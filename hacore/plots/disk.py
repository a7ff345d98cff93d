"""Pictures of the hyperbolic plane in the Poincare disk, in complex numbers; numpy and matplotlib only.

A point is a complex number z with |z| < 1/√c; the plane has curvature -c. Everything rests on one
step: :func:`walk`, a geodesic of given length and direction, which the chapter "Hyperbolic geometry
you can compute with" derives. Angles are in radians and, the disk being conformal, true angles.
"""

from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Circle
from numpy.typing import ArrayLike, NDArray

from hacore.errors import HacoreError
from hacore.plots.style import BLUE, GREEN, GREY, INK, ORANGE, PALETTE, new_figure

Points = NDArray[np.complex128]
Numbers = complex | float | int | np.generic | NDArray[Any]


def complex_points(x: ArrayLike) -> Points:
    """Ball coordinates (..., 2) as complex numbers (...)."""
    x = np.asarray(x, dtype=np.float64)
    if x.shape[-1:] != (2,):
        raise HacoreError(f"points of shape {x.shape} cannot be drawn on a disk: pass coordinates (..., 2)")
    return x[..., 0] + 1j * x[..., 1]


def walk(start: Numbers, angle: Numbers, length: Numbers, curv: float = 1.0) -> Points:
    """Where a geodesic of ``length`` arrives that leaves ``start`` in direction ``angle``; broadcasts.

    From the origin that is w = tanh(√c s / 2) e^{iφ} / √c; the Moebius map (w + z) / (1 + c z̄ w) carries
    the origin to z and keeps distances and, at the origin, directions.
    """
    z, root = np.asarray(start, dtype=np.complex128), np.sqrt(curv)
    w = np.tanh(root * np.asarray(length) / 2) / root * np.exp(1j * np.asarray(angle))
    return np.asarray((w + z) / (1 + curv * z.conj() * w))


def bearing(
    start: Numbers, end: Numbers, curv: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Direction and length of the geodesic from ``start`` to ``end``: the inverse of :func:`walk`."""
    a, b = np.asarray(start, dtype=np.complex128), np.asarray(end, dtype=np.complex128)
    w = (b - a) / (1 - curv * a.conj() * b)
    length = 2 / np.sqrt(curv) * np.arctanh(np.sqrt(curv) * np.abs(w))
    return np.asarray(np.angle(w)), np.asarray(length)


def geodesic(start: Numbers, end: Numbers, curv: float = 1.0, n: int = 40) -> Points:
    """``n`` points at equal steps on the geodesic from ``start`` to ``end``."""
    angle, length = bearing(start, end, curv)
    return walk(start, angle, np.linspace(0, 1, n) * length, curv)


def circle(center: Numbers, radius: float, curv: float = 1.0, n: int = 160) -> Points:
    """``n`` points at geodesic distance ``radius`` from ``center``, closed."""
    return walk(center, np.linspace(0, 2 * np.pi, n), radius, curv)


def half_aperture(z: Numbers, curv: float = 1.0, min_radius: float = 0.1) -> NDArray[np.float64]:
    """Half-aperture arcsin(2K/(√c |x|)) of the entailment cone at z, x its Lorentz components; π/2 near 0."""
    root = np.sqrt(curv) * np.abs(z)
    lorentz = 2 * root / (1 - root**2)
    return np.asarray(np.arcsin(2 * min_radius / np.maximum(lorentz, 2 * min_radius)))


def cone(
    apex: complex | Points,
    half: Numbers | None = None,
    curv: float = 1.0,
    min_radius: float = 0.1,
    reach: float = 6.0,
    n: int = 60,
) -> Points:
    """Outline of the cone at ``apex``: down one edge to the apex, up the other, closed along the rim.

    ``half`` is its half-aperture; None takes :func:`half_aperture`, that of the entailment cone. The edges are
    geodesics of length ``reach``/√c, beyond which nothing can be seen.
    """
    opening = half_aperture(apex, curv, min_radius) if half is None else np.asarray(half)
    lengths = np.linspace(0, 1, n) ** 2 * reach / np.sqrt(curv)
    left, right = (walk(apex, np.angle(apex) + side * opening, lengths, curv) for side in (1, -1))
    # Counted from the right edge to the left, so that half-spaces and wider cones close on their own side.
    rim = np.linspace(0, np.angle(left[-1] / right[-1]) % (2 * np.pi), n)
    return np.concatenate([left[::-1], right, right[-1] * np.exp(1j * rim)])


def tiling(p: int, q: int, rings: int) -> tuple[Points, NDArray[np.int64]]:
    """Corners (n, p) of the regular tiling of the plane of curvature -1 by p-gons, q at each corner.

    Also the ring (n,) of each tile: how many reflections in sides lead to it from the one in the middle.

    Raises:
        HacoreError: unless 1/p + 1/q < 1/2, without which the tiling is not hyperbolic.
    """
    if 1 / p + 1 / q >= 1 / 2:
        raise HacoreError(
            f"{p}-gons, {q} at a corner, do not tile the hyperbolic plane: 1/p + 1/q must be below 1/2"
        )
    corner = np.sqrt(np.cos(np.pi * (1 / p + 1 / q)) / np.cos(np.pi * (1 / p - 1 / q)))
    first = corner * np.exp(2j * np.pi * np.arange(p) / p + 0.5j * np.pi)
    tiles, ring, seen, edge = [first], [0], {_key(first)}, [first]
    for number in range(1, rings + 1):
        found = []
        for tile in edge:
            for a, b in zip(tile, np.roll(tile, -1), strict=True):
                mirrored = _reflect(tile, a, b)
                if _key(mirrored) not in seen:
                    seen.add(_key(mirrored))
                    found.append(mirrored)
        tiles += found
        ring += [number] * len(found)
        edge = found
    return np.array(tiles), np.array(ring)


def _key(tile: Points) -> tuple[float, float]:
    """Names a tile by the mean of its corners on the hyperboloid, where tiles do not crowd at the rim."""
    x = (2 * tile / (1 - np.abs(tile) ** 2)).mean()
    return (round(x.real, 3) + 0.0, round(x.imag, 3) + 0.0)


def _reflect(z: Points, a: complex, b: complex) -> Points:
    """Mirror images of z in the geodesic through a and b, curvature -1."""
    w = (z - a) / (1 - np.conj(a) * z)
    along = (b - a) / (1 - np.conj(a) * b)
    mirrored = (along / abs(along)) ** 2 * w.conj()
    return (mirrored + a) / (1 + np.conj(a) * mirrored)


def tree(depth: int, step: float, curv: float = 1.0, branches: int = 2) -> tuple[Points, NDArray[np.int64]]:
    """Sarkar's drawing of a tree: points (n,) and each one's parent (n,), -1 for the root.

    The root has ``branches`` + 1 children, every other node ``branches``; all edges are geodesics of
    length ``step``, and the edges at a node are equally far apart in angle.
    """
    points, parent, heading = [0j], [-1], [np.pi / 2]
    level = [0]
    turn = 2 * np.pi / (branches + 1)
    for _ in range(depth):
        following = []
        for node in level:
            back = bearing(points[node], points[parent[node]], curv)[0] if node else heading[0]
            for k in range(0 if node == 0 else 1, branches + 1):
                following.append(len(points))
                points.append(complex(walk(points[node], back + k * turn, step, curv)))
                parent.append(node)
        level = following
    return np.array(points), np.array(parent)


def disk_axes(ax: Axes, curv: float = 1.0, limit: float | None = None) -> Axes:
    """Make ``ax`` show the disk of radius 1/√c, or the square of half-side ``limit``; hide its ticks."""
    rim = 1 / np.sqrt(curv)
    ax.add_patch(Circle((0, 0), rim, facecolor="#F6F8FA", edgecolor=INK, linewidth=1.2, zorder=0))
    side = 1.02 * rim if limit is None else limit
    ax.set(xlim=(-side, side), ylim=(-side, side), aspect="equal")
    ax.set_axis_off()
    return ax


def draw(ax: Axes, points: Points, *args: Any, **style: Any) -> None:
    """``ax.plot`` for complex points."""
    ax.plot(points.real, points.imag, *args, **style)


def draw_tiling(ax: Axes, tiles: Points, ring: NDArray[np.int64], colors: str = "Blues_r") -> None:
    """Fill the ``tiles`` of :func:`tiling`, their sides being geodesics, shaded by ``ring``."""
    outlines = []
    for tile in tiles:
        sides = [geodesic(a, b, n=9)[:-1] for a, b in zip(tile, np.roll(tile, -1), strict=True)]
        outline = np.concatenate(sides)
        outlines.append(np.stack([outline.real, outline.imag], axis=-1))
    shades = mpl.colormaps[colors](0.25 + 0.65 * ring / max(1, ring.max()))
    ax.add_collection(PolyCollection(outlines, facecolors=shades, edgecolors="white", linewidths=0.6))


def draw_tree(ax: Axes, points: Points, parent: NDArray[np.int64], curv: float = 1.0) -> None:
    """Draw a :func:`tree`: geodesic edges in one colour per branch of the root, nodes on top."""
    colors = [INK] * len(points)
    for node in range(1, len(points)):
        above = parent[node]
        colors[node] = PALETTE[(node - 1) % len(PALETTE)] if above == 0 else colors[above]
        draw(ax, geodesic(points[above], points[node], curv, n=12), color=colors[node], lw=1.0, zorder=2)
    ax.scatter(points.real, points.imag, s=np.where(parent < 0, 30, 5), c=colors, zorder=3)


def true_radius(z: Numbers, curv: float = 1.0) -> Points:
    """Spread points out so that |z| is their geodesic radius: the logarithm at the origin, as a picture."""
    z = np.asarray(z, dtype=np.complex128)
    direction, radius = bearing(0, z, curv)
    return np.asarray(radius * np.exp(1j * direction))


def curvature_figure(curv: float, min_radius: float = 0.1) -> Figure:
    """One scene at curvature -``curv``: in ball coordinates, and spread out so that radii are true.

    All points are fixed tangent vectors at the origin. Blue: a triangle; green: circles of radius 0.3,
    0.6, 0.9 about one centre; orange: the entailment cone of one point. Its title gives the triangle's
    angle sum, the widest circle's length against the flat one, and the cone's half-aperture.
    """
    corners = walk(0, np.array([0.5, 2.6, 4.6]), 1.6, curv)
    center, apex = walk(0, np.array([2.35, -0.35]), np.array([0.75, 0.5]), curv)
    angles = sum(
        abs(np.angle(np.exp(1j * (bearing(a, b, curv)[0] - bearing(a, c, curv)[0]))))
        for a, b, c in zip(corners, np.roll(corners, 1), np.roll(corners, -1), strict=True)
    )
    stretch = np.sinh(np.sqrt(curv) * 0.9) / (np.sqrt(curv) * 0.9)
    figure = new_figure(8.0, 4.5)
    axes = figure.subplots(1, 2)
    figure.suptitle(
        f"c = {curv:g}:  triangle {np.degrees(angles):.0f}°,  widest circle {stretch:.2f} × 2πr,  "
        f"cone ± {np.degrees(half_aperture(apex, curv, min_radius)):.0f}°",
        fontsize=11,
    )
    disk_axes(axes[0], curv, limit=1.05)
    axes[0].set_title("ball coordinates", color=GREY, fontsize=10)
    disk_axes(axes[1], 1 / 1.95**2, limit=2.0)
    axes[1].set_title("true distance from the origin", color=GREY, fontsize=10)
    for ax, chart in zip(axes, (lambda z: np.asarray(z), lambda z: true_radius(z, curv)), strict=True):
        outline = chart(cone(apex, None, curv, min_radius))
        (wedge,) = ax.fill(outline.real, outline.imag, fc="#E69F0044", ec=ORANGE, lw=1.5)
        wedge.set_clip_path(ax.patches[0])
        for radius in (0.3, 0.6, 0.9):
            draw(ax, chart(circle(center, radius, curv)), color=GREEN, lw=1.5)
        for a, b in zip(corners, np.roll(corners, 1), strict=True):
            draw(ax, chart(geodesic(a, b, curv)), color=BLUE, lw=1.8)
        marks = chart(np.array([0, center, apex]))
        ax.scatter(marks.real, marks.imag, s=18, color=[INK, GREEN, ORANGE], zorder=5)
    return figure
