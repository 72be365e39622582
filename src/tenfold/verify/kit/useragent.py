"""A user agent for the checks of every pattern: one request at a time, cookies kept, no redirect followed.

http.client alone: no cookie is refused, and a request's body can be held back half way.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from typing import Self
from urllib.parse import quote, urlsplit

from tenfold.errors import TargetError

TIMEOUT_S = 10.0
_LONGEST_ANSWER = 4 * 1024 * 1024
_PLACE = re.compile(r"\{(user|password|key|value)\}")
_UNREADABLE = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Cookie:
    """One Set-Cookie line; attribute names are lower case, a flag has an empty value."""

    name: str
    value: str
    attributes: Mapping[str, str]

    @property
    def deleted(self) -> bool:
        """Whether it tells the browser to forget the cookie."""
        if (age := self.attributes.get("max-age")) is not None:
            return not age.isdigit() or age == "0"
        with contextlib.suppress(ValueError):
            return parsedate_to_datetime(self.attributes.get("expires", "")).timestamp() < 86_400 * 366
        return False


def parsed_cookie(line: str) -> Cookie:
    """Read a Set-Cookie line as a browser does (RFC 6265, section 5.2)."""
    first, *rest = line.split(";")
    name, _, value = first.partition("=")
    pairs = (part.partition("=") for part in rest)
    return Cookie(name.strip(), value.strip(), {key.strip().lower(): text.strip() for key, _, text in pairs})


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    @property
    def ok(self) -> bool:
        """Whether it is a 2xx."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def cookies(self) -> list[Cookie]:
        """Every cookie that it sets."""
        return [parsed_cookie(value) for name, value in self.headers if name.lower() == "set-cookie"]

    def header(self, name: str) -> str:
        """The first header of this name; empty without one."""
        return next((value for found, value in self.headers if found.lower() == name.lower()), "")


def filled(template: str, values: Mapping[str, str]) -> tuple[bytes, str]:
    """A body with its places filled in, and its content type; nothing in a value can leave its place."""
    is_json = template.lstrip()[:1] in ("{", "[")

    def text(match: re.Match[str]) -> str:
        value = values.get(match[1], "")
        return json.dumps(value)[1:-1] if is_json else quote(value, safe="")

    kind = "application/json" if is_json else "application/x-www-form-urlencoded"
    return _PLACE.sub(text, template).encode(), kind


@dataclass(slots=True)
class UserAgent:
    """Somebody with cookies or a bearer token, before one address.

    Attributes:
        url: where its requests go.
        host: the Host header, when ``url`` is an instance behind the front door.
        credential: its bearer token, or None for cookies alone.
        timeout_s: longest silence of the other side, seconds.
    """

    url: str
    host: str = ""
    cookies: dict[str, str] = field(default_factory=dict)
    credential: str | None = None
    timeout_s: float = TIMEOUT_S

    def copy(self, *, url: str = "") -> Self:
        """The same cookies and token in other hands, or sent to another address."""
        return replace(self, url=url or self.url, cookies=dict(self.cookies))

    def ask(
        self,
        line: str,
        *,
        body: str = "",
        values: Mapping[str, str] | None = None,
        hold: Callable[[], object] | None = None,
    ) -> Answer:
        """Send ``POST /path`` and take in the cookies of the answer.

        Args:
            line: method and path.
            body: a template; see :func:`filled`.
            values: what fills the places of path and body.
            hold: called when half of the body was sent; the other half follows when it returns.

        Raises:
            TargetError: there was no answer.
        """
        try:
            with self._sent(line, body, values or {}, hold) as connection:
                response = connection.getresponse()
                answer = Answer(response.status, response.getheaders(), response.read(_LONGEST_ANSWER))
        except _UNREADABLE as error:
            what = f"{type(error).__name__}" + (f": {error}" if str(error) else "")
            raise TargetError(f"{line.partition('?')[0]} at {self.url} is not answered ({what})") from None
        for cookie in answer.cookies:
            self._keep(cookie)
        return answer

    def leave(
        self, line: str, *, body: str = "", values: Mapping[str, str] | None = None, after_s: float
    ) -> None:
        """Send a request and hang up after so many seconds, without having read a byte of its answer."""
        with contextlib.suppress(*_UNREADABLE), self._sent(line, body, values or {}, None):
            time.sleep(after_s)

    def status_of(self, line: str, *, body: str = "", values: Mapping[str, str] | None = None) -> int:
        """As :meth:`ask`, for the status alone; 0 when there was no answer."""
        try:
            return self.ask(line, body=body, values=values).status
        except TargetError:
            return 0

    def _keep(self, cookie: Cookie) -> None:
        if cookie.deleted:
            self.cookies.pop(cookie.name, None)
        else:
            self.cookies[cookie.name] = cookie.value

    def _headers(self, method: str, payload: bytes, kind: str) -> dict[str, str]:
        host = self.host or urlsplit(self.url).netloc
        headers = {"Host": host, "Accept": "*/*", "Connection": "close"}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if self.credential:
            headers["Authorization"] = f"Bearer {self.credential}"
        if method != "GET":  # what a browser tells on its own page; many services refuse without it
            headers["Origin"] = f"http://{host}"
            headers["Content-Length"] = str(len(payload))
        return headers | ({"Content-Type": kind} if payload else {})

    @contextlib.contextmanager
    def _sent(
        self, line: str, body: str, values: Mapping[str, str], hold: Callable[[], object] | None
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection over which the request went out; closed at the end."""
        method, _, path = line.partition(" ")
        path = _PLACE.sub(lambda match: quote(values.get(match[1], ""), safe=""), path)
        payload, kind = filled(body, values) if body and method != "GET" else (b"", "")
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=self.timeout_s)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self._headers(method, payload, kind).items():
                connection.putheader(name, value.encode("utf-8", "surrogateescape"))
            connection.endheaders()
            # Whoever refuses a body does not read it: the answer is there although sending breaks off.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if hold:
                    connection.send(payload[: len(payload) // 2])
                    hold()
                    payload = payload[len(payload) // 2 :]
                connection.send(payload)
            yield connection
        finally:
            connection.close()
