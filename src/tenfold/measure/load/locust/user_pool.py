"""The users: who is logged in, who is idle, which arrivals wait, and how the number of users grows."""

from __future__ import annotations

import random
import re
import sys
from collections import Counter, deque
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import gevent
from gevent import get_hub
from locust.event import EventHook

from tenfold.errors import ScenarioError
from tenfold.measure.load.answers import MAX_MESSAGES, MESSAGE_LENGTH
from tenfold.measure.load.locust.trial_run import ActiveArrival, TrialRun
from tenfold.measure.load.locust.user_driver import (
    Think,
    UserDriver,
    attach,
    enlist_users_of,
    exception_text,
)
from tenfold.measure.load.schedule import apportion, arrival_shares
from tenfold.measure.trial import TASK_LIMIT_S

# Between trials logins may follow each other as fast as the service answers a few of them at once.
LOGINS_PER_S = 200.0
LOGINS_AT_ONCE = 8
# In a trial they must not become the load: one login for ten arrivals, but not fewer than this a second.
LOGIN_SHARE = 0.1
LEAST_LOGINS_PER_S = 10.0
REINFORCE_EVERY_S = 0.05
STALL_S, LONG_STALL_S = 1.0, 5.0  # without a login that ends; the second grows with how long logins take
_SERVICE_FAILED = re.compile(r"answered 5\d\d")  # a failure of the service, not of the login
HOPELESS_AFTER = 3


class ClassPool:
    """The users of one class, and the arrivals of that class that wait for an idle user.

    An arrival falls to any idle user with the same chance. In turn would be cheaper and wrong: users that
    logged in together would walk through a sequence of tasks in step, and the load would come in waves of
    one kind.
    """

    def __init__(self, user_class: Any) -> None:
        self.user_class = user_class
        self.weight = float(user_class.weight)
        self.fixed = int(user_class.fixed_count)
        self.living = 0
        self.queue: deque[tuple[TrialRun, int]] = deque()
        self._idle: list[UserDriver] = []
        self._chance = random.Random(1).random  # noqa: S311 - a reproducible choice, not a secret

    def offer(self, trial: TrialRun, arrival: int) -> None:
        """Hand an arrival that is due to one of the idle users, or queue it."""
        idle = self._idle
        if idle:
            chosen = int(self._chance() * len(idle))
            driver, idle[chosen] = idle[chosen], idle[-1]
            idle.pop()
            get_hub().loop.run_callback(driver.greenlet.switch, (trial, arrival))
        else:
            self.queue.append((trial, arrival))

    def next_arrival(self, driver: UserDriver) -> ActiveArrival:
        """Start the longest queued arrival, or wait idle for the next one. Runs in the user's greenlet."""
        self.drop_expired()
        queued = bool(self.queue)
        trial, arrival = self.queue.popleft() if queued else self._wait(driver)
        return trial.begin(arrival, trial.now(), free=not queued, notes_sending=driver.notes_sending)

    def _wait(self, driver: UserDriver) -> tuple[TrialRun, int]:
        self._idle.append(driver)
        try:
            offered: tuple[TrialRun, int] = get_hub().switch()
        except BaseException:
            self.remove(driver)
            raise
        return offered

    def drop_expired(self) -> None:
        """Drop what has waited too long, so that the queue never holds more than ``slow_s`` of arrivals."""
        while self.queue:
            trial, arrival = self.queue[0]
            if not trial.drop_expired(arrival):
                return
            self.queue.popleft()

    def remove(self, driver: UserDriver) -> None:
        """Take the user out of the idle ones."""
        if driver in self._idle:
            self._idle.remove(driver)

    @property
    def is_short(self) -> bool:
        """True when another user would be of use."""
        if self.fixed and self.living >= self.fixed:
            return False
        return bool(self.queue) or len(self._idle) * 20 < self.living


