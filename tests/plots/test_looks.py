"""Every method and geometry has a look of its own."""

import numpy as np
import pandas as pd
from matplotlib.markers import MarkerStyle

from hacore.plots.looks import (
    METHOD_LOOKS,
    OTHER_METHODS,
    geometries,
    geometry_colours,
    heading,
    method_looks,
)
from hacore.unlearning import METHODS


def outline(marker):
    """What a marker looks like at a size: corners of its closed outline."""
    style = MarkerStyle(marker)
    assert style.is_filled()
    polygon = style.get_path().transformed(style.get_transform()).to_polygons()
    return tuple(np.round(np.concatenate(polygon), 3).ravel())


def test_all_markers_differ_even_without_their_colours():
    looks = [*METHOD_LOOKS.values(), *OTHER_METHODS]
    assert len({outline(marker) for marker, _ in looks}) == len(looks)


def test_every_method_of_the_library_has_a_look():
    assert set(METHODS) <= set(METHOD_LOOKS)


def test_a_method_keeps_its_look_whatever_else_is_drawn():
    alone, among = method_looks(["salun"]), method_looks(["new", "coun", "salun", "newer"])
    assert alone["salun"] == among["salun"] == METHOD_LOOKS["salun"]
    assert among["new"] != among["newer"]


def test_geometries_say_what_differs_within_a_space():
    rows = [
        ("euclidean", "clipped", 1.0), ("poincare", "free", 1.0), ("poincare", "clipped", 1.0),
        ("lorentz", "clipped", 1.0), ("lorentz", "clipped", 0.1),
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=["space", "lift", "curv"])
    names = ["euclidean", "poincare free", "poincare clipped", "lorentz c=1", "lorentz c=0.1"]
    assert geometries(frame).tolist() == names
    assert geometries(frame[["space"]]).tolist() == [row[0] for row in rows]


def test_headings_have_units_where_numbers_have_them():
    assert heading("attack_logits_auc") == "attack logits AUC (%)"
    assert heading("forget_test_accuracy", unit=False) == "forget test accuracy"
    assert heading("seconds") == "seconds"
    assert heading("relative_seconds") == "relative seconds (%)"


def test_the_lifts_of_a_space_share_its_hue():
    colours = geometry_colours(["euclidean", "poincare free", "poincare clipped", "poincare fixed", "new"])
    assert len(set(colours.values())) == 5
    free, clipped, fixed = (
        np.array([int(colours[f"poincare {lift}"][i : i + 2], 16) for i in (1, 3, 5)], dtype=float)
        for lift in ("free", "clipped", "fixed")
    )
    assert (free <= clipped).all()
    assert (clipped <= fixed).all()
    assert free.argmax() == clipped.argmax() == fixed.argmax()
