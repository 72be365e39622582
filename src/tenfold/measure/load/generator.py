"""The load generator as the measuring process sees it: start it, run trials, end it.

Locust and gevent live in the generator's own process; nothing here imports them. That process has its own
session, so that Ctrl-C reaches only the measuring process, and it ends when the measuring process ends.
"""

from __future__ import annotations

import difflib
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tenfold.errors import MeasurementError, ScenarioError
from tenfold.measure.load.arrivals import HOLD_S
from tenfold.measure.load.generator_process import GeneratorProcess
from tenfold.measure.load.generator_protocol import (
    BlockDone,
    Calibrate,
    CalibrationDone,
    LoadScenario,
    Message,
    RunClosedLoop,
    RunOneAtATime,
    RunOpenLoop,
    ScenarioLoaded,
    StartUsers,
    Stop,
    StopUsers,
    TrialDone,
    UsersStarted,
)
from tenfold.measure.load.target import require_listening, require_loopback
from tenfold.measure.settings import MeasureSettings
from tenfold.measure.trial import TASK_LIMIT_S, Block, GeneratorHealth, Trial, TrialRequest

LOAD_TIMEOUT_S = 60.0
LOGIN_TIMEOUT_S = 30.0
# Time that a trial may take beyond its own length: logins before it, histograms after it, a busy machine.
GRACE_S = 20.0
INTERRUPT_S = 3.0
CALIBRATION_S = 1.5
# Arrivals without a request are left out; above this share, and this number, nothing can be concluded.
SILENT_SHARE = 0.05
LEAST_SILENT = 5

OnBlock = Callable[[Block], None]
Answer = TypeVar("Answer", UsersStarted, CalibrationDone)


