"""The probe around a WSGI app (PEP 3333)."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tenfold.measure.probe.probe_protocol import RequestRecord
from tenfold.measure.probe.recorder import Recorder

if TYPE_CHECKING:
    from tenfold.measure.probe.probe import Probe

SCOPE = "tenfold.scope"
"""Key of the environ: what frameworks' hooks leave for the probe, with the names of an ASGI scope."""

Environ = dict[str, Any]
WsgiApp = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]


class WsgiProbe:
    """Record a WSGI app's requests; statements belong to the request of their thread.

    Args:
        app: the application.
        probe: whose recorder and sending thread are used.
    """

    def __init__(self, app: WsgiApp, probe: Probe) -> None:
        self._app = app
        self._probe = probe

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        self._probe.start_in_this_process()
        recorder = self._probe.recorder
        if not recorder.is_on:
            return self._app(environ, start_response)
        request = RequestRecord(time.perf_counter())
        scope = environ[SCOPE] = {
            "method": environ.get("REQUEST_METHOD", ""),
            "path": environ.get("PATH_INFO", ""),
            "root_path": "",
        }
        recorder.current.set(request)
        recorder.begin_request(request, scope, "", thread=threading.get_ident())
        try:
            body = self._app(environ, start_response)
        except BaseException:
            recorder.record_request(request, scope, "")
            recorder.current.set(None)
            raise
        wrapper = environ.get("wsgi.file_wrapper")
        if isinstance(wrapper, type) and isinstance(body, wrapper):  # the server sends the file by itself
            recorder.record_request(request, scope, "")
            recorder.current.set(None)
            return body
        # Servers announce the length of a body in one part.
        kind = _SizedBody if hasattr(body, "__len__") else _Body
        return kind(body, recorder, request, scope)

    def close(self) -> None:
        """Stop the sending thread; the app keeps working."""
        self._probe.close()


class _Body:
    """The parts of an answer; the request ends with the last, its record when the server closes it."""

    def __init__(
        self, body: Iterable[bytes], recorder: Recorder, request: RequestRecord, scope: dict[str, Any]
    ) -> None:
        self._body, self._recorder, self._request, self._scope = body, recorder, request, scope
        recorder.begin_response(request)

    def __iter__(self) -> Iterator[bytes]:
        for part in self._body:
            self._request.bytes += len(part)
            yield part
        self._recorder.stop_clock(self._request)

    def close(self) -> None:
        """End the request, as a server does once, after the last part or when the client has left."""
        try:
            if close := getattr(self._body, "close", None):
                close()
        finally:
            self._recorder.record_request(self._request, self._scope, "")
            self._recorder.current.set(None)


class _SizedBody(_Body):
    def __len__(self) -> int:
        return len(self._body)  # type: ignore[arg-type]
