"""A machine that changes its speed is noticed, a steady one is not accused."""

from __future__ import annotations

import time

import pytest

from tenfold.measure.diagnosis.machine_speed import FEWEST, SpeedGauge, spread
from tenfold.measure.measurement import notices


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ([1.0] * 100, 1.0),
        ([1.0] * 50 + [2.0] * 50, 2.0),
        ([1.0] * 99 + [50.0], 1.0),
        ([1.0] * (FEWEST - 1), None),
        ([0.0] * FEWEST, None),
    ],
)
def test_the_spread_ignores_single_outliers(seconds: list[float], expected: float | None) -> None:
    assert spread(seconds) == expected


def test_the_gauge_times_while_something_else_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tenfold.measure.diagnosis.machine_speed.INTERVAL_S", 0.005)
    with SpeedGauge() as gauge:
        deadline = time.monotonic() + 20
        while gauge.spread is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert gauge.spread >= 1.0


def test_only_an_unsteady_machine_is_mentioned() -> None:
    assert notices((), (), speed=None) == notices((), (), speed=1.1) == ()
    assert "factor of 1.9" in notices((), (), speed=1.9)[0]
