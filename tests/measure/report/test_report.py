"""Reports: saving and loading, comparison, wording and the HTML page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tenfold.errors import SettingsError
from tenfold.measure.report.comparison import compare
from tenfold.measure.report.html import render
from tenfold.measure.report.report import Latency, load, save
from tenfold.measure.report.wording import facts, headline, number, objective
from tests.measure.support.report_examples import capacity, report


@pytest.mark.guarantee("a report is whole or not there", pattern="measure")
def test_saved_report_loads_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "baselines" / "naive.json"
    save(report(), path)
    assert load(path) == report()
    assert [p.name for p in path.parent.iterdir()] == ["naive.json"], "no temporary file is left"


def test_json_field_names_are_stable(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    save(report(), path)
    seen = json.loads(path.read_text())
    assert seen["capacity"]["low"] == 56.0 and seen["capacity"]["outcome"] == "found"
    assert seen["latency_ms"] == {"p50": 34.0, "p95": 176.0, "p99": 251.0}
    assert seen["bottlenecks"][0]["where"] == "shop/naive/orders.py:48"


@pytest.mark.control("a report is whole or not there")
@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"\xff\xfe", b'{"version": 1}'])
def test_invalid_report_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="is not a tenfold report") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_report_of_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    save(report(version=99), path)
    with pytest.raises(SettingsError, match="version 99"):
        load(path)


def test_missing_baseline_error_lists_the_existing_ones(tmp_path: Path) -> None:
    save(report(), tmp_path / "naive.json")
    with pytest.raises(SettingsError, match=r"no baseline navie .* there are naive"):
        load(tmp_path / "navie.json")


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (120.0, 130.0, "higher than before"),
        (20.0, 22.0, "lower than before"),
        (58.0, 66.0, "no difference shown from before"),
    ],
)
def test_comparison_follows_from_the_intervals(low: float, high: float, says: str) -> None:
    result = compare(report(capacity=capacity(low=low, high=high)), report(), name="before")
    assert result.sentence.startswith(says)
    assert result.low == pytest.approx(low / 61.0) and result.high == pytest.approx(high / 56.0)


def test_comparison_without_both_intervals_has_no_ratio() -> None:
    result = compare(report(capacity=capacity(high=None, outcome="at_least")), report(), name="before")
    assert result.low is None and "not comparable" in result.sentence


@pytest.mark.guarantee(
    "what a service answered cannot run in the report", pattern="measure", under="markup in names and errors"
)
def test_text_from_the_service_is_escaped() -> None:
    attack = "<script>alert(1)</script>"
    page = render(report(service=attack, errors={attack: 3}, notices=(attack,)))
    assert attack not in page and "&lt;script&gt;" in page


@pytest.mark.control("what a service answered cannot run in the report")
def test_the_control_without_autoescape_text_becomes_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    import jinja2

    attack = "<script>alert(1)</script>"
    careful = jinja2.Environment.__init__

    def careless(self: jinja2.Environment, **options: Any) -> None:
        careful(self, **options | {"autoescape": False})

    monkeypatch.setattr(jinja2.Environment, "__init__", careless)
    assert attack in render(report(notices=(attack,)))


def test_page_has_no_external_resources_and_no_scripts() -> None:
    page = render(report())
    assert "http://" not in page.replace(report().target, "") and "https://" not in page
    assert "<script" not in page
    for text in ("56.0 – 61.0 requests/s", "shop/naive/orders.py:48", "<svg", "p95 &lt; 200 ms"):
        assert text in page


@pytest.mark.parametrize(
    "changes",
    [
        {"capacity": None, "latency_ms": None, "overload": None, "trials": (), "series": ()},
        {"capacity": capacity(low=None, high=None, outcome="below"), "bottlenecks": ()},
        {"capacity": capacity(high=None, outcome="at_least"), "endpoints": ()},
        {"capacity": capacity(low=None, high=None, outcome="undecided")},
        {"mode": "closed", "capacity": None},
    ],
)
def test_every_outcome_has_a_page_and_a_headline(changes: dict[str, object]) -> None:
    one = report(**changes)
    assert headline(one)
    assert "<html" in render(one)


def test_headline_converts_arrivals_to_requests() -> None:
    assert headline(report(capacity=capacity(requests_per_arrival=2.0))) == "112 – 122 requests/s"


def test_objective_in_words() -> None:
    assert objective(report().objective) == "objective: p95 < 200 ms, errors < 5 %"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (0.1234, "0.123"),
        (4.567, "4.57"),
        (45.67, "45.7"),
        (456.7, "457"),
        (45670, "45,670"),
    ],
)
def test_numbers_have_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert number(value) == text


def test_refused_share_is_shown_only_if_there_is_one() -> None:
    assert "refused" not in dict(facts(report()))
    assert dict(facts(report(refused_share=0.25)))["refused"] == "25.0 %"


def test_missing_latency_is_a_dash() -> None:
    assert dict(facts(report(latency_ms=None)))["p95"] == "–"
    assert dict(facts(report(latency_ms=Latency(p50=1, p95=2, p99=3))))["p95"] == "2.00 ms"
