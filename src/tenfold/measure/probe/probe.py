"""An ASGI middleware that records a service from inside, at a few microseconds per request.

    app = Probe(app, Path("/run/tenfold/probe.sock"), root=Path("/srv/shop"))

It records nothing, and costs next to nothing, while no collector
(:mod:`tenfold.measure.probe.collector`) listens on the address.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send, ends_answer
from tenfold.measure.probe import probe_protocol, sqlalchemy
from tenfold.measure.probe.emitter import Emitter
from tenfold.measure.probe.eventloop import LoopMonitor
from tenfold.measure.probe.libraries import watch_libraries
from tenfold.measure.probe.recorder import Recorder


class Probe:
    """Record an ASGI app's requests, SQL statements with call sites, pools and event loop lag.

    Args:
        app: the application; lifespan and websocket scopes pass through unchanged.
        address: the Unix socket on which a collector may listen, now or later.
        root: the folder of the user's code; call sites are shown relative to it.
        instance: the name of this instance.

    SQLAlchemy, Django's ORM, asyncpg and psycopg 3 are recorded where the app imports them. Other database
    libraries, and threads that the app starts without its context, are not seen, and the evidence says so.
    WSGI apps have :class:`~tenfold.measure.probe.wsgi.WsgiProbe`. Use one probe per process; a worker that is
    forked later starts its own sending thread.
    """

    def __init__(self, app: ASGIApp, address: Path, *, root: Path, instance: str = "") -> None:
        self._app = app
        self.recorder = Recorder(root)
        self._loop_monitor = LoopMonitor(self.recorder)
        self._emitter = Emitter(self.recorder, self._loop_monitor, address, instance=instance)
        self._pid = 0
        sqlalchemy.install(self.recorder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.start_in_this_process()
        recorder = self.recorder
        if not recorder.is_on or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._loop_monitor.idle:
            self._loop_monitor.start()
        request = probe_protocol.RequestRecord(time.perf_counter())
        root_path = scope.get("root_path", "")

        def send_and_record(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                recorder.begin_response(request)
            else:
                request.bytes += len(message.get("body", b""))
                if ends_answer(message):
                    recorder.stop_clock(request)
            return send(message)

        token = recorder.current.set(request)
        try:
            app = self._app(scope, receive, send_and_record)
            recorder.begin_request(request, scope, root_path, coroutine=app)
            await app
        finally:
            with suppress(ValueError):  # a server that ends closes what still runs, in another context
                recorder.current.reset(token)
            recorder.record_request(request, scope, root_path)

    def close(self) -> None:
        """Stop the sending thread; the app keeps working."""
        self._emitter.close()

    def start_in_this_process(self) -> None:
        """Start the sending thread, at the first request of a process."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self.recorder.stop()
            self._loop_monitor.idle = True
            watch_libraries(self.recorder)
            self._emitter.start()
