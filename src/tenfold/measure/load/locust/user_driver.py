"""Driving a Locust user: it runs its own unmodified ``run()``, and takes its next arrival in ``wait()``.

Locust's users loop "task, wait, task, wait". In an open-loop trial ``wait()`` parks the user's greenlet
until an arrival is due, whatever ``wait_time`` says; so nested and sequential task sets, ``interrupt()``
and ``on_stop`` stay what they are. An arrival is what a user does between two waits. A task that calls
``self.wait()`` in its middle is therefore two arrivals.

The corrected latency of an arrival's first request is the time from its due time until a user started it,
plus what the client measured. What the locustfile does before it sends (``time.sleep`` in a task) is
neither the service's time nor the generator's, and is left out.

These places of Locust 2 are replaced in this process: ``TaskSet.wait``, ``TaskSet.execute_task``,
``User.start`` and the root task set. Requests find their user through the client's own event object, since
the arguments of ``events.request`` do not carry it; listeners of the locustfile still hear every one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import locust
import locust.user.users
from gevent import GreenletExit, getcurrent
from locust.event import EventHook
from locust.exception import StopUser
from locust.user.task import (
    LOCUST_STATE_RUNNING,
    LOCUST_STATE_STOPPING,
    LOCUST_STATE_WAITING,
    DefaultTaskSet,
    TaskSet,
)

from tenfold.measure.load.locust.trial_run import ActiveArrival

_sleep_wait_time: Callable[[Any], None] = TaskSet.wait
_run_task: Callable[[Any, Any], None] = TaskSet.execute_task
_start_greenlet: Callable[[Any, Any], Any] = locust.User.start
_MARK = "_tenfold_driver"
_ARRIVAL = "_tenfold_arrival"  # of a greenlet that a task started: the arrival in which it sends
_ENLIST = "_tenfold_enlist"

Think = Callable[[], None]


class UserDriver:
    """One Locust user under direction: logging in, idle, or sending an arrival.

    Args:
        user: Locust's user, not started yet.
        next_turn: called in the user's greenlet when its task is over, with the driver and with what sleeps
            for the user's own ``wait_time``; returns when the user is to act again.
        on_login: called when the user is through ``on_start``.
        on_end: called with the driver and the greenlet when the user has ended.
    """

    __slots__ = (
        "_next_turn",
        "_on_login",
        "active",
        "greenlet",
        "has_raised",
        "logging_in",
        "login_errors",
        "notes_sending",
        "on_end",
        "user",
    )

    def __init__(
        self,
        user: Any,
        *,
        next_turn: Callable[[UserDriver, Think], None],
        on_login: Callable[[UserDriver], None],
        on_end: Callable[[UserDriver, Any], None],
    ) -> None:
        self.user = user
        self.on_end = on_end
        self.greenlet: Any = None
        self.logging_in = True
        self.login_errors: list[str] = []
        self.has_raised = False  # in its login
        self.active: ActiveArrival | None = None
        self.notes_sending = False  # its client tells when it sends
        self._next_turn = next_turn
        self._on_login = on_login

    def finish_login(self) -> None:
        """End the login and let the user act when it is due. Runs in the user's greenlet."""
        self.logging_in = False
        self._on_login(self)
        self._next_turn(self, lambda: None)

    def wait(self, think: Think) -> None:
        """Let the user act when its next arrival is due; in its login, after ``think``."""
        if not self.logging_in:
            self._next_turn(self, think)
        elif self.has_raised:  # Locust would log in again at once, for ever
            raise StopUser()
        else:
            think()

    def park(self, next_arrival: Callable[[UserDriver], ActiveArrival]) -> None:
        """End the arrival, wait for the next one and start it. Runs in the user's greenlet."""
        if self.user._state == LOCUST_STATE_STOPPING:
            raise StopUser()
        self.user._state = LOCUST_STATE_WAITING
        self.finish()
        self.active = next_arrival(self)
        self.user._state = LOCUST_STATE_RUNNING

    def finish(self) -> None:
        """End the arrival, if there is one."""
        active, self.active = self.active, None
        if active is not None:
            active.finish()

    def record(self, meta: dict[str, Any], *, may_be_flow: bool = False) -> None:
        """Record a request of this user; ``meta`` is what Locust tells its listeners.

        ``may_be_flow``: the locustfile fired the event. When it timed several requests as one, it is no
        further request; its failure is one of the arrival.
        """
        error = meta.get("exception")
        status = getattr(meta.get("response"), "status_code", None) or 0
        failure = None if error is None else _message(meta, status, error)
        active = self._arrival()
        if active is not None and may_be_flow and active.is_flow(meta.get("response_time") or 0.0):
            if failure is not None:
                active.record_exception(failure)
        elif active is not None:
            active.record(
                meta["request_type"],
                meta["name"],
                status=status,
                raw_ms=meta.get("response_time") or 0.0,
                size=meta.get("response_length") or 0,
                failure=failure,
            )
        elif self.logging_in and failure is not None:
            self.login_errors.append(failure)

    def _arrival(self) -> ActiveArrival | None:
        """The arrival to which an answer belongs that is reported now.

        A greenlet that the task started may report when the task is over: then the arrival has its result,
        and the next one must not get the answer.
        """
        current = getcurrent()
        if current is self.greenlet:
            return self.active
        started_in: ActiveArrival | None = getattr(current, _ARRIVAL, self.active)
        return None if started_in is None or started_in.is_over else started_in

    def start_task(self, task: Any) -> None:
        """Note the name of the task that the user starts.

        The first that is no task set ends the login: until then only ``on_start`` has run, the user's and
        those of the task sets in which it begins.
        """
        if self.logging_in and not isinstance(task, type):
            self.finish_login()
        if self.active is not None:
            self.active.task = f"{type(self.user).__name__}.{getattr(task, '__name__', task)}"

    def record_exception(self, message: str) -> None:
        """Record that the task ended with an exception that is not Locust's own."""
        if self.active is not None:
            self.active.record_exception(message)
        elif self.logging_in:
            self.has_raised = True
            self.login_errors.append(message)

    def follow(self, client: Any, hook: EventHook) -> None:
        """Give the client an event of its own, and note when it sends."""
        send = getattr(client, "request", None)
        if callable(send) and isinstance(getattr(client, "request_event", None), EventHook):
            self.notes_sending = True
            client.request_event = UserHook(self, hook)
            client.request = self._noting_requests(client, send)

    def _noting_requests(self, client: Any, send: Callable[..., Any]) -> Callable[..., Any]:
        def request(method: str, url: str, *args: Any, **options: Any) -> Any:
            active = self.active
            if active is None:
                return send(method, url, *args, **options)
            if active.is_stopped:  # its trial is over, and the next one must not get its requests
                raise GreenletExit
            if (current := getcurrent()) is not self.greenlet:
                setattr(current, _ARRIVAL, active)
            name = options.get("name") or (args[0] if args else None)
            active.send(method, name or getattr(client, "request_name", None) or url)
            try:
                return send(method, url, *args, **options)
            finally:
                active.end_request()

        return request


