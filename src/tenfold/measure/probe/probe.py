"""An ASGI middleware that watches a service from inside, at the price of a few microseconds a request.

    app = Probe(app, Path("/run/tenfold/probe.sock"), root=Path("/srv/shop"))

Nothing is recorded, and nearly nothing spent, while no collector
(:mod:`tenfold.measure.probe.collector`) listens on the address.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable
from pathlib import Path

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send
from tenfold.measure.probe import probe_protocol, sqlalchemy
from tenfold.measure.probe.emitter import Emitter
from tenfold.measure.probe.eventloop import LoopWatch
from tenfold.measure.probe.recorder import Recorder


class Probe:
    """Around any ASGI app: requests, their SQL statements with call sites, pools, the event loop's lag.

    Args:
        app: the application; lifespan and websocket scopes pass through untouched.
        address: the Unix socket on which a collector may listen, now or later.
        root: the folder of the user's code; call sites are shown relative to it.
        instance: the name under which this instance is shown.

    SQLAlchemy is watched when it is installed. Other database libraries, WSGI apps and threads that the app
    starts without its context are not seen, and the evidence says so.
    A worker that is forked after the probe was made starts its own thread; one probe a process.
    """

    def __init__(self, app: ASGIApp, address: Path, *, root: Path, instance: str = "") -> None:
        self._app = app
        self._recorder = Recorder(root)
        self._watch = LoopWatch(self._recorder)
        self._emitter = Emitter(self._recorder, self._watch, address, instance=instance)
        self._pid = 0
        sqlalchemy.install(self._recorder)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._pid != os.getpid():
            self._start()
        recorder = self._recorder
        if not recorder.on or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._watch.idle:
            self._watch.start()
        request = probe_protocol.Request(time.perf_counter())
        root_path = scope.get("root_path", "")

        def sending(message: Message) -> Awaitable[None]:
            if message["type"] == "http.response.start":
                request.status = message["status"]
            elif message["type"] == "http.response.body" and not message.get("more_body"):
                recorder.ended(request)
            return send(message)

        token = recorder.current.set(request)
        try:
            await self._app(scope, receive, sending)
        finally:
            recorder.current.reset(token)
            recorder.finish(request, scope, root_path)

    def close(self) -> None:
        """End the thread; the app keeps working."""
        self._emitter.close()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._recorder.stop()
        self._watch.idle = True
        self._emitter.start()
