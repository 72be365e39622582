"""The users: who is logged in, who is idle, which arrivals wait for whom, and how the crew grows."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import gevent
from gevent import get_hub
from locust.event import EventHook

from tenfold.errors import ScenarioError
from tenfold.measure.load.locust.user_driver import Agent, adopt, raised_text
from tenfold.measure.load.schedule import apportion

if TYPE_CHECKING:
    from tenfold.measure.load.locust.trial_run import Book, Work
    from tenfold.measure.load.locust.closed_loop import ClosedLoop

# Between trials logins may follow each other as fast as the service answers a few of them at once.
LOGINS_PER_S = 200.0
LOGINS_AT_ONCE = 8
# In a trial they must not become the load: one login for ten arrivals, but not fewer than this a second.
LOGIN_SHARE = 0.1
LEAST_LOGINS_PER_S = 10.0
REINFORCE_EVERY_S = 0.05
HOPELESS_AFTER = 3


class Pool:
    """The users of one class, and the arrivals that fell to it and found none of them idle.

    An arrival falls to any idle user with the same chance. In turn would be cheaper and wrong: users that
    logged in together would walk through a sequence of tasks in step, and the load would come in waves of
    one kind.
    """

    def __init__(self, user_class: Any) -> None:
        self.user_class = user_class
        self.weight = float(user_class.weight)
        self.fixed = int(user_class.fixed_count)
        self.living = 0
        self.idle: list[Agent] = []
        self.queue: deque[tuple[Book, int]] = deque()
        self._chance = random.Random(1).random  # noqa: S311 - a reproducible choice, not a secret

    def offer(self, book: Book, arrival: int) -> None:
        """An arrival is due: one of the idle users takes it, or it waits for one."""
        idle = self.idle
        if idle:
            chosen = int(self._chance() * len(idle))
            agent, idle[chosen] = idle[chosen], idle[-1]
            idle.pop()
            get_hub().loop.run_callback(agent.greenlet.switch, (book, arrival, True))
        else:
            self.queue.append((book, arrival))

    def waiting(self) -> Work | None:
        """The arrival that has waited the longest and is still worth sending."""
        while self.queue:
            book, arrival = self.queue.popleft()
            now = book.now()
            if not book.ledger.expired(arrival, now):
                return book, arrival, False
            book.drop(arrival, now)
        return None

    def shed(self) -> None:
        """Drop what has waited too long, so that the queue never holds more than ``slow_s`` of arrivals."""
        while self.queue:
            book, arrival = self.queue[0]
            now = book.now()
            if not book.ledger.expired(arrival, now):
                return
            self.queue.popleft()
            book.drop(arrival, now)

    def forget(self, agent: Agent) -> None:
        """The user is not idle any more."""
        if agent in self.idle:
            self.idle.remove(agent)

    @property
    def short(self) -> bool:
        """Whether another user would be of use."""
        if self.fixed and self.living >= self.fixed:
            return False
        return bool(self.queue) or len(self.idle) * 20 < self.living


class Crew:
    """All users of one environment, in pools by class.

    Args:
        environment: Locust's.
        group: the gevent group that the users' greenlets join.
        user_classes: what to make users of; at least one.
        hook: whose listeners hear the users' requests.
        max_users: most users at once, all classes together.
        spawn_rate: most logins a second, in a trial and before it.
    """

    def __init__(
        self,
        environment: Any,
        *,
        group: Any,
        user_classes: list[Any],
        hook: EventHook,
        max_users: int,
        spawn_rate: float,
    ) -> None:
        self.pools = [Pool(user_class) for user_class in user_classes]
        self.closed: ClosedLoop | None = None
        self.replacing = False  # whether a user that stops itself is followed by another at once
        self.logging_in = 0
        self.logins = 0  # users that got through on_start with every request answered well
        self.failed = 0  # users that did not get through, or had a request of on_start fail
        self.login_errors: list[str] = []
        self.max_users = max_users
        self._spawn_rate = spawn_rate
        self._environment = environment
        self._group = group
        self._hook = hook

    @property
    def users(self) -> int:
        """Users that are logged in."""
        return self._living - self.logging_in

    @property
    def _living(self) -> int:
        return sum(pool.living for pool in self.pools)

    def enlist(self, user: Any) -> Agent:
        """A user that is about to be started."""
        pool = next(pool for pool in self.pools if type(user) is pool.user_class)
        pool.living += 1
        self.logging_in += 1
        return adopt(user, self, pool, self._hook)

    def arrived(self, agent: Agent) -> None:
        """The user is through ``on_start``. Runs in its greenlet, and in an open loop parks it."""
        agent.logging_in = False
        self.logging_in -= 1
        self._note_errors(agent)
        if self.closed is None:
            agent.park()
        else:
            self.closed.begin(agent)

    def left(self, agent: Agent, ended: Any) -> None:
        """The user's greenlet ended: it stopped itself, was stopped, or raised."""
        agent.pool.living -= 1
        agent.pool.forget(agent)
        if agent.logging_in:
            agent.logging_in = False
            self.logging_in -= 1
            if not agent.login_errors:
                why = ended.exception
                agent.login_errors.append(
                    raised_text(why, why.__traceback__) if why else "on_start stopped it"
                )
            self._note_errors(agent)
        elif self.replacing:
            gevent.spawn(self._spawn, agent.pool)
        agent.finish()

    def fill(self, wanted: int, *, timeout_s: float, going: Callable[[], bool] = lambda: True) -> None:
        """Log users in until ``wanted`` are there, or all logins seem to fail, or the time is over.

        Raises:
            ScenarioError: nobody has ever got through ``on_start``, or a user cannot even be made.
        """
        self._fill(wanted, deadline=monotonic() + timeout_s, going=going)
        if not self.logins and going():
            raise ScenarioError(self._why_nobody(timeout_s))

    def _fill(self, wanted: int, *, deadline: float, going: Callable[[], bool]) -> None:
        wanted = min(wanted, self.max_users)
        attempts = 2 * max(0, wanted - self._living) + HOPELESS_AFTER
        counts = apportion(
            wanted,
            weights=[pool.weight for pool in self.pools],
            fixed=[pool.fixed for pool in self.pools],
        )
        while monotonic() < deadline and going() and not self._hopeless:
            missing, pool = max(
                ((count - pool.living, pool) for count, pool in zip(counts, self.pools, strict=True)),
                key=lambda pair: pair[0],
            )
            if missing > 0 and attempts > 0 and self.logging_in < LOGINS_AT_ONCE:
                attempts -= 1
                self._spawn(pool)
                gevent.sleep(1 / self._spawn_rate)
            elif not self.logging_in and (missing <= 0 or attempts <= 0):
                return
            else:
                gevent.sleep(1 / LOGINS_PER_S)

    def require_users(self) -> None:
        """Raise ScenarioError when users tried to log in and none of them ever got through."""
        if self.failed and not self.logins:
            raise ScenarioError(self._why_nobody(0.0))

    @property
    def _hopeless(self) -> bool:
        return not self.logins and self.failed >= HOPELESS_AFTER

    def reinforce(self, *, rate: float, going: Callable[[], bool]) -> None:
        """While a trial runs, log another user in where too few are idle, slowly enough to be no load."""
        per_s = min(max(LEAST_LOGINS_PER_S, rate * LOGIN_SHARE), self._spawn_rate)
        per_tick = per_s * REINFORCE_EVERY_S
        allowed = 0.0
        while going():
            gevent.sleep(REINFORCE_EVERY_S)
            allowed = min(allowed + per_tick, LOGINS_AT_ONCE)
            while allowed >= 1 and (pool := self._shortest()) is not None:
                allowed -= 1
                self._spawn(pool)

    def _shortest(self) -> Pool | None:
        """The pool that needs another user the most, if there may be one."""
        if self._living >= self.max_users or self.logging_in >= LOGINS_AT_ONCE:
            return None
        return max((pool for pool in self.pools if pool.short), key=lambda p: len(p.queue), default=None)

    def shed(self) -> None:
        """Drop the arrivals that have waited too long for a user."""
        for pool in self.pools:
            pool.shed()

    def _why_nobody(self, within_s: float) -> str:
        if not self.failed:
            return f"no user got through on_start within {within_s:g} s; look at the service's log"
        return (
            f"none of {self.failed} users got through on_start: {self.login_errors[-1]}; "
            "check the login in the locustfile"
        )

    def _spawn(self, pool: Pool) -> None:
        try:
            user = pool.user_class(self._environment)
        except Exception as error:
            why = raised_text(error, error.__traceback__)
            raise ScenarioError(f"no user could be made: {why}; correct the locustfile") from error
        self.enlist(user)
        user.start(self._group)

    def _note_errors(self, agent: Agent) -> None:
        if not agent.login_errors:
            self.logins += 1
        else:
            self.failed += 1
            self.login_errors = [*self.login_errors[-9:], agent.login_errors[0]]
            agent.login_errors = []
