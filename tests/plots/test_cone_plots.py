"""Cones are drawn where the geometry has them, images are counted on the right side, forces point downhill."""

import matplotlib.colors as mcolors
import numpy as np
import pytest
import torch
from matplotlib.quiver import Quiver

from hacore.errors import HacoreError
from hacore.geometry import Poincare
from hacore.plots import cone, cone_explorer, cone_figure, disk, force_field, tree_cones
from hacore.plots.cones import exterior_angle, images_around
from hacore.plots.style import BLUE, RED

NAMES, PARENTS = ["thing", "round", "circle", "cornered"], [-1, 0, 1, 0]
PLACES = disk.walk(0, np.array([0.0, 2.0, 2.1, -1.0]), np.array([0.0, 0.5, 1.5, 0.6]))


def points(z):
    return torch.tensor(np.stack([np.real(z), np.imag(z)], axis=-1))


@pytest.mark.parametrize("curv", [0.25, 1.0, 4.0])
def test_exterior_angle_is_the_geometrys(curv):
    apex = complex(disk.walk(0, 0.4, 0.7 / curv**0.5, curv))
    images = images_around(curv)
    expected = Poincare(curv).exterior_angle(points(apex), points(images))
    np.testing.assert_allclose(exterior_angle(apex, images, curv), expected, atol=1e-7)


@pytest.mark.parametrize("half", [0.4, np.pi / 2, 2.2])
def test_cone_edges_leave_at_their_angle_and_the_rim_closes_on_its_side(half):
    outline = cone(0.2 + 0.1j, half, n=30)
    edges = np.concatenate([outline[:29], outline[31:60]])
    np.testing.assert_allclose(exterior_angle(0.2 + 0.1j, edges), half, atol=1e-9)
    assert (exterior_angle(0.2 + 0.1j, outline[61:-1]) < half).all()
    assert (np.abs(outline) < 1).all()


def groups(axes):
    """Places of the dots in an axes by colour."""
    return {mcolors.to_hex(c.get_facecolor()[0]).upper(): c.get_offsets() for c in axes.collections}


def test_cone_figure_counts_images_on_both_sides():
    apex = complex(disk.walk(0, 0.5, 0.6))
    half = float(disk.half_aperture(apex))
    images = disk.walk(apex, 0.5 + half * np.array([0.0, 0.9, -0.9, 1.1, -1.1]), 0.8)
    figure = cone_figure(0.6, points=images)
    axes, law = figure.axes
    assert f"half-aperture {np.degrees(half):.0f}°, 3 of 5 images inside" in figure.get_suptitle()
    sides = groups(axes)
    assert (len(sides[BLUE]), len(sides[RED])) == (3, 2)
    np.testing.assert_allclose(sides[BLUE][:, 0], images[:3].real)
    curve, mark, least = law.lines
    np.testing.assert_allclose(mark.get_xydata(), [[0.6, np.degrees(half)]])
    np.testing.assert_allclose(np.interp(0.6, *curve.get_data()), np.degrees(half), rtol=0.01)
    assert least.get_xdata()[0] == pytest.approx(np.arcsinh(0.2))


def test_close_to_the_root_a_cone_is_half_of_the_disk():
    title = cone_figure(0.15).get_suptitle()
    assert "half-aperture 90°" in title
    assert 20 < int(title.split(", ")[1].split()[0]) < 40


def test_explorer_has_a_frame_for_every_radius():
    controls, stack = cone_explorer("a cone closes", radii=[0.2, 1.0, 4.0]).children
    assert list(controls.children[1].options) == ["0.20", "1.00", "4.00"]
    for radius, picture in zip(("0.20", "1.00", "4.00"), stack.children, strict=True):
        assert f'alt="a cone closes; {radius}"' in picture.value
    assert len({picture.value for picture in stack.children}) == 3