class Generator:
    """The load generator for one scenario and one target, as a context manager.

    In an open-loop trial the locustfile's ``wait_time`` is ignored: a user acts when an arrival falls to
    it. ``environment.stats`` stays empty then; ``run_closed_loop`` honours both. A locustfile can still send
    to other hosts by absolute URLs.

    Args:
        scenario: a locustfile; it runs unmodified, its ``host`` replaced by ``target``.
        target: where the service listens, ``http://127.0.0.1:8000``.
        settings: objective and the most users at once.
        owned: the caller may put a target that is not on this machine under load.
        environ: environment of the generator's process; this process's by default.
        cwd: its working folder, which a locustfile can import from; this process's by default.

    Entering it raises:
        ScenarioError: the locustfile is missing, or does not load.
        TargetError: nothing listens at ``target``, or it is not on this machine and not ``owned``.
        MeasurementError: the generator's process does not start.
    """

    def __init__(
        self,
        scenario: Path,
        target: str,
        *,
        settings: MeasureSettings,
        owned: bool = False,
        environ: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.user_classes: list[str] = []
        self.ignored_shape = ""
        self.client = ""  # the costliest kind of client in the scenario, as Locust names its class
        self._scenario = scenario
        self._target = target
        self._settings = settings
        self._owned = owned
        self._cwd = cwd
        self._longest_s = TASK_LIMIT_S  # that a task may take, and load before what is counted
        self._judged = 0  # arrivals with a result, in all trials
        self._silent: Counter[str] = Counter()
        self._process = GeneratorProcess(environ=environ, cwd=cwd)

    def __enter__(self) -> Self:
        path = _require_file(self._scenario, self._cwd)
        require_loopback(self._target, owned=self._owned)
        require_listening(self._target)
        try:
            self._process.start()
            self._load_scenario(path)
        except BaseException:
            self._process.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.close()

    @property
    def pid(self) -> int:
        """The generator's process, the leader of its own process group."""
        return self._process.pid

    def start_users(self, users: int, *, timeout_s: float = LOGIN_TIMEOUT_S) -> int:
        """Log ``users`` users in, a few at a time, and return how many are logged in after ``timeout_s``.

        Raises:
            ScenarioError: none of them got through ``on_start``; it quotes the service's answer.
            MeasurementError: the generator's process ended.
        """
        return self._ask(StartUsers(users, timeout_s), UsersStarted, timeout_s + GRACE_S).users

    def restart_users(self, users: int) -> int:
        """Stop every user and log ``users`` in again, since a restarted service may not know them any more.

        Raises as :meth:`start_users` does.
        """
        self._ask(StopUsers(), UsersStarted, GRACE_S)
        return self.start_users(users)

    def run(self, request: TrialRequest, on_block: OnBlock | None = None) -> Trial:
        """Run an open-loop trial, or one arrival at a time (the purposes "alone" and "wait").

        ``on_block`` is called with each block as soon as it is final; then ``request.rule`` decides whether
        the trial may end. Ctrl-C ends the trial and returns what there is, with ``interrupted`` set.

        Raises:
            ScenarioError: no user can be logged in any more, the locustfile stopped the test, or too many
                arrivals sent no request that Locust knows.
            MeasurementError: the generator's process ended or does not answer.
        """
        if request.purpose in ("alone", "wait"):
            alone = RunOneAtATime(
                rate=request.rate,
                duration_s=request.duration_s,
                seed=request.seed,
                login_s=request.login_s,
                idle_s=request.settle_s if request.purpose == "wait" else 0.0,
            )
            return self._trial(alone, request, on_block)
        command = RunOpenLoop(
            rate=request.rate,
            duration_s=request.duration_s,
            seed=request.seed,
            settle_s=request.settle_s,
            overload=request.purpose == "overload",
            login_s=request.login_s,
        )
        return self._trial(command, request, on_block)

    def run_closed_loop(
        self, *, users: int, spawn_rate: float, duration_s: float, on_block: OnBlock | None = None
    ) -> Trial:
        """Run a trial at Locust's own pace, ``wait_time`` included; an arrival is due when it is sent.

        The request in the returned trial has the rate that resulted. Raises as :meth:`run` does.
        """
        request = TrialRequest(rate=0.0, duration_s=duration_s, purpose="closed", seed=0, settle_s=0.0)
        trial = self._trial(RunClosedLoop(users, spawn_rate, duration_s), request, on_block)
        rate = trial.offered / trial.seconds if trial.seconds else 0.0
        return replace(trial, request=replace(request, rate=rate))

    def calibrate(self) -> float:
        """Measure the generator's own ceiling: arrivals a second with this kind of client.

        Takes about two seconds and loads only a server of its own that does nothing. An upper bound,
        per second of one core: what the locustfile does with the answers comes on top. 0 when its
        clients are neither HttpUser nor FastHttpUser.
        """
        with _echo_server() as url:
            done = self._ask(Calibrate(url, CALIBRATION_S), CalibrationDone, CALIBRATION_S + GRACE_S)
        return done.rate

    def _load_scenario(self, path: Path) -> None:
        self._process.send(
            LoadScenario(
                scenario=str(path),
                target=self._target.rstrip("/"),
                max_users=self._settings.max_users,
                spawn_rate=self._settings.spawn_rate,
                slow_ms=self._settings.objective.slow_ms,
            )
        )
        loaded = self._process.receive(LOAD_TIMEOUT_S)
        if not isinstance(loaded, ScenarioLoaded):
            raise MeasurementError(f"the generator answered {type(loaded).__name__} to LoadScenario")
        self.user_classes, self.client = loaded.user_classes, loaded.client
        self.ignored_shape = loaded.ignored_shape

    def _trial(
        self,
        command: RunOpenLoop | RunClosedLoop | RunOneAtATime,
        request: TrialRequest,
        on_block: OnBlock | None,
    ) -> Trial:
        blocks: list[Block] = []
        slow_s = self._settings.objective.slow_ms / 1000
        deadline = time.monotonic() + request.duration_s + slow_s + HOLD_S + request.settle_s + GRACE_S
        deadline += request.login_s + 3 * self._longest_s
        try:
            self._process.send(command)
            done = self._collect(blocks, deadline, request, on_block)
            trial = _trial_of(request, blocks, done)
        except KeyboardInterrupt:
            trial = self._interrupted(blocks, request, slow_s)
        except BaseException:
            self._process.kill()
            raise
        self._longest_s = trial.task_s or self._longest_s
        _require_endings(trial)
        self._judged += trial.offered
        self._silent.update(trial.silent)
        _require_requests(dict(self._silent.most_common()), judged=self._judged)
        return trial

    def _collect(
        self, blocks: list[Block], deadline: float, request: TrialRequest, on_block: OnBlock | None
    ) -> TrialDone:
        stopped = False
        while True:
            message = self._process.receive(deadline - time.monotonic())
            if isinstance(message, TrialDone):
                return message
            if not isinstance(message, BlockDone):
                continue
            blocks.append(message.block)
            if on_block is not None:
                on_block(message.block)
            if request.rule is not None and not stopped and request.rule.should_stop(blocks):
                stopped = True
                self._process.send(Stop(settle=True))

    def _interrupted(self, blocks: list[Block], request: TrialRequest, slow_s: float) -> Trial:
        """End the trial at once; without an answer, return the blocks that came."""
        try:
            self._process.send(Stop(settle=False))
            quiet = replace(request, rule=None)
            deadline = time.monotonic() + slow_s + HOLD_S + INTERRUPT_S
            done = self._collect(blocks, deadline, quiet, None)
        except (KeyboardInterrupt, MeasurementError):
            done = _without_answer(blocks)
            self._process.kill()
        return replace(_trial_of(request, blocks, done), interrupted=True)

    def _ask(self, command: Message, kind: type[Answer], timeout_s: float) -> Answer:
        self._process.send(command)
        answer = self._process.receive(timeout_s)
        if not isinstance(answer, kind):
            raise MeasurementError(
                f"the generator answered {type(answer).__name__} to {type(command).__name__}"
            )
        return answer


def _require_file(scenario: Path, cwd: Path | None) -> Path:
    path = (cwd or Path.cwd()) / scenario
    if os.path.isfile(path):
        return path.resolve()
    folder = path.parent
    names = [one.name for one in folder.glob("*.py")] if os.path.isdir(folder) else []
    near = difflib.get_close_matches(path.name, names, n=1)
    hint = f"; did you mean {scenario.with_name(near[0])}?" if near else "; give the path of a locustfile"
    raise ScenarioError(f"no file {scenario}{hint}")


def _trial_of(request: TrialRequest, blocks: list[Block], done: TrialDone) -> Trial:
    return Trial(
        request=request,
        seconds=done.seconds,
        settled_s=done.settled_s,
        blocks=tuple(blocks),
        generator=done.generator,
        endpoints=done.endpoints,
        corrected=done.corrected,
        raw=done.raw,
        users=done.users,
        requests=done.requests,
        errors=done.errors,
        notes=done.notes,
        silent=done.silent,
        unended=done.unended,
        task_s=done.task_s,
    )


def _require_endings(trial: Trial) -> None:
    """Raise ScenarioError when too many tasks do not end: an arrival is a task, from its start to its end."""
    count, started = sum(trial.unended.values()), trial.offered + sum(trial.silent.values())
    if count > SILENT_SHARE * started:
        raise ScenarioError(
            f"the task {next(iter(trial.unended))} does not end (longer than {TASK_LIMIT_S:g} s), so that "
            "nothing can be concluded; let it end, since Locust starts tasks again by itself (no while True)"
        )


def _require_requests(silent: Mapping[str, int], *, judged: int) -> None:
    """Raise ScenarioError when too many arrivals sent nothing that Locust knows: they have no result."""
    count = sum(silent.values())
    if count < LEAST_SILENT or count <= SILENT_SHARE * (count + judged):
        return
    task, share = next(iter(silent)), 100 * count / (count + judged)
    raise ScenarioError(
        f"{share:.0f} % of the arrivals sent no request that Locust knows (task {task}), so that nothing can "
        "be concluded; send with self.client, or report each request with events.request.fire in the task's "
        "own greenlet"
    )


def _without_answer(blocks: list[Block]) -> TrialDone:
    """The end of a trial whose generator does not answer any more: only its blocks are known."""
    seconds = blocks[-1].start_s + blocks[-1].seconds if blocks else 0.0
    return TrialDone(
        seconds=seconds,
        settled_s=0.0,
        generator=GeneratorHealth(cpu_share=0.0, late_share=0.0, lag_p99_ms=0.0),
        endpoints=(),
        corrected="",
        raw="",
        users=0,
        requests=0,
        errors={},
        notes={},
        silent={},
    )


@contextmanager
def _echo_server() -> Iterator[str]:
    """Run a server that does nothing, in a process of its own."""
    command = [sys.executable, "-P", "-m", "tenfold.measure.load.echo"]
    with subprocess.Popen(  # noqa: S603 - tenfold's own module
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as server:
        try:
            assert server.stdout is not None
            port = int(server.stdout.readline() or 0)
            if not port:
                raise MeasurementError(
                    "the server to calibrate with did not start; free some memory and try again"
                )
            yield f"http://127.0.0.1:{port}"
        finally:
            server.kill()
