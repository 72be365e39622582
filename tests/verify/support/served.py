"""An ASGI app on a loopback thread, and a stand-in for a Stack made of such: no process, up at once.

Enough for checks that need HTTP alone. Those that need processes (kills, files, logs) run on the real stack.
"""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

App = Callable[[Any, Any, Any], Awaitable[None]]


class _Loop:
    """One event loop for all apps of a stand-in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True).start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(20)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)


def _scope(request: http.server.BaseHTTPRequestHandler) -> dict[str, Any]:
    path, _, query = request.path.partition("?")
    headers = [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in request.headers.items()]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": request.command,
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": request.client_address,
        "server": ("127.0.0.1", 80),
    }


def _handler(app: App, loop: _Loop) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = 20

        def handle_any(self) -> None:
            left = [int(self.headers.get("Content-Length") or 0)]
            sent: list[dict[str, Any]] = []

            async def receive() -> dict[str, Any]:
                if left[0] <= 0:
                    return {"type": "http.request", "body": b"", "more_body": False}
                piece = await asyncio.to_thread(self.rfile.read1, min(left[0], 65_536))
                left[0] = left[0] - len(piece) if piece else 0
                return {"type": "http.request", "body": piece, "more_body": left[0] > 0}

            async def send(message: dict[str, Any]) -> None:
                sent.append(message)

            try:
                loop.run(app(_scope(self), receive, send))
            except Exception:
                sent[:] = [{"type": "http.response.start", "status": 500, "headers": []}]
            self._answer(sent)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def _answer(self, sent: list[dict[str, Any]]) -> None:
            self.send_response_only(sent[0]["status"])
            body = b"".join(message.get("body", b"") for message in sent[1:])
            for name, value in sent[0].get("headers", []):
                if name.lower() != b"content-length":
                    self.send_header(name.decode("latin-1"), value.decode("latin-1"))
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            """Nothing."""

    return Handler


@dataclass
class FakeServer:
    """A server of a stand-in."""

    kind: str
    name: str
    url: str
    log: Path
    processes: tuple[int, ...] = ()

    @property
    def admin_url(self) -> str:
        return self.url

    def pids(self) -> tuple[int, ...]:
        return self.processes


@dataclass
class FakeStack:
    """A :class:`tenfold.types.Stack` of loopback servers."""

    url: str
    servers: list[FakeServer]
    app_folder: Path
    probe_address: Path
    access_log: Path | None = None
    database_url: str | None = None
    restarted: list[str] = field(default_factory=list)

    def restart(self, server: FakeServer) -> None:
        self.restarted.append(server.name)

    def replace(self, server: FakeServer) -> None:
        self.restarted.append(server.name)


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 64
    daemon_threads = True


@contextmanager
def serve(folder: Path, *apps: App) -> Iterator[FakeStack]:
    """Serve each app as an instance; the first one stands in for nginx."""
    loop = _Loop()
    running = [_Server(("127.0.0.1", 0), _handler(app, loop)) for app in apps]
    servers = []
    for number, server in enumerate(running, 1):
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        log = folder / f"app-{number}.log"
        log.touch()
        servers.append(FakeServer("app", f"app {number}", url, log))
    private = folder / "private"
    private.mkdir(exist_ok=True)
    (folder / "app").mkdir(exist_ok=True)
    try:
        yield FakeStack(servers[0].url, servers, folder / "app", private / "probe.sock")
    finally:
        for server in running:
            server.shutdown()
            server.server_close()
        loop.close()
