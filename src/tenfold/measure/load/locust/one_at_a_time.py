"""One arrival at a time: a closed loop of one, on a service that has nothing else to do.

It decides whether a service meets its objective at all, and whether it has recovered from the load before:
in an open loop an arrival may find the backlog of earlier ones, which says nothing about either.
"""

from __future__ import annotations

from collections.abc import Callable

import gevent

from tenfold.measure.load.arrivals import HOLD_S, ArrivalLog
from tenfold.measure.load.generator_protocol import BlockDone, Message, RunOneAtATime, TrialDone
from tenfold.measure.load.locust.trial_run import TICK_S, TrialRun
from tenfold.measure.load.locust.user_pool import UserPool
from tenfold.measure.load.schedule import draw_classes
from tenfold.measure.trial import TASK_LIMIT_S

MAX_CLASSES_DRAWN = 100_000
POLL_S = 0.002


class OneAtATime:
    """One trial in which an arrival is due when the one before is over, ``command.rate`` a second at most.

    The first one waits until every request of earlier trials is answered, for ``command.idle_s`` at most: a
    single request that is never answered is no load.
    """

    def __init__(
        self, users: UserPool, command: RunOneAtATime, *, slow_s: float, emit: Callable[[Message], None]
    ) -> None:
        self._users = users
        self._command = command
        self._emit = emit
        self._load_going = True
        self._trial = TrialRun(
            ArrivalLog(
                (),
                duration_s=command.duration_s,
                slow_s=slow_s,
                hold_s=max(HOLD_S, 1.25 * (users.task_s or TASK_LIMIT_S)),
            )
        )

    def stop(self, *, settle: bool) -> None:
        """End the load now; an unanswered request is not waited for."""
        del settle
        self._load_going = False

    def run(self) -> TrialDone:
        """Carry the trial out. Blocks the calling greenlet until it is over."""
        users, trial = self._users, self._trial
        users.stop_unfinished()
        logins = users.logins
        users.fill(len(users.classes), timeout_s=self._command.login_s, going=lambda: self._load_going)
        trial.start_clock()
        users.replacing = True
        blocks = gevent.spawn(self._emit_blocks)
        try:
            self._send()
            trial.end_load()
            while not trial.arrivals.is_complete:
                gevent.sleep(TICK_S / 10)
        finally:
            users.replacing = False
            gevent.kill(blocks)
        self._emit_final()
        return trial.close(
            users=users.users,
            logins=users.logins - logins,
            login_errors=users.take_login_errors(),
            task_s=users.task_s or 0.0,
        )

    def _send(self) -> None:
        trial, users, arrivals = self._trial, self._users, self._trial.arrivals
        classes = draw_classes(MAX_CLASSES_DRAWN, shares=users.arrival_shares(), seed=self._command.seed)
        next_s = 0.0
        while self._load_going and (now := trial.now()) < arrivals.horizon_s:
            idle = now >= self._command.idle_s or arrivals.due or not users.unanswered
            if now >= next_s and idle and not arrivals.unfinished:
                next_s = now + 1 / self._command.rate
                arrival = arrivals.add(now)
                arrivals.release(arrival)
                users.classes[classes[arrival % len(classes)]].offer(trial, arrival)
            gevent.sleep(POLL_S)
        if not self._load_going:
            arrivals.cut(trial.now(), released=len(arrivals.due))

    def _emit_blocks(self) -> None:
        while True:
            gevent.sleep(TICK_S)
            self._users.drop_expired()
            self._emit_final()

    def _emit_final(self) -> None:
        for block in self._trial.final_blocks():
            self._emit(BlockDone(block))
