"""A Locust user under our direction: it runs its own unmodified ``run()``, and waiting is the hand-over.

Locust's users loop "task, wait, task, wait". In an open-loop trial ``wait()`` parks the user's greenlet
until an arrival is due, whatever ``wait_time`` says; so nested and sequential task sets, ``interrupt()``
and ``on_stop`` stay what they are. An arrival is what a user does between two waits. A task that calls
``self.wait()`` in its middle is therefore two arrivals.

The corrected latency of an arrival's first request is the time from its due moment until a user took it
over, plus what the client measured. What the locustfile does before it sends (``time.sleep`` in a task) is
neither the service's time nor ours, and is left out.

Three places of Locust 2 are replaced in this process: ``TaskSet.wait``, ``User.start`` and the root task
set. Requests find their user through the client's own event object, since the arguments of
``events.request`` do not carry it; listeners of the locustfile still hear every one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import locust
import locust.user.users
from gevent import get_hub, getcurrent
from locust.event import EventHook
from locust.exception import StopUser
from locust.user.task import (
    LOCUST_STATE_RUNNING,
    LOCUST_STATE_STOPPING,
    LOCUST_STATE_WAITING,
    DefaultTaskSet,
    TaskSet,
)

from tenfold.measure.load.answers import UNANSWERED
from tenfold.measure.load.arrivals import Fate, fate_of

if TYPE_CHECKING:
    from tenfold.measure.load.locust.trial_run import Book, Work
    from tenfold.measure.load.locust.user_pool import Crew, Pool

_sleep_wait_time: Callable[[Any], None] = TaskSet.wait
_start_greenlet: Callable[[Any, Any], Any] = locust.User.start
_MARK = "_tenfold_agent"


class Agent:
    """What a user is doing for us: logging in, idle, or sending an arrival of some trial's book."""

    __slots__ = (
        "arrival",
        "asked_s",
        "asking",
        "book",
        "crew",
        "fresh",
        "greenlet",
        "logging_in",
        "login_errors",
        "pool",
        "requests",
        "user",
        "waited_ms",
    )

    def __init__(self, user: Any, crew: Crew, pool: Pool) -> None:
        self.user = user
        self.crew = crew
        self.pool = pool
        self.greenlet: Any = None
        self.logging_in = True
        self.login_errors: list[str] = []
        self.book: Book | None = None
        self.arrival = -1
        self.fresh = False  # no request of the arrival was answered yet
        self.requests = 0
        self.waited_ms = 0.0  # from the due time until the user took over
        self.asking: tuple[str, str] | None = None  # the request that is under way
        self.asked_s = 0.0

    def park(self) -> None:
        """Give the arrival back, wait for the next one and take it. Runs in the user's greenlet."""
        if self.user._state == LOCUST_STATE_STOPPING:
            raise StopUser()
        self.user._state = LOCUST_STATE_WAITING
        self.begin(*self._next())
        self.user._state = LOCUST_STATE_RUNNING

    def _next(self) -> Work:
        self.finish()
        work = self.pool.waiting()
        if work is None:
            self.pool.idle.append(self)
            try:
                work = get_hub().switch()
            except BaseException:
                self.pool.forget(self)
                raise
        return work

    def begin(self, book: Book, arrival: int, free: bool) -> None:
        """The user's next steps belong to this arrival."""
        now = book.now()
        self.book, self.arrival = book, arrival
        self.fresh, self.requests = True, 0
        self.waited_ms = (now - book.ledger.due[arrival]) * 1000
        book.busy.add(self)
        book.ledger.hand(arrival, now, free=free)

    def finish(self) -> None:
        """The arrival is over, if there is one."""
        book, self.book = self.book, None
        if book is not None:
            if not self.requests:
                book.without_request += 1
            book.busy.discard(self)
            book.ledger.end(self.arrival, book.now())

    def answered(self, meta: dict[str, Any]) -> None:
        """A request of this user was answered, or failed."""
        book = self.book
        error = meta.get("exception")
        status = getattr(meta.get("response"), "status_code", None) or 0
        if book is None:
            if self.logging_in and error is not None:
                self.login_errors.append(_message(meta, status, error))
            return
        raw_ms = meta.get("response_time") or 0.0
        corrected_ms = raw_ms + self.waited_ms if self.fresh else raw_ms
        self.fresh = False
        self.requests += 1
        fate = fate_of(
            status, failed=error is not None, corrected_ms=corrected_ms, slow_ms=book.ledger.slow_ms
        )
        book.ledger.answer(self.arrival, fate)
        if fate >= Fate.REFUSED:
            book.tallies.error(_message(meta, status, error))
        tally = book.tallies.of(meta["request_type"], meta["name"])
        tally.add(status, fate, corrected_ms, raw_ms, meta.get("response_length") or 0)

    def raised(self, message: str) -> None:
        """The task ended with an exception that is not Locust's own."""
        if self.book is not None:
            self.requests += 1  # it did try: not an arrival without a request
            self.book.ledger.blame(self.arrival, Fate.FAILED)
            self.book.tallies.error(message)
        elif self.logging_in:
            self.login_errors.append(message)

    def overdue(self, now: float) -> None:
        """Blame the arrival for a later request that is already too slow, before it is answered."""
        book = self.book
        if book is not None and self.asking and not self.fresh and now - self.asked_s > book.ledger.slow_s:
            book.ledger.blame(self.arrival, Fate.SLOW)

    def abandon(self) -> None:
        """The trial is over and the answer is not there: its latency is at least what it is now."""
        book, self.book = self.book, None
        if book is None or self.asking is None:
            return
        raw_ms = (book.now() - self.asked_s) * 1000
        corrected_ms = raw_ms + self.waited_ms if self.fresh else raw_ms
        book.tallies.of(*self.asking).add(UNANSWERED, Fate.SLOW, corrected_ms, raw_ms, 0)

    def follow(self, client: Any, hook: EventHook) -> None:
        """Give the client its own event, and know when it is asking."""
        ask = getattr(client, "request", None)
        if callable(ask) and isinstance(getattr(client, "request_event", None), EventHook):
            client.request_event = UserHook(self, hook)
            client.request = self._asking(client, ask)

    def _asking(self, client: Any, ask: Callable[..., Any]) -> Callable[..., Any]:
        def request(method: str, url: str, *args: Any, **options: Any) -> Any:
            name = (
                options.get("name")
                or (args[0] if args else None)
                or getattr(client, "request_name", None)
                or url
            )
            self.asking = (method, name)
            book = self.book
            self.asked_s = book.now() if book is not None else 0.0
            try:
                return ask(method, url, *args, **options)
            finally:
                self.asking = None

        return request


