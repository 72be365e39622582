"""Audit any Celery app: what in its settings and tasks loses work, doubles it, or lets strangers in.

Each rule is one that :func:`tenfold.tasks.create_celery` keeps. Nothing is connected to and nothing is run;
the app's modules are imported, and the sources of its tasks are read for countdowns.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tenfold.errors import DependencyError

try:
    from celery import Task
    from celery.app.defaults import NAMESPACES
    from celery.app.defaults import flatten as flatten_names
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

__all__ = ["AuditFinding", "audit"]

_VISIBILITY_S = {"redis": 3600.0, "sqs": 1800.0}
_UNSAFE = {"pickle", "application/x-python-serialize"}
_CELERYS_OWN = ("broker_", "result_", "task_", "worker_")
_LOSING = {"filesystem", "sqla", "sqlalchemy", "memory", "mongodb"}
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class AuditFinding:
    """One thing that is wrong.

    Attributes:
        rule: its short name.
        reason: what happens because of it, with the tasks concerned.
        remedy: the setting that mends it.
    """

    rule: str
    reason: str
    remedy: str


@dataclass(frozen=True, slots=True)
class _Facts:
    """What the rules look at."""

    conf: Any
    tasks: Mapping[str, Any]
    broker: str  # redis, amqp, sqs, or what the URL says
    options: Mapping[str, Any]
    is_ours: bool

    @property
    def visibility_s(self) -> float | None:
        """After this long an unacknowledged message comes again; None if the broker has no such time."""
        default = _VISIBILITY_S.get(self.broker)
        return default and float(self.options.get("visibility_timeout") or default)

    def named(self, keep: Callable[[Any], object]) -> list[str]:
        return [name for name, task in self.tasks.items() if keep(task)]


def audit(app: Any) -> list[AuditFinding]:
    """Audit a Celery app.

    Args:
        app: any :class:`celery.Celery`; its configuration is loaded and its task modules are imported.

    Returns:
        what is wrong, the worst first; empty for an app of :func:`tenfold.tasks.create_celery`.
    """
    from tenfold.tasks.celery import LedgerCelery

    app.loader.import_default_modules()
    conf, is_ours = app.conf, isinstance(app, LedgerCelery)
    scheme = urlsplit(conf.broker_url or "amqp://").scheme.partition("+")[0]
    broker = {"rediss": "redis", "sentinel": "redis", "amqps": "amqp", "pyamqp": "amqp"}.get(scheme, scheme)
    tasks = {name: task for name, task in sorted(app.tasks.items()) if not name.startswith("celery.")}
    options = dict(conf.broker_transport_options or {})
    if is_ours:  # as its workers set it when they start
        limits = [app.settings.queue(name).hard_limit_s for name in app.settings.queue_names()]
        options["visibility_timeout"] = max(limits) + 60
    facts = _Facts(conf, tasks, broker, options, is_ours)
    return [finding for rule in _RULES for finding in rule(facts)]


def _list(names: Iterable[str]) -> str:
    found = list(names)
    rest = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return ", ".join(found[:_SHOWN]) + rest


# ------------------------------------------------------------------ security


def _code_from_messages(facts: _Facts) -> Iterator[AuditFinding]:
    taken = {*(facts.conf.accept_content or ()), facts.conf.task_serializer, facts.conf.result_serializer}
    if found := sorted(str(one) for one in taken if one in _UNSAFE):
        yield AuditFinding(
            "pickle",
            f"{_list(found)} is accepted: who can write to the broker runs code in the workers",
            'accept_content = ["json"], task_serializer = result_serializer = "json"',
        )


# ------------------------------------------------------------------ lost


def _losing_broker(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.broker in _LOSING:
        yield AuditFinding(
            "lost on kill",
            f"a {facts.broker} broker loses the running tasks of a worker that dies",
            "broker_url of Redis, Valkey, RabbitMQ or SQS",
        )


def _early_acknowledgement(facts: _Facts) -> Iterator[AuditFinding]:
    if found := facts.named(lambda task: not task.acks_late):
        yield AuditFinding(
            "lost on kill",
            f"{_list(found)}: acknowledged before they run, so that a worker that is killed takes them along",
            "task_acks_late = True, and tasks that may run twice",
        )


def _acknowledged_when_killed(facts: _Facts) -> Iterator[AuditFinding]:
    found = facts.named(
        lambda task: task.acks_late and not (task.reject_on_worker_lost or task.retry_on_worker_lost)
    )
    if found:
        yield AuditFinding(
            "lost on kill",
            f"{_list(found)}: acknowledged when their process is killed, as for want of memory",
            "task_reject_on_worker_lost = True",
        )


def _poison(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.is_ours:  # the ledger counts starts
        return
    if found := facts.named(lambda task: task.reject_on_worker_lost and not task.retry_on_worker_lost):
        yield AuditFinding(
            "never ends",
            f"{_list(found)}: one that kills its process is delivered again for ever, and kills the next",
            "task_retry_on_worker_lost = True, which counts these as retries",
        )


def _unconfirmed(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.broker == "amqp" and not facts.options.get("confirm_publish"):
        yield AuditFinding(
            "lost on publish",
            "RabbitMQ need not have stored a message when .delay() returns",
            'broker_transport_options = {"confirm_publish": True}',
        )


def _coroutines(facts: _Facts) -> Iterator[AuditFinding]:
    if found := facts.named(lambda task: inspect.iscoroutinefunction(inspect.unwrap(task.run))):
        yield AuditFinding(
            "never runs",
            f"{_list(found)}: async def, which Celery calls but does not await, and reports as done",
            "def, and asyncio.run(…) inside of it",
        )


def _unknown_settings(facts: _Facts) -> Iterator[AuditFinding]:
    known = {name for name, _ in flatten_names(NAMESPACES)}
    prefix = facts.conf.prefix or ""
    given = {str(name) for one in facts.conf.maps[:-1] for name in one}
    for name in sorted(given):
        bare = name.removeprefix(prefix).lower() if prefix else name
        if bare in known or not bare.startswith(_CELERYS_OWN):  # the others are extensions', too
            continue
        close = get_close_matches(bare, known, n=1, cutoff=0.75)
        option = bare.removeprefix("task_")
        if bare.startswith("task_") and hasattr(Task, option):
            remedy = f"{option}=… in the decorator of each task"
        else:
            remedy = f"{close[0]}, if that is meant" if close else f"take {name} out"
        yield AuditFinding("no effect", f"Celery has no setting {name}: it is ignored", remedy)


# ------------------------------------------------------------------ twice


def _not_idempotent(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.is_ours:  # the ledger refuses the second run
        return
    if found := facts.named(lambda task: task.acks_late and not getattr(task, "idempotent", False)):
        yield AuditFinding(
            "runs twice",
            f"{_list(found)}: acknowledged late, so that a worker that is killed makes them run again",
            "idempotent=True in the decorator of those that may; @once of tenfold.tasks for the others",
        )


def _visibility(facts: _Facts) -> Iterator[AuditFinding]:
    visibility_s = facts.visibility_s
    if visibility_s is None:
        return

    def limit(task: Any) -> float:
        return float(task.time_limit or facts.conf.task_time_limit or 0)

    remedy = 'task_time_limit, and broker_transport_options = {"visibility_timeout": …} beyond it'
    if found := facts.named(lambda task: task.acks_late and limit(task) >= visibility_s):
        yield AuditFinding(
            "runs twice",
            f"{_list(found)}: may run for longer than the visibility timeout of {visibility_s:g} s, after "
            "which another worker starts them, too",
            remedy,
        )
    if found := facts.named(lambda task: task.acks_late and not limit(task)):
        yield AuditFinding(
            "runs twice",
            f"{_list(found)}: without a time limit; after {visibility_s:g} s another worker starts them, too",
            remedy,
        )


def _shared_unacked(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.broker != "redis" or facts.is_ours or "unacked_key" in facts.options:
        return
    queues = {queue.name for queue in facts.conf.task_queues or ()}
    queues |= {route.get("queue") for route in _routes(facts.conf.task_routes)} - {None}
    queues |= {task.queue for task in facts.tasks.values() if getattr(task, "queue", None)}
    if len(queues | {facts.conf.task_default_queue}) > 1 and "visibility_timeout" in facts.options:
        yield AuditFinding(
            "runs twice",
            f"the workers of {_list(sorted(map(str, queues)))} share the key `unacked`: the shortest of "
            "their visibility timeouts holds for all",
            'broker_transport_options = {"unacked_key": …, "unacked_index_key": …, "unacked_mutex_key": …} '
            "of each group of workers",
        )


def _routes(routes: Any) -> Iterator[Mapping[str, Any]]:
    for one in routes if isinstance(routes, list | tuple) else [routes]:
        if isinstance(one, Mapping):
            yield from (route for route in one.values() if isinstance(route, Mapping))


def _countdowns(facts: _Facts) -> Iterator[AuditFinding]:
    visibility_s = facts.visibility_s
    if visibility_s is None:
        return
    for where, seconds in _calls_with_delay(facts.tasks.values()):
        if seconds is None or seconds >= visibility_s:
            what = "an ETA" if seconds is None else f"a countdown of {seconds:g} s"
            yield AuditFinding(
                "runs twice",
                f"{where}: {what}; beyond the visibility timeout of {visibility_s:g} s it is delivered again "
                "and again",
                "outbox.enqueue(session, task, delay_s=…) of tenfold.tasks, or a longer visibility_timeout",
            )
    if facts.is_ours:
        return
    for name, task in facts.tasks.items():
        if (task.default_retry_delay or 0) >= visibility_s:
            yield AuditFinding(
                "runs twice",
                f"{name}: waits {task.default_retry_delay:g} s before a retry, beyond the visibility timeout",
                "a shorter default_retry_delay, or a longer visibility_timeout",
            )


def _calls_with_delay(tasks: Iterable[Any]) -> Iterator[tuple[str, float | None]]:
    """File, line and seconds of each call with a countdown; None for an ETA, which is a moment."""
    modules = dict.fromkeys(getattr(inspect.unwrap(task.run), "__module__", "") for task in tasks)
    for name in modules:
        try:
            path = Path(inspect.getsourcefile(sys.modules[name]) or "")
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (KeyError, TypeError, OSError, SyntaxError, ValueError):
            continue
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            if node.func.attr not in ("apply_async", "retry", "signature", "set"):
                continue
            for word in node.keywords:
                value = word.value.value if isinstance(word.value, ast.Constant) else None
                if word.arg == "countdown" and isinstance(value, int | float):
                    yield f"{path.name}:{node.lineno}", float(value)
                elif word.arg == "eta" and not (isinstance(word.value, ast.Constant) and value is None):
                    yield f"{path.name}:{node.lineno}", None


# ------------------------------------------------------------------ the rest


def _prefetch(facts: _Facts) -> Iterator[AuditFinding]:
    number = facts.conf.worker_prefetch_multiplier
    if number != 1:
        yield AuditFinding(
            "waits behind others",
            f"each process reserves {number or 'all'} messages: they wait for a long task while others idle",
            "worker_prefetch_multiplier = 1",
        )


def _no_limit(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.visibility_s is None and (
        found := facts.named(lambda task: not (task.time_limit or facts.conf.task_time_limit))
    ):
        yield AuditFinding(
            "hangs",
            f"{_list(found)}: without a time limit; one that hangs takes its process away for good",
            "task_time_limit and task_soft_time_limit",
        )
    if (
        str(facts.conf.worker_pool) in ("threads", "gevent", "eventlet", "solo")
        and facts.conf.task_time_limit
    ):
        yield AuditFinding(
            "hangs",
            f"the pool {facts.conf.worker_pool} cannot end a task: task_time_limit has no effect",
            'worker_pool = "prefork"',
        )


def _results(facts: _Facts) -> Iterator[AuditFinding]:
    if facts.conf.result_backend and not facts.conf.result_expires:
        yield AuditFinding(
            "grows", "results are kept for ever: the backend fills up", "result_expires = 86400"
        )


_RULES: tuple[Callable[[_Facts], Iterator[AuditFinding]], ...] = (
    _code_from_messages,
    _losing_broker,
    _coroutines,
    _early_acknowledgement,
    _acknowledged_when_killed,
    _poison,
    _unconfirmed,
    _unknown_settings,
    _not_idempotent,
    _visibility,
    _shared_unacked,
    _countdowns,
    _prefetch,
    _no_limit,
    _results,
)
