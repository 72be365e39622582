"""An ASGI middleware that says what caches may do with each answer, and answers conditional requests.

Streams are passed on as they come. An answer that comes in one piece gets an entity tag and is compressed.
WebSockets and event streams are left alone.
"""

from __future__ import annotations

import hashlib
import secrets
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any
from urllib.parse import quote

from tenfold.asgi import ASGIApp, Header, Message, Receive, Scope, Send, path_in_app
from tenfold.edge.cache_control import format_date, has_token
from tenfold.edge.conditional import KEPT, evaluate, weaken
from tenfold.edge.decision import COOKIE, Answer, Request, choose_variants, describe
from tenfold.edge.rules import EdgePolicy, Rule

__all__ = ["EdgeMiddleware", "precondition"]

_VALIDATORS = "tenfold.edge.validators"
_COMPRESSED = (b"text/", b"application/json", b"application/javascript", b"application/xml", b"image/svg+xml")
_LEAST_COMPRESSED, _MOST_HASHED = 512, 4 * 1024 * 1024
_VISITOR_S = 90 * 86_400
_LOOKED_AT = frozenset((b"cache-control", b"cdn-cache-control", b"set-cookie", b"vary"))
_CONDITIONS = frozenset(("if-match", "if-none-match", "if-modified-since", "if-unmodified-since"))
_MOST_DESCRIBED = 1000


def precondition(
    request: Any, *, etag: str = "", last_modified: float | None = None, exists: bool = True
) -> int | None:
    """Evaluate a request's preconditions before its work is done; return 304, 412, or None: do it.

    ::

        if status := precondition(request, etag=f'"{order.version}"'):
            return Response(status_code=status)

    The middleware adds the validators to the answer, whatever its status.

    Args:
        request: of Starlette or FastAPI, or an ASGI scope.
        etag: of what would be sent, with its quotes.
        last_modified: seconds since 1970.
        exists: False when nothing is there yet, as before a PUT with ``If-None-Match: *``.
    """
    scope: Scope = getattr(request, "scope", request)
    date = "" if last_modified is None else format_date(last_modified)
    scope[_VALIDATORS] = etag, date
    return evaluate(scope["method"], _request_headers(scope), etag=etag, last_modified=date, exists=exists)


class EdgeMiddleware:
    """Adds the policy's headers, ETag and compression; answers 304 and 412; chooses variants of A/B tests.

    Put it outside of what writes answers and inside of what limits and times requests. A route finds its
    variants in ``request.state.variants``.

    Args:
        policy: the rules.
        behind_edge: nginx with this policy, or another edge, sets X-Variant and keeps it in its keys. Without
            one the middleware chooses the variant, and answers with variants are for one browser.
        compress: compress answers in one piece of 512 bytes and more; brotli where it is installed.
    """

    def __init__(
        self, app: ASGIApp, *, policy: EdgePolicy, behind_edge: bool = False, compress: bool = True
    ) -> None:
        self.app, self.policy, self.behind_edge = app, policy, behind_edge
        self._encoders = _encoders() if compress else {}
        self._described: dict[tuple[object, ...], list[Header]] = {}  # most answers are described alike

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        exchange = _Exchange(self, scope, send)
        if target := exchange.redirect():
            headers = [(b"location", target.encode()), (b"cache-control", b"private, no-store")]
            await send({"type": "http.response.start", "status": 302, "headers": headers})
            return await send({"type": "http.response.body"})
        exchange.choose()
        await self.app(scope, receive, exchange.send)

    def describe(self, rule: Rule, request: Request, status: int, headers: _Headers) -> list[Header]:
        """Return the headers of :func:`tenfold.edge.decision.describe`; an empty one takes its like away."""
        own = headers.joined(_LOOKED_AT)
        if "set-cookie" in own:
            own["set-cookie"] = ""  # that there is one counts, and its value is a secret
        key = (id(rule), request.method, "authorization" in request.headers, status, *own.items())
        if (found := self._described.get(key)) is None:
            said = describe(rule, request, Answer(status, own), tag_header=self.policy.tag_header)
            found = [(name.encode(), value.encode("latin-1")) for name, value in said.items()]
            if len(self._described) >= _MOST_DESCRIBED:
                self._described.clear()
            self._described[key] = found
        return found


