"""The ``[tasks]`` table of tenfold.toml, and an app's queues with their limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

__all__ = [
    "DEFAULT_QUEUE",
    "QueueSettings",
    "Schedule",
    "StackTaskSettings",
    "TaskSettings",
]

DEFAULT_QUEUE = "default"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


class StackTaskSettings(BaseModel):
    """The ``[tasks]`` table: the Celery app whose workers the stack starts, and Flower beside them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str = Field(
        "",
        description='the Celery app, "package.module:attribute": the stack starts a worker for each queue',
        examples=["shop.tasks:celery"],
    )

    flower: bool = Field(False, description="Flower in the stack: a page about workers and tasks")

    @field_validator("app")
    @classmethod
    def _app_names_an_attribute(cls, app: str) -> str:
        module, _, attribute = app.partition(":")
        names = [*module.split("."), *attribute.split(".")]
        if app and not all(name.isidentifier() for name in names):
            raise ValueError('it has to be "package.module:attribute", for example "shop.tasks:celery"')
        return app


class QueueSettings(BaseModel):
    """One queue. Its workers take from no other queue."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    tasks: tuple[str, ...] = Field(
        (), description="names of its tasks, with * and ?; what no queue names goes to `default`"
    )
    concurrency: int = Field(2, ge=1, le=256, description="processes of one worker")
    soft_limit_s: float = Field(
        270, gt=0, le=86_400, description="after this long a task is interrupted by SoftTimeLimitExceeded"
    )
    hard_limit_s: float = Field(300, gt=0, le=86_400, description="after this long its process is killed")

    @model_validator(mode="after")
    def _soft_comes_first(self) -> Self:
        if self.soft_limit_s >= self.hard_limit_s:
            raise ValueError(
                f"soft_limit_s is {self.soft_limit_s:g} but hard_limit_s is {self.hard_limit_s:g}; "
                "set soft_limit_s lower, so that a task can clean up before it is killed"
            )
        return self


class Schedule(BaseModel):
    """A task that is due again and again, by the clock (``cron``) or at an interval (``every_s``)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    task: str = Field(description="the name of the task")
    cron: str = Field(
        "",
        description="minute, hour, day of month, month, day of week, as in crontab; all have to match",
        examples=["0 3 1 * *"],
    )
    every_s: float | None = Field(None, ge=1, le=3.2e8, description="seconds between two occurrences")
    timezone: str = Field("UTC", description="whose clock `cron` means", examples=["Europe/Berlin"])
    args: tuple[Any, ...] = Field((), description="arguments, JSON")
    kwargs: Mapping[str, Any] = Field(default_factory=dict, description="arguments by name, JSON")
    late_s: float | None = Field(
        None,
        ge=1,
        description="a later occurrence, after an outage, is skipped; unset: the last one missed starts",
    )

    @property
    def zone(self) -> ZoneInfo:
        """The time zone."""
        return ZoneInfo(self.timezone)

    @field_validator("timezone")
    @classmethod
    def _timezone_is_known(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ValueError, OSError, ZoneInfoNotFoundError):
            raise ValueError(f"there is no time zone {name!r}: write it as Europe/Berlin") from None
        return name

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if bool(self.cron) == (self.every_s is not None):
            raise ValueError("set cron or every_s, one of them")
        if self.cron:
            from celery.schedules import ParseException, crontab

            try:
                crontab.from_string(self.cron)
            except (ValueError, ParseException) as error:
                raise ValueError(
                    f"cron {self.cron!r} cannot be read ({error}): write minute, hour, day of month, month "
                    'and day of week, as "0 3 1 * *"'
                ) from None
        return self


class TaskSettings(BaseModel):
    """The queues of an app, and what happens when something fails."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    queues: Mapping[str, QueueSettings] = Field(default_factory=dict, description="the queues by name")
    schedules: Mapping[str, Schedule] = Field(
        default_factory=dict, description="tasks that are due at certain times, by name"
    )
    max_retries: int = Field(3, ge=0, le=100, description="of a task that raises, unless it says otherwise")
    retry_base_s: float = Field(
        60.0, gt=0, le=86_400, description="wait before the first retry; doubles each time, ± 25 %"
    )
    max_crashes: int = Field(
        3, ge=1, le=100, description="starts that killed their process before a task is given up"
    )
    lost_after_s: float = Field(
        30.0, ge=1, le=3600, description="without a heartbeat for this long a running task is started again"
    )
    drain_s: float = Field(
        10.0, ge=0, le=3600, description="a worker that is told to end lets its tasks run for this long"
    )
    retention_s: float = Field(
        7 * 86_400.0, ge=60, le=3.2e8, description="finished tasks are known for this long; failed ones 4 ×"
    )

    @field_validator("queues")
    @classmethod
    def _queues_can_be_named(cls, queues: Mapping[str, QueueSettings]) -> Mapping[str, QueueSettings]:
        for name in queues:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"{name!r} is no name of a queue: use letters, digits, -, _ and ., 63 at most"
                )
        return queues

    def queue(self, name: str) -> QueueSettings:
        """The settings of a queue; the default ones if it is not declared."""
        return self.queues.get(name) or QueueSettings()

    def queue_names(self) -> tuple[str, ...]:
        """Every queue, the default one first."""
        return tuple(dict.fromkeys((DEFAULT_QUEUE, *self.queues)))

    def find_queue(self, task: str) -> str:
        """The queue of a task by its name: the first that names it."""
        for name, queue in self.queues.items():
            if any(fnmatchcase(task, pattern) for pattern in queue.tasks):
                return name
        return DEFAULT_QUEUE