class RequestHook(EventHook):
    """``events.request`` for clients that fire it themselves: their user is the one of this greenlet."""

    def __init__(self) -> None:
        self._handlers: list[Any] = []

    def fire(self, *, reverse: bool = False, **meta: Any) -> None:
        driver = getattr(getcurrent(), _MARK, None)
        if driver is not None:
            driver.record(meta, may_be_flow=True)
        if self._handlers:
            EventHook.fire(self, reverse=reverse, **meta)


class UserHook(EventHook):
    """The event of one user's client; its listeners are those of ``events.request``."""

    def __init__(self, driver: UserDriver, shared: EventHook) -> None:
        self._driver = driver
        self._handlers = shared._handlers

    def fire(self, *, reverse: bool = False, **meta: Any) -> None:
        self._driver.record(meta)
        if self._handlers:
            EventHook.fire(self, reverse=reverse, **meta)


class RootTaskSet(DefaultTaskSet):
    """The outermost task set, which notes what it starts."""

    def execute_task(self, task: Any) -> None:
        _note_task(self.user, task)
        super().execute_task(task)  # type: ignore[no-untyped-call]


def driver_of(user: Any) -> UserDriver | None:
    """Return the driver of a user, or None for a user without one."""
    return getattr(user, _MARK, None)


def install() -> None:
    """Replace Locust's waiting, its starting of tasks and users and its root task set; listen to errors."""
    locust.user.users.DefaultTaskSet = RootTaskSet  # type: ignore[attr-defined]
    TaskSet.wait = _wait  # type: ignore[method-assign]
    TaskSet.execute_task = _execute_task  # type: ignore[method-assign]
    locust.User.start = _start  # type: ignore[method-assign, assignment]
    locust.events.request = RequestHook()
    locust.events.user_error.add_listener(_user_error)


