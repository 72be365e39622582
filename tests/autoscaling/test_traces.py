"""Traces of request rates: files, and what is refused of them."""

from __future__ import annotations

import json

import pytest

from tenfold.autoscaling.traces import GENERATED, generate_trace, read_trace
from tenfold.errors import SettingsError


def test_csv_with_seconds_or_dates() -> None:
    assert read_trace("time,rate\n0,10\n30,40\n60,40\n") == [10, 25, 40, 40, 40]
    dates = "2026-01-01T00:00:00+00:00,10\n2026-01-01T00:00:30+00:00,40\n"
    assert read_trace(dates) == [10, 25, 40]


def test_prometheus() -> None:
    values = [[1000, "1.5"], [1015, "2.5"], [1030, "3"]]
    assert read_trace(json.dumps({"data": {"result": [{"values": values}]}})) == [1.5, 2.5, 3.0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("0,1\n15,2\n30,3\n300,4\n315,5\n", "gap of 270 s after 30"),
        ("0,1\n15,-2\n", "line 2 of the trace is '15,-2'"),
        ("0,1\n15,nan\n", "line 2"),
        ("time,rate\nmonday,1\n", "line 2"),
        ("0,1\n0,2\n", "do not rise"),
        ("15,1\n0,2\n", "do not rise"),
        ("0,1\n", "fewer than two"),
        ("", "fewer than two"),
        ("{}", "neither a CSV nor"),
        ('{"data": {"result": []}}', "gave 0 series"),
        ('{"data": {"result": [{"values": [[1, "-1"], [2, "1"]]}]}}', "no rate from 0"),
        ("0,1\n40000000,1\n", "longer than 366 days"),
    ],
)
def test_trace_that_cannot_be_used_is_one_sentence(text: str, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        read_trace(text)


@pytest.mark.parametrize("kind", GENERATED)
def test_made_up_traces_reach_their_peak(kind: str) -> None:
    rates = generate_trace(kind, peak=1000, days=7)
    assert len(rates) == 7 * 5760
    assert 950 < max(rates) < 1200
    assert rates == generate_trace(kind, peak=1000, days=7)
    assert all(rate >= 0 for rate in rates)


@pytest.mark.parametrize(
    ("kind", "peak", "days"), [("hourly", 1, 1), ("daily", 0, 1), ("daily", float("inf"), 1), ("daily", 1, 0)]
)
def test_impossible_made_up_trace(kind: str, peak: float, days: float) -> None:
    with pytest.raises(SettingsError):
        generate_trace(kind, peak=peak, days=days)
