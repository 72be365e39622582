"""An open-loop trial: arrivals leave when they are due, not when the service has answered the last ones."""

from __future__ import annotations

import gc
import math
from array import array
from collections.abc import Callable

import gevent

from tenfold.measure.load.arrivals import HOLD_S, ArrivalLog
from tenfold.measure.load.generator_protocol import BlockDone, Message, RunOpenLoop, TrialDone
from tenfold.measure.load.locust.trial_run import TICK_S, TrialRun
from tenfold.measure.load.locust.user_pool import UserPool
from tenfold.measure.load.schedule import draw_classes, poisson
from tenfold.measure.trial import SHORT_TASK_S, TASK_LIMIT_S

# Little's law: with more users than this busy, the mean is beyond the objective anyway.
SPARE_USERS = 1.25
OVERLOAD_USERS = 5.0


class OpenLoop:
    """One open-loop trial.

    Args:
        users: logged-in users; more are logged in when the rate asks for them.
        command: rate, length and seed of the trial.
        slow_s: the objective's limit.
        emit: called with each block as soon as it is final.
    """

    def __init__(
        self, users: UserPool, command: RunOpenLoop, *, slow_s: float, emit: Callable[[Message], None]
    ) -> None:
        self._users = users
        self._command = command
        self._slow_s = slow_s
        self._emit = emit
        self._settle_s = command.settle_s
        self._task_s = users.task_s or 0.0
        # Load before and after the counted arrivals, so that they find that of steady traffic.
        self._lead_s = self._task_s if self._task_s > SHORT_TASK_S else 0.0
        self._load_going = True
        self._trial_going = True

    def stop(self, *, settle: bool) -> None:
        """End the load now; without ``settle`` do not wait for unanswered requests either."""
        self._load_going = False
        if not settle:
            self._settle_s = 0.0

    def run(self) -> TrialDone:
        """Carry the trial out. Blocks the calling greenlet until it is over."""
        command, users = self._command, self._users
        users.stop_unfinished()
        users.fill(self._users_needed(), timeout_s=command.login_s, going=lambda: self._load_going)
        logins = users.logins
        due = self._schedule()
        trial = TrialRun(
            ArrivalLog(due, duration_s=command.duration_s, slow_s=self._slow_s, hold_s=self._hold_s()),
            folder=users.folder,
        )
        classes = draw_classes(len(due), shares=users.arrival_shares(), seed=command.seed)
        gc.collect()
        gc.freeze()
        users.replacing = True
        trial.start_clock(lead_s=self._lead_s)
        background = [
            gevent.spawn(self._emit_blocks, trial),
            gevent.spawn(users.reinforce, rate=command.rate, going=lambda: self._load_going),
        ]
        try:
            self._release(trial, classes)
            trial.end_load()
            self._settle(trial)
        finally:
            self._load_going = self._trial_going = users.replacing = False
            gevent.killall(background)
            gc.unfreeze()
        users.learn_task_time(trial)
        return trial.close(
            users=users.users,
            logins=users.logins - logins,
            login_errors=users.take_login_errors(),
            task_s=users.task_s or 0.0,
        )

    def _schedule(self) -> array[float]:
        """Due times: from ``lead_s`` before what is counted until its last task may be over."""
        seconds = self._command.duration_s
        if self._lead_s:
            seconds += self._lead_s + self._hold_s()
        due = poisson(rate=self._command.rate, duration_s=seconds, seed=self._command.seed)
        return array("d", (at - self._lead_s for at in due)) if self._lead_s else due

    def _hold_s(self) -> float:
        """How long a task may go on beyond its first answer; in the first trial that is not known yet."""
        if self._users.task_s is None:
            return TASK_LIMIT_S
        return max(HOLD_S, 1.25 * self._task_s)

    def _users_needed(self) -> int:
        spare = OVERLOAD_USERS if self._command.overload else SPARE_USERS
        busy_s = self._slow_s * spare + self._task_s * SPARE_USERS
        return max(len(self._users.classes), math.ceil(self._command.rate * busy_s) + 1)

    def _release(self, trial: TrialRun, classes: bytes) -> None:
        """Hand each arrival to a user of its class when it is due."""
        due, arrivals, pools, now = trial.arrivals.due, trial.arrivals, self._users.classes, trial.now
        arrival, last = 0, len(due)
        while self._load_going and arrival < last and not arrivals.is_complete:
            ahead = due[arrival] - now()
            if ahead > 0:
                gevent.sleep(min(ahead, TICK_S))
                continue
            if arrivals.release(arrival):
                pools[classes[arrival]].offer(trial, arrival)
            arrival += 1
        while self._load_going and (ahead := arrivals.horizon_s - now()) > 0:
            gevent.sleep(min(ahead, TICK_S))
        if not self._load_going:
            arrivals.cut(arrivals.final_s if self._lead_s else now(), released=arrival)
        self._load_going = False

    def _settle(self, trial: TrialRun) -> None:
        """Wait for the last results, then for the last answers."""
        while not trial.arrivals.is_complete:
            if not self._settle_s:
                trial.arrivals.hold_s = 0.0
            gevent.sleep(TICK_S / 10)
        began, is_first = trial.now(), self._users.task_s is None
        while trial.arrivals.unfinished and self._settle_s:
            now = trial.now()
            going_on = is_first and any(active.is_going_on(now) for active in trial.active)
            if now - began >= (TASK_LIMIT_S if going_on else self._settle_s + self._lead_s):
                return
            gevent.sleep(TICK_S / 10)

    def _emit_blocks(self, trial: TrialRun) -> None:
        """Drop arrivals that waited too long, and send off the blocks that became final."""
        while self._trial_going:
            self._users.drop_expired()
            for block in trial.final_blocks():
                self._emit(BlockDone(block))
            gevent.sleep(TICK_S)
