"""ASGI middleware that loads a session on first access and saves it before the response starts."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from tenfold.asgi import (
    ASGIApp,
    Header,
    Message,
    Receive,
    Scope,
    Send,
    ends_answer,
    longest_prefix,
    path_in_app,
    send_answer,
)
from tenfold.errors import SessionEndedError, SessionError, SessionSizeError, SessionStoreError, SettingsError
from tenfold.sessions.backend import MissingSession, SessionBackend, StoredSession
from tenfold.sessions.server_sessions import ServerSessions
from tenfold.sessions.session import Phase, Session
from tenfold.sessions.stores.store import Store
from tenfold.sessions.transport import CookieTransport, Transport

__all__ = ["SessionMiddleware", "current"]

SCOPE_KEY = "tenfold.session"
STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
log = logging.getLogger("tenfold.sessions")

# Responses do not tell clients the reason: it is in the log.
ERROR_RESPONSES: tuple[tuple[type[SessionError] | type[SessionStoreError], int, bytes], ...] = (
    (SessionStoreError, 503, b"Sessions are not available at the moment. Try again.\n"),
    (SessionEndedError, 409, b"The session ended while this request ran. Try again.\n"),
    (SessionSizeError, 413, b"The session cannot hold that much.\n"),
)

Policy = Literal["closed", "anonymous"]
WhenUnavailable = Policy | Mapping[str, Policy] | Callable[[Scope], Policy]

POLICIES = ("closed", "anonymous")


class SessionMiddleware:
    """Sessions around any ASGI app: ``await current(request)`` inside of it is the client's session.

        app.add_middleware(SessionMiddleware, store=RedisStore(url))

    A request that does not access its session costs no round trip; one that reads it costs one. Changes are
    stored before the response starts, or the client gets an error instead of the response: 503 if the store
    does not answer, 409 if the session was ended or its token replaced meanwhile, 413 if it would be too
    large. A request that fails, with an exception or a 500, saves nothing but logouts.

    Args:
        app: the application; lifespan passes through untouched.
        store: stores sessions with the defaults of :class:`tenfold.sessions.ServerSessions`; or instead
        sessions: a backend: ``ServerSessions(store, …)`` or ``CookieSessions(sealer, …)``.
        transport: how the token travels; by default a ``__Host-session`` cookie.
        when_unavailable: ``"closed"`` (503 with Retry-After), ``"anonymous"`` (reads continue as if not
            logged in; writes get a 503), a mapping of path prefixes to these, or a function of the scope.
        retry_after_s: the Retry-After of a 503.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store | None = None,
        sessions: SessionBackend | None = None,
        transport: Transport | None = None,
        when_unavailable: WhenUnavailable = "closed",
        retry_after_s: int = 1,
    ) -> None:
        if (store is None) == (sessions is None):
            raise SettingsError("SessionMiddleware takes either store= or sessions=")
        self._app = app
        self.backend: SessionBackend = sessions or ServerSessions(store)  # type: ignore[arg-type]
        self.transport = transport or CookieTransport()
        self.policy = policy_lookup(when_unavailable)
        if self.transport.app_delivers_token and not self.backend.token("handle", "secret"):
            raise SettingsError("sessions kept in cookies travel in cookies: leave transport= as it is")
        self._retry_after = str(retry_after_s).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        outer = scope.get(SCOPE_KEY)  # of the app that this one is mounted in
        request = scope[SCOPE_KEY] = RequestSession(self, scope)

        async def send_saved(message: Message) -> None:
            kind = message["type"]
            if kind in STARTS and not request.has_started:
                if request.session is not None or request.error is not None:
                    message = await self._save_before(request, message, send)
                request.start(kind)
            await send(message)
            if ends_answer(message):
                request.finish()

        try:
            await self._app(scope, receive, send_saved)
        except Exception as error:
            await self._handle_failure(request, error, send)
        else:
            request.check_saved()
        finally:
            if outer is not None:
                scope[SCOPE_KEY] = outer

    async def _save_before(self, request: RequestSession, message: Message, send: Send) -> Message:
        """Save the session; return the response's start with the session's headers.

        If it cannot be saved, an error response is sent instead, and this raises.
        """
        try:
            if message.get("status") == 500:  # an exception that the application has turned into a page
                await request.save_logouts()
                if (failure := request.failure) is not None and _error_response(failure):
                    raise failure
            elif request.session is not None:
                await request.session.save()
        except Exception as error:
            await self._replace_response(request, error, send)
        if (session := request.session) is None:
            return message
        delivery = None
        if session.pending_token is not None:
            delivery, session.pending_token = self.transport.response_header(session.pending_token), None
        headers = message.get("headers") or ()
        return {
            **message,
            "headers": with_cache_headers(headers, vary=self.transport.vary, delivery=delivery),
        }

    async def _replace_response(self, request: RequestSession, error: Exception, send: Send) -> None:
        """Send the error; always raises, so that the application ends here, without its background tasks."""
        if isinstance(error, OSError):  # from a store that violates its contract
            error = _store_error(error)
        if (response := _error_response(error)) is None:
            raise error
        request.is_answered = True
        await self._send_error(request, response, error, send)
        raise _ResponseReplacedError("the session was not saved, and the client was sent an error") from error

    async def _handle_failure(self, request: RequestSession, error: Exception, send: Send) -> None:
        if request.is_answered:
            return
        await request.save_logouts()
        cause = request.error or error
        response = _error_response(cause)
        if response is None or request.has_started:
            raise error
        await self._send_error(request, response, cause, send)

    async def _send_error(
        self, request: RequestSession, response: tuple[int, bytes], error: Exception, send: Send
    ) -> None:
        status, body = response
        log.warning("%s %r answered %d: %s", request.scope["type"], request.scope["path"], status, error)
        kind = "http.response"
        if request.scope["type"] == "websocket":
            if "websocket.http.response" not in (request.scope.get("extensions") or {}):
                await send({"type": "websocket.close", "code": 1013, "reason": "try again later"})
                return
            kind = "websocket.http.response"
        headers = [(b"retry-after", self._retry_after)] if status == 503 else []
        await send_answer(send, status, body, headers=headers, kind=kind)


