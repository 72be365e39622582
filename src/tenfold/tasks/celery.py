"""A Celery app that loses no task: its configuration, and what runs inside of its workers."""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit
from uuid import UUID

from tenfold.errors import DependencyError, SettingsError, TaskError
from tenfold.redaction import redact
from tenfold.tasks.ledger import Ledger
from tenfold.tasks.liveness import LoopStep
from tenfold.tasks.relay import Relay
from tenfold.tasks.schedules import Entry, list_entries
from tenfold.tasks.settings import DEFAULT_QUEUE, TaskSettings
from tenfold.tasks.task import Heartbeat, LedgerTask, check_function

try:
    from billiard import cpu_count
    from billiard.common import REMAP_SIGTERM
    from celery import Celery, signals
    from kombu.entity import Queue
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.orm import Session
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

if TYPE_CHECKING:
    from tenfold.positions import Token

__all__ = ["LedgerCelery", "create_celery"]

_MARGIN_S = 60.0
_log = logging.getLogger("tenfold.tasks")


class _Fence(Protocol):
    def primary_token(self) -> Token | None: ...

    def record_hit(self, token: Token) -> None: ...


class Router(Protocol):
    """What tasks need of :class:`tenfold.database.DatabaseRouter`."""

    @property
    def fence(self) -> _Fence:
        """The positions of its primary."""

    def consistency_context(self) -> AbstractContextManager[Any]:
        """Reads inside of it show at least what was read and written inside of it."""

    def write(self) -> AbstractContextManager[Session]:
        """A session on the primary."""


def create_celery(  # noqa: PLR0913 - one place for every option of an app
    name: str,
    *,
    broker_url: str,
    database_url: str,
    settings: TaskSettings | None = None,
    sessions: Callable[[], AbstractContextManager[Session]] | None = None,
    router: Router | None = None,
    carry: Mapping[str, ContextVar[str | None]] | None = None,
    transport_options: Mapping[str, Any] | None = None,
    result_backend: str | None = None,
    include: tuple[str, ...] = (),
) -> LedgerCelery:
    """Create a Celery app whose tasks survive workers, brokers and databases that are killed.

    Args:
        name: of the app, and the first part of its tasks' names where they have none.
        broker_url: of Redis or Valkey (``redis://``, ``rediss://``, ``redis+socket://``, ``sentinel://``),
            RabbitMQ (``amqp://``) or SQS (``sqs://``).
        database_url: of the PostgreSQL primary with the table ``tenfold_tasks``, for the ledger's own
            connections: one in each process, a second one at times, and one for sessions if it makes those.
        settings: queues, limits and retries.
        sessions: makes the sessions of ``@once`` tasks, on the same database; None takes the router's, or
            plain ones.
        router: a task reads at least what was committed when it started, from replicas too.
        carry: context variables that travel from where a task is enqueued to where it runs, such as the
            current tenant; the keys are the names of their headers.
        transport_options: further ones of kombu, such as Sentinel's ``master_name``.
        result_backend: of Celery; None stores results in the ledger only. Chains need none.
        include: modules with tasks, which workers import.

    Raises:
        SettingsError: a URL is wrong, or not of a database and broker that keep these promises.
    """
    _check_broker(broker_url)
    settings = settings or TaskSettings()
    ledger = Ledger(database_url, settings)
    app = LedgerCelery(
        name, task_cls=LedgerTask, include=list(include), broker=broker_url, backend=result_backend
    )
    app.settings, app.ledger, app.router = settings, ledger, router
    app.sessions = sessions or (router.write if router is not None else None)
    app.carry = dict(carry or {})
    app.conf.update(_configuration(settings, broker_url))
    app.conf.broker_transport_options |= transport_options or {}
    app.steps["consumer"].add(LoopStep)
    _connect_signals(app)
    return app


def _check_broker(url: str) -> None:
    scheme = urlsplit(url).scheme.partition("+")[0]
    if scheme in ("filesystem", "sqla", "sqlalchemy", "memory", "mongodb"):
        raise SettingsError(
            f"a {scheme} broker loses the running tasks of a worker that dies: "
            "use Redis, Valkey, RabbitMQ or SQS"
        )
    if scheme not in ("redis", "rediss", "sentinel", "amqp", "amqps", "pyamqp", "sqs"):
        raise SettingsError(
            f"the broker's URL {redact(url)} is not one of Redis, RabbitMQ or SQS: write redis://host:6379/0"
        )
    if scheme == "sqs" and not (find_spec("boto3") and find_spec("pycurl")):
        raise DependencyError("Celery takes from SQS by boto3 and pycurl: pip install 'celery[sqs]' pycurl")


