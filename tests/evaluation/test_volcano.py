"""The HER volcano: names of known materials stand apart, and the axis ends at 1e-12."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from evaluation import figures, known_sheets, scores, volcano


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ([0.0, 0.5, 0.9], [0.0, 0.5, 0.9]),
        ([0.5, 0.5], [0.45, 0.55]),
        ([0.9, 0.1, 0.9], [0.85, 0.1, 0.95]),
        ([1.0, 1.0, 1.0], [0.8, 0.9, 1.0]),
        ([-1.0, 0.0], [0.0, 0.1]),
        ([], []),
    ],
)
def test_spread_by_hand(wanted, expected):
    assert volcano.spread(wanted, 0.1, 0.0, 1.0) == pytest.approx(expected)


def test_spread_keeps_gap_order_and_room():
    rng = np.random.default_rng(0)
    for _ in range(50):
        wanted = rng.normal(0.5, 0.4, size=9)
        places = np.array(volcano.spread(wanted, 0.1, 0.0, 1.0))
        assert (np.diff(places[np.argsort(wanted)]) > 0.1 - 1e-9).all() and places.min() > -1e-9 and places.max() < 1 + 1e-9
    with pytest.raises(ValueError, match="no room for 12"):
        volcano.spread([0.5] * 12, 0.1, 0.0, 1.0)


def test_heights_end_at_the_floor_and_the_flank_is_the_inverse():
    assert volcano.height(np.array([0.0, 3.0])).tolist() == [pytest.approx(0.0), -12.0]
    for value in (0.1, 0.4, 0.7):
        assert volcano.flank(float(scores.log_exchange_current(np.array([value]))[0])) == pytest.approx(value, abs=1e-3)


def test_no_name_stands_on_another():
    """All sheets of the table with their DFT values, and four surfaces, in the size of the figure."""
    listed = known_sheets.listed()
    rng = np.random.default_rng(3)
    values = [float(row["delta_g_dft_ev"]) if row["delta_g_dft_ev"] else rng.uniform(0.2, 2.3) for row in listed.values()]
    known = [
        {"name": name, "delta_g_ev": value, "delta_g_std_ev": 0.3, "place": k}
        for k, (name, value) in enumerate(zip(listed, values, strict=True))
    ]
    surfaces = [
        {"name": f"{metal}(111)", "delta_g_ev": value} for metal, value in dict(Pt=-0.06, Ni=-0.24, Cu=0.22, Au=0.48).items()
    ]
    figure = Figure(figsize=(13, 5.2), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axis = figure.subplots(ncols=2)[1]
    low, high = figures.padded_limits(np.array(values), -0.8, 0.8, figures.MAX_DELTA_G)
    volcano.set_up(axis, low, high, 0.1)
    assert volcano.mark_known(axis, known, high, surfaces) == len(known) + 4
    canvas.draw()
    names = {text.get_text() for text in axis.texts}
    assert {"Pt(111)", "2H-MoS2", "graphene"} <= names and len(names) >= len(known)
    # The extent of an annotation includes its line; that of the text alone is what counts.
    boxes = [super(type(text), text).get_window_extent(canvas.get_renderer()) for text in axis.texts]
    for (one, first), (other, second) in itertools.combinations(zip(axis.texts, boxes, strict=True), 2):
        assert not first.padded(-1).overlaps(second.padded(-1)), (one.get_text(), other.get_text())
