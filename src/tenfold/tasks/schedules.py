"""Schedules: tasks that are due at certain times, each once, however many processes look after them.

Every worker's relay looks once a second, and so may ``celery beat``. An occurrence is a row of the outbox
whose id is made of the schedule's name and the time that it was due; the statement that inserts it advances
the schedule's row, if that is still as it was read. So a process that dies or is paused at any point leaves
either all of it done or nothing, holds no lock, and never doubles what another one did.

When an occurrence is due is decided without a clock, in :func:`due_now`.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any

from tenfold.errors import DependencyError, SettingsError
from tenfold.tasks.settings import Schedule
from tenfold.tasks.states import encode, task_id

try:
    from celery import beat
    from celery.schedules import crontab, schedule
    from sqlalchemy import Connection, Row, text
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

__all__ = ["BeatScheduler", "Entry", "due_now", "last_due", "list_entries", "next_due", "start_due"]

_LOOK_S = 1.0
_OUTAGE_S = 10.0  # what is later than this was missed; all before is only late
_FARTHEST_DAYS = 366 * 8 + 7  # the 29th of February skips a century's leap year at most once
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_REGISTER = text(
    "INSERT INTO tenfold_task_schedules (name, last_run_at) VALUES (:name, clock_timestamp()) "
    "ON CONFLICT (name) DO NOTHING"
)
_READ = text("SELECT name, last_run_at, clock_timestamp() AS now FROM tenfold_task_schedules")
_ADVANCE = text(
    "UPDATE tenfold_task_schedules SET last_run_at = :due WHERE name = :name AND last_run_at = :seen"
)
_START = text(
    "WITH advanced AS (UPDATE tenfold_task_schedules SET last_run_at = :due "
    "WHERE name = :name AND last_run_at = :seen RETURNING name) "
    "INSERT INTO tenfold_tasks (id, task, key, queue, arguments, headers, state, run_at) "
    "SELECT :id, :task, :key, :queue, :arguments, '{}', 'waiting', clock_timestamp() FROM advanced "
    "ON CONFLICT (id) DO NOTHING"
)


# ------------------------------------------------------------------ when


@dataclass(frozen=True, slots=True)
class Cron:
    """Times by the clock on the wall. Every field has to match, the day of the month and of the week too."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    zone: tzinfo

    def on_day(self, day: date) -> tuple[datetime, ...]:
        """The occurrences of a day in order, in UTC.

        A time that the clocks skip is due when as much of the day has passed as otherwise; one that they show
        twice is due the first time. What is due every hour is due in each hour that passes.
        """
        if day.day in self.days and day.month in self.months and day.isoweekday() % 7 in self.weekdays:
            return _moments(self, day)
        return ()


@lru_cache(maxsize=256)
def _moments(rule: Cron, day: date) -> tuple[datetime, ...]:
    folds = (0, 1) if len(rule.hours) == 24 else (0,)
    found = {
        datetime(day.year, day.month, day.day, hour, minute, tzinfo=rule.zone, fold=fold).astimezone(UTC)
        for hour in rule.hours
        for minute in rule.minutes
        for fold in folds
    }
    return tuple(sorted(found))


@dataclass(frozen=True, slots=True)
class Interval:
    """Every so many seconds, counted from 1970: so that all processes mean the same moments."""

    seconds: float