def test_tree_has_a_cone_for_all_but_the_root_and_shows_who_is_held():
    figure = tree_cones(NAMES, PARENTS, PLACES, images=np.array([0.1j, 0.2j]))
    (axes,) = figure.axes
    assert len(axes.patches) == 1 + 3  # the disk, and cones
    assert len(axes.lines) == 3
    assert [text.get_text() for text in axes.texts if text.get_text()].count("circle") == 1
    images, nodes = axes.collections
    assert len(images.get_offsets()) == 2
    np.testing.assert_allclose(nodes.get_offsets()[:, 0], PLACES.real)
    assert not any(mcolors.same_color(face, "white") for face in nodes.get_facecolors())
    away = PLACES.copy()
    away[2] = -away[2]  # on the other side of the root
    faces = tree_cones(NAMES, PARENTS, away).axes[0].collections[-1].get_facecolors()
    assert [mcolors.same_color(face, "white") for face in faces] == [False, False, True, False]


def test_forces_go_downhill_and_are_as_strong_as_their_gradient():
    target = 0.3 + 0.1j

    def gradient(z):
        """Of half the squared distance to the target, by autograd in ball coordinates."""
        x = points(z).requires_grad_()
        (Poincare(1.0).dist(x, points(target)[None]) ** 2 / 2).sum().backward()
        return x.grad[:, 0].numpy() + 1j * x.grad[:, 1].numpy()

    anchors = np.array([0.5j, -0.7 + 0j, 0.2 - 0.3j])
    figure = force_field({"near": gradient, "none": np.zeros_like}, {"star": target}, "star", anchors=anchors)
    near, none, _ = figure.axes
    assert [near.get_title(), none.get_title()] == ["near", "none"]
    (arrows,) = (c for c in near.collections if isinstance(c, Quiver))
    # The Riemannian gradient points away from the target and is as long as the distance.
    direction, length = disk.bearing(anchors, target)
    np.testing.assert_allclose(arrows.get_array(), length, rtol=1e-6)
    ends = anchors + arrows.U + 1j * arrows.V
    np.testing.assert_allclose(disk.bearing(anchors, ends), (direction, [0.35] * 3), rtol=1e-6)
    dots = [len(c.get_offsets()) for c in none.collections if not isinstance(c, Quiver)]
    assert dots == [3]
    assert [text.get_text() for text in near.texts if text.get_text()] == ["star"]
    assert not none.texts
    assert len(near.patches) == 2  # the disk and the cone


def test_force_field_wraps_its_panels_and_looks_into_the_cone():
    counts = []

    def silent(z):
        counts.append(len(z))
        return np.zeros_like(z)

    terms = {str(k): silent for k in range(5)}
    figure = force_field(terms, {"star": 0.4 + 0j}, "star", columns=3)
    assert len(figure.axes) == 6 + 1
    force_field({"one": silent})
    assert counts[0] == counts[-1] + 8  # places at the edges of the cone
    assert figure.get_size_inches()[0] < 8


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cone_figure(0.0), "no direction"),
        (lambda: cone_figure(1.0, points=np.array([1.0 + 0j])), "outside the disk of radius 1"),
        (lambda: cone_explorer("alt", radii=[]), "no frames"),
        (lambda: tree_cones(NAMES, PARENTS[:2], PLACES), "one of each per node"),
        (lambda: tree_cones(NAMES, [-1, 2, 0, 0], PLACES), "parents stand before"),
        (lambda: tree_cones(NAMES, PARENTS, 3 * PLACES), "outside the disk"),
        (lambda: force_field({}), "no force"),
        (lambda: force_field({"a": np.zeros_like}, {"star": 0.1 + 0j}, "cross"), "no text 'cross'"),
        (lambda: force_field({"a": lambda z: z[:1]}), "gradient of 'a'"),
        (lambda: force_field({"a": lambda z: z * np.nan}), "gradient of 'a'"),
        (lambda: force_field({"a": np.zeros_like}, {"star": 2.0 + 0j}), "outside the disk"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(HacoreError, match=message):
        call()