class RequestHook(EventHook):
    """``events.request``, for clients that fire it themselves: the user is the one whose greenlet this is."""

    def __init__(self) -> None:
        self._handlers: list[Any] = []

    def fire(self, *, reverse: bool = False, **meta: Any) -> None:
        agent = getattr(getcurrent(), _MARK, None)
        if agent is not None:
            agent.answered(meta)
        if self._handlers:
            EventHook.fire(self, reverse=reverse, **meta)


class UserHook(EventHook):
    """The event of one user's client; its listeners are those of ``events.request``."""

    def __init__(self, agent: Agent, shared: EventHook) -> None:
        self._agent = agent
        self._handlers = shared._handlers

    def fire(self, *, reverse: bool = False, **meta: Any) -> None:
        self._agent.answered(meta)
        if self._handlers:
            EventHook.fire(self, reverse=reverse, **meta)


class RootTaskSet(DefaultTaskSet):
    """The outermost task set: its ``on_start`` runs when the user's own is through."""

    def on_start(self) -> None:
        agent = agent_of(self.user)
        if agent is not None:
            agent.crew.arrived(agent)


def agent_of(user: Any) -> Agent | None:
    """The agent of a user that one of our crews started."""
    return getattr(user, _MARK, None)


def install() -> None:
    """Replace Locust's waiting, its starting of users and its root task set, and hear its user errors."""
    locust.user.users.DefaultTaskSet = RootTaskSet  # type: ignore[attr-defined]
    TaskSet.wait = _wait  # type: ignore[method-assign]
    locust.User.start = _start  # type: ignore[method-assign, assignment]
    locust.events.request = RequestHook()
    locust.events.user_error.add_listener(_user_error)


def adopt(user: Any, crew: Crew, pool: Pool, hook: EventHook) -> Agent:
    """Put a new user under direction, before it is started."""
    agent = Agent(user, crew, pool)
    setattr(user, _MARK, agent)
    client = vars(user).get("client")  # one that all users of a class share cannot tell them apart
    if client is not None:
        agent.follow(client, hook)
    user.on_stop = partial(_stop, agent, user.on_stop)
    return agent


def _stop(agent: Agent, on_stop: Callable[[], None]) -> None:
    """``on_stop``: what it sends belongs to no arrival."""
    agent.finish()
    on_stop()


def _start(user: Any, group: Any) -> Any:
    """``User.start``: a user that Locust's own runner starts belongs to the crew of its environment."""
    agent = agent_of(user)
    if agent is None:
        crew = getattr(user.environment, "tenfold_crew", None)
        if crew is None:
            return _start_greenlet(user, group)
        agent = crew.enlist(user)
    agent.greenlet = _start_greenlet(user, group)
    setattr(agent.greenlet, _MARK, agent)
    agent.greenlet.link(lambda ended: agent.crew.left(agent, ended))
    return agent.greenlet


def _wait(tasks: Any) -> None:
    """``TaskSet.wait``."""
    agent = agent_of(tasks.user)
    if agent is None or agent.logging_in:
        _sleep_wait_time(tasks)
        return
    if agent.crew.closed is None:
        agent.park()
        return
    agent.finish()
    _sleep_wait_time(tasks)
    agent.crew.closed.begin(agent)


def _user_error(user_instance: Any, exception: BaseException, tb: Any, **_: Any) -> None:
    # Locust hands over the task set that the exception passed through, whatever the argument is called.
    agent = agent_of(getattr(user_instance, "user", user_instance))
    if agent is not None:
        agent.raised(raised_text(exception, tb))


def raised_text(exception: BaseException, tb: Any) -> str:
    """The exception and the last line of the user's own code that it came through."""
    where = ""
    while tb is not None:
        file = tb.tb_frame.f_code.co_filename
        if "site-packages" not in file and "tenfold/measure" not in file:
            where = f" ({file.rpartition('/')[2]}:{tb.tb_lineno})"
        tb = tb.tb_next
    return f"{type(exception).__name__}: {exception}{where}"


def _message(meta: dict[str, Any], status: int, error: BaseException | None) -> str:
    endpoint = f"{meta.get('request_type')} {meta.get('name')}"
    if error is None or (status >= 400 and not _by_hand(error)):
        return f"{endpoint} answered {status}"
    return f"{endpoint}: {type(error).__name__}: {error}"


def _by_hand(error: BaseException) -> bool:
    """Whether the locustfile itself called the answer a failure."""
    return type(error).__name__ == "CatchResponseError"
