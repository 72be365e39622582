"""A user agent for the checks: one request at a time, cookies kept, no redirect followed.

http.client alone: no cookie is refused, and the second half of a request's body can be delayed.
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
_MOST_BYTES = 4 * 1024 * 1024  # of an answer
_PLACEHOLDER = re.compile(r"\{(user|password|key|value|id)\}")
_NO_ANSWER = (OSError, http.client.HTTPException)


@dataclass(frozen=True, slots=True)
class Cookie:
    """One Set-Cookie line; attribute names are lower case, a flag has an empty value."""

    name: str
    value: str
    attributes: Mapping[str, str]

    @property
    def is_deletion(self) -> bool:
        """True if it tells the browser to delete the cookie."""
        if (age := self.attributes.get("max-age")) is not None:
            return not age.isdigit() or age == "0"
        with contextlib.suppress(ValueError):
            return parsedate_to_datetime(self.attributes.get("expires", "")).timestamp() < 86_400 * 366
        return False


def parse_set_cookie(line: str) -> Cookie:
    """Read a Set-Cookie line as a browser does (RFC 6265, section 5.2)."""
    first, *rest = line.split(";")
    name, _, value = first.partition("=")
    pairs = (part.partition("=") for part in rest)
    return Cookie(name.strip(), value.strip(), {key.strip().lower(): text.strip() for key, _, text in pairs})


@dataclass(frozen=True, slots=True)
class Answer:
    """An HTTP answer."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes

    @property
    def ok(self) -> bool:
        """True for a 2xx."""
        return 200 <= self.status < 300

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8", "replace")

    @property
    def cookies(self) -> list[Cookie]:
        """Every cookie that it sets."""
        return [parse_set_cookie(value) for name, value in self.headers if name.lower() == "set-cookie"]

    def header(self, name: str) -> str:
        """The first header of this name; empty without one."""
        return next((value for found, value in self.headers if found.lower() == name.lower()), "")


def fill_body(template: str, values: Mapping[str, str]) -> tuple[bytes, str]:
    """Fill the placeholders of a body; return it with its content type.

    Values are escaped for JSON or for a form, so that none can add a key.
    """
    is_json = template.lstrip()[:1] in ("{", "[")

    def text(match: re.Match[str]) -> str:
        value = values.get(match[1], "")
        return json.dumps(value)[1:-1] if is_json else quote(value, safe="")

    content_type = "application/json" if is_json else "application/x-www-form-urlencoded"
    return _PLACEHOLDER.sub(text, template).encode(), content_type


@dataclass(slots=True)
class UserAgent:
    """A client of one address, with cookies or a bearer token.

    Attributes:
        url: the address that its requests go to.
        host: the Host header, when ``url`` is an instance behind nginx.
        bearer_token: None for cookies alone.
        timeout_s: longest silence of the other side, seconds.
    """

    url: str
    host: str = ""
    cookies: dict[str, str] = field(default_factory=dict)
    bearer_token: str | None = None
    timeout_s: float = TIMEOUT_S

    def copy(self, *, url: str = "") -> Self:
        """A client with the same cookies and token, for the same or another address."""
        return replace(self, url=url or self.url, cookies=dict(self.cookies))

    def request(
        self,
        line: str,
        *,
        body: str = "",
        values: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        at_half_body: Callable[[], object] | None = None,
    ) -> Answer:
        """Send ``POST /path`` and keep the cookies of the answer.

        Args:
            line: method and path.
            body: a template; see :func:`fill_body`.
            values: what fills the placeholders of path and body.
            headers: in addition, or in place of its own.
            at_half_body: called when half of the body was sent; the other half follows when it returns.

        Raises:
            TargetError: there was no answer.
        """
        try:
            with self._send(line, body, values or {}, at_half_body, headers or {}) as connection:
                response = connection.getresponse()
                answer = Answer(response.status, response.getheaders(), response.read(_MOST_BYTES))
        except _NO_ANSWER as error:
            what = f"{type(error).__name__}" + (f": {error}" if str(error) else "")
            raise TargetError(f"{line.partition('?')[0]} at {self.url} is not answered ({what})") from None
        for cookie in answer.cookies:
            self._keep(cookie)
        return answer

    def status(self, line: str, *, body: str = "", values: Mapping[str, str] | None = None) -> int:
        """As :meth:`request`, for the status alone; 0 when there was no answer."""
        try:
            return self.request(line, body=body, values=values).status
        except TargetError:
            return 0

    def hang_up(
        self, line: str, *, body: str = "", values: Mapping[str, str] | None = None, after_s: float
    ) -> None:
        """Send a request and close the connection after so many seconds, without reading the answer."""
        with contextlib.suppress(*_NO_ANSWER), self._send(line, body, values or {}, None):
            time.sleep(after_s)

    def _keep(self, cookie: Cookie) -> None:
        if cookie.is_deletion:
            self.cookies.pop(cookie.name, None)
        else:
            self.cookies[cookie.name] = cookie.value

    def _headers(self, method: str, payload: bytes, content_type: str) -> dict[str, str]:
        host = self.host or urlsplit(self.url).netloc
        headers = {"Host": host, "Accept": "*/*", "Connection": "close"}
        if self.cookies:
            headers["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        if self.bearer_token:
            headers["Authorization"] = f"Bearer {self.bearer_token}"
        if method != "GET":  # as a browser on the service's own page; many services refuse without it
            headers["Origin"] = f"http://{host}"
            headers["Content-Length"] = str(len(payload))
        return headers | ({"Content-Type": content_type} if payload else {})

    @contextlib.contextmanager
    def _send(
        self,
        line: str,
        body: str,
        values: Mapping[str, str],
        at_half_body: Callable[[], object] | None,
        headers: Mapping[str, str] | None = None,
    ) -> Iterator[http.client.HTTPConnection]:
        """Send a request; yield its connection and close it afterwards."""
        method, _, path = line.partition(" ")
        path = _PLACEHOLDER.sub(lambda match: quote(values.get(match[1], ""), safe=""), path)
        payload, content_type = fill_body(body, values) if body and method != "GET" else (b"", "")
        address = urlsplit(self.url)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=self.timeout_s)
        try:
            connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
            for name, value in {**self._headers(method, payload, content_type), **(headers or {})}.items():
                connection.putheader(name, value.encode("utf-8", "surrogateescape"))
            connection.endheaders()
            # A server that refuses a body may close before it has read it: the answer can still be there.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                if at_half_body:
                    connection.send(payload[: len(payload) // 2])
                    at_half_body()
                    payload = payload[len(payload) // 2 :]
                connection.send(payload)
            yield connection
        finally:
            connection.close()