class UserPool:
    """All users of one environment, in one :class:`ClassPool` for each class.

    Args:
        environment: Locust's.
        group: the gevent group that the users' greenlets join.
        user_classes: classes of the users; at least one.
        hook: the event whose listeners hear the users' requests.
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
        self.classes = [ClassPool(user_class) for user_class in user_classes]
        # In a closed loop: lets a user go on to its next task. None in an open loop.
        self.closed_turn: Callable[[UserDriver, Think], None] | None = None
        self._drivers: set[UserDriver] = set()
        self.task_s: float | None = None  # what a task takes beyond its first answer; None before it is known
        self.replacing = False  # whether a user that stops itself is followed by another at once
        self.logging_in = 0
        self.logged_in = 0  # users that got through on_start with every request answered well, ever
        self.failed = 0  # users that did not get through, or had a request of on_start fail
        self.login_errors: list[str] = []
        self._new_login_errors: Counter[str] = Counter()  # since the last trial
        self.max_users = max_users
        self._spawn_rate = spawn_rate
        self._environment = environment
        self._group = group
        self._hook = hook

    @property
    def folder(self) -> Path:
        """The folder whose lines are the scenario's: the current one, or that of a locustfile elsewhere."""
        module = sys.modules.get(self.classes[0].user_class.__module__)
        file, current = Path(getattr(module, "__file__", None) or "."), Path.cwd()
        return current if file.resolve().is_relative_to(current) else file.resolve().parent

    @property
    def users(self) -> int:
        """Users that are logged in."""
        return self._living - self.logging_in

    @property
    def logins(self) -> int:
        """Logins that were tried so far, failed ones included."""
        return self.logged_in + self.failed

    @property
    def unanswered(self) -> int:
        """Users whose request of an earlier trial is still unanswered."""
        return sum(1 for driver in self._drivers if driver.active is not None and driver.active.is_left_over)

    def arrival_shares(self) -> list[float]:
        """Share of arrivals of each class."""
        return arrival_shares(
            self.users,
            weights=[of_class.weight for of_class in self.classes],
            fixed=[of_class.fixed for of_class in self.classes],
        )

    def take_login_errors(self) -> dict[str, int]:
        """Return the errors of logins since the last call, and forget them."""
        errors, self._new_login_errors = self._new_login_errors, Counter()
        return dict(errors.most_common(MAX_MESSAGES))

    def learn_task_time(self, trial: TrialRun) -> None:
        """Keep what the trial tells about how long tasks take."""
        if (task_s := trial.task_s) is not None:
            self.task_s = min(max(task_s, self.task_s or 0.0), TASK_LIMIT_S)

    def stop_unfinished(self) -> None:
        """Stop the users whose task of an earlier trial still goes on: it would load the next one.

        One that waits for an answer may end with it; it is stopped when it sends again.
        """
        for driver in list(self._drivers):
            active = driver.active
            if active is not None and active.is_unfinished:
                driver.greenlet.kill(block=False)
            elif active is not None and active.is_left_over:
                active.is_stopped = True

    def stop_all(self, *, timeout_s: float) -> None:
        """Stop every user; ``on_stop`` runs, but for no longer than ``timeout_s``."""
        greenlets = [driver.greenlet for driver in self._drivers if driver.greenlet is not None]
        gevent.killall(greenlets, timeout=timeout_s)
        gevent.killall(greenlets, timeout=timeout_s)  # those that hang in their on_stop

    @property
    def _living(self) -> int:
        return sum(of_class.living for of_class in self.classes)

    def enlist_runner_users(self) -> None:
        """Drive the users that Locust's own runner starts as well."""
        enlist_users_of(self._environment, self.enlist)

    def enlist(self, user: Any) -> UserDriver:
        """Put a user that is about to be started under direction."""
        of_class = next(one for one in self.classes if type(user) is one.user_class)
        of_class.living += 1
        self.logging_in += 1
        driver = UserDriver(
            user,
            next_turn=partial(self._next_turn, of_class),
            on_login=self._logged_in,
            on_end=partial(self._remove, of_class),
        )
        self._drivers.add(driver)
        attach(driver, self._hook)
        return driver

    def _next_turn(self, of_class: ClassPool, driver: UserDriver, think: Think) -> None:
        if self.closed_turn is None:
            driver.park(of_class.next_arrival)
        else:
            self.closed_turn(driver, think)

    def _logged_in(self, driver: UserDriver) -> None:
        self.logging_in -= 1
        self._count_login(driver)

    def _remove(self, of_class: ClassPool, driver: UserDriver, ended: Any) -> None:
        """Count a user out whose greenlet ended: it stopped itself, was stopped, or raised."""
        of_class.living -= 1
        of_class.remove(driver)
        self._drivers.discard(driver)
        if driver.logging_in:
            driver.logging_in = False
            self.logging_in -= 1
            if not driver.login_errors:
                why = ended.exception
                driver.login_errors.append(
                    exception_text(why, why.__traceback__) if why else "on_start stopped it"
                )
            self._count_login(driver)
        elif self.replacing:
            gevent.spawn(self._spawn, of_class)
        driver.finish()

    def fill(
        self,
        wanted: int,
        *,
        timeout_s: float,
        going: Callable[[], bool] = lambda: True,
        on_spawned: Callable[[], None] = lambda: None,
    ) -> None:
        """Log users in until ``wanted`` are there, or all logins seem to fail, or the time is over.

        Args:
            wanted: number of users.
            timeout_s: longest wait for them, seconds.
            going: whether to go on.
            on_spawned: called once when all have been started, or as many as log in at once and none of them
                gets through for a second: some wait for this event in ``on_start``.

        Raises:
            ScenarioError: no user ever got through ``on_start``, or a user cannot even be made.
        """
        self._fill(wanted, deadline=monotonic() + timeout_s, going=going, on_spawned=on_spawned)
        if not self.logged_in and going():
            raise ScenarioError(self._why_no_login(timeout_s))

    def _fill(
        self, wanted: int, *, deadline: float, going: Callable[[], bool], on_spawned: Callable[[], None]
    ) -> None:
        wanted = min(wanted, self.max_users)
        attempts = 2 * max(0, wanted - self._living) + HOPELESS_AFTER
        counts = apportion(
            wanted,
            weights=[of_class.weight for of_class in self.classes],
            fixed=[of_class.fixed for of_class in self.classes],
        )
        logins, changed_at, announced, patience_s = self.logins, monotonic(), False, LONG_STALL_S
        while (now := monotonic()) < deadline and going() and not self._is_hopeless:
            if self.logins != logins:  # a service may need seconds for a login
                patience_s = max(patience_s, 3 * (now - changed_at))
                logins, changed_at = self.logins, now
            missing, of_class = max(
                ((count - one.living, one) for count, one in zip(counts, self.classes, strict=True)),
                key=lambda pair: pair[0],
            )
            if not announced and (missing <= 0 or now - changed_at > STALL_S):
                announced = True
                on_spawned()
            if self.logged_in and now - changed_at > patience_s:
                return  # the others wait, for an account that another user has
            if missing > 0 and attempts > 0 and self.logging_in < LOGINS_AT_ONCE and not self._seems_hopeless:
                attempts -= 1
                self._spawn(of_class)
                gevent.sleep(1 / self._spawn_rate)
            elif not self.logging_in and (missing <= 0 or attempts <= 0):
                break
            else:
                gevent.sleep(1 / LOGINS_PER_S)
        if not announced:
            on_spawned()

    def require_users(self) -> None:
        """Raise ScenarioError when users tried to log in and none of them ever got through."""
        if self.failed and not self.logged_in:
            raise ScenarioError(self._why_no_login(0.0))

    @property
    def _seems_hopeless(self) -> bool:
        return not self.logged_in and self.failed >= HOPELESS_AFTER

    @property
    def _is_hopeless(self) -> bool:
        return self._seems_hopeless and not self.logging_in

    def reinforce(self, *, rate: float, going: Callable[[], bool]) -> None:
        """While a trial runs, log another user in where too few are idle, slowly enough to be no load."""
        per_s = min(max(LEAST_LOGINS_PER_S, rate * LOGIN_SHARE), self._spawn_rate)
        per_tick = per_s * REINFORCE_EVERY_S
        allowed = 0.0
        while going():
            gevent.sleep(REINFORCE_EVERY_S)
            allowed = min(allowed + per_tick, LOGINS_AT_ONCE)
            while allowed >= 1 and (of_class := self._shortest()) is not None:
                allowed -= 1
                self._spawn(of_class)

    def _shortest(self) -> ClassPool | None:
        """The class that needs another user the most, if there may be one."""
        if self._living >= self.max_users or self.logging_in >= LOGINS_AT_ONCE:
            return None
        return max((one for one in self.classes if one.is_short), key=lambda p: len(p.queue), default=None)

    def drop_expired(self) -> None:
        """Drop the arrivals that have waited too long for a user."""
        for of_class in self.classes:
            of_class.drop_expired()

    def _why_no_login(self, within_s: float) -> str:
        if not self.failed:
            return f"no user got through on_start within {within_s:g} s; look at the service's log"
        failed = _SERVICE_FAILED.search(self.login_errors[-1])
        return f"none of {self.failed} users got through on_start: {self.login_errors[-1]}; " + (
            "the service fails there: look at its log" if failed else "check the login in the locustfile"
        )

    def _spawn(self, of_class: ClassPool) -> None:
        try:
            user = of_class.user_class(self._environment)
        except Exception as error:
            why = exception_text(error, error.__traceback__)
            raise ScenarioError(f"no user could be made: {why}; correct the locustfile") from error
        self.enlist(user)
        user.start(self._group)

    def _count_login(self, driver: UserDriver) -> None:
        if not driver.login_errors:
            self.logged_in += 1
        else:
            self.failed += 1
            self.login_errors = [*self.login_errors[-9:], driver.login_errors[0]]
            self._new_login_errors[driver.login_errors[0][:MESSAGE_LENGTH]] += 1
            driver.login_errors = []