class RequestSession:
    """One request's session, loaded on first access."""

    __slots__ = ("_lock", "_middleware", "_phase", "error", "has_started", "is_answered", "scope", "session")

    def __init__(self, middleware: SessionMiddleware, scope: Scope) -> None:
        self._middleware = middleware
        self._lock: asyncio.Lock | None = None
        self.scope = scope
        self.session: Session | None = None
        self.error: SessionStoreError | None = None
        self.has_started = self.is_answered = False
        self._phase: Phase = "open"

    async def load(self) -> Session:
        """Return the session; concurrent calls share one round trip."""
        if self.session is not None:
            return self.session
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if self.error is not None:
                raise self.error
            if self.session is None:
                self.session = await self._load()
        return self.session

    async def _load(self) -> Session:
        middleware = self._middleware
        found: StoredSession | MissingSession = MissingSession.UNKNOWN
        if token := middleware.transport.token(self.scope["headers"]):
            try:
                found = await middleware.backend.load(token)
            except (SessionStoreError, OSError) as error:
                if middleware.policy(self.scope) != "anonymous":
                    self.error = _store_error(error)
                    raise self.error from None
                found = MissingSession.UNAVAILABLE
        session = Session(
            middleware.backend, found, app_delivers_token=middleware.transport.app_delivers_token
        )
        session.phase = self._phase
        return session

    @property
    def failure(self) -> Exception | None:
        """The last failure of loading or saving the session."""
        return self.error or (self.session.failure if self.session is not None else None)

    async def save_logouts(self) -> None:
        """Save the logouts of a failed request."""
        if self.session is not None:
            try:
                await self.session.save_logouts()
            except SessionStoreError as lost:
                log.warning("a logout was lost with the request that failed: %s", lost)

    def start(self, kind: str) -> None:
        """From here on only an explicit ``save()`` saves, and no token can be delivered."""
        self.has_started = True
        self._set_phase("responded" if kind == "websocket.accept" else "responding")

    def finish(self) -> None:
        self._set_phase("responded")

    def check_saved(self) -> None:
        """Raise SessionError for changes that came too late to be saved automatically."""
        if self.session is not None and not self.is_answered and self.session.is_changed:
            raise SessionError(
                "the session was changed after the response began and not saved: change it before, or "
                "await session.save() in the background task or WebSocket that changes it"
            )

    def _set_phase(self, phase: Phase) -> None:
        self._phase = phase
        if self.session is not None:
            self.session.phase = phase


