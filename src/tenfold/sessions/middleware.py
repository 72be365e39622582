"""A plain ASGI middleware: loads a session when it is asked for, saves it before the answer starts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Literal

from tenfold.asgi import ASGIApp, Header, Message, Receive, Scope, Send, longest_prefix, send_answer
from tenfold.errors import SessionEndedError, SessionError, SessionSizeError, SessionStoreError, SettingsError
from tenfold.sessions.backend import Keeper, Kept, Missing
from tenfold.sessions.server import Sessions
from tenfold.sessions.session import Phase, Session
from tenfold.sessions.stores.store import Store
from tenfold.sessions.transport import CookieTransport, Transport

__all__ = ["SessionMiddleware", "Visit"]


# What a route does while the store of sessions does not answer. Pure.
Policy = Literal["closed", "anonymous"]
WhenUnavailable = Policy | Mapping[str, Policy] | Callable[[Scope], Policy]

POLICIES = ("closed", "anonymous")


def policy_of(when_unavailable: WhenUnavailable) -> Callable[[Scope], Policy]:
    """What to ask for each request; a mapping has path prefixes, the longest counts, "closed" is the rest.

    Raises:
        SettingsError: a policy that does not exist, or a prefix without a leading slash.
    """
    if callable(when_unavailable):
        return when_unavailable
    if isinstance(when_unavailable, str):
        _check(when_unavailable)
        only = when_unavailable
        return lambda scope: only
    for prefix, policy in when_unavailable.items():
        _check(policy)
        if not prefix.startswith("/"):
            raise SettingsError(f"when_unavailable has {prefix!r}: a path begins with a slash")
    find = longest_prefix(when_unavailable, otherwise="closed")
    return lambda scope: find(scope["path"])


def _check(policy: str) -> None:
    if policy not in POLICIES:
        raise SettingsError(f"when_unavailable is {policy!r}: use closed or anonymous")


KEY = "tenfold.session"
STARTS = frozenset(("http.response.start", "websocket.accept", "websocket.http.response.start"))
log = logging.getLogger("tenfold.sessions")

# What a client is told, without a word of why: the reason is in the log.
ANSWERS: tuple[tuple[type[SessionError] | type[SessionStoreError], int, bytes], ...] = (
    (SessionStoreError, 503, b"Sessions are not available at the moment. Try again.\n"),
    (SessionEndedError, 409, b"The session ended while this request ran. Try again.\n"),
    (SessionSizeError, 413, b"The session cannot hold that much.\n"),
)


class SessionMiddleware:
    """Around any ASGI app: ``await current(request)`` inside of it is the client's session.

        app.add_middleware(SessionMiddleware, store=RedisStore(url))

    A request that does not ask for its session costs no round trip; one that reads it costs one. What an
    endpoint changed is stored before the answer starts, or the client gets an error instead of the answer:
    503 where the store does not answer, 409 where the session was ended or its token replaced meanwhile, 413
    where it would be too large. A request that fails, with an exception or a 500, saves nothing but logouts.

    Args:
        app: the application; lifespan passes through untouched.
        store: keeps sessions with the defaults of :class:`tenfold.sessions.Sessions`; or instead
        sessions: a keeper: ``Sessions(store, …)`` or ``CookieSessions(sealer, …)``.
        transport: how the token travels; a ``__Host-session`` cookie unless told otherwise.
        when_unavailable: ``"closed"`` (503 with Retry-After), ``"anonymous"`` (read as if nobody were logged
            in; what writes gets a 503), a mapping of path prefixes to these, or a function of the scope.
        retry_after_s: what a 503 tells the client to wait.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        store: Store | None = None,
        sessions: Keeper | None = None,
        transport: Transport | None = None,
        when_unavailable: WhenUnavailable = "closed",
        retry_after_s: int = 1,
    ) -> None:
        if (store is None) == (sessions is None):
            raise SettingsError("SessionMiddleware takes either store= or sessions=")
        self._app = app
        self.keeper: Keeper = sessions or Sessions(store)  # type: ignore[arg-type]
        self.transport = transport or CookieTransport()
        self.policy = policy_of(when_unavailable)
        if self.transport.is_silent and not self.keeper.token("handle", "secret"):
            raise SettingsError("sessions kept in cookies travel in cookies: leave transport= as it is")
        self._retry_after = str(retry_after_s).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        visit = scope[KEY] = Visit(self, scope)

        async def sending(message: Message) -> None:
            kind = message["type"]
            if kind in STARTS and not visit.has_started:
                if visit.session is not None or visit.error is not None:
                    message = await self._started(visit, message, send)
                visit.start(kind)
            await send(message)
            if kind == "http.response.body" and not message.get("more_body"):
                visit.finish()

        try:
            await self._app(scope, receive, sending)
        except Exception as error:
            await self._failed(visit, error, send)
        else:
            visit.check_saved()

    async def _started(self, visit: Visit, message: Message, send: Send) -> Message:
        """The message with what the session adds; another answer where the session cannot be saved."""
        try:
            if message.get("status") == 500:  # an exception of which somebody has made a page
                await visit.save_ends()
                if (failure := visit.failure) is not None and _answer_to(failure):
                    raise failure
            elif visit.session is not None:
                await visit.session.save()
        except Exception as error:
            await self._answer_instead(visit, error, send)
        if (session := visit.session) is None:
            return message
        delivery = None
        if session.outbox is not None:
            delivery, session.outbox = self.transport.delivery(session.outbox), None
        headers = message.get("headers") or ()
        return {**message, "headers": for_caches(headers, varies=self.transport.varies, delivery=delivery)}

    async def _answer_instead(self, visit: Visit, error: Exception, send: Send) -> None:
        """Always raises: the application ends here, with its tasks for after the answer undone."""
        if isinstance(error, OSError):  # from a store that does not keep to its contract
            error = _store_error(error)
        if (answer := _answer_to(error)) is None:
            raise error
        visit.is_answered = True
        await self._answer(visit, answer, error, send)
        raise _AnsweredError("the session was not saved, and the client has been told so") from error

    async def _failed(self, visit: Visit, error: Exception, send: Send) -> None:
        if visit.is_answered:
            return
        await visit.save_ends()
        cause = visit.error or error
        answer = _answer_to(cause)
        if answer is None or visit.has_started:
            raise error
        await self._answer(visit, answer, cause, send)

    async def _answer(self, visit: Visit, answer: tuple[int, bytes], error: Exception, send: Send) -> None:
        status, body = answer
        log.warning("%s %r answered %d: %s", visit.scope["type"], visit.scope["path"], status, error)
        kind = "http.response"
        if visit.scope["type"] == "websocket":
            if "websocket.http.response" not in (visit.scope.get("extensions") or {}):
                await send({"type": "websocket.close", "code": 1013, "reason": "try again later"})
                return
            kind = "websocket.http.response"
        headers = [(b"retry-after", self._retry_after)] if status == 503 else []
        await send_answer(send, status, body, headers=headers, kind=kind)


