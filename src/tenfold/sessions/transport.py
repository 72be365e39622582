"""Transports of a session's token: a cookie, or ``Authorization: Bearer``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Literal, Protocol

from tenfold.asgi import Header
from tenfold.errors import SettingsError

__all__ = ["BearerTransport", "CookieTransport", "Transport"]

MAX_HEADER_BYTES = 65_536
_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}").fullmatch  # a token of RFC 9110 section 5.6.2
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/=-]{1,8192})", re.IGNORECASE).fullmatch


class Transport(Protocol):
    """Where a request carries its token, and how a response delivers a new one.

    Attributes:
        vary: the request header that a response depends on.
        app_delivers_token: whether clients learn of a new token only from the application's own response.
    """

    vary: bytes
    app_delivers_token: bool

    def token(self, headers: Iterable[Header]) -> str:
        """Return the token in a request's headers; empty if there is none, or several that differ."""

    def response_header(self, token: str) -> Header | None:
        """Return the header that gives the client a token, or removes it if the token is empty."""


class CookieTransport:
    """A cookie that scripts cannot read, that other sites' forms do not send, and that no other host can set.

    Where two cookies of its name arrive with different values, neither counts: a client sends one, so
    another host has set the other.

    Args:
        name: without the prefix; the cookie is called ``__Host-session``, so that browsers accept it from
            this host alone and over HTTPS only.
        secure: False for development over plain HTTP: no ``Secure``, and hence no ``__Host-`` prefix.
        same_site: ``lax``, ``strict``, or ``none`` for pages that are embedded elsewhere; ``none`` needs a
            protection against cross-site requests of your own.
        max_age_s: how long a browser keeps it, whole seconds above 0; None: until it is closed.
            The session itself ends by the backend's ``idle_s`` and ``absolute_s``.
    """

    vary = b"Cookie"
    app_delivers_token = False

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
        if max_age_s is not None and (type(max_age_s) is not int or max_age_s < 1):
            raise SettingsError(
                f"a cookie's max_age_s is {max_age_s!r}: use whole seconds above 0, or None "
                "for a cookie that ends with the browser"
            )
        if same_site == "none" and not secure:
            raise SettingsError("browsers refuse SameSite=None without Secure: leave secure=True")
        self.name = f"__Host-{name}" if secure else name
        self._needle = self.name.encode() + b"="
        # Bytes, and only what RFC 6265 calls white space: a Unicode space before the name would let a cookie
        # of another host pass for ours in a parser that strips it.
        self._find = re.compile(
            rb"(?:^|;)[ \t]*" + re.escape(self._needle) + rb"([A-Za-z0-9._-]+)[ \t]*(?=;|$)"
        )
        attributes = f"Path=/; HttpOnly; SameSite={same_site.capitalize()}{'; Secure' if secure else ''}"
        self._set = attributes + ("" if max_age_s is None else f"; Max-Age={max_age_s:d}")
        self._delete = f"{attributes}; Max-Age=0"

    def token(self, headers: Iterable[Header]) -> str:
        found: set[bytes] = set()
        for name, value in headers:
            if name == b"cookie" and self._needle in value and len(value) <= MAX_HEADER_BYTES:
                found.update(self._find.findall(value))
        return found.pop().decode() if len(found) == 1 else ""

    def response_header(self, token: str) -> Header:
        value = f"{self.name}={token}; {self._set if token else self._delete}"
        return b"set-cookie", value.encode()


class BearerTransport:
    """``Authorization: Bearer``, for clients other than browsers.

    They learn their token from the endpoint's response: send what ``login()`` and ``rotate()`` return.
    """

    vary = b"Authorization"
    app_delivers_token = True

    def token(self, headers: Iterable[Header]) -> str:
        found = [value for name, value in headers if name == b"authorization"]
        match = _BEARER(found[0]) if len(found) == 1 else None
        return match[1].decode() if match else ""

    def response_header(self, token: str) -> None:
        return None
