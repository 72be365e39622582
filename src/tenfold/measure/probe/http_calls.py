"""Hooks into HTTP clients: the calls to other services, by host, with the user's line.

``http.client`` is what urllib, urllib3, requests and botocore send through; httpcore is what httpx does;
aiohttp is its own. Times end with the response's headers, and include the wait for one of the client's own
connections. A call is recorded as a round trip of the "database" ``http``: ``HTTP api.pay.example``, or
``HTTP api.pay.example: 503`` for a status that refuses or fails.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from threading import get_ident
from time import perf_counter
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from tenfold.measure.probe.probe_protocol import HTTP, RequestRecord
from tenfold.measure.probe.recorder import Recorder

REFUSED = (429, 503)

_recorder: Recorder | None = None


def install_http_client(recorder: Recorder) -> None:
    """Time calls from ``putrequest`` to the end of ``getresponse``."""
    from http.client import HTTPConnection

    _set(recorder)
    put, get = vars(HTTPConnection)["putrequest"], vars(HTTPConnection)["getresponse"]
    if hasattr(put, "_tenfold"):
        return

    def putrequest(connection: Any, *args: Any, **named: Any) -> Any:
        if _recorder is not None and _recorder.is_on:
            connection._tenfold_call = _Call(str(connection.host))
        return put(connection, *args, **named)

    def getresponse(connection: Any, *args: Any, **named: Any) -> Any:
        call = connection.__dict__.pop("_tenfold_call", None)
        if call is None:
            return get(connection, *args, **named)
        status = 0
        try:
            response = get(connection, *args, **named)
            status = response.status
            return response
        finally:
            call.end(sys._getframe(1), status)

    putrequest._tenfold = True  # type: ignore[attr-defined]
    setattr(HTTPConnection, "putrequest", putrequest)  # noqa: B010 - its signature is wider
    setattr(HTTPConnection, "getresponse", getresponse)  # noqa: B010


def install_httpcore(recorder: Recorder) -> None:
    """Time httpx's calls, sync and async."""
    import httpcore

    _set(recorder)
    _wrap(httpcore.ConnectionPool, "handle_request", _host_of_request)
    _wrap_async(httpcore.AsyncConnectionPool, "handle_async_request", _host_of_request)


def install_aiohttp(recorder: Recorder) -> None:
    """Time aiohttp's calls."""
    aiohttp: Any = sys.modules["aiohttp"]
    _set(recorder)
    _wrap_async(aiohttp.ClientSession, "_request", lambda args, named: _host_of_url(_argument(args, named)))


def _set(recorder: Recorder) -> None:
    global _recorder  # noqa: PLW0603 - the clients' classes are of the process
    _recorder = recorder


class _Call:
    """One call that runs; its request waits for it meanwhile."""

    def __init__(self, host: str) -> None:
        self.host, self.began = host, perf_counter()
        self.request: RequestRecord | None = _recorder.current.get() if _recorder is not None else None
        self.before = ""
        if self.request is not None:
            self.before, self.request._round_trip = self.request._round_trip, host
            self.request._thread = get_ident()

    def end(self, frame: FrameType | None, status: int) -> None:
        if self.request is not None:
            self.request._round_trip = self.before
            if not self.request._holds:
                self.request._thread = 0
        if _recorder is not None and _recorder.is_on:
            text = f"HTTP {self.host}" + (f": {status}" if status in REFUSED or status >= 500 else "")
            _recorder.record_statement(text, frame, perf_counter() - self.began, database=HTTP)


def _wrap(owner: Any, name: str, host: Callable[[Any, Any], str]) -> None:
    original = vars(owner).get(name)
    if original is None or hasattr(original, "_tenfold"):
        return

    def call(*args: Any, **named: Any) -> Any:
        if _recorder is None or not _recorder.is_on:
            return original(*args, **named)
        running, status = _Call(host(args, named)), 0
        try:
            response = original(*args, **named)
            status = int(getattr(response, "status", 0))
            return response
        finally:
            running.end(sys._getframe(1), status)

    call._tenfold = True  # type: ignore[attr-defined]
    setattr(owner, name, call)


def _wrap_async(owner: Any, name: str, host: Callable[[Any, Any], str]) -> None:
    original = vars(owner).get(name)
    if original is None or hasattr(original, "_tenfold"):
        return

    async def timed(awaitable: Any, args: Any, named: Any, frame: FrameType) -> Any:
        running, status = _Call(host(args, named)), 0
        try:
            response = await awaitable
            status = int(getattr(response, "status", 0))
            return response
        finally:
            running.end(frame, status)

    def call(*args: Any, **named: Any) -> Any:
        awaitable = original(*args, **named)
        if _recorder is None or not _recorder.is_on:
            return awaitable
        return timed(awaitable, args, named, sys._getframe(1))

    call._tenfold = True  # type: ignore[attr-defined]
    setattr(owner, name, call)


def _host_of_request(args: Any, named: Any) -> str:
    request = args[1] if len(args) > 1 else named.get("request")
    host = getattr(getattr(request, "url", None), "host", b"?")
    return host.decode(errors="replace") if isinstance(host, bytes) else str(host)


def _argument(args: Any, named: Any) -> Any:
    return args[2] if len(args) > 2 else named.get("str_or_url", "")


def _host_of_url(url: Any) -> str:
    host = getattr(url, "host", None)
    try:
        return str(host or urlsplit(str(url)).hostname or "?")
    except ValueError:
        return "?"