def last_due(rule: Cron | Interval, since: datetime, now: datetime) -> datetime | None:
    """The last occurrence after ``since`` that is due by ``now``; None if there is none."""
    if isinstance(rule, Interval):
        found = _EPOCH + timedelta(seconds=(now - _EPOCH).total_seconds() // rule.seconds * rule.seconds)
        return found if found > since else None
    day = now.astimezone(rule.zone).date() + timedelta(days=1)
    first = max(since, now - timedelta(days=_FARTHEST_DAYS)).astimezone(rule.zone).date() - timedelta(days=1)
    while day >= first:
        moments = rule.on_day(day)
        if (index := bisect_right(moments, now)) and moments[index - 1] > since:
            return moments[index - 1]
        day -= timedelta(days=1)
    return None


def due_now(rule: Cron | Interval, since: datetime, now: datetime) -> datetime | None:
    """The occurrence to start: the first that is at most ten seconds late, else the last one missed."""
    last = last_due(rule, since, now)
    recent = max(since, now - timedelta(seconds=_OUTAGE_S))
    return last if last is None or last <= recent else next_due(rule, recent)


def next_due(rule: Cron | Interval, after: datetime) -> datetime | None:
    """The first occurrence after a moment; None if there is none within eight years."""
    if isinstance(rule, Interval):
        passed = (after - _EPOCH).total_seconds() // rule.seconds
        return _EPOCH + timedelta(seconds=(passed + 1) * rule.seconds)
    day = after.astimezone(rule.zone).date() - timedelta(days=1)
    for _ in range(_FARTHEST_DAYS):
        moments = rule.on_day(day)
        if (index := bisect_right(moments, after)) < len(moments):
            return moments[index]
        day += timedelta(days=1)
    return None


# ------------------------------------------------------------------ what


@dataclass(frozen=True, slots=True)
class Entry:
    """A schedule of an app.

    Attributes:
        late_s: a later occurrence is skipped; None starts the last one that was missed.
    """

    name: str
    task: str
    arguments: str
    queue: str
    rule: Cron | Interval
    late_s: float | None = None


def list_entries(app: Any) -> list[Entry]:
    """The schedules of an app: those of its settings, and Celery's ``beat_schedule``.

    Args:
        app: a :class:`~tenfold.tasks.celery.LedgerCelery`.

    Raises:
        SettingsError: one cannot be kept, with its name.
        TaskError: its arguments are not JSON.
    """
    found = [
        _entry(app, name, one.task, one.args, one.kwargs, _rule_of(one), late_s=one.late_s)
        for name, one in app.settings.schedules.items()
    ]
    taken = {entry.name for entry in found}
    for name, one in app.conf.beat_schedule.items():
        if name in taken:
            raise SettingsError(
                f"schedule {name} is in TaskSettings and in beat_schedule: rename one of them"
            )
        found.append(_celery_entry(app, name, one))
    return found


def _celery_entry(app: Any, name: str, one: Mapping[str, Any]) -> Entry:
    options = dict(one.get("options") or {})
    queue, expires = options.pop("queue", None), options.pop("expires", None)
    if options or not isinstance(expires, int | float | None):
        option = next(iter(options), "expires")
        raise SettingsError(
            f"schedule {name} has the option {option}: queue and expires, in seconds, are what is kept here"
        )
    rule = _celery_rule(name, one.get("schedule"), app)
    task, args, kwargs = one.get("task") or "", one.get("args") or (), one.get("kwargs") or {}
    return _entry(app, name, task, args, kwargs, rule, queue=queue, late_s=expires)


def _entry(
    app: Any,
    name: str,
    task: str,
    args: Any,
    kwargs: Mapping[str, Any],
    rule: Cron | Interval,
    *,
    queue: str | None = None,
    late_s: float | None = None,
) -> Entry:
    if task not in app.tasks:
        raise SettingsError(f"schedule {name} names no task of this app: {task or '(none)'}")
    queue = queue or app.settings.find_queue(task)
    if queue not in app.settings.queue_names():
        raise SettingsError(f"schedule {name} names no queue of this app: {queue}")
    arguments = encode([list(args), dict(kwargs)], f"the arguments of schedule {name}")
    return Entry(name, task, arguments, queue, rule, late_s)


def _rule_of(one: Schedule) -> Cron | Interval:
    if one.every_s is not None:
        return Interval(one.every_s)
    return _cron(crontab.from_string(one.cron), one.zone)


def _celery_rule(name: str, given: Any, app: Any) -> Cron | Interval:
    if isinstance(given, int | float | timedelta):
        given = schedule(given)
    if isinstance(given, crontab):
        return _cron(given, app.timezone)
    if type(given) is schedule and given.run_every.total_seconds() >= 1:
        return Interval(given.run_every.total_seconds())
    raise SettingsError(f"schedule {name} is {given!r}: use a crontab, or an interval of at least a second")


def _cron(given: crontab, zone: tzinfo) -> Cron:
    return Cron(
        minutes=frozenset(given.minute),
        hours=frozenset(given.hour),
        days=frozenset(given.day_of_month),
        months=frozenset(given.month_of_year),
        weekdays=frozenset(given.day_of_week),
        zone=zone,
    )


# ------------------------------------------------------------------ doing it


def start_due(app: Any, entries: Sequence[Entry]) -> int:
    """Enqueue what is due now, by the database's clock; return the number of occurrences.

    Raises:
        SQLAlchemyError: the database's; what was not enqueued is found the next time.
    """
    if not entries:
        return 0
    with app.ledger.engine.connect() as connection:
        rows = {row.name: row for row in connection.execute(_READ)}
        return sum(_start(connection, entry, rows.get(entry.name)) for entry in entries)


def _start(connection: Connection, entry: Entry, row: Row[Any] | None) -> int:
    """Enqueue what is due of one schedule, by its row; return the number of occurrences."""
    if row is None:
        connection.execute(_REGISTER, {"name": entry.name})
        return 0
    if row.last_run_at > row.now:  # the clock was set back; what ran already has its row
        connection.execute(_ADVANCE, {"name": entry.name, "seen": row.last_run_at, "due": row.now})
        return 0
    count, seen = 0, row.last_run_at
    while (due := due_now(entry.rule, seen, row.now)) is not None:
        values = {"name": entry.name, "seen": seen, "due": due}
        if entry.late_s is not None and (row.now - due).total_seconds() > entry.late_s:
            connection.execute(_ADVANCE, values)
        else:
            key = f"schedule {entry.name} at {due:%Y-%m-%dT%H:%M:%S.%fZ}"
            values |= {"id": task_id(entry.task, key), "key": key, "task": entry.task}
            values |= {"queue": entry.queue, "arguments": entry.arguments}
            count += connection.execute(_START, values).rowcount
        seen = due
    return count


class BeatScheduler(beat.Scheduler):  # type: ignore[misc]
    """What ``celery beat`` runs: the same as every worker, so that neither doubles the other."""

    def setup_schedule(self) -> None:
        """Read the schedules.

        Raises:
            SettingsError: one cannot be kept.
        """
        self._entries = list_entries(self.app)

    def tick(self, *_: Any, **__: Any) -> float:
        """Enqueue what is due; return the seconds until the next look."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            start_due(self.app, self._entries)
        except SQLAlchemyError as error:
            beat.logger.warning("schedules wait: the database does not answer (%s)", type(error).__name__)
        return _LOOK_S
