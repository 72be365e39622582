"""A service with sessions in a dict, right unless it is told to make a mistake. Plain ASGI.

Shop(store=shared)                      instances that share their sessions
Shop(mistakes={"adopts"})               takes over an id that a client made up
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
from http.cookies import SimpleCookie
from itertools import count
from pathlib import Path
from typing import Any

MOST_BYTES = 8192
USERS = {"alice": "open sesame", "bob": "12345"}
_numbers = count(1000)


class Shop:
    """``POST /login``, ``POST /logout``, ``GET /me``, ``PUT /cart/{key}``, ``GET /cart``.

    ``GET /work`` takes 20 ms, one at a time, and queues the others; ``POST /orders`` takes 5 ms.
    ``anonymous``: strangers may write too. Mistakes: adopts, keeps-id, keeps-old, sequential, no-logout,
    writes-whole, resurrects, unlimited, breaks-when-large, ends-when-large, bare-cookie, logs-ids,
    redirects-with-id, chokes-on-cookies, names-itself.
    """

    def __init__(
        self,
        store: dict[str, dict[str, Any]] | None = None,
        *,
        mistakes: frozenset[str] | set[str] = frozenset(),
        bearer: bool = False,
        anonymous: bool = False,
        log: Path | None = None,
        folder: Path | None = None,
        name: str = "",
    ) -> None:
        self.store = {} if store is None else store
        self.mistakes, self.bearer, self.anonymous = mistakes, bearer, anonymous
        self.log, self.folder, self.name = log, folder, name
        self.busy = asyncio.Semaphore(1)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        known = self._shown(headers)
        if known:
            self._note(f"{scope['path']} of {known}")
        # A copy from the beginning of the request is what late writers write back.
        early = json.loads(json.dumps(self.store.get(known))) if known in self.store else None
        try:
            body = await _body(receive, None if "unlimited" in self.mistakes else 4 * MOST_BYTES)
        except ValueError:
            return await self._too_large(known, send)
        answer = await self._answer(scope["method"], scope["path"], body, known, early)
        await _send(send, *answer)

    def _shown(self, headers: dict[str, str]) -> str:
        if self.bearer:
            return headers.get("authorization", "").removeprefix("Bearer ")
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
            return jar["sid"].value if "sid" in jar else ""
        finally:
            if "chokes-on-cookies" in self.mistakes:
                headers.get("cookie", "").encode("ascii")

    def _note(self, line: str) -> None:
        if "logs-ids" in self.mistakes and self.log:
            with self.log.open("a") as file:
                file.write(f"{line}\n")
        elif "logs-ids" in self.mistakes:
            print(line, flush=True)

    async def _too_large(self, known: str, send: Any) -> None:
        if "ends-when-large" in self.mistakes:
            self.store.pop(known, None)
        await _send(send, 500 if "breaks-when-large" in self.mistakes else 413, {})

    async def _answer(
        self, method: str, path: str, body: bytes, known: str, early: dict[str, Any] | None
    ) -> tuple[int, Any, list[tuple[str, str]]]:
        session = self.store.get(known)
        if path in ("/work", "/orders"):
            await asyncio.sleep(0.005)
            async with self.busy:
                await asyncio.sleep(0.02 if path == "/work" else 0)
            return 200, {}, []
        if path == "/login":
            return self._login(json.loads(body), known)
        if path == "/logout":
            if "no-logout" not in self.mistakes:
                self.store.pop(known, None)
            return 200, {}, [("set-cookie", "sid=; Path=/; Max-Age=0")]
        if path.startswith("/cart/") and method == "PUT":
            return await self._write(path[6:], json.loads(body), known, early)
        if path == "/cart" and session is not None and self.anonymous:
            return 200, session, []
        if session is None or "user" not in session:
            return 401, {}, []
        if path == "/cart":
            return 200, session, []
        about = {"instance": self.name} if "names-itself" in self.mistakes else {}
        return 200, {"user": session["user"]} | about, []

    def _login(self, given: dict[str, str], known: str) -> tuple[int, Any, list[tuple[str, str]]]:
        if USERS.get(given["user"]) != given["password"]:
            return 401, {}, []
        fresh = str(next(_numbers)) if "sequential" in self.mistakes else secrets.token_urlsafe(32)
        if known and ("adopts" in self.mistakes or ("keeps-id" in self.mistakes and known in self.store)):
            fresh = known
        elif not self.bearer and "keeps-old" not in self.mistakes:
            self.store.pop(known, None)
        self.store[fresh] = {"user": given["user"]}
        headers = [] if self.bearer else [("set-cookie", self._cookie(fresh))]
        if "redirects-with-id" in self.mistakes:
            return 303, {"token": fresh}, [*headers, ("location", f"/home;sid={fresh}")]
        return 200, {"token": fresh}, headers

    def _cookie(self, identifier: str) -> str:
        rest = "" if "bare-cookie" in self.mistakes else "; Secure; HttpOnly; SameSite=Lax"
        return f"sid={identifier}; Path=/{rest}"

    async def _write(
        self, key: str, given: dict[str, str], known: str, early: dict[str, Any] | None
    ) -> tuple[int, Any, list[tuple[str, str]]]:
        value = given["value"]
        if len(value) > MOST_BYTES and "unlimited" not in self.mistakes:
            return 413, {}, []
        headers = []
        if known not in self.store:
            if "resurrects" in self.mistakes and early is not None:
                self.store[known] = early
            elif not self.anonymous:
                return 401, {}, []
            else:
                known = known if known and "adopts" in self.mistakes else secrets.token_urlsafe(32)
                headers.append(("set-cookie", self._cookie(known)))
        self._leave_files(key, value)
        if "writes-whole" in self.mistakes and early is not None:
            await asyncio.sleep(0.005)
            self.store[known] = {**early, key: value}
        else:
            self.store.setdefault(known, {})[key] = value
        return 200, {}, headers

    def _leave_files(self, key: str, value: str) -> None:
        if self.folder:
            (self.folder / f"{key}.cart").write_text(value)


async def _body(receive: Any, limit: int | None) -> bytes:
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if limit is not None and len(body) > limit:
            raise ValueError("too large")
        if not message.get("more_body"):
            return body


async def _send(send: Any, status: int, body: Any, headers: list[tuple[str, str]] = ()) -> None:  # type: ignore[assignment]
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    raw.append((b"content-type", b"application/json"))
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": json.dumps(body).encode()})


def naive() -> Shop:
    """For the real stack: every instance for itself, files in its folder, ids in its log."""
    folder = Path(os.environ.get("CARTS", "carts"))
    folder.mkdir(exist_ok=True)
    return Shop(mistakes={"logs-ids"}, folder=folder)
