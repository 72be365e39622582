"""The command server of the generator's process: commands in, one after the other; blocks and results out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import locust
from gevent.queue import Queue

from tenfold.errors import MeasurementError, ScenarioError, TenfoldError
from tenfold.measure.load.generator_protocol import (
    Calibrate,
    CalibrationDone,
    Close,
    CommandFailed,
    GeneratorConnection,
    LoadScenario,
    Message,
    RunClosedLoop,
    RunOneAtATime,
    RunOpenLoop,
    ScenarioLoaded,
    StartUsers,
    Stop,
    StopUsers,
    UsersStarted,
)
from tenfold.measure.load.locust import calibration, scenario, user_driver
from tenfold.measure.load.locust.closed_loop import ClosedLoop
from tenfold.measure.load.locust.one_at_a_time import OneAtATime
from tenfold.measure.load.locust.open_loop import OpenLoop
from tenfold.measure.load.locust.user_pool import UserPool

STOP_TIMEOUT_S = 3.0


def serve(fd: int) -> None:
    """Serve the measuring process at ``fd`` until it sends Close or is gone, then end this process."""
    scenario.quiet_logging()
    user_driver.install()
    connection = GeneratorConnection(socket.socket(fileno=fd))
    CommandServer(connection).serve()
    os._exit(0)


class CommandServer:
    """Carries out the commands of the measuring process for one locustfile and its users."""

    def __init__(self, connection: GeneratorConnection) -> None:
        self._connection = connection
        self._commands: Queue = Queue()
        self._trial: OpenLoop | OneAtATime | ClosedLoop | None = None
        self._environment: Any = None
        self._users: UserPool | None = None
        self._slow_s = 0.0
        self._statistics: list[Any] = []  # Locust's own listeners of events.request
        self._test_started = False  # test_start was fired
        self._stop_expected = False  # by this process, not by the locustfile
        self._test_stopped = False  # by the locustfile

    def serve(self) -> None:
        """Carry out one command after the other; Stop takes effect at once."""
        gevent.spawn(self._receive)
        while not isinstance(command := self._commands.get(), Close):
            try:
                self._connection.send(self._carry_out(command))
            except TenfoldError as error:
                self._connection.send(CommandFailed(type(error).__name__, str(error)))
            except Exception as error:
                text = user_driver.exception_text(error, error.__traceback__)
                self._connection.send(
                    CommandFailed(MeasurementError.__name__, f"the generator failed: {text}")
                )
        self._close()

    def _receive(self) -> None:
        try:
            while True:
                message = self._connection.receive()
                if not isinstance(message, Stop):
                    self._commands.put(message)
                elif self._trial is not None:
                    self._trial.stop(settle=message.settle)
        except (EOFError, OSError):
            os._exit(1)

    def _carry_out(self, command: Message) -> Message:
        if isinstance(command, LoadScenario):
            return self._load_scenario(command)
        if isinstance(command, StartUsers):
            return self._start_users(command)
        if isinstance(command, StopUsers):
            return self._stop_users()
        if isinstance(command, RunOpenLoop | RunOneAtATime):
            return self._run_trial(command)
        if isinstance(command, RunClosedLoop):
            return self._run_closed_loop(command)
        if isinstance(command, Calibrate):
            client = calibration.costliest_client(self._environment.user_classes)
            rate = calibration.measure_rate(
                self._environment, client=client, url=command.url, seconds=command.seconds
            )
            return CalibrationDone(rate)
        raise MeasurementError(f"the generator does not know {type(command).__name__}")

    def _load_scenario(self, command: LoadScenario) -> ScenarioLoaded:
        self._slow_s = command.slow_ms / 1000
        hook = locust.events.request
        own = list(hook._handlers)
        environment = scenario.load(Path(command.scenario), target=command.target, users=command.max_users)
        runner = environment.runner
        # The runner's own statistics cost four microseconds a request and are not used in an open loop.
        self._statistics = [
            one for one in hook._handlers if one not in own and one.__module__ == "locust.runners"
        ]
        self._keep_statistics(False)
        locust.events.test_stopping.add_listener(self._on_test_stopping)
        self._users = UserPool(
            environment,
            group=runner.user_greenlets,
            user_classes=environment.user_classes,
            hook=hook,
            max_users=command.max_users,
            spawn_rate=command.spawn_rate,
        )
        self._users.enlist_runner_users()
        self._environment = environment
        return ScenarioLoaded(
            [user_class.__name__ for user_class in environment.user_classes],
            calibration.costliest_client(environment.user_classes),
            environment.ignored_shape,
        )

    def _start_users(self, command: StartUsers) -> UsersStarted:
        users = self._start_test()
        fire: Callable[..., None] = locust.events.spawning_complete.fire
        users.fill(
            command.users, timeout_s=command.timeout_s, on_spawned=lambda: fire(user_count=command.users)
        )
        return UsersStarted(users.users, users.failed)

    def _stop_users(self) -> UsersStarted:
        users = self._start_test()
        users.stop_all(timeout_s=STOP_TIMEOUT_S)
        return UsersStarted(users.users, users.failed)

    def _run_trial(self, command: RunOpenLoop | RunOneAtATime) -> Message:
        users, emit = self._start_test(), self._connection.send
        if isinstance(command, RunOpenLoop):
            self._trial = OpenLoop(users, command, slow_s=self._slow_s, emit=emit)
        else:
            self._trial = OneAtATime(users, command, slow_s=self._slow_s, emit=emit)
        try:
            return self._trial.run()
        finally:
            self._trial = None

    def _run_closed_loop(self, command: RunClosedLoop) -> Message:
        assert self._users is not None
        self._end_test()
        self._keep_statistics(True)
        self._trial = ClosedLoop(
            self._users,
            command,
            runner=self._environment.runner,
            slow_s=self._slow_s,
            emit=self._connection.send,
        )
        self._stop_expected = True
        try:
            return self._trial.run()
        finally:
            self._trial, self._stop_expected = None, False
            self._keep_statistics(False)

    def _start_test(self) -> UserPool:
        if self._users is None:
            raise MeasurementError("no locustfile is loaded")
        if self._test_stopped:
            raise ScenarioError(
                "the locustfile stopped the test (runner.quit or runner.stop); remove that to measure on"
            )
        if not self._test_started:
            self._test_started = True
            self._environment.runner.update_state("running")
            locust.events.test_start.fire(environment=self._environment)
        return self._users

    def _end_test(self) -> None:
        """Stop all users; ``test_stopping`` and ``test_stop`` are fired by the runner."""
        if self._test_started:
            self._stop_expected = True
            self._environment.runner.stop()
            self._test_started = self._stop_expected = False

    def _on_test_stopping(self, **_: Any) -> None:
        if not self._stop_expected:
            self._test_stopped = True
            if self._trial is not None:
                self._trial.stop(settle=False)

    def _keep_statistics(self, wanted: bool) -> None:
        handlers = locust.events.request._handlers
        for one in self._statistics:
            if wanted and one not in handlers:
                handlers.append(one)
            elif not wanted and one in handlers:
                handlers.remove(one)

    def _close(self) -> None:
        if self._environment is not None:
            self._end_test()
            locust.events.quitting.fire(environment=self._environment, reverse=True)
            locust.events.quit.fire(exit_code=self._environment.process_exit_code or 0)
