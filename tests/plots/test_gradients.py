"""Arrows of a field start at their anchors, point as the steps do and are equally long in their space."""

import numpy as np
import pytest
from matplotlib.quiver import Quiver

from hacore.errors import HacoreError
from hacore.plots import Field, fields
from hacore.plots.disk import bearing, complex_points

POINTS, LABELS = np.array([[0.1, 0.0], [0.3, 0.0], [-0.5, 0.5]]), np.array([2, 2, 7])
ANCHORS = np.array([[0.0, 0.0], [0.8, 0.0], [0.0, -0.5], [0.2, 0.2]])
STEPS = np.array([[1.0, 0.0], [0.0, 2.0], [-0.3, 0.4], [0.0, 0.0]])


def field(disk=False, **changes):
    return Field(
        "now",
        **{"points": POINTS, "labels": LABELS, "anchors": ANCHORS, "steps": STEPS, "disk": disk} | changes,
    )


def quiver(axes):
    return next(c for c in axes.collections if isinstance(c, Quiver))


def test_flat_arrows_have_one_length_and_strength_as_colour():
    arrows = quiver(fields([field()], length=0.3).axes[0])
    np.testing.assert_allclose(arrows.get_offsets(), ANCHORS[:3])
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], axis=1), [[0.3, 0], [0, 0.3], [-0.18, 0.24]])
    np.testing.assert_allclose(arrows.get_array(), [1, 2, 0.5])
    # One unit of the axes is one unit of the arrow.
    assert (arrows.angles, arrows.scale_units, arrows.scale) == ("xy", "xy", 1)


def test_arrows_in_the_disk_are_geodesics_of_one_length():
    axes = fields([field(disk=True)], length=0.3).axes[0]
    arrows = quiver(axes)
    ends = ANCHORS[:3] + np.stack([arrows.U, arrows.V], axis=1)
    direction, length = bearing(complex_points(ANCHORS[:3]), complex_points(ends))
    np.testing.assert_allclose(length, 0.3)
    np.testing.assert_allclose(direction, np.arctan2(STEPS[:3, 1], STEPS[:3, 0]))
    # The conformal factor 2 / (1 - |z|^2) measures the steps.
    np.testing.assert_allclose(arrows.get_array(), [2, 2 * 2 / 0.36, 0.5 * 2 / 0.75])
    assert np.hypot(arrows.U[1], arrows.V[1]) < np.hypot(arrows.U[0], arrows.V[0])


def test_panels_share_the_scale_and_show_clusters_still_anchors_and_paths():
    path = np.array([[[0.0, 0.0], [0.1, 0.1], [0.2, 0.1]]])
    figure = fields([field(), field(disk=True, paths=path)])
    flat, disk = figure.axes[:2]
    assert quiver(flat).norm is quiver(disk).norm
    assert flat.get_xlim() == pytest.approx((-1.05 * 0.8, 1.05 * 0.8))
    for axes in (flat, disk):
        places = {text.get_text(): text.get_position() for text in axes.texts if text.get_text()}
        assert places == {"2": pytest.approx((0.2, 0)), "7": pytest.approx((-0.5, 0.5))}
        drawn = [np.asarray(c.get_offsets()).tolist() for c in axes.collections]
        assert POINTS[:2].tolist() in drawn
        assert [[0.2, 0.2]] in drawn  # no step, no arrow
    assert not flat.lines
    assert disk.lines[0].get_xydata().tolist() == path[0].tolist()
    assert figure.axes[-1].get_ylabel() == "length of the step"


def test_a_field_without_any_force_is_drawn_as_dots():
    axes = fields([field(steps=np.zeros((4, 2)))]).axes[0]
    assert len(quiver(axes).get_offsets()) == 0


@pytest.mark.parametrize(
    ("panels", "message"),
    [
        ([], "no field"),
        ([field(steps=STEPS[:2])], "steps of the field 'now' have shape"),
        ([field(points=np.zeros((3, 3)))], "points of the field"),
        ([field(steps=np.full((4, 2), np.nan))], "not all finite"),
        ([field(disk=True, anchors=2 * ANCHORS)], "outside the unit disk"),
    ],
)
def test_fields_refuse_what_they_cannot_draw(panels, message):
    with pytest.raises(HacoreError, match=message):
        fields(panels)
