"""The pictures agree with hacore.geometry, which draws nothing, and the helpers say what they cannot draw."""

import base64
import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from PIL import Image

from hacore.errors import HacoreError
from hacore.geometry import Poincare
from hacore.plots import accuracy, disk, png, slider, use_style

RNG = np.random.default_rng(0)
CURVATURES = [0.01, 1.0, 4.0]


@pytest.fixture(autouse=True)
def _close_figures():
    with plt.rc_context():
        plt.switch_backend("agg")
        yield
        plt.close("all")


def points(z):
    return torch.tensor(np.stack([np.real(z), np.imag(z)], axis=-1))


def sample(curv, n=200):
    return disk.walk(0, RNG.uniform(-3, 3, n), RNG.uniform(0.1, 3, n) / curv**0.5, curv)


@pytest.mark.parametrize("curv", CURVATURES)
class TestAgainstGeometry:
    def test_walk_has_its_length_and_inverse(self, curv):
        start, angle, length = sample(curv), RNG.uniform(-3, 3, 200), RNG.uniform(0.1, 3, 200) / curv**0.5
        end = disk.walk(start, angle, length, curv)
        distance = Poincare(curv).dist(points(start), points(end)).numpy()
        np.testing.assert_allclose(distance, length, rtol=1e-9)
        np.testing.assert_allclose(disk.bearing(start, end, curv), (angle, length), rtol=1e-8, atol=1e-9)

    def test_geodesic(self, curv):
        a, b = sample(curv, 2)
        expected = Poincare(curv).geodesic(points(a), points(b), torch.linspace(0, 1, 7, dtype=torch.float64))
        drawn = disk.geodesic(a, b, curv, n=7)
        np.testing.assert_allclose(points(drawn), expected, rtol=1e-9)

    def test_circle(self, curv):
        center = sample(curv, 1)
        around = points(disk.circle(center, 0.7, curv))
        np.testing.assert_allclose(Poincare(curv).dist(points(center), around), 0.7, rtol=1e-9)

    @pytest.mark.parametrize("min_radius", [0.05, 0.1])
    def test_cone_edges_leave_at_the_half_aperture(self, curv, min_radius):
        space, apex = Poincare(curv), complex(disk.walk(0, 0.4, 1 / curv**0.5, curv))
        aperture = space.half_aperture(points(apex), min_radius)
        np.testing.assert_allclose(disk.half_aperture(apex, curv, min_radius), aperture)
        edges = points(disk.cone(apex, None, curv, min_radius, n=5)[[0, 1, 2, 3, 6, 7, 8, 9]])
        np.testing.assert_allclose(space.exterior_angle(points(apex), edges), aperture, rtol=1e-6)

    def test_true_radius_is_the_logarithm(self, curv):
        z = sample(curv)
        np.testing.assert_allclose(
            points(disk.true_radius(z, curv)), Poincare(curv).log0(points(z)), rtol=1e-9
        )


def test_half_aperture_is_a_right_angle_near_the_origin():
    np.testing.assert_allclose(disk.half_aperture(np.array([0, 0.01]), 1.0, 0.1), np.pi / 2)


@pytest.mark.parametrize(
    ("p", "q", "counts"),
    [(7, 3, [1, 7, 21, 56, 147]), (5, 4, [1, 5, 15, 40, 105]), (3, 7, [1, 3, 6, 12, 18])],
)
def test_tiling(p, q, counts):
    tiles, ring = disk.tiling(p, q, rings=4)
    assert (
        np.bincount(ring).tolist() == counts
    )  # 7 and 5 times Fibonacci numbers 1, 3, 8, 21; trivalent, girth 7
    lengths = disk.bearing(tiles, np.roll(tiles, -1, axis=1))[1]
    np.testing.assert_allclose(lengths, lengths[0, 0], rtol=1e-6)  # all tiles are congruent
    next_corner, previous = (disk.bearing(tiles[0], np.roll(tiles[0], k))[0] for k in (-1, 1))
    angle = np.abs(np.angle(np.exp(1j * (next_corner - previous))))
    np.testing.assert_allclose(angle, 2 * np.pi / q)  # q of them fit around a corner


def test_tree():
    nodes, parent = disk.tree(depth=4, step=1.5)
    assert len(nodes) == 1 + 3 * (2**4 - 1)
    assert np.bincount(parent[1:])[: 1 + 3 * 7].tolist() == [3] + [2] * 21
    np.testing.assert_allclose(disk.bearing(nodes[parent[1:]], nodes[1:])[1], 1.5, rtol=1e-9)
    assert len(np.unique(nodes.round(6))) == len(nodes)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: disk.complex_points(np.zeros((4, 3))), r"\(4, 3\).*pass coordinates"),
        (lambda: disk.tiling(4, 4, 1), "4-gons, 4 at a corner"),
        (lambda: accuracy.error_maps({"f": np.zeros((2, 3))}, [1], [1, 2, 3], "r", "s"), "'f'.*grid"),
        (lambda: accuracy.error_maps({"f": np.full((1, 1), np.nan)}, [1], [1], "r", "s"), "numbers"),
        (lambda: slider({}, "c", "alt"), "no frames"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(HacoreError, match=message):
        call()


def test_complex_points():
    assert disk.complex_points([[1.0, 2.0]]).tolist() == [1 + 2j]


def test_figures_hold_what_they_draw():
    use_style()
    figure, ax = plt.subplots()
    tiles, ring = disk.tiling(7, 3, 2)
    disk.draw_tiling(disk.disk_axes(ax), tiles, ring)
    assert len(ax.collections[0].get_paths()) == len(tiles)
    nodes, parent = disk.tree(2, 1.0)
    disk.draw_tree(ax, nodes, parent)
    assert len(ax.lines) == len(nodes) - 1
    maps = accuracy.error_maps({"a": np.eye(2), "b": np.full((2, 2), np.inf)}, [0, 1], [1, 2], "r", "s")
    assert [ax.get_title() for ax in maps.axes[:2]] == ["a", "b"]
    assert [text.get_text() for text in maps.axes[0].texts] == ["0", "-8", "-8", "0"]
    figure = disk.curvature_figure(1.0)
    assert "triangle 76°" in figure.get_suptitle()


def test_slider_links_every_frame_in_the_browser():
    frames = {f"c = {c}": png(disk.curvature_figure(c)) for c in (0.5, 2.0)}
    for frame in frames.values():
        assert len(frame) < 40_000
        assert Image.open(io.BytesIO(frame)).mode == "P"
    controls, stack = slider(frames, "curvature", "a <b> scene").children
    play, choice = controls.children
    assert list(choice.options) == list(frames)
    assert play.max == len(frames) - 1
    for picture, (label, frame) in zip(stack.children, frames.items(), strict=True):
        assert f'alt="a &lt;b&gt; scene; {label}"' in picture.value
        assert base64.b64encode(frame).decode() in picture.value