def enlist_users_of(environment: Any, enlist: Callable[[Any], UserDriver]) -> None:
    """Let ``enlist`` make the drivers of users that Locust's own runner starts in this environment."""
    setattr(environment, _ENLIST, enlist)


def attach(driver: UserDriver, hook: EventHook) -> None:
    """Put the driver's user under its direction, before it is started."""
    user = driver.user
    setattr(user, _MARK, driver)
    client = vars(user).get("client")  # one that all users of a class share cannot tell them apart
    if client is not None:
        driver.follow(client, hook)
    user.on_stop = partial(_stop, driver, user.on_stop)


def _stop(driver: UserDriver, on_stop: Callable[[], None]) -> None:
    """Run ``on_stop``; what it sends belongs to no arrival."""
    driver.finish()
    on_stop()


def _start(user: Any, group: Any) -> Any:
    """Replacement of ``User.start``."""
    driver = driver_of(user)
    if driver is None:
        enlist = getattr(user.environment, _ENLIST, None)
        if enlist is None:
            return _start_greenlet(user, group)
        driver = enlist(user)
    driver.greenlet = _start_greenlet(user, group)
    setattr(driver.greenlet, _MARK, driver)
    driver.greenlet.link(partial(driver.on_end, driver))
    return driver.greenlet


def _wait(tasks: Any) -> None:
    """Replacement of ``TaskSet.wait``."""
    driver = driver_of(tasks.user)
    if driver is None:
        _sleep_wait_time(tasks)
    else:
        driver.wait(partial(_sleep_wait_time, tasks))


def _execute_task(tasks: Any, task: Any) -> None:
    """Replacement of ``TaskSet.execute_task``."""
    _note_task(tasks.user, task)
    _run_task(tasks, task)


def _note_task(user: Any, task: Any) -> None:
    driver = driver_of(user)
    if driver is not None:
        driver.start_task(task)


def _user_error(user_instance: Any, exception: BaseException, tb: Any, **_: Any) -> None:
    # Locust hands over the task set that the exception passed through, whatever the argument is called.
    driver = driver_of(getattr(user_instance, "user", user_instance))
    if driver is not None:
        driver.record_exception(exception_text(exception, tb))


def exception_text(exception: BaseException, tb: Any) -> str:
    """The exception and the last line of the user's own code that it came through."""
    where = ""
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if "site-packages" not in file and "tenfold/measure" not in file:
            where = f" ({file.rpartition('/')[2]}:{tb.tb_lineno})"
        tb = tb.tb_next
    return f"{type(exception).__name__}: {exception}{where}"


def _message(meta: dict[str, Any], status: int, error: BaseException) -> str:
    endpoint = f"{meta.get('request_type')} {meta.get('name')}"
    if status >= 400 and not _is_marked_by_locustfile(error):
        return f"{endpoint} answered {status}"
    return f"{endpoint}: {type(error).__name__}: {error}"


def _is_marked_by_locustfile(error: BaseException) -> bool:
    """Return whether the locustfile itself called the answer a failure."""
    return type(error).__name__ == "CatchResponseError"