class _Exchange:
    """One request and its answer."""

    def __init__(self, edge: EdgeMiddleware, scope: Scope, send: Send) -> None:
        self.edge, self.scope, self._send = edge, scope, send
        headers = _request_headers(scope)
        query = scope.get("query_string", b"").decode("latin-1")
        self.request = Request(scope["method"], public_path(scope), query, headers)
        _, self.rule = edge.policy.find(self.request.path)
        self._start: tuple[Message, _Headers] | None = None
        self._is_over = False
        self._cookie = b""

    def redirect(self) -> str:
        """Where a visitor from this country goes; empty: nowhere."""
        if not self.rule.countries:
            return ""
        return self.rule.countries.get(self.request.headers.get(self.edge.policy.country_header, ""), "")

    def choose(self) -> None:
        """Give the route the variants of this visitor."""
        if not self.rule.experiments:
            return
        if self.edge.behind_edge:
            pairs = (part.partition("=") for part in self.request.headers.get("x-variant", "").split(","))
            chosen = {name: value for name, _, value in pairs if value in self.rule.experiments.get(name, ())}
        else:
            visitor = read_visitor(self.request.headers.get("cookie", ""))
            if not visitor:
                visitor = secrets.token_hex(16)
                self._cookie = (
                    f"{COOKIE}={visitor}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={_VISITOR_S}"
                ).encode()
            chosen = choose_variants(self.rule, visitor)
        self.scope.setdefault("state", {})["variants"] = chosen

    async def send(self, message: Message) -> None:
        """Hold the start back until the first part of the body is there; then both go as they have to."""
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            headers = _Headers(message.get("headers", ()))
            if not headers.is_event_stream:
                self._start = message, headers
                return
        if self._start is None:
            return await self._send(message)
        start, headers = self._start
        self._start = None
        is_whole = message["type"] == "http.response.body" and not message.get("more_body")
        message = self._finish(start, headers, message, is_whole=is_whole)
        await self._send({**start, "headers": headers.pairs})
        await self._send(message)

    def _finish(self, start: Message, headers: _Headers, message: Message, *, is_whole: bool) -> Message:
        """Complete the headers of an answer; return what is sent as its first part."""
        status = start["status"]
        etag, modified = self.scope.get(_VALIDATORS, ("", ""))
        headers.set_default(b"etag", etag.encode("latin-1"))
        headers.set_default(b"last-modified", modified.encode())
        body = message.get("body", b"") if is_whole else b""
        if status == 200 and self.request.method in ("GET", "HEAD"):
            if body:
                message = {**message, "body": self._encode(headers, body)}
            if headers.get(b"content-encoding") and not body and (strong := headers.get(b"etag")):
                headers.set(b"etag", weaken(strong.decode("latin-1")).encode("latin-1"))
        self._describe(status, headers)
        if status != 200 or self.request.method not in ("GET", "HEAD"):
            return message
        if _CONDITIONS.isdisjoint(self.request.headers):
            return message
        changed = evaluate(
            self.request.method,
            self.request.headers,
            etag=headers.get(b"etag").decode("latin-1"),
            last_modified=headers.get(b"last-modified").decode("latin-1"),
        )
        if changed is None:
            return message
        self._is_over = True
        start["status"] = changed
        headers.keep(KEPT if changed == 304 else frozenset((b"cache-control", b"vary")))
        if changed == 412:
            headers.set(b"cache-control", b"no-store")
            headers.set(b"content-length", b"0")
        return {"type": "http.response.body", "body": b""}

    def _encode(self, headers: _Headers, body: bytes) -> bytes:
        """Add an entity tag to an answer in one piece, and compress it; each encoding has its own tag."""
        etag = headers.get(b"etag")
        if not etag and len(body) <= _MOST_HASHED:
            etag = b'"%s"' % hashlib.blake2b(body, digest_size=12).hexdigest().encode()
            headers.set(b"etag", etag)
        if headers.get(b"content-encoding"):
            if not etag.startswith(
                b"W/"
            ):  # the same tag for several encodings, as Starlette's GZip leaves it
                headers.set(b"etag", b"W/" + etag)
            return body
        kind = headers.get(b"content-type")
        if not self.edge._encoders or len(body) < _LEAST_COMPRESSED or not kind.startswith(_COMPRESSED):
            return body
        if b"no-transform" in headers.get(b"cache-control").lower():
            return body
        headers.add_vary(b"Accept-Encoding")
        accepted = self.request.headers.get("accept-encoding", "")
        if name := _choose_encoding(accepted, tuple(self.edge._encoders)):
            body = self.edge._encoders[name](body)
            headers.set(b"content-encoding", name.encode())
            headers.set(b"content-length", b"%d" % len(body))
            if etag:
                headers.set(b"etag", etag[:-1] + b"-%s" % name.encode() + b'"')
        return body

    def _describe(self, status: int, headers: _Headers) -> None:
        for name, value in self.edge.describe(self.rule, self.request, status, headers):
            headers.set(name, value)
        if self.rule.experiments and not self.edge.behind_edge:
            headers.add_vary(b"Cookie")
            if headers.get(b"cache-control").startswith(b"public"):
                headers.set(b"cache-control", b"private, max-age=%d" % self.rule.browser_s)
                headers.set(b"cdn-cache-control", b"")
        if self._cookie:
            headers.pairs.append((b"set-cookie", self._cookie))


