"""An ASGI client in place of a browser or a program with a bearer token: no server, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class ClientResponse:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Stores cookies as a browser does."""

    def __init__(self, app: Any, cookies: Mapping[str, str] | None = None, bearer: str = "") -> None:
        self.app = app
        self.cookies = dict(cookies or {})
        self.bearer = bearer
        self.raised: Exception | None = None  # the exception that a server would have logged

    def get(self, path: str, **headers: str) -> ClientResponse:
        return asyncio.run(self.aget(path, **headers))

    async def aget(self, path: str, **headers: str) -> ClientResponse:
        sent: list[Any] = []

        requests = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return requests.pop() if requests else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._run({"type": "http", "method": "GET", **self._scope(path, headers)}, receive, send)
        return self._response(sent)

    def websocket(self, path: str, *texts: str, extensions: Any = None) -> list[Any]:
        """Send ``texts``, disconnect; return the messages of the application."""
        sent: list[Any] = []
        received = iter(
            [
                {"type": "websocket.connect"},
                *({"type": "websocket.receive", "text": text} for text in texts),
                {"type": "websocket.disconnect", "code": 1000},
            ]
        )

        async def receive() -> Any:
            return next(received)

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "websocket", "extensions": extensions, **self._scope(path, {})}
        asyncio.run(self._run(scope, receive, send))
        for message in sent:
            self._store_cookies(_headers(message))
        return sent

    async def _run(self, scope: Any, receive: Any, send: Any) -> None:
        self.raised = None
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            self.raised = error

    def _scope(self, path: str, headers: Mapping[str, str]) -> dict[str, Any]:
        raw = [(key.encode(), value.encode()) for key, value in headers.items()]
        if self.cookies and "cookie" not in headers:
            raw.append(
                (b"cookie", "; ".join(f"{name}={value}" for name, value in self.cookies.items()).encode())
            )
        if self.bearer:
            raw.append((b"authorization", f"Bearer {self.bearer}".encode()))
        path, _, query = path.partition("?")
        return {"path": path, "raw_path": path.encode(), "query_string": query.encode(), "headers": raw}

    def _response(self, sent: list[Any]) -> ClientResponse:
        if not sent:
            return ClientResponse(0, [], b"")  # raised before the first message: a server would send a 500
        assert [message["type"] for message in sent].count("http.response.start") == 1
        headers = _headers(sent[0])
        self._store_cookies(headers)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return ClientResponse(sent[0]["status"], headers, body)

    def _store_cookies(self, headers: list[tuple[str, str]]) -> None:
        for name, value in headers:
            if name == "set-cookie":
                crumb, _, attributes = value.partition(";")
                key, _, text = crumb.partition("=")
                self.cookies[key] = text
                if "Max-Age=0" in attributes:
                    del self.cookies[key]


def _headers(message: Any) -> list[tuple[str, str]]:
    return [(key.decode().lower(), value.decode()) for key, value in message.get("headers", ())]
