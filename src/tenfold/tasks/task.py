"""How a worker runs a task: claim it in the ledger, run it, store its outcome.

``@once`` puts the outcome into the same transaction as the task's own changes: they happen once, however
often the message is delivered and wherever a process dies. Effects outside of the database, such as an email,
happen at least once: pass ``self.idempotency_key`` along.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from inspect import Parameter, iscoroutinefunction, signature
from typing import Any, TypeVar, overload
from uuid import UUID

from tenfold.errors import DependencyError, SettingsError, TaskCancelledError, TaskError
from tenfold.process_thread import ProcessThread
from tenfold.tasks.brokers import HEADER
from tenfold.tasks.ledger import Ledger, Run
from tenfold.tasks.states import encode, retry_delay_s, task_id

try:
    from celery import Task
    from celery.exceptions import Ignore, MaxRetriesExceededError, Reject, Retry, SoftTimeLimitExceeded
    from sqlalchemy.exc import SQLAlchemyError
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

__all__ = ["Heartbeat", "LedgerTask", "once"]

_BEAT_S = 5.0
_DATABASE_DOWN_S = 1.0
_log = logging.getLogger("tenfold.tasks")
F = TypeVar("F", bound=Callable[..., Any])


@overload
def once(function: F) -> F: ...
@overload
def once(*, key: Callable[..., str] | None = None) -> Callable[[F], F]: ...


def once(function: F | None = None, *, key: Callable[..., str] | None = None) -> F | Callable[[F], F]:
    """Give a task a session, and commit its changes together with its outcome: exactly once.

        @celery.task
        @once
        def reserve_stock(session: Session, order_id: int) -> None: ...

    The session comes first (after ``self`` with ``bind=True``); callers do not pass it. The task must not
    commit: what it commits itself happens again if it is started again.

    Args:
        key: makes the key of a task that is sent past the outbox (``reserve_stock.delay(7)``) from its
            arguments; without it each message is a task of its own. The outbox has ``key=`` of its own.
    """

    def mark(marked: F) -> F:
        marked.__tenfold_once__ = key  # type: ignore[attr-defined]
        return marked

    return mark if function is None else mark(function)


class LedgerTask(Task):  # type: ignore[misc]
    """The class of the tasks of :func:`tenfold.tasks.create_celery`.

    In a task with ``bind=True``, ``self`` has what is below, and Celery's own.
    """

    abstract = True
    typing = False  # Celery would count the session as an argument; what is passed is checked here
    is_once = False
    once_key: Callable[..., str] | None = None
    retry_base_s: float | None = None
    ledger: Ledger  # of the app
    _running: threading.local = threading.local()

    # ------------------------------------------------------------------ for the task's own code

    @property
    def idempotency_key(self) -> str:
        """Names this task to others: the same in every attempt."""
        run = self._current_run()
        return str(run.id if run else self.request.id)

    @property
    def checkpoint(self) -> Any:
        """What :meth:`report_progress` stored last, in this attempt or an earlier one; None if nothing."""
        run = self._current_run()
        return json.loads(run.checkpoint) if run and run.checkpoint else None

    def report_progress(self, share: float, *, checkpoint: Any = None) -> None:
        """Store how far the task is, and from where another attempt can go on.

        Args:
            share: between 0 and 1.
            checkpoint: JSON, at most 64 KiB; None keeps the last one.

        Raises:
            TaskCancelledError: the task is to end: it was cancelled, or runs elsewhere by now.
            TaskError: the checkpoint is not JSON.
        """
        run = self._current_run()
        if run is None:
            return
        text = None if checkpoint is None else encode(checkpoint, f"the checkpoint of {self.name}")
        is_cancelled = self.ledger.beat(run, progress=min(max(share, 0.0), 1.0), checkpoint=text)
        if text is not None:
            self._running.run = run._replace(checkpoint=text)
        if is_cancelled is not False:
            raise TaskCancelledError(f"{self.name} was cancelled, or runs elsewhere: it ends here")

    def _current_run(self) -> Run | None:
        run: Run | None = getattr(self._running, "run", None)
        return run

    # ------------------------------------------------------------------ sending

    def check_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse arguments that the task does not take.

        Raises:
            TaskError: with its signature.
        """
        own = signature(self.run)
        parameters = list(own.parameters.values())[1 if self.is_once else 0 :]
        try:
            own.replace(parameters=parameters).bind(*args, **kwargs)
        except TypeError as error:
            shown = ", ".join(str(parameter.replace(annotation=Parameter.empty)) for parameter in parameters)
            raise TaskError(f"{self.name}({shown}) does not take these arguments: {error}") from None

    def apply_async(self, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Send the task past the outbox, at once.

        Raises:
            SettingsError: with a countdown or an ETA, which the broker would deliver several times, or as
                part of a chord.
            TaskError: the task does not take these arguments, or they are not JSON.
        """
        if options.get("countdown") or options.get("eta"):
            raise SettingsError(
                f"{self.name} with a countdown or an ETA would run several times once that is beyond the "
                "broker's visibility timeout: use outbox.enqueue(session, task, …, delay_s=…)"
            )
        if options.get("chord"):
            raise SettingsError(
                f"{self.name} is part of a chord, which waits for ever when one result is lost: "
                "let the last task of a chain look whether the others are done"
            )
        args, kwargs = tuple(args or ()), dict(kwargs or {})
        self.check_arguments(args, kwargs)
        encode([list(args), kwargs], f"the arguments of {self.name}")
        return super().apply_async(args, kwargs, **options)

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Try again later, as Celery's; the wait is in the outbox.

        Raises:
            SettingsError: with other arguments, or an ETA.
        """
        request = self.request
        if request.called_directly or request.is_eager:
            return super().retry(args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        if args is not None or kwargs is not None or eta is not None:
            raise SettingsError(f"{self.name}.retry() takes exc, countdown and max_retries here")
        if max_retries is not None:
            self._running.max_retries = max_retries
        if self._current_run() is None:
            countdown = self._adopt_for_retry(exc, countdown, max_retries)
        retry = Retry(exc=exc, when=countdown)
        if throw:
            raise retry
        return retry

    def _adopt_for_retry(
        self, exc: BaseException | None, countdown: float | None, max_retries: int | None
    ) -> float:
        """Let the next attempt of a task that was sent past the outbox wait there; return how long."""
        request = self.request
        attempts = (request.retries or 0) + 1
        limit = max_retries if max_retries is not None else self.max_retries
        if limit is not None and attempts > limit:
            raise exc or MaxRetriesExceededError(f"{self.name} was tried {attempts} times")
        if countdown is None:
            countdown = retry_delay_s(attempts, base_s=self.retry_base_s or self.ledger.settings.retry_base_s)
        self._adopt(
            UUID(request.id), request.args, request.kwargs, key=None, attempts=attempts, delay_s=countdown
        )
        return countdown

    def _adopt(self, id: UUID, args: Any, kwargs: Any, **values: Any) -> None:
        queue = (self.request.delivery_info or {}).get("routing_key") or ""
        arguments = encode([list(args), dict(kwargs)], f"the arguments of {self.name}")
        self.ledger.adopt(id, task=self.name, queue=queue, arguments=arguments, **values)

    # ------------------------------------------------------------------ running

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the task: as a plain function when it is called as one, else through the ledger."""
        request = self.request
        if request.called_directly and not request.is_eager:
            return self.run(*args, **kwargs)
        if request.is_eager:
            return self._run_eagerly(args, kwargs)
        is_enqueued = request.get(HEADER) is not None
        if not is_enqueued and not self.is_once:
            return self.run(*args, **kwargs)
        try:
            run = self._claim(args, kwargs, is_enqueued=is_enqueued)
        except SQLAlchemyError as error:
            _log.warning("%s waits: the ledger does not answer (%s)", self.name, type(error).__name__)
            time.sleep(_DATABASE_DOWN_S)
            if is_enqueued:  # its row is "published", and is published again
                raise Ignore from None
            raise Reject("the ledger does not answer", requeue=True) from None
        if isinstance(run, Run):
            return self._run_claimed(run, args, kwargs)
        if run == "succeeded":  # a duplicate: a chain may wait for it
            return self._stored_result(self._id(args, kwargs))
        raise Ignore  # runs elsewhere, waits for its time, was given up or cancelled

    def _run_eagerly(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not self.is_once:
            return self.run(*args, **kwargs)
        with self.app.open_session() as session:
            result = self.run(session, *args, **kwargs)
            session.commit()
            return result

    def _id(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> UUID:
        if self.once_key is not None and self.request.get(HEADER) is None:
            return task_id(self.name, type(self).once_key(*args, **kwargs))  # type: ignore[misc]
        return UUID(self.request.id)

    def _claim(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_enqueued: bool) -> Run | str | None:
        id, worker = self._id(args, kwargs), self.app.worker
        run = self.ledger.claim(id, worker=worker)
        if run is None and not is_enqueued:
            key = None if self.once_key is None else type(self).once_key(*args, **kwargs)  # type: ignore[misc]
            self._adopt(id, args, kwargs, key=key)
            run = self.ledger.claim(id, worker=worker)
        return run

    def _run_claimed(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._running.run, self._running.max_retries = run, None
        heartbeat = self.app.heartbeat
        heartbeat.watch(run)
        try:
            with self.app.task_context(json.loads(run.headers)):
                return (
                    self._run_once(run, args, kwargs)
                    if self.is_once
                    else self._run_and_store(run, args, kwargs)
                )
        except (Ignore, Reject):
            raise
        except TaskCancelledError:
            with suppress(SQLAlchemyError):
                self.ledger.cancel(run)
            raise Ignore from None
        except (Exception, SoftTimeLimitExceeded) as error:
            return self._fail(run, error)
        finally:
            heartbeat.watch(None)
            self._running.run = None

    def _run_and_store(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        result = self.run(*args, **kwargs)
        if not self.ledger.succeed(run, encode(result, f"the result of {self.name}")):
            raise Ignore  # another run is valid now
        return result

    def _run_once(self, run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with self.app.open_session() as session:
            result = self.run(session, *args, **kwargs)
            text = encode(result, f"the result of {self.name}")
            session.flush()
            if not self.ledger.succeed(run, text, session=session):
                session.rollback()
                raise Ignore  # another run is valid now, and does it
            session.commit()
        return result

    def _fail(self, run: Run, error: Exception) -> Any:
        """Store a failure, and tell Celery; what did succeed after all is returned."""
        attempt = run.attempts + 1
        delay_s = self._delay_s(error, attempt)
        cause = error.exc if isinstance(error, Retry) and error.exc is not None else error
        text = "".join(traceback.format_exception(cause))[-8192:].replace("\0", "")
        text = text.encode(errors="replace").decode()
        try:
            if not self.ledger.fail(run, text, delay_s=delay_s):
                if (found := self.ledger.look(run.id)) and found[0] == "succeeded":  # COMMIT, but no answer
                    return self._stored_result(run.id)
                raise Ignore from None
        except SQLAlchemyError:  # the heartbeat ends: it is started again
            _log.warning("the failure of %s could not be stored: it is started again", self.name)
            raise Ignore from None
        if delay_s is None:
            raise cause
        raise Retry(exc=cause, when=delay_s) from None

    def _delay_s(self, error: Exception, attempt: int) -> float | None:
        limit = getattr(self._running, "max_retries", None)
        if limit is None:
            limit = self.max_retries if self.max_retries is not None else float("inf")
        if attempt > limit or isinstance(error, (*self.throws, TaskError)):
            return None
        if isinstance(error, Retry) and isinstance(error.when, int | float):
            return float(error.when)
        base_s = self.retry_base_s or self.ledger.settings.retry_base_s
        return retry_delay_s(attempt, base_s=base_s)

    def _stored_result(self, id: UUID) -> Any:
        found = self.ledger.look(id)
        from kombu.utils import json as kombu_json

        return kombu_json.loads(found[1]) if found and found[1] else None


class Heartbeat(ProcessThread):
    """Stores a sign of life of the task that this process runs, every five seconds."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__(name="tenfold-task-heartbeat")
        self._ledger = ledger
        self._run_now: Run | None = None

    def watch(self, run: Run | None) -> None:
        """Watch another run; None when it has ended."""
        self.start()
        self._run_now = run

    def _run(self, stopping: threading.Event) -> None:
        interval_s = min(_BEAT_S, self._ledger.settings.lost_after_s / 4)
        last: Run | None = None
        while not stopping.wait(interval_s):
            run = self._run_now
            if run is not None and run is last:  # not the short ones
                with suppress(SQLAlchemyError):
                    self._ledger.beat(run)
            last = run


def check_function(function: Callable[..., Any]) -> None:
    """Refuse a function that no worker would run.

    Raises:
        SettingsError: it is ``async def``: Celery would report success without having run it.
    """
    if iscoroutinefunction(function):
        raise SettingsError(
            f"{function.__qualname__} is async def, which Celery does not run: "
            "write def, and asyncio.run(…) inside of it"
        )