def _configuration(settings: TaskSettings, broker_url: str) -> dict[str, Any]:
    is_rabbitmq = urlsplit(broker_url).scheme.endswith(("amqp", "amqps"))
    arguments = {"x-queue-type": "quorum", "x-delivery-limit": 20} if is_rabbitmq else None
    queues = [Queue(name, routing_key=name, queue_arguments=arguments) for name in settings.queue_names()]
    return {
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "timezone": "UTC",
        "enable_utc": True,
        # A message is acknowledged when its task has ended, and comes back when its process has died.
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "task_acks_on_failure_or_timeout": True,
        "worker_prefetch_multiplier": 1,
        "worker_pool": "prefork",
        # The ledger refuses the second of two runs; ending the first as well would only lose its work.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "broker_connection_max_retries": None,
        "broker_connection_retry_on_startup": True,
        "broker_connection_timeout": 4.0,
        "task_publish_retry_policy": {
            "max_retries": 3,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 1,
        },
        "broker_transport_options": _transport_options(broker_url),
        "task_queues": queues,
        "task_default_queue": DEFAULT_QUEUE,
        "task_create_missing_queues": False,
        "task_routes": (_route,),
        "task_track_started": True,
        # Half of the main process' time; Flower and `celery control enable_events` switch them on.
        "worker_send_task_events": False,
        "result_expires": 86_400,
        "worker_max_tasks_per_child": 1000,
        "worker_soft_shutdown_timeout": settings.drain_s,
        "worker_enable_remote_control": urlsplit(broker_url).scheme != "sqs",  # it would leave queues behind
        "task_default_delivery_mode": "persistent",
        "beat_scheduler": "tenfold.tasks.schedules:BeatScheduler",
    }


def _transport_options(broker_url: str) -> dict[str, Any]:
    if urlsplit(broker_url).scheme.endswith(("amqp", "amqps")):
        return {"confirm_publish": True}
    if urlsplit(broker_url).scheme == "sqs":
        return {"wait_time_seconds": 10, "polling_interval": 0.05}
    return {
        "socket_timeout": 10.0,
        "socket_connect_timeout": 2.0,
        "socket_keepalive": True,
        "health_check_interval": 10,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }


def _route(
    name: str, args: Any, kwargs: Any, options: Any, task: Any = None, **_: Any
) -> dict[str, str] | None:
    app = task.app if task is not None else None
    return {"queue": app.settings.find_queue(name)} if isinstance(app, LedgerCelery) else None


