"""Request rates over time: read from CSV or Prometheus, or generated. Pure.

A trace is a list of requests per second, one for each step of 15 s.
"""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from tenfold.errors import SettingsError

__all__ = ["GENERATED", "STEP_S", "generate_trace", "read_trace"]

STEP_S = 15.0
_DAY = int(86_400 / STEP_S)
_MOST_STEPS = 366 * _DAY
GENERATED = {
    "daily": "quiet nights, a peak in the evening",
    "weekly": "as daily, with quieter weekends",
    "flash": "a quiet day, in which the rate rises to the peak within a minute, for ten",
    "viral": "doubles from day to day, up to the peak",
}


def generate_trace(kind: str, *, peak: float, days: float = 1.0, seed: int = 1) -> list[float]:
    """Requests per second of a made-up service.

    Args:
        kind: one of ``GENERATED``.
        peak: the highest rate, requests per second; noise of some 3 % comes on top of it.

    Raises:
        SettingsError: no such kind, or an impossible peak or number of days.
    """
    if kind not in GENERATED:
        raise SettingsError(f"no trace {kind[:40]!r}: write a file, or one of {', '.join(GENERATED)}")
    if not (math.isfinite(peak) and peak > 0 and 0 < days <= 366):
        raise SettingsError("a trace needs a peak above 0 and more than 0, at most 366 days")
    chance = random.Random(seed)  # noqa: S311 - no secret
    rates = []
    for step in range(max(int(days * _DAY), 1)):
        hour, day = step % _DAY / _DAY * 24, step // _DAY
        usual = 0.2 + 0.8 * (0.5 + 0.5 * math.cos((hour - 20) / 24 * 2 * math.pi)) ** 2
        if kind == "weekly":
            usual *= 1 - 0.4 * _weekend(day % 7 * 24 + hour)
        if kind == "flash":
            since = step * STEP_S - days * 43_200
            usual = 0.1 + 0.9 * min(max(since / 60, 0), 1) * min(max((1260 - since) / 600, 0), 1)
        if kind == "viral":
            usual *= 2.0 ** (day + 1 - math.ceil(days))
        rates.append(max(peak * usual * (1 + chance.gauss(0, 0.03)), 0.0))
    return rates


def _weekend(hour: float) -> float:
    """How much of the weekend it is at an hour of the week: from 0 to 1 in the four hours about midnight."""
    since = (hour - 118) % 168  # from 22:00 on Friday
    return min(since / 4, 1.0, max((52 - since) / 4, 0.0))


def read_trace(text: str) -> list[float]:
    """Read the rates of a CSV of times and rates, or of the JSON of Prometheus' ``query_range``.

    Times are seconds or ISO 8601; between them rates change evenly.

    Raises:
        SettingsError: it is neither; times do not rise, or have a gap; a rate is below 0 or no number.
    """
    points = _from_prometheus(text) if text.lstrip().startswith("{") else _from_csv(text)
    if len(points) < 2:
        raise SettingsError("the trace has fewer than two rates")
    steps = sorted(later - earlier for (earlier, _), (later, _) in pairwise(points))
    if steps[0] <= 0:
        raise SettingsError("the trace's times do not rise: sort it, and leave out times that repeat")
    usual = steps[len(steps) // 2]
    for (earlier, _), (later, _) in pairwise(points):
        if later - earlier > 2.5 * usual:
            raise SettingsError(
                f"the trace has a gap of {later - earlier:g} s after {earlier:g}: fill it, or cut there"
            )
    if (points[-1][0] - points[0][0]) / STEP_S > _MOST_STEPS:
        raise SettingsError("the trace is longer than 366 days: cut it")
    return _resample(points)


def _from_csv(text: str) -> list[tuple[float, float]]:
    points = []
    for number, row in enumerate(csv.reader(io.StringIO(text)), 1):
        if not row or row[0].lstrip().startswith("#"):
            continue
        try:
            points.append((_time(row[0]), _rate(row[1])))
        except (ValueError, IndexError):
            if number == 1:
                continue  # names of the columns
            raise SettingsError(
                f"line {number} of the trace is {','.join(row)[:40]!r}: write a time and a rate from 0"
            ) from None
    return points


def _from_prometheus(text: str) -> list[tuple[float, float]]:
    try:
        result = json.loads(text)["data"]["result"]
    except (ValueError, KeyError, TypeError):
        raise SettingsError("the trace is neither a CSV nor what Prometheus' query_range answers") from None
    if len(result) != 1:
        raise SettingsError(f"the query gave {len(result)} series: sum() them, so that it gives one")
    try:
        return [(float(time), _rate(value)) for time, value in result[0]["values"]]
    except (ValueError, KeyError, TypeError):
        raise SettingsError("a value of the series is no rate from 0") from None


def _time(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return datetime.fromisoformat(text.strip()).timestamp()


def _rate(text: str) -> float:
    rate = float(text)
    if not (math.isfinite(rate) and rate >= 0):
        raise ValueError(text)
    return rate


def _resample(points: Sequence[tuple[float, float]]) -> list[float]:
    rates, index = [], 0
    count = int((points[-1][0] - points[0][0]) / STEP_S) + 1
    for step in range(count):
        now = points[0][0] + step * STEP_S
        while index + 2 < len(points) and points[index + 1][0] <= now:
            index += 1
        (earlier, low), (later, high) = points[index], points[index + 1]
        rates.append(low + (high - low) * (now - earlier) / (later - earlier))
    return rates
