"""A closed-loop trial: Locust's own pace, spawning and ``wait_time``; an arrival is due when it is sent.

Such a trial hides what a slow service does to the visitors who would have come meanwhile (coordinated
omission). It compares runs with a fixed number of users, and with numbers of other closed-loop tools.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gevent

from tenfold.measure.load.arrivals import ArrivalLog
from tenfold.measure.load.generator_protocol import BlockDone, Message, RunClosedLoop, TrialDone
from tenfold.measure.load.locust.trial_run import TICK_S, TrialRun
from tenfold.measure.load.locust.user_driver import Think, UserDriver
from tenfold.measure.load.locust.user_pool import UserPool


class ClosedLoop:
    """One trial of plain Locust: ``users`` users, ``spawn_rate`` more a second, for ``duration_s``."""

    def __init__(
        self,
        users: UserPool,
        command: RunClosedLoop,
        *,
        runner: Any,
        slow_s: float,
        emit: Callable[[Message], None],
    ) -> None:
        self._users = users
        self._command = command
        self._runner = runner
        self._emit = emit
        self._load_going = True
        self._trial = TrialRun(ArrivalLog((), duration_s=command.duration_s, slow_s=slow_s))

    def stop(self, *, settle: bool) -> None:
        """End the trial now."""
        del settle  # nothing outlives a closed trial: its users are stopped
        self._load_going = False

    def run(self) -> TrialDone:
        """Carry the trial out; its users are stopped at the end."""
        trial, users = self._trial, self._users
        logins = users.logins
        users.closed_turn = self._next_turn
        try:
            trial.start_clock()
            self._runner.start(self._command.users, self._command.spawn_rate)
            self._wait_for_end()
            trial.end_load()
            users.require_users()
            while not trial.arrivals.is_complete:
                self._tick()
            return trial.close(
                users=users.users, logins=users.logins - logins, login_errors=users.take_login_errors()
            )
        finally:
            self._load_going = False
            self._runner.stop()
            users.closed_turn = None

    def _next_turn(self, driver: UserDriver, think: Think) -> None:
        """Let the user wait and go on to its next task: an arrival, due now."""
        driver.finish()
        think()
        now = max(self._trial.now(), 0.0)
        if self._load_going and now < self._trial.arrivals.horizon_s:
            arrival = self._trial.arrivals.add(now)
            self._trial.arrivals.release(arrival)
            driver.active = self._trial.begin(arrival, now, free=True, notes_sending=driver.notes_sending)

    def _wait_for_end(self) -> None:
        trial = self._trial
        while self._load_going and trial.now() < trial.arrivals.horizon_s:
            self._tick()
        if not self._load_going:
            trial.arrivals.cut(trial.now(), released=len(trial.arrivals.due))
        self._load_going = False

    def _tick(self) -> None:
        gevent.sleep(TICK_S)
        for block in self._trial.final_blocks():
            self._emit(BlockDone(block))