class Visit:
    """One request and its session, if it asks for one."""

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
        """The session; whoever asks at the same time waits for the same answer."""
        if self.session is not None:
            return self.session
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if self.error is not None:
                raise self.error
            if self.session is None:
                self.session = await self._loaded()
        return self.session

    async def _loaded(self) -> Session:
        middleware = self._middleware
        found: Kept | Missing = Missing.UNKNOWN
        if token := middleware.transport.token(self.scope["headers"]):
            try:
                found = await middleware.keeper.load(token)
            except (SessionStoreError, OSError) as error:
                if middleware.policy(self.scope) != "anonymous":
                    self.error = _store_error(error)
                    raise self.error from None
                found = Missing.UNREAD
        session = Session(middleware.keeper, found, silent=middleware.transport.is_silent)
        session.phase = self._phase
        return session

    @property
    def failure(self) -> Exception | None:
        """What went wrong with the session, if anything did."""
        return self.error or (self.session.failure if self.session is not None else None)

    async def save_ends(self) -> None:
        """All that is left to do for a request that failed."""
        if self.session is not None:
            try:
                await self.session.save_ends()
            except SessionStoreError as lost:
                log.warning("a logout was lost with the request that failed: %s", lost)

    def start(self, kind: str) -> None:
        """From here on nothing is saved that nobody saves explicitly, and no token is given out."""
        self.has_started = True
        self._enter("answered" if kind == "websocket.accept" else "answering")

    def finish(self) -> None:
        self._enter("answered")

    def check_saved(self) -> None:
        """Raises SessionError for what was changed too late, and so will never be stored."""
        if self.session is not None and not self.is_answered and self.session.is_changed:
            raise SessionError(
                "the session was changed after the answer began and not saved: change it before, or "
                "await session.save() in the background task or WebSocket that changes it"
            )

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        if self.session is not None:
            self.session.phase = phase


class _AnsweredError(OSError):
    """What a server raises from ``send`` when the client is gone (ASGI 2.4): nobody wants the answer."""


def _store_error(error: Exception) -> SessionStoreError:
    if isinstance(error, SessionStoreError):
        return error
    return SessionStoreError(f"the store of sessions does not answer: {type(error).__name__}")


def _answer_to(error: Exception) -> tuple[int, bytes] | None:
    for kind, status, body in ANSWERS:
        if isinstance(error, kind):
            return status, body
    return None


# What an answer that depends on a session says to caches. Pure.


def for_caches(headers: Iterable[Header], *, varies: bytes, delivery: Header | None) -> list[Header]:
    """The headers of an answer for which the session was read.

    ``Vary`` names the header that carried the token. Without a word of the application on caching, the answer
    is private to the client. With a token in it, it is stored nowhere, whatever the application said: the
    strictest of several directives counts (RFC 9111 section 4.2.1).
    """
    result = list(headers)
    vary, said = _values(result, b"vary"), _values(result, b"cache-control")
    if varies.lower() not in vary and b"*" not in vary:
        result.append((b"vary", varies))
    if delivery is not None:
        result.append(delivery)
        if b"no-store" not in said:
            result.append((b"cache-control", b"no-store"))
    elif not said:
        result.append((b"cache-control", b"private"))
    return result


def _values(headers: Iterable[Header], name: bytes) -> list[bytes]:
    lines = [value for key, value in headers if key.lower() == name]
    return [item.strip().lower() for line in lines for item in line.split(b",")] if lines else []
