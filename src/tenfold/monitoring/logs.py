"""Structured logs: one JSON object a line, with the ids of request, trace and tenant.

handler = logging.StreamHandler()
handler.setFormatter(JsonFormatter())
logging.basicConfig(handlers=[handler], level=logging.INFO)
app.add_middleware(RequestIdMiddleware)
"""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send
from tenfold.redaction import redact

__all__ = ["JsonFormatter", "RequestIdMiddleware", "current_request_id", "set_tenant"]

_ID = re.compile(rb"[A-Za-z0-9._-]{8,64}")
_MOST_CHARACTERS = 8_000  # of a message or a traceback: collectors cut longer lines in the middle of the JSON
_OWN = frozenset(vars(logging.makeLogRecord({})).keys() | {"message", "asctime", "taskName"})
_SECRET = re.compile(r"password|passwd|secret|token|authorization|cookie|api_?key|credential", re.I)

_request_id: ContextVar[str] = ContextVar("tenfold_request_id", default="")
_tenant: ContextVar[str] = ContextVar("tenfold_tenant", default="")


def current_request_id() -> str:
    """The id of the request that this code runs for; "" outside of one."""
    return _request_id.get()


def set_tenant(tenant: object) -> None:
    """Name the tenant of this request in what is logged from here on."""
    _tenant.set(str(tenant))


class RequestIdMiddleware:
    """Give each request an id, or keep the one that a proxy in front has given it; the answer carries it.

    Args:
        header: of requests and answers. An id that is not 8 to 64 letters, digits and ``._-`` is replaced.
    """

    def __init__(self, app: ASGIApp, *, header: str = "X-Request-ID") -> None:
        self.app = app
        self.header = header.lower().encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == self.header), b"")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        marks = _request_id.set(request_id.decode()), _tenant.set("")

        async def send_with_id(message: Message) -> None:
            if message["type"] in ("http.response.start", "websocket.accept"):
                message["headers"] = [*message.get("headers", ()), (self.header, request_id)]
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        finally:
            _request_id.reset(marks[0])
            _tenant.reset(marks[1])


class JsonFormatter(logging.Formatter):
    """Format records as JSON, with what ``extra=`` adds, and without passwords.

    Values of ``extra`` whose names look secret are left out, and passwords in URLs are replaced, in messages
    and tracebacks too. With OpenTelemetry loaded, the current span's ids are in it.

    Args:
        service: a name in each line; "" for none.
        now: the moment of a record, for tests.
    """

    def __init__(
        self,
        *,
        service: str = "",
        now: Callable[[logging.LogRecord], datetime] = lambda record: datetime.fromtimestamp(
            record.created, UTC
        ),
    ) -> None:
        super().__init__()
        self.service, self.now = service, now

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        found: dict[str, Any] = {
            "time": self.now(record).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(record.getMessage()),
        }
        ids = {"service": self.service, "request_id": _request_id.get(), "tenant": _tenant.get(), **_span()}
        found |= {name: value for name, value in ids.items() if value}
        for name, value in vars(record).items():
            if name not in _OWN and name not in found and not name.startswith("_"):
                found[name] = "…" if _SECRET.search(name) else _plain(value)
        if record.exc_info:
            found["traceback"] = _clean(self.formatException(record.exc_info))
        return json.dumps(found, ensure_ascii=False, default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float) or value is None:
        return value
    return _clean(str(value))


def _clean(text: str) -> str:
    """Text without passwords, bounded. Line by line, because more than a password may go with it."""
    lines = "\n".join(map(redact, text.split("\n")))
    clean = lines.encode(errors="replace").decode()
    return clean if len(clean) <= _MOST_CHARACTERS else f"{clean[:_MOST_CHARACTERS]}…"


def _span() -> dict[str, str]:
    """The ids of OpenTelemetry's current span, if the service has loaded it."""
    trace = sys.modules.get("opentelemetry.trace")
    context = trace.get_current_span().get_span_context() if trace is not None else None
    if context is None or not context.is_valid:
        return {}
    return {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
