"""The generator's side of the conversation: commands in, one after the other; blocks and results out."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import gevent
import locust
from gevent.queue import Queue

from tenfold.errors import MeasurementError, ScenarioError, TenfoldError
from tenfold.measure.load.generator_protocol import (
    Calibrate,
    Ceiling,
    Channel,
    Close,
    Failed,
    Load,
    Loaded,
    Message,
    Run,
    RunClosed,
    Started,
    StartUsers,
    Stop,
)
from tenfold.measure.load.locust import user_driver, calibration, scenario
from tenfold.measure.load.locust.closed_loop import ClosedLoop
from tenfold.measure.load.locust.user_pool import Crew
from tenfold.measure.load.locust.open_loop import OpenLoop

LOGIN_TIMEOUT_S = 30.0


def serve(fd: int) -> None:
    """Answer the measuring process at ``fd`` until it says Close or is gone; ends the process."""
    scenario.quiet_logging()
    user_driver.install()
    channel = Channel(socket.socket(fileno=fd))
    Session(channel).serve()
    os._exit(0)


class Session:
    """One locustfile, loaded once, and its users."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._commands: Queue = Queue()
        self._trial: OpenLoop | ClosedLoop | None = None
        self._environment: Any = None
        self._crew: Crew | None = None
        self._slow_s = 0.0
        self._statistics: list[Any] = []  # Locust's own listeners of events.request
        self._started = False  # test_start was fired
        self._closing = False
        self._quit = False  # the locustfile stopped the test

    def serve(self) -> None:
        """Carry out one command after the other; Stop is heard at once."""
        gevent.spawn(self._listen)
        while not isinstance(command := self._commands.get(), Close):
            try:
                self._channel.send(self._answer(command))
            except TenfoldError as error:
                self._channel.send(Failed(type(error).__name__, str(error)))
            except Exception as error:
                text = user_driver.raised_text(error, error.__traceback__)
                self._channel.send(Failed(MeasurementError.__name__, f"the generator failed: {text}"))
        self._close()

    def _listen(self) -> None:
        try:
            while True:
                message = self._channel.receive()
                if not isinstance(message, Stop):
                    self._commands.put(message)
                elif self._trial is not None:
                    self._trial.stop(settle=message.settle)
        except (EOFError, OSError):
            os._exit(1)

    def _answer(self, command: Message) -> Message:
        if isinstance(command, Load):
            return self._load(command)
        if isinstance(command, StartUsers):
            return self._start_users(command)
        if isinstance(command, Run):
            return self._run(command)
        if isinstance(command, RunClosed):
            return self._run_closed(command)
        if isinstance(command, Calibrate):
            client = calibration.client_of(self._environment.user_classes)
            return Ceiling(
                calibration.measure(self._environment, client=client, url=command.url, seconds=command.seconds)
            )
        raise MeasurementError(f"the generator does not know {type(command).__name__}")

    def _load(self, command: Load) -> Loaded:
        self._slow_s = command.slow_ms / 1000
        hook = locust.events.request
        own = list(hook._handlers)
        environment = scenario.load(Path(command.scenario), target=command.target)
        runner = environment.runner
        # The runner's own statistics cost four microseconds a request and nobody reads them in an open loop.
        self._statistics = [
            one for one in hook._handlers if one not in own and one.__module__ == "locust.runners"
        ]
        self._keep_statistics(False)
        locust.events.test_stopping.add_listener(self._stopping)
        self._crew = Crew(
            environment,
            group=runner.user_greenlets,
            user_classes=environment.user_classes,
            hook=hook,
            max_users=command.max_users,
            spawn_rate=command.spawn_rate,
        )
        environment.tenfold_crew = self._crew
        self._environment = environment
        return Loaded(
            [user_class.__name__ for user_class in environment.user_classes],
            calibration.client_of(environment.user_classes),
        )

    def _start_users(self, command: StartUsers) -> Started:
        crew = self._begin()
        crew.fill(command.users, timeout_s=LOGIN_TIMEOUT_S)
        locust.events.spawning_complete.fire(user_count=crew.users)
        return Started(crew.users, crew.failed)

    def _run(self, command: Run) -> Message:
        crew = self._begin()
        self._trial = OpenLoop(crew, command, slow_s=self._slow_s, emit=self._channel.send)
        try:
            return self._trial.run()
        finally:
            self._trial = None

    def _run_closed(self, command: RunClosed) -> Message:
        assert self._crew is not None
        self._end_test()
        self._keep_statistics(True)
        self._trial = ClosedLoop(
            self._crew,
            command,
            runner=self._environment.runner,
            slow_s=self._slow_s,
            emit=self._channel.send,
        )
        self._closing = True
        try:
            return self._trial.run()
        finally:
            self._trial, self._closing = None, False
            self._keep_statistics(False)

    def _begin(self) -> Crew:
        if self._crew is None:
            raise MeasurementError("no locustfile is loaded")
        if self._quit:
            raise ScenarioError(
                "the locustfile stopped the test (runner.quit or runner.stop); remove that to measure on"
            )
        if not self._started:
            self._started = True
            self._environment.runner.update_state("running")
            locust.events.test_start.fire(environment=self._environment)
        return self._crew

    def _end_test(self) -> None:
        """Stop all users; ``test_stopping`` and ``test_stop`` are fired by the runner."""
        if self._started:
            self._closing = True
            self._environment.runner.stop()
            self._started = self._closing = False

    def _stopping(self, **_: Any) -> None:
        if not self._closing:
            self._quit = True
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
