"""How a token travels: in a cookie, or in ``Authorization: Bearer``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, Protocol

from tenfold.errors import SettingsError

__all__ = ["BearerTransport", "CookieTransport", "Transport"]

Headers = Iterable[tuple[bytes, bytes]]

MOST_HEADER = 65_536
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}").fullmatch  # a token of RFC 9110 section 5.6.2
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/=-]{1,8192})", re.IGNORECASE).fullmatch


class Transport(Protocol):
    """Where a token is found in a request, and how a new one gets to the client.

    Attributes:
        varies: the request header that an answer depends on.
        is_silent: whether the client learns of a token only by what the endpoint answers.
        max_bytes: of a token that clients are sure to keep.
    """

    varies: bytes
    is_silent: bool
    max_bytes: int

    def token(self, headers: Headers) -> str:
        """The token in a request's headers; empty when there is none, or no telling which."""

    def delivery(self, token: str) -> tuple[bytes, bytes] | None:
        """The header that gives the client a token, or takes it away where it is empty."""


class CookieTransport:
    """A cookie that scripts cannot read, that other sites' forms do not send, and that no other host can set.

    Where two cookies of its name arrive with different values, neither counts: a client sends one, so
    somebody else has set the other.

    Args:
        name: without the prefix; the cookie is called ``__Host-session``, so that browsers take it from this
            host alone and over HTTPS only.
        secure: False for development over plain HTTP: no ``Secure``, and hence no ``__Host-`` prefix.
        same_site: ``lax``, ``strict``, or ``none`` for pages that are embedded elsewhere; ``none`` needs a
            protection against cross-site requests of your own.
        max_age_s: how long a browser keeps it; None: until it is closed. The session ends as Sessions says.
    """

    varies = b"Cookie"
    is_silent = False

    def __init__(
        self,
        *,
        name: str = "session",
        secure: bool = True,
        same_site: Literal["lax", "strict", "none"] = "lax",
        max_age_s: int | None = None,
    ) -> None:
        if not _NAME(name) or same_site not in ("lax", "strict", "none"):
            raise SettingsError(
                f"a cookie named {name!r} with same_site={same_site!r} cannot be set: name it with letters, "
                "digits, - and _, and use lax, strict or none"
            )
        if same_site == "none" and not secure:
            raise SettingsError("browsers refuse SameSite=None without Secure: leave secure=True")
        self.name = f"__Host-{name}" if secure else name
        self.max_bytes = 4096 - len(self.name) - 1  # of name and value, RFC 6265bis section 5.6
        self._needle = self.name.encode() + b"="
        # Bytes, and only what RFC 6265 calls white space: a Unicode space before the name would let a cookie
        # of another host pass for ours in a parser that strips it.
        self._find = re.compile(
            rb"(?:^|;)[ \t]*" + re.escape(self._needle) + rb"([A-Za-z0-9._-]+)[ \t]*(?=;|$)"
        )
        attributes = f"Path=/; HttpOnly; SameSite={same_site.capitalize()}{'; Secure' if secure else ''}"
        self._kept = attributes + ("" if max_age_s is None else f"; Max-Age={max_age_s:d}")
        self._gone = f"{attributes}; Max-Age=0"

    def token(self, headers: Headers) -> str:
        found: set[bytes] = set()
        for name, value in headers:
            if name == b"cookie" and self._needle in value and len(value) <= MOST_HEADER:
                found.update(self._find.findall(value))
        return found.pop().decode() if len(found) == 1 else ""

    def delivery(self, token: str) -> tuple[bytes, bytes]:
        value = f"{self.name}={token}; {self._kept if token else self._gone}"
        return b"set-cookie", value.encode()


class BearerTransport:
    """``Authorization: Bearer``, for clients that are no browsers.

    They learn their token from what the endpoint answers: it is what ``login()`` and ``rotate()`` return.
    """

    varies = b"Authorization"
    is_silent = True
    max_bytes = 4096

    def token(self, headers: Headers) -> str:
        found = [value for name, value in headers if name == b"authorization"]
        match = _BEARER(found[0]) if len(found) == 1 else None
        return match[1].decode() if match else ""

    def delivery(self, token: str) -> None:
        return None
