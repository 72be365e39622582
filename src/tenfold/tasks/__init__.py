"""Background tasks on Celery: an outbox in the caller's transaction, and database effects once."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.tasks.celery import create_celery
    from tenfold.tasks.outbox import Outbox
    from tenfold.tasks.settings import QueueSettings, Schedule, TaskSettings
    from tenfold.tasks.task import once

__all__ = ["Outbox", "QueueSettings", "Schedule", "TaskSettings", "create_celery", "once"]

_HOMES = {
    "Outbox": "outbox",
    "QueueSettings": "settings",
    "Schedule": "settings",
    "TaskSettings": "settings",
    "create_celery": "celery",
    "once": "task",
}


def __getattr__(name: str) -> Any:
    # Lazy: a web process that only enqueues does not load what workers need.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.tasks.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
