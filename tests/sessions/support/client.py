"""A browser, or a program with a bearer token, that speaks ASGI: no server, no sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """Keeps the cookies that it is given, as a browser does."""

    def __init__(self, app: Any, cookies: Mapping[str, str] | None = None, bearer: str = "") -> None:
        self.app = app
        self.cookies = dict(cookies or {})
        self.bearer = bearer
        self.raised: Exception | None = None  # what the server would have logged

    def get(self, path: str, **headers: str) -> Answer:
        return asyncio.run(self.aget(path, **headers))

    async def aget(self, path: str, **headers: str) -> Answer:
        sent: list[Any] = []

        requests = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Any:
            return requests.pop() if requests else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        await self._run({"type": "http", "method": "GET", **self._scope(path, headers)}, receive, send)
        return self._answer(sent)

    def websocket(self, path: str, *texts: str, extensions: Any = None) -> list[Any]:
        """What the server sent while the client sent ``texts`` and went away."""
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
            self._keep(_headers(message))
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

    def _answer(self, sent: list[Any]) -> Answer:
        if not sent:
            return Answer(0, [], b"")  # an exception before anything was sent: the server makes it a 500
        assert [message["type"] for message in sent].count("http.response.start") == 1
        headers = _headers(sent[0])
        self._keep(headers)
        body = b"".join(message.get("body", b"") for message in sent[1:])
        return Answer(sent[0]["status"], headers, body)

    def _keep(self, headers: list[tuple[str, str]]) -> None:
        for name, value in headers:
            if name == "set-cookie":
                crumb, _, attributes = value.partition(";")
                key, _, text = crumb.partition("=")
                self.cookies[key] = text
                if "Max-Age=0" in attributes:
                    del self.cookies[key]


def _headers(message: Any) -> list[tuple[str, str]]:
    return [(key.decode().lower(), value.decode()) for key, value in message.get("headers", ())]
