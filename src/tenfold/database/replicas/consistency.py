"""Consistency tokens: what a visitor has seen, its signed form, and the middleware that carries it."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send
from tenfold.database.replicas.freshness import FreshnessLimits
from tenfold.database.replicas.servers import Cluster
from tenfold.errors import PositionError, SignatureError
from tenfold.positions import Token, merge_tokens, renew_token
from tenfold.signing import Signer

if TYPE_CHECKING:
    from tenfold.database.replicas.checkout import Checkout


__all__ = ["ConsistencyContext", "ConsistencyMiddleware", "ConsistencyTracker", "TokenSigner"]


_PURPOSE = "seen position"
_MAX_TOKEN_BYTES = 25
_MAX_TOKENS = 4  # that one request may bring
_log = logging.getLogger("tenfold.database")


class Router(Protocol):
    """The part of a :class:`~tenfold.database.DatabaseRouter` that the middleware uses."""

    def consistency_context(self, token: str | None = None) -> AbstractContextManager[ConsistencyContext]:
        """A context for a block."""

    def token(self) -> str | None:
        """The token of the current context."""

    @property
    def token_s(self) -> float:
        """The lifetime of a token, seconds."""


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
        self._has_warned = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return await self.app(scope, receive, send)
        with self.router.consistency_context() as context:
            for token in self._request_tokens(scope)[:_MAX_TOKENS]:
                with self.router.consistency_context(token) as brought:
                    if brought.token:
                        context.add(brought.token)

            async def send_with_token(message: Message) -> None:
                if message["type"] in ("http.response.start", "websocket.accept"):
                    self._add_token(message, scope, context)
                    context.has_changed = context.has_written = False
                await send(message)

            await self.app(scope, receive, send_with_token)
            if context.has_written and scope["type"] == "http":
                self._warn_of_late_commit()

    def _request_tokens(self, scope: Scope) -> list[str]:
        found: list[str] = []
        for name, value in scope["headers"]:
            if name == b"cookie" and self.cookie:
                found += _cookie_values(value.decode("latin-1"), self.cookie)
            elif name == self.header:
                found.append(value.decode("latin-1"))
        return found

    def _add_token(self, message: Message, scope: Scope, context: ConsistencyContext) -> None:
        if not context.has_changed or (text := self.router.token()) is None:
            return
        headers = list(message.get("headers", ()))
        if not context.has_written and _is_publicly_cached(headers):
            return
        if self.header:
            headers.append((self.header, text.encode()))
        if self.cookie:
            headers.append((b"set-cookie", self._set_cookie(text, scope).encode()))
        message["headers"] = headers

    def _set_cookie(self, text: str, scope: Scope) -> str:
        secure = scope.get("scheme") in ("https", "wss") if self.secure is None else self.secure
        cookie = f"{self.cookie}={text}; Path=/; Max-Age={int(self.router.token_s)}; HttpOnly; SameSite=Lax"
        return cookie + "; Secure" * secure

    def _warn_of_late_commit(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            _log.warning(
                "something was committed after the answer had begun, so that the visitor may not see it: "
                "commit inside the endpoint"
            )


def _cookie_values(text: str, name: str) -> list[str]:
    """A cookie's values. The standard library's parser gives up at the first cookie that is ill-formed."""
    pairs = (pair.partition("=") for pair in text.split(";"))
    return [value.strip() for key, _, value in pairs if key.strip() == name]


def _is_publicly_cached(headers: list[tuple[bytes, bytes]]) -> bool:
    """Return whether a cache that serves several visitors may keep this answer."""
    values = b",".join(value.lower() for name, value in headers if name.lower() == b"cache-control")
    words = {word.strip().partition(b"=")[0] for word in values.split(b",")}
    return bool(words & {b"public", b"s-maxage"})


class ConsistencyContext:
    """The token of a request, a task or a thread; shared by all that run in its context. Thread-safe.

    Attributes:
        counts_reads: whether reads move the token, besides writes.
        has_written: whether something was committed, rather than only read.
        has_changed: whether the token was moved since the context began.
    """

    __slots__ = ("_lock", "_token", "counts_reads", "has_changed", "has_written")

    def __init__(self, token: Token | None = None, *, counts_reads: bool = True) -> None:
        self._lock = threading.Lock()
        self._token = token
        self.counts_reads = counts_reads
        self.has_changed = self.has_written = False

    @property
    def token(self) -> Token | None:
        """The furthest that was seen; None when nothing was, or so long ago that every replica has it."""
        token = self._token
        return None if token is None or token.expires_at <= time.time() else token

    def add(self, token: Token) -> None:
        """Add what a visitor brought."""
        with self._lock:
            self._token = merge_tokens(self._token, token)

    def absorb(self, inner: ConsistencyContext) -> None:
        """Add what a context inside of this one has seen and done."""
        if inner.has_changed:
            if inner._token:
                self.add(inner._token)
            self.has_changed, self.has_written = True, self.has_written or inner.has_written

    def record_replica_read(self, token: Token) -> None:
        """Move the token after a read on a replica."""
        self._set(token, of_primary=False)

    def record_primary_use(self, token: Token, *, wrote: bool) -> None:
        """Move the token after a read or a write on the primary."""
        self.has_written = self.has_written or wrote
        self._set(token, of_primary=True)

    def _set(self, token: Token, *, of_primary: bool) -> None:
        with self._lock:
            held = self._token
            found = renew_token(held, token) if of_primary else merge_tokens(held, token)
            if not _is_hardly_later(held, found):
                self._token, self.has_changed = found, True


def _is_hardly_later(held: Token | None, found: Token | None) -> bool:
    """Return whether only the expiry moved, by less than half of the lifetime: not worth a cookie."""
    if held is None or found is None or held != replace(found, expires_at=held.expires_at):
        return False
    now = time.time()
    return held.expires_at - now > (found.expires_at - now) / 2


class TokenSigner:
    """Tokens as short signed text.

    Args:
        keys: those of :class:`tenfold.signing.Signer`. None makes one that ends with this process: tokens of
            other processes cannot be read then, and their holders are sent to the primary.
    """

    def __init__(self, keys: Sequence[str | bytes] | str | bytes | None) -> None:
        self.has_shared_keys = keys is not None
        self._signer = Signer([secrets.token_bytes(32)] if keys is None else keys, max_bytes=_MAX_TOKEN_BYTES)

    def encode(self, token: Token) -> str:
        """62 characters of URL-safe text."""
        return self._signer.sign(token.pack(), purpose=_PURPOSE)

    def decode(self, text: str) -> Token | None:
        """The token; None for text of another signer."""
        try:
            return Token.unpack(self._signer.verify(text, purpose=_PURPOSE))
        except (PositionError, SignatureError):
            return None


_PIN_WARNING = (
    "this database has no log positions: after a write, reads go to the primary for {:g} s, and a replica "
    "that is later than that shows old data"
)
_KEYS_WARNING = (
    "a token of another instance came in, and this router has no keys to read it: give every instance the "
    "same keys, or its visitors are sent to the primary"
)


class ConsistencyTracker:
    """Keeps a :class:`ConsistencyContext` for each request, task or thread, and moves it with transactions.

    Without one, say in a script, a write starts one that lasts as long as the thread or task: reads see what
    was written from then on. What was *read* is remembered only in contexts that were opened.
    """

    def __init__(
        self,
        *,
        keys: Sequence[str | bytes] | str | bytes | None,
        cluster: Cluster,
        limits: FreshnessLimits,
    ) -> None:
        self._signer = TokenSigner(keys)
        self._cluster, self._limits = cluster, limits
        self._current: ContextVar[ConsistencyContext | None] = ContextVar("tenfold_consistency", default=None)
        self._warnings: set[str] = set()

    def token(self) -> Token | None:
        """The token of the current context."""
        context = self._current.get()
        return context.token if context else None

    def signed_token(self) -> str | None:
        """The token of the current context as text to carry; None when nothing was seen."""
        token = self.token()
        return self._signer.encode(token) if token else None

    @contextmanager
    def open_context(self, text: str | None) -> Iterator[ConsistencyContext]:
        """Open a context for a block, which begins with the token in ``text``."""
        token = self._signer.decode(text) if text else None
        if text and token is None and not self._signer.has_shared_keys:
            self._warn_once(_KEYS_WARNING)
            token = self._unsure_token()
        context = ConsistencyContext(token, counts_reads=self._limits.monotonic)
        mark = self._current.set(context)
        try:
            yield context
        finally:
            self._current.reset(mark)

    @contextmanager
    def require(self, token: Token | None) -> Iterator[None]:
        """Let the reads of a block go to servers that have reached ``token``, and what their reader saw."""
        if token is None:
            yield
            return
        outer = self._current.get()
        inner = ConsistencyContext(
            merge_tokens(outer.token if outer else None, token),
            counts_reads=outer is not None and outer.counts_reads,
        )
        mark = self._current.set(inner)
        try:
            yield
        finally:
            self._current.reset(mark)
            if outer is not None:
                outer.absorb(inner)
            elif inner.has_written:
                self._current.set(inner)

    def record_state(self, token: Token) -> None:
        """Move the token by a state that was shown from elsewhere, such as a cache."""
        context = self._current.get()
        if context is not None and context.counts_reads:
            context.record_replica_read(token)

    def record_read(self, checkout: Checkout, _: bool) -> None:
        """Move the token by what a read session's transaction may have shown."""
        context = self._current.get()
        if context is None or not context.counts_reads or not self._cluster.has_positions:
            return
        token = self._visible_token(checkout)
        if token and checkout.server.is_primary:
            context.record_primary_use(token, wrote=False)
        elif token:
            context.record_replica_read(token)

    def record_write(self, checkout: Checkout, committed: bool) -> None:
        """Move the token after a transaction on the primary. The position is asked for on its connection.

        Also after one that wrote nothing: it has shown the newest state. So it need not be known what wrote,
        which only the server knows (a function may, in a SELECT).
        """
        context = self._current.get()
        # When the connection was lost, it may have been during COMMIT.
        wrote = committed or checkout.is_lost
        if not wrote and (context is None or not context.counts_reads or not self._cluster.has_positions):
            return
        token = self._visible_token(checkout) if self._cluster.has_positions else None
        if token is None and wrote:
            if self._cluster.has_replicas:
                self._warn_once(_PIN_WARNING.format(self._limits.pin_s))
            token = self._pin_token()
        if token:
            if context is None:
                self._current.set(context := ConsistencyContext(counts_reads=False))
            context.record_primary_use(token, wrote=wrote)

    def _visible_token(self, checkout: Checkout) -> Token | None:
        if checkout.is_lost:
            return self._unsure_token()
        return checkout.visible_token(expires_at=self._expiry())

    def _unsure_token(self) -> Token:
        if self._cluster.has_positions:
            return Token.unsure(expires_at=self._expiry())
        return self._pin_token()

    def _pin_token(self) -> Token:
        """A token with a time in the place of a position."""
        return Token(0, 0, int(time.time() * 1000), self._expiry())

    def _expiry(self) -> int:
        return int(time.time() + self._limits.token_s)

    def _warn_once(self, text: str) -> None:
        """Log it once: this is about how the service is set up, and does not change with the next request."""
        if text not in self._warnings:
            self._warnings.add(text)
            _log.warning("%s", text)
