"""Schedules: when they are due by any clock, and that each occurrence is enqueued once."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import uuid4
from zoneinfo import ZoneInfo

import pytest
from celery.schedules import BaseSchedule, crontab
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sqlalchemy import create_engine, text

from tenfold.errors import SettingsError
from tenfold.tasks import Schedule, TaskSettings, schedules
from tenfold.tasks.schedules import Cron, Interval, last_due, list_entries, next_due, start_due
from tests.support.waiting import eventually
from tests.tasks.conftest import ROOT, Service
from tests.tasks.test_declarations import make_app

BERLIN = "Europe/Berlin"
TASK = "tests.tasks.support.service.echo"


def cron(text: str, zone: str = "UTC") -> Cron:
    rule = schedules._rule_of(Schedule(task="x", cron=text, timezone=zone))
    assert isinstance(rule, Cron)
    return rule


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def run_of(rule: Cron | Interval, after: str, count: int) -> list[str]:
    found, moment = [], at(after)
    for _ in range(count):
        following = next_due(rule, moment)
        assert following is not None
        moment = following
        found.append(f"{moment:%m-%d %H:%M}")
    return found


# ------------------------------------------------------------------ when


@pytest.mark.parametrize(
    ("text", "zone", "after", "expected"),
    [
        ("*/20 * * * *", "UTC", "2026-11-26T23:30", ["11-26 23:40", "11-27 00:00", "11-27 00:20"]),
        ("0 3 1 * *", "UTC", "2026-11-01T03:00", ["12-01 03:00", "01-01 03:00"]),
        ("0 9 * * mon-fri", "UTC", "2026-11-27T10:00", ["11-30 09:00", "12-01 09:00"]),
        ("0 0 29 2 *", "UTC", "2026-01-01T00:00", ["02-29 00:00"]),
        # The clocks of Berlin go from 02:00 to 03:00 on 28 March 2027, from 03:00 to 02:00 on 31 October.
        ("30 2 * * *", BERLIN, "2027-03-26T12:00", ["03-27 01:30", "03-28 01:30", "03-29 00:30"]),
        ("30 2 * * *", BERLIN, "2027-10-29T12:00", ["10-30 00:30", "10-31 00:30", "11-01 01:30"]),
        ("0 * * * *", BERLIN, "2027-03-27T23:30", ["03-28 00:00", "03-28 01:00", "03-28 02:00"]),
        ("0 * * * *", BERLIN, "2027-10-30T23:30", ["10-31 00:00", "10-31 01:00", "10-31 02:00"]),
    ],
)
def test_cron_over_a_change_of_the_clocks(text: str, zone: str, after: str, expected: list[str]) -> None:
    assert run_of(cron(text, zone), after, len(expected)) == expected


def test_interval_means_the_same_moments_everywhere() -> None:
    assert run_of(Interval(900.0), "2026-11-26T10:07", 2) == ["11-26 10:15", "11-26 10:30"]
    assert last_due(Interval(900.0), at("2026-11-26T10:00"), at("2026-11-26T10:14")) is None


RULES = st.sampled_from(
    [
        cron("*/7 * * * *", BERLIN),
        cron("30 2 * * *", BERLIN),
        cron("15 1-3 * * *", BERLIN),
        cron("0 * * * *", "Australia/Lord_Howe"),  # whose clocks change by half an hour
        cron("5 0 * * sun", "America/New_York"),
        Interval(700.0),
    ]
)


@settings(max_examples=150, deadline=None)
@given(
    RULES,
    st.sampled_from(["2027-03-27T20:00", "2027-10-30T20:00", "2027-04-03T12:00"]),
    st.lists(st.integers(30, 300), min_size=1, max_size=40),
)
def test_looking_at_any_moments_finds_each_occurrence_once(
    rule: Cron | Interval, start: str, pauses: list[int]
) -> None:
    now = since = at(start)
    end = now + timedelta(hours=12)
    expected: list[datetime] = []
    while (following := next_due(rule, expected[-1] if expected else now)) and following <= end:
        expected.append(following)
    found: list[datetime] = []
    turn = 0
    while now < end:
        now = min(now + timedelta(seconds=pauses[turn % len(pauses)]), end)
        turn += 1
        while due := next_due(rule, since):
            if due > now:
                break
            assert since < due <= (last_due(rule, since, now) or since)
            found.append(due)
            since = due
    assert found == expected


def test_occurrence_of_the_clock_is_where_the_clock_says() -> None:
    zone, rule = ZoneInfo(BERLIN), cron("30 2 * * *", BERLIN)
    shown = [moment.astimezone(zone).strftime("%H:%M") for moment in rule.on_day(date(2027, 3, 28))]
    assert shown == ["03:30"]  # 02:30 does not exist


# ------------------------------------------------------------------ declarations


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cron": "61 * * * *"}, r"cron '61 \* \* \* \*' cannot be read"),
        ({"cron": "every day"}, "write minute, hour, day of month, month and day of week"),
        ({"cron": "0 0 31 2 *"}, "cannot be read"),
        ({"cron": "0 3 * * *", "timezone": "Mars/Base"}, "there is no time zone 'Mars/Base'"),
        ({"cron": "0 3 * * *", "timezone": "../etc/passwd"}, "there is no time zone"),
        ({}, "set cron or every_s"),
        ({"cron": "0 3 * * *", "every_s": 5}, "set cron or every_s"),
        ({"every_s": 0.1}, "greater than or equal to 1"),
    ],
)
def test_schedule_that_means_nothing_is_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Schedule(task="x", **values)


def make_scheduled(entry: dict[str, Any]) -> Any:
    app = make_app()

    @app.task(name="known")
    def known(*args: Any, **kwargs: Any) -> None: ...

    app.conf.beat_schedule = {"one": {"task": "known", "schedule": 60.0, **entry}}
    return app


def test_celerys_beat_schedule_is_read_as_it_is() -> None:
    for given_schedule, rule in (
        (30.0, Interval(30.0)),
        (timedelta(minutes=5), Interval(300.0)),
        (crontab(minute=0, hour="*/3"), cron("0 */3 * * *")),
    ):
        (entry,) = list_entries(
            make_scheduled({"schedule": given_schedule, "args": (16,), "options": {"expires": 9}})
        )
        assert (entry.rule, entry.arguments, entry.late_s) == (rule, "[[16], {}]", 9)


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"task": "unknown"}, "schedule one names no task of this app: unknown"),
        ({"schedule": BaseSchedule()}, "schedule one is .*: use a crontab, or an interval"),
        ({"schedule": 0.2}, "an interval of at least a second"),
        ({"options": {"queue": "nowhere"}}, "schedule one names no queue of this app: nowhere"),
        ({"options": {"priority": 3}}, "schedule one has the option priority"),
    ],
)
def test_beat_schedule_that_cannot_be_kept_is_refused(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        list_entries(make_scheduled(entry))


def test_one_name_for_two_schedules_is_refused() -> None:
    app = make_scheduled({})
    app.settings = TaskSettings(schedules={"one": Schedule(task="known", every_s=5)})
    with pytest.raises(SettingsError, match="schedule one is in TaskSettings and in beat_schedule"):
        list_entries(app)


# ------------------------------------------------------------------ each once, in virtual time


class VirtualTime:
    """A database whose clock is a row: what reads ``clock_timestamp()`` gets that."""

    def __init__(self, service: Service) -> None:
        self.service = service
        service.execute("CREATE SCHEMA virtual")
        service.execute("CREATE TABLE virtual.clock (at timestamptz)")
        service.execute(
            "CREATE FUNCTION virtual.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE "
            "AS 'SELECT at FROM virtual.clock'"
        )
        service.execute("INSERT INTO virtual.clock VALUES ('2027-03-27 20:00+00')")
        app = service.module.celery
        url = f"{service.url}?options=-c%20search_path%3Dvirtual%2Cpublic%2Cpg_catalog"
        app.ledger.close()
        app.ledger._url = create_engine(url).url
        self.app = app

    def entries(self, **declared: dict[str, Any]) -> list[schedules.Entry]:
        named = {name: Schedule(task=TASK, args=(name,), **values) for name, values in declared.items()}
        self.app.settings = TaskSettings(schedules=named)
        return list_entries(self.app)

    def step(self, seconds: float) -> None:
        self.service.execute(
            "UPDATE virtual.clock SET at = at + make_interval(secs => :seconds)", seconds=seconds
        )

    def keys(self, name: str) -> list[str]:
        rows = self.service.execute(
            "SELECT key FROM tenfold_tasks WHERE key LIKE :name ORDER BY key", name=f"schedule {name} %"
        )
        return [row.key.rpartition(" at ")[2] for row in rows]


@pytest.fixture
def virtual(service: Service) -> VirtualTime:
    return VirtualTime(service)


def look_from_many(
    virtual: VirtualTime, entries: list[schedules.Entry], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Let up to eight relays look at the same moments, all of them before the first of them writes."""
    chance = random.Random(3)
    decide = schedules.due_now

    def take_long(*moments: Any) -> Any:
        if due := decide(*moments):
            time.sleep(0.005)
        return due

    monkeypatch.setattr(schedules, "due_now", take_long)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(turns):
            virtual.step(chance.choice([0.3, 1.0, 1.0, 7.0, 31.0]))
            list(pool.map(lambda _: start_due(virtual.app, entries), range(chance.randint(1, 8))))