class LedgerCelery(Celery):  # type: ignore[misc]
    """A Celery app with a ledger; made by :func:`create_celery`."""

    settings: TaskSettings
    ledger: Ledger
    router: Router | None
    sessions: Callable[[], AbstractContextManager[Session]] | None
    carry: dict[str, ContextVar[str | None]]
    worker = ""  # the name of this worker in the ledger; its processes inherit it
    worker_queues, worker_processes = "", 0
    schedules: Sequence[Entry] = ()  # set when a worker starts

    @cached_property
    def heartbeat(self) -> Heartbeat:
        """The thread that says that this process' task is alive."""
        return Heartbeat(self.ledger)

    @cached_property
    def relay(self) -> Relay:
        """The thread that publishes what was enqueued: one in each worker."""
        return Relay(self)

    def report_worker(self) -> None:
        """Store a sign of life of this worker; one that a test embeds has no name."""
        if not self.worker:
            return
        self.ledger.report_worker(self.worker.partition("/")[0], self.worker_queues, self.worker_processes)

    def open_session(self) -> AbstractContextManager[Session]:
        """Open a session for the changes of a task."""
        return self.sessions() if self.sessions is not None else Session(self.ledger.session_engine)

    def task(self, *args: Any, **options: Any) -> Any:
        """Make a task of a function, as Celery's; other apps of this process do not see it.

        Raises:
            SettingsError: the function is ``async def``.
        """
        options.setdefault("shared", False)
        if args and callable(args[0]):
            check_function(args[0])
            return super().task(*args, **options)
        make = super().task(*args, **options)

        def decorate(function: Any) -> Any:
            check_function(function)
            return make(function)

        return decorate

    def _task_from_fun(
        self, fun: Any, name: str | None = None, base: Any = None, bind: bool = False, **options: Any
    ) -> Any:
        name = name or self.gen_task_name(fun.__name__, fun.__module__)
        check_function(fun)  # of shared_task, too
        if options.get("rate_limit"):
            raise SettingsError(
                f"{name} has a rate_limit, for which workers keep messages: give it a queue of its own with "
                "a lower concurrency"
            )
        queue = self.settings.queue(self.settings.find_queue(name))
        options.setdefault("time_limit", queue.hard_limit_s)
        options.setdefault("soft_time_limit", min(queue.soft_limit_s, options["time_limit"] * 0.9))
        options.setdefault("max_retries", self.settings.max_retries)
        if hasattr(fun, "__tenfold_once__"):
            options.update(is_once=True, once_key=_as_static(fun.__tenfold_once__))
        options["ledger"] = self.ledger
        return super()._task_from_fun(fun, name=name, base=base, bind=bind, **options)

    # ------------------------------------------------------------------ what travels with a task

    def collect_headers(self) -> dict[str, str]:
        """What the current context sends along with a task: the carried variables, and the trace."""
        headers = {
            name: value for name, variable in self.carry.items() if (value := variable.get(None)) is not None
        }
        with suppress(ImportError):
            from opentelemetry import propagate

            propagate.inject(headers)
        return headers

    @contextmanager
    def task_context(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Restore a task's context: what it carries, its trace, and what it has to see in replicas."""
        marks = {name: variable.set(headers.get(name)) for name, variable in self.carry.items()}
        try:
            with ExitStack() as stack:
                stack.enter_context(_trace_context(headers))
                if self.router is not None:
                    stack.enter_context(self.router.consistency_context())
                    if (token := self.router.fence.primary_token()) is not None:
                        self.router.fence.record_hit(token)
                yield
        finally:
            for name, mark in marks.items():
                self.carry[name].reset(mark)

    # ------------------------------------------------------------------ in the main process of a worker

    def configure_worker(self, queues: frozenset[str], pool: str) -> None:
        """Set what depends on the queues that a worker takes from.

        Raises:
            SettingsError: for a task that may run for longer than its queue allows, an unknown queue or
                another pool than processes.
        """
        if pool not in ("prefork", "processes", "solo"):
            raise SettingsError(
                f"tasks run in processes, where one can be ended: start the worker without --pool {pool}"
            )
        if unknown := sorted(queues - set(self.settings.queue_names())):
            raise SettingsError(
                f"no queue {unknown[0]}: declare it in TaskSettings(queues=…), "
                f"or use {', '.join(self.settings.queue_names())}"
            )
        limits = {name: self.settings.queue(name).hard_limit_s for name in queues}
        for name, task in self.tasks.items():
            queue = self.settings.find_queue(name)
            if queue in limits and isinstance(task, LedgerTask) and (task.time_limit or 0) > limits[queue]:
                raise SettingsError(
                    f"{name} has time_limit={task.time_limit:g} "
                    f"but queue {queue} ends tasks after {limits[queue]:g} s: "
                    f"set its hard_limit_s to {task.time_limit:g}"
                )
        self.schedules = list_entries(self)
        # Queues that share these keys would share the shortest of their timeouts.
        group = "+".join(sorted(queues))
        self.conf.broker_transport_options |= {
            "visibility_timeout": int(max(limits.values()) + _MARGIN_S),
            "unacked_key": f"unacked:{group}",
            "unacked_index_key": f"unacked_index:{group}",
            "unacked_mutex_key": f"unacked_mutex:{group}",
        }


def _as_static(key: Callable[..., str] | None) -> Any:
    return None if key is None else staticmethod(key)


@contextmanager
def _trace_context(headers: Mapping[str, str]) -> Iterator[None]:
    try:
        from opentelemetry import context, propagate
    except ImportError:
        yield
        return
    mark = context.attach(propagate.extract(headers))
    try:
        yield
    finally:
        context.detach(mark)


def _connect_signals(app: LedgerCelery) -> None:
    """Run the ledger's part inside of the workers of this app."""

    def configure(sender: str, instance: Any, conf: Any, options: Mapping[str, Any], **_: Any) -> None:
        if instance.app is app:
            app.worker = f"{sender}/{os.getpid()}"
            if REMAP_SIGTERM != "SIGQUIT":
                _log.warning("at SIGTERM this worker waits for its longest task: set REMAP_SIGTERM=SIGQUIT")
            asked = options.get("queues") or ()
            names = (asked.split(",") if isinstance(asked, str) else asked) or app.settings.queue_names()
            app.worker_queues = ",".join(sorted(names))
            app.worker_processes = int(options.get("concurrency") or conf.worker_concurrency or cpu_count())
            pool = options.get("pool_cls") or conf.worker_pool
            pool = str(getattr(pool, "__module__", pool)).rpartition(".")[2]
            try:
                app.configure_worker(frozenset(names), pool)
            except (SettingsError, TaskError) as error:
                raise SystemExit(f"tenfold: {error}") from None

    def register_end(sender: Any, **_: Any) -> None:
        if sender.app is app:
            # Not worker_shutdown: a cold end, which SIGTERM is here after the drain, does not send it.
            atexit.register(release, os.getpid())

    def release(pid: int) -> None:
        if pid == os.getpid():
            app.relay.stop()
            with suppress(SQLAlchemyError, TaskError):
                app.ledger.release(app.worker)
                app.ledger.remove_worker(app.worker.partition("/")[0])

    def refuse(sender: Any, name: str, id: str, message: Any, **_: Any) -> None:
        if sender.app is app:
            with suppress(SQLAlchemyError, TaskError, ValueError):
                app.ledger.refuse_unknown(UUID(id), f"no worker knows a task {name}: deploy one that does")

    def revoke(sender: Any, request: Any, **_: Any) -> None:
        if sender.app is app:
            with suppress(SQLAlchemyError, TaskError, ValueError):
                app.ledger.revoke(UUID(request.id))

    signals.celeryd_init.connect(configure, weak=False)
    signals.worker_ready.connect(register_end, weak=False)
    signals.task_unknown.connect(refuse, weak=False)
    signals.task_revoked.connect(revoke, weak=False)
