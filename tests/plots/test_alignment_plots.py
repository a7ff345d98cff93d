"""The pictures of an owner's audit show the numbers they are given, in scales that can be compared."""

import matplotlib.colors as mcolors
import numpy as np
import pytest

from hacore.errors import HacoreError
from hacore.plots import drops, gallery, matrices, spaced
from hacore.plots.forgetting import FORGET
from hacore.plots.style import BLUE

RNG = np.random.default_rng(0)
BEFORE, AFTER = RNG.uniform(-1, 0.9, (5, 5)), RNG.uniform(-0.5, 1, (5, 5))


def shown(axes):
    (image,) = axes.images
    return image


def test_before_and_after_share_their_scale_and_the_change_is_around_white():
    before, after, change = matrices(BEFORE, AFTER, unit="cosine").axes[:3]
    np.testing.assert_array_equal(shown(before).get_array(), BEFORE)
    np.testing.assert_array_equal(shown(after).get_array(), AFTER)
    np.testing.assert_array_equal(shown(change).get_array(), AFTER - BEFORE)
    limits = min(BEFORE.min(), AFTER.min()), max(BEFORE.max(), AFTER.max())
    assert shown(before).get_clim() == shown(after).get_clim() == limits
    low, high = shown(change).get_clim()
    assert -low == high == np.abs(AFTER - BEFORE).max()
    middle = mcolors.to_rgb(shown(change).cmap(0.5))
    assert min(middle) > 0.9
    assert [axes.get_title() for axes in (before, after, change)] == [
        "before", "after", "change: after − before"
    ]  # fmt: skip


def test_bars_of_colours_name_the_unit_and_stand_for_both_matrices():
    bars = matrices(BEFORE, AFTER, unit="cosine").axes[3:]
    assert [bar.get_ylabel() for bar in bars] == ["cosine", "change of cosine"]


def test_many_images_are_thinned_out_evenly_and_the_figure_says_so():
    big = np.arange(100.0).reshape(10, 10)
    figure = matrices(big, big + 1, shown=4)
    assert spaced(10, 4).tolist() == [0, 3, 6, 9]
    kept = [[0, 3, 6, 9], [30, 33, 36, 39], [60, 63, 66, 69], [90, 93, 96, 99]]
    assert shown(figure.axes[0]).get_array().tolist() == kept
    assert figure.get_suptitle() == "4 of 10 images, evenly spaced"
    assert matrices(BEFORE, AFTER).get_suptitle() == ""
    assert spaced(3).tolist() == [0, 1, 2]


def test_no_change_has_a_scale_too():
    low, high = shown(matrices(BEFORE, BEFORE).axes[2]).get_clim()
    assert low < 0 < high


def test_drops_are_shares_with_means_and_the_threshold_of_the_others():
    others, own = np.arange(100.0), np.array([90.0, 95.0, 96.0, 200.0])
    (axes,) = drops(own, others).axes
    lines = {mcolors.to_hex(line.get_color()): line.get_xdata()[0] for line in axes.lines}
    assert lines[FORGET.lower()] == own.mean()
    assert lines[BLUE.lower()] == others.mean()
    (cut,) = (line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == ":")
    assert cut == pytest.approx(94.05)  # 0.95 of the way from 0 to 99
    assert axes.get_title() == (
        "95 % of control images lie left of the dotted line, 75 % of your images right of it"
    )
    for bars in axes.containers:
        assert sum(bar.get_height() for bar in bars) == pytest.approx(100)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["control images", "your images"]


def test_drops_without_a_threshold_and_without_any_change():
    (axes,) = drops(np.zeros(10), np.zeros(12), ("mine", "pairs"), level=None).axes
    assert axes.get_title() == ""
    assert len(axes.lines) == 2
    assert axes.get_xlim()[0] < 0 < axes.get_xlim()[1]


def test_gallery_shows_pictures_with_captions_that_are_no_formulas():
    red, blue = np.zeros((2, 4, 4, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    figure = gallery([("most", [red, blue], ["a$b$c_1", "b"]), ("least", [blue], ["c"])])
    drawn = [axes for part in figure.subfigs for axes in part.axes]
    assert [part.get_suptitle() for part in figure.subfigs] == ["most", "least"]
    assert [axes.get_title() for axes in drawn] == ["a$b$c_1", "b", "c", ""]
    np.testing.assert_array_equal(shown(drawn[0]).get_array(), red)
    assert not drawn[0].title.get_parse_math()
    figure.draw_without_rendering()


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: matrices(BEFORE, AFTER[:4, :4]), r"shapes \(5, 5\) and \(4, 4\)"),
        (lambda: matrices(BEFORE[:4], AFTER[:4]), "two square ones"),
        (lambda: matrices(BEFORE[:0, :0], AFTER[:0, :0]), "two square ones"),
        (lambda: matrices(BEFORE * np.nan, AFTER), "NaN or infinite"),
        (lambda: drops(np.zeros(0), np.zeros(3)), "no finite drops of your images"),
        (lambda: drops(np.zeros(3), np.array([np.inf])), "no finite drops of control images"),
        (lambda: gallery([]), "needs pictures in every row"),
        (lambda: gallery([("most", [np.zeros((2, 2, 3), np.uint8)], [])]), "one caption for each"),
    ],
)
def test_what_cannot_be_drawn_is_told(draw, message):
    with pytest.raises(HacoreError, match=message):
        draw()
