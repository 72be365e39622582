"""The README's terminal picture has what the terminal showed, and loads nothing."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from docs.tools.pictures import svg, terminal
from tests.measure.support.report_examples import report

from tenfold.cli.summary import lines


def test_picture_has_every_line_of_the_terminal() -> None:
    text = terminal(report())
    drawn = [element.text for element in ET.fromstring(svg(text)).iter("{http://www.w3.org/2000/svg}text")]
    assert drawn == [line.strip() for line in text if line]
    assert set(lines(report())) <= set(text)


def test_picture_escapes_text_and_loads_nothing() -> None:
    drawn = svg(["p95 < 200 ms & <script>"])
    assert "<script>" not in drawn and "url(" not in drawn and "href" not in drawn
    assert "prefers-color-scheme: dark" in drawn
