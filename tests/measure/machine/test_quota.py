"""Cores that may be used: the least of affinity and the control group's quota."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tenfold.measure.machine.quota import allowed_cores, throttled_us


@pytest.fixture
def group(tmp_path: Path) -> Path:
    (tmp_path / "cpu.stat").write_text("usage_usec 9\nnr_periods 4\nthrottled_usec 1234\n")
    return tmp_path


@pytest.mark.parametrize(
    ("quota", "cores"),
    [("max 100000", None), ("50000 100000", 0.5), ("150000 100000", 1.5), ("900000000 100000", None)],
)
def test_quota_limits_the_cores(group: Path, quota: str, cores: float | None) -> None:
    (group / "cpu.max").write_text(quota)
    affinity = float(len(os.sched_getaffinity(0)))
    assert allowed_cores(group) == min(affinity, cores or affinity)


def test_throttled_time_is_read(group: Path) -> None:
    assert throttled_us(group) == 1234


def test_machine_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert allowed_cores(tmp_path) == float(len(os.sched_getaffinity(0)))
    assert throttled_us(tmp_path) == 0
