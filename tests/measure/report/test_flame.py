"""Flame graphs: widths are shares of the time, and text from the service is escaped."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tenfold.measure.report.flame import WIDTH, flame
from tenfold.measure.report.html import render
from tests.measure.support.report_examples import report


def widths(svg: str, name: str) -> list[float]:
    return [
        float(one) for one in re.findall(rf"<title>{name}  [^<]*</title><rect [^>]*width=\"([\d.]+)\"", svg)
    ]


def test_width_of_a_function_is_its_share_of_the_time() -> None:
    svg = flame([(("main", "load"), 3.0), (("main", "save"), 1.0)], title="GET /")
    assert widths(svg, "main") == [WIDTH - 0.5]
    assert widths(svg, "load") == [0.75 * WIDTH - 0.5]
    assert "main  100.0 %" in svg and "save  25.0 %" in svg


def test_narrow_functions_are_left_out_and_nothing_is_drawn_without_stacks() -> None:
    svg = flame([(("main", "load"), 1000.0), (("main", "rare"), 1.0)], title="")
    assert "rare" not in svg
    assert flame([], title="") == flame([(("main",), 0.0)], title="") == ""


def test_page_has_graphs_on_the_cpu_and_by_state_and_escapes_names() -> None:
    page = render(report())
    assert page.count('class="flame"') == 2
    assert "shop/orders:&lt;load&gt;" in page and "orders:<load>" not in page
    assert "pool  25.0 %" in page
    assert "<script" not in page


@given(st.lists(st.tuples(st.lists(st.text(max_size=8), max_size=60), st.floats(0, 1e6)), max_size=20))
def test_any_stacks_can_be_drawn(stacks: list[tuple[list[str], float]]) -> None:
    svg = flame(stacks, title="<x>")
    assert svg == "" or (svg.startswith("<svg") and svg.endswith("</svg>"))
    assert "<x>" not in svg
