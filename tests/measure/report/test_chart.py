"""A chart is well-formed SVG for every input and shows each point once."""

from __future__ import annotations

import math
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.report.chart import HEIGHT, WIDTH, Axis, Series, chart

# Rates, seconds and milliseconds: what a report can hold.
FINITE = st.just(0.0) | st.floats(1e-6, 1e9) | st.floats(-1e6, -1e-6)


@given(
    st.lists(st.tuples(FINITE, FINITE), max_size=20),
    st.booleans(),
    st.booleans(),
    st.text(max_size=10, alphabet=st.characters(exclude_categories=["Cc", "Cs"])),
)
def test_any_points_are_drawn_inside_the_frame(
    points: list[tuple[float, float]], x_log: bool, y_log: bool, name: str
) -> None:
    svg = chart([Series(name, points, "red")], x=Axis(name, log=x_log), y=Axis("y", log=y_log))
    kept = [p for p in points if (p[0] > 0 or not x_log) and (p[1] > 0 or not y_log)]
    if not kept:
        assert svg == ""
        return
    circles = list(ElementTree.fromstring(svg).iter("circle"))
    assert len(circles) == len(kept)
    for circle in circles:
        assert -1 <= float(circle.get("cx", "nan")) <= WIDTH + 1
        assert -1 <= float(circle.get("cy", "nan")) <= HEIGHT + 1


def test_non_finite_points_are_left_out() -> None:
    svg = chart([Series("a", [(1, math.nan), (2, 3)], "red")], x=Axis("x"), y=Axis("y"))
    assert svg.count("<circle") == 1


def test_band_and_limit_are_drawn() -> None:
    svg = chart([Series("a", [(1, 1), (9, 9)], "red")], x=Axis("x"), y=Axis("y"), band=(3, 4), limit=5)
    assert 'class="band"' in svg and 'class="limit"' in svg


def test_names_are_escaped() -> None:
    svg = chart([Series("<b>", [(1, 1)], '"><script>')], x=Axis("<i>"), y=Axis("y"))
    assert "<script>" not in svg and "<b>" not in svg and "<i>" not in svg
