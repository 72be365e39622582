"""Carries what a visitor has seen from one request to the next, through any ASGI app."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Protocol

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send
from tenfold.database.replicas.consistency import Seen

__all__ = ["ConsistencyMiddleware"]


_MOST_TOKENS = 4
_log = logging.getLogger("tenfold.database")


class Router(Protocol):
    """What is needed of a :class:`~tenfold.database.DatabaseRouter`."""

    def seen(self, token: str | None = None) -> AbstractContextManager[Seen]:
        """A context for a block."""

    def token(self) -> str | None:
        """What this context has seen."""

    @property
    def token_s(self) -> float:
        """How long a token lives."""


class ConsistencyMiddleware:
    """Visitors read what they wrote, and nothing older than what they have read, on whichever instance.

    The token comes and goes in a cookie, and in a header for clients that keep none; of two the greater
    counts. It is set before the answer begins, and only when it changed. An answer that shared caches may
    keep (``Cache-Control: public`` or ``s-maxage``) carries none unless the request wrote something.

    A commit after the answer began comes too late for it: commit in the endpoint, not in a background task
    and not in the teardown of a dependency (FastAPI runs that after the answer, unless
    ``Depends(…, scope="function")``). It is logged once when that happens.

    Args:
        router: a DatabaseRouter. With several, one middleware each, with a cookie of its own.
        cookie: its name; None leaves cookies alone.
        header: the name of a request and response header that does the same; None for none.
        secure: whether the cookie is for HTTPS only; None goes by the request's scheme.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        router: Router,
        cookie: str | None = "tenfold_seen",
        header: str | None = None,
        secure: bool | None = None,
    ) -> None:
        self.app = app
        self.router = router
        self.cookie = cookie
        self.header = header.lower().encode() if header else None
        self.secure = secure
        self._told = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        with self.router.seen(None) as seen:
            for token in self._brought(scope)[:_MOST_TOKENS]:
                with self.router.seen(token) as held:
                    if held.token:
                        seen.begin(held.token)

            async def answer(message: Message) -> None:
                if message["type"] in ("http.response.start", "websocket.accept"):
                    self._add(message, scope, seen)
                    seen.changed = seen.wrote = False
                await send(message)

            await self.app(scope, receive, answer)
            if seen.wrote and scope["type"] == "http":
                self._tell()

    def _brought(self, scope: Scope) -> list[str]:
        found: list[str] = []
        for name, value in scope["headers"]:
            if name == b"cookie" and self.cookie:
                found += _cookie(value.decode("latin-1"), self.cookie)
            elif name == self.header:
                found.append(value.decode("latin-1"))
        return found

    def _add(self, message: Message, scope: Scope, seen: Seen) -> None:
        if not seen.changed or (text := self.router.token()) is None:
            return
        headers = list(message.get("headers", ()))
        if not seen.wrote and _shared(headers):
            return
        if self.header:
            headers.append((self.header, text.encode()))
        if self.cookie:
            headers.append((b"set-cookie", self._set_cookie(text, scope).encode()))
        message["headers"] = headers

    def _set_cookie(self, text: str, scope: Scope) -> str:
        secure = scope.get("scheme") in ("https", "wss") if self.secure is None else self.secure
        lasting = f"{self.cookie}={text}; Path=/; Max-Age={int(self.router.token_s)}; HttpOnly; SameSite=Lax"
        return lasting + "; Secure" * secure

    def _tell(self) -> None:
        if not self._told:
            self._told = True
            _log.warning(
                "something was committed after the answer had begun, so that the visitor may not see it: "
                "commit inside the endpoint"
            )


def _cookie(text: str, name: str) -> list[str]:
    """Its values. The standard library's parser gives up at the first cookie that it finds ill-formed."""
    pairs = (pair.partition("=") for pair in text.split(";"))
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _shared(headers: list[tuple[bytes, bytes]]) -> bool:
    """Whether a cache that serves several visitors may keep this answer."""
    values = b",".join(value.lower() for name, value in headers if name.lower() == b"cache-control")
    words = {word.strip().partition(b"=")[0] for word in values.split(b",")}
    return bool(words & {b"public", b"s-maxage"})