@pytest.mark.guarantee(
    "each occurrence of a schedule is enqueued once", pattern="tasks", under="eight relays at a time"
)
def test_each_occurrence_is_enqueued_once(virtual: VirtualTime, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = virtual.entries(minute={"every_s": 60}, nightly={"cron": "30 2 * * *", "timezone": BERLIN})
    look_from_many(virtual, entries, 300, monkeypatch)
    found = virtual.keys("minute")
    assert len(found) > 20
    whole = [datetime.fromisoformat(key) for key in found]
    assert {later - earlier for earlier, later in pairwise(whole)} == {timedelta(minutes=1)}
    rows = virtual.service.execute("SELECT key FROM tenfold_tasks")
    assert max(Counter(row.key for row in rows).values()) == 1


@pytest.mark.control("each occurrence of a schedule is enqueued once", "rows that are inserted as they come")
def test_the_control_unguarded_schedule_doubles(
    virtual: VirtualTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    unguarded = str(schedules._START).replace(" AND last_run_at = :seen", "")
    monkeypatch.setattr(schedules, "_START", text(unguarded))
    monkeypatch.setattr(schedules, "task_id", lambda *_: uuid4())
    look_from_many(virtual, virtual.entries(minute={"every_s": 60}), 300, monkeypatch)
    assert max(Counter(virtual.keys("minute")).values()) > 1


def test_late_look_starts_all_that_is_late_by_seconds_and_the_last_of_more(virtual: VirtualTime) -> None:
    entries = virtual.entries(second={"every_s": 1})
    start_due(virtual.app, entries)
    virtual.step(4)
    assert start_due(virtual.app, entries) == 4
    virtual.step(60)
    assert 1 <= start_due(virtual.app, entries) <= 11


def test_outage_starts_the_last_occurrence_that_was_missed_or_none(virtual: VirtualTime) -> None:
    entries = virtual.entries(latest={"every_s": 600}, skipped={"every_s": 600, "late_s": 30})
    start_due(virtual.app, entries)
    virtual.step(3 * 3600 + 60)
    assert start_due(virtual.app, entries) == 1
    assert (virtual.keys("latest"), virtual.keys("skipped")) == (["2027-03-27T23:00:00.000000Z"], [])
    virtual.step(9 * 60 + 10)
    assert start_due(virtual.app, entries) == 2  # 23:10, ten seconds late


def test_clock_that_steps_forward_and_back_doubles_and_misses_nothing(virtual: VirtualTime) -> None:
    entries = virtual.entries(hourly={"cron": "*/10 * * * *"})
    start_due(virtual.app, entries)

    def pass_minutes(count: int) -> None:
        for _ in range(count):
            virtual.step(60)
            start_due(virtual.app, entries)

    pass_minutes(11)
    virtual.step(3600)  # to 21:11
    start_due(virtual.app, entries)
    virtual.step(-3600)
    pass_minutes(65)  # to 21:16
    hours = [key[11:16] for key in virtual.keys("hourly")]
    assert hours == ["20:10", "20:20", "20:30", "20:40", "20:50", "21:00", "21:10"]


def test_entry_that_is_new_is_first_due_after_it_was_declared(virtual: VirtualTime) -> None:
    entries = virtual.entries(daily={"cron": "0 12 * * *"})
    assert start_due(virtual.app, entries) == 0
    virtual.step(60)
    assert start_due(virtual.app, entries) == 0


# ------------------------------------------------------------------ workers and beat


@pytest.fixture
def scheduled(make_service: Callable[..., Service]) -> Iterator[Service]:
    yield make_service(schedules={"second": {"task": TASK, "args": ["x"], "every_s": 1}})


def list_seconds(service: Service) -> list[datetime]:
    """The seconds for which an occurrence was enqueued, in order."""
    rows = service.execute("SELECT key FROM tenfold_tasks ORDER BY key")
    return [datetime.fromisoformat(row.key.rpartition(" at ")[2]) for row in rows]


def wait_for_more(service: Service, count: int) -> None:
    had = len(list_seconds(service))
    eventually(lambda: len(list_seconds(service)) >= had + count)


def has_gap_or_double(seconds: list[datetime]) -> bool:
    return {later - earlier for earlier, later in pairwise(seconds)} != {timedelta(seconds=1)}


@pytest.mark.guarantee(
    "no occurrence of a schedule is missed while one process looks after it",
    pattern="tasks",
    under="kill -9 and SIGSTOP of others",
)
def test_killed_and_paused_workers_miss_no_occurrence(scheduled: Service) -> None:
    killed, paused, _ = (scheduled.start_worker(processes=1) for _ in range(3))
    wait_for_more(scheduled, 2)
    paused.process.send_signal(signal.SIGSTOP)
    killed.kill()
    wait_for_more(scheduled, 4)
    paused.process.send_signal(signal.SIGCONT)
    wait_for_more(scheduled, 2)
    assert not has_gap_or_double(list_seconds(scheduled))


@pytest.mark.control(
    "no occurrence of a schedule is missed while one process looks after it",
    "none does, and late ones are skipped",
)
def test_the_control_a_paused_worker_alone_misses_some(make_service: Callable[..., Service]) -> None:
    scheduled = make_service(schedules={"second": {"task": TASK, "args": ["x"], "every_s": 1, "late_s": 1}})
    worker = scheduled.start_worker(processes=1)
    wait_for_more(scheduled, 2)
    worker.process.send_signal(signal.SIGSTOP)
    stopped = datetime.now(UTC)
    eventually(lambda: datetime.now(UTC) - stopped > timedelta(seconds=4))
    worker.process.send_signal(signal.SIGCONT)
    wait_for_more(scheduled, 2)
    assert has_gap_or_double(list_seconds(scheduled))


def test_celery_beat_does_what_workers_do(scheduled: Service) -> None:
    beat = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tests.tasks.support.service:celery", "beat"],
        cwd=ROOT,
        env={**os.environ, **scheduled.environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        eventually(lambda: len(scheduled.execute("SELECT 1 FROM tenfold_tasks")) >= 2)
    finally:
        beat.terminate()
        beat.wait(20)
    rows = scheduled.execute("SELECT key FROM tenfold_tasks")
    assert max(Counter(row.key for row in rows).values()) == 1
    assert not list(ROOT.glob("celerybeat*"))