class _Headers:
    """The headers of an answer, names in lower case."""

    def __init__(self, pairs: Any) -> None:
        self.pairs: list[Header] = [(bytes(name).lower(), bytes(value)) for name, value in pairs]
        self._values = dict(self.pairs)

    def get(self, name: bytes) -> bytes:
        return self._values.get(name, b"")

    def joined(self, names: frozenset[bytes]) -> dict[str, str]:
        found: dict[str, str] = {}
        if names.isdisjoint(self._values):
            return found
        for raw, value in self.pairs:
            if raw not in names:
                continue
            name, text = raw.decode("latin-1"), value.decode("latin-1")
            found[name] = f"{found[name]}, {text}" if name in found else text
        return found

    def set(self, name: bytes, value: bytes) -> None:
        if name in self._values:
            self.pairs = [pair for pair in self.pairs if pair[0] != name]
            del self._values[name]
        if value:
            self.pairs.append((name, value))
            self._values[name] = value

    def set_default(self, name: bytes, value: bytes) -> None:
        if value and not self.get(name):
            self.set(name, value)

    def add_vary(self, name: bytes) -> None:
        if b"vary" not in self._values:
            self.set(b"vary", name)
            return
        vary = b", ".join([value for found, value in self.pairs if found == b"vary"])
        if not has_token(vary.decode("latin-1"), name.decode().lower()) and vary != b"*":
            self.set(b"vary", b", ".join(filter(None, (vary, name))))

    def keep(self, names: frozenset[bytes]) -> None:
        self.pairs = [pair for pair in self.pairs if pair[0] in names]
        self._values = dict(self.pairs)

    @property
    def is_event_stream(self) -> bool:
        return self.get(b"content-type").startswith(b"text/event-stream")


def public_path(scope: Scope) -> str:
    """The path as clients send it, percent-encoded, with the prefix under which the app is mounted."""
    raw: bytes = scope.get("raw_path") or b""
    text = raw.partition(b"?")[0].decode("latin-1") or quote(path_in_app(scope), safe="/%:@!$&'()*+,=~")
    root = str(scope.get("root_path") or "").rstrip("/")
    return text if not root or text == root or text.startswith(f"{root}/") else root + text


def read_visitor(cookie: str) -> str:
    """The visitor's id in a Cookie header; empty without a valid one."""
    for part in cookie.split(";"):
        name, _, value = part.strip().partition("=")
        if name == COOKIE and len(value) == 32 and set(value) <= set("0123456789abcdef"):
            return value
    return ""


def _request_headers(scope: Scope) -> dict[str, str]:
    raw = scope["headers"]
    found = {name.decode("latin-1"): value.decode("latin-1") for name, value in raw}
    if len(found) == len(raw):
        return found
    found = {}
    for name, value in ((name.decode("latin-1"), value.decode("latin-1")) for name, value in raw):
        found[name] = f"{found[name]}, {value}" if name in found else value
    return found


@lru_cache(maxsize=256)
def _choose_encoding(header: str, encodings: tuple[str, ...]) -> str:
    """The first encoding that Accept-Encoding allows (RFC 9110, section 12.5.3); empty: none."""
    allowed: dict[str, bool] = {}
    for part in header.lower().split(","):
        name, _, weight = part.partition(";")
        allowed[name.strip()] = weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return next((name for name in encodings if allowed.get(name, allowed.get("*", False))), "")


def _encoders() -> dict[str, Callable[[bytes], bytes]]:
    encoders: dict[str, Callable[[bytes], bytes]] = {}
    try:
        import brotli
    except ImportError:
        pass
    else:
        encoders["br"] = lambda body: bytes(brotli.compress(body, quality=4))
    encoders["gzip"] = _gzip
    return encoders


def _gzip(body: bytes) -> bytes:
    """Compress with a window that just holds the body: a full one costs more than compressing 2 KB in it."""
    bits = min(max(len(body).bit_length(), 9), zlib.MAX_WBITS)
    deflate = zlib.compressobj(4, zlib.DEFLATED, 16 + bits, memLevel=min(max(bits - 6, 4), 8))
    return deflate.compress(body) + deflate.flush()