class CurrentSession:
    """``session = await current(request)``, ``Depends(current)`` in FastAPI, ``current.blocking(request)``.

    Takes a scope, or anything with a ``.scope``: a Request or a WebSocket. The first call of a request loads
    the session, in one round trip; later calls return the same object. As a dependency it serves sync
    endpoints too; without dependencies those call :meth:`blocking`.

    Raises:
        SessionStoreError: the store does not answer; unhandled, it becomes what the route's policy says.
        SessionError: SessionMiddleware is not around the application.
    """

    async def __call__(self, connection: Any) -> Session:
        scope: Mapping[str, Any] = getattr(connection, "scope", connection)
        request = scope.get(SCOPE_KEY)
        if not isinstance(request, RequestSession):
            raise SessionError("this request has no session: put SessionMiddleware around the application")
        return await request.load() if request.session is None else request.session

    def blocking(self, connection: Any) -> Session:
        """The same from a sync endpoint, that is: in a worker thread of Starlette or anyio."""
        from anyio import from_thread

        return from_thread.run(self.__call__, connection)

    @property
    def __signature__(self) -> inspect.Signature:
        """The signature that FastAPI inspects. Starlette is imported only where FastAPI has done so."""
        from starlette.requests import HTTPConnection

        parameter = inspect.Parameter(
            "connection", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=HTTPConnection
        )
        return inspect.Signature([parameter], return_annotation=Session)


current = CurrentSession()


class _ResponseReplacedError(OSError):
    """As a server raises from ``send`` after a disconnect (ASGI 2.4): the response is not wanted."""


def _store_error(error: Exception) -> SessionStoreError:
    if isinstance(error, SessionStoreError):
        return error
    return SessionStoreError(f"the store of sessions does not answer: {type(error).__name__}")


def _error_response(error: Exception) -> tuple[int, bytes] | None:
    for kind, status, body in ERROR_RESPONSES:
        if isinstance(error, kind):
            return status, body
    return None


def policy_lookup(when_unavailable: WhenUnavailable) -> Callable[[Scope], Policy]:
    """Turn ``when_unavailable`` into a function of the scope; the longest path prefix decides. Pure.

    Paths without a prefix are "closed".

    Raises:
        SettingsError: an unknown policy, or a prefix without a leading slash.
    """
    if callable(when_unavailable):
        return when_unavailable
    if isinstance(when_unavailable, str):
        _check_policy(when_unavailable)
        only = when_unavailable
        return lambda scope: only
    for prefix, policy in when_unavailable.items():
        _check_policy(policy)
        if not prefix.startswith("/"):
            raise SettingsError(f"when_unavailable has {prefix!r}: a path begins with a slash")
    find = longest_prefix(when_unavailable, otherwise="closed")
    return lambda scope: find(path_in_app(scope))


def _check_policy(policy: str) -> None:
    if policy not in POLICIES:
        raise SettingsError(f"when_unavailable is {policy!r}: use closed or anonymous")


def with_cache_headers(headers: Iterable[Header], *, vary: bytes, delivery: Header | None) -> list[Header]:
    """The headers of a response for which the session was read. Pure.

    ``Vary`` names the header that carried the token. Unless the application sets Cache-Control, the response
    is private to the client. A response with a token is stored nowhere, whatever the application says: the
    strictest of several directives counts (RFC 9111 section 4.2.1).
    """
    result = list(headers)
    present_vary, cache_control = _header_values(result, b"vary"), _header_values(result, b"cache-control")
    if vary.lower() not in present_vary and b"*" not in present_vary:
        result.append((b"vary", vary))
    if delivery is not None:
        result.append(delivery)
        if b"no-store" not in cache_control:
            result.append((b"cache-control", b"no-store"))
    elif not cache_control:
        result.append((b"cache-control", b"private"))
    return result


def _header_values(headers: Iterable[Header], name: bytes) -> list[bytes]:
    lines = [value for key, value in headers if key.lower() == name]
    return [item.strip().lower() for line in lines for item in line.split(b",")] if lines else []
