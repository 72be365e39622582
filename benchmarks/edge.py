"""What an answer from nginx's cache costs, and what the middleware costs.

    python -m benchmarks.edge [--rounds 20] [--requests 2000] [--visits 100] [--json]

nginx: CPU time of its worker a request, for an answer of 2 KB from the cache under a policy, with and
without Age, beside the same nginx serving the same bytes as a file; pipelined over one connection, taking
turns. Goals: 10,000 requests a CPU-second, 0.8 of the file.

Distance: what visitors wait whose round trip to the app is 80 ms, with nginx beside them and without, over
connections that are open; 40 pages, the first ones most often. The distance is a proxy on this machine.

Middleware: process time of a GET of 2 KB of JSON in process, gzip accepted, beside the bare FastAPI endpoint
and Starlette's GZipMiddleware with a middleware that hashes the body into an ETag; and beside caches of
answers in the app, which skip the endpoint and do not compress: hishel (SQLite), fastapi-cache2 (memory) and
fastapi-redis-sdk (Valkey, whose own time does not count). Goal: the cheapest of those that compress.
"""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import os
import random
import re
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
from fastapi import Depends, FastAPI, Response
from starlette.middleware.gzip import GZipMiddleware

from benchmarks.support.results import Result, benchmark_parser, print_results
from benchmarks.support.rounds import median_result, ratio_result, turns
from benchmarks.support.servers import redis_url
from tenfold.asgi import ASGIApp, Message, Receive, Scope, Send
from tenfold.balancing.upstream import Node, Upstream
from tenfold.deploy.nginx import FrontDoor, render
from tenfold.edge import EdgeMiddleware, EdgePolicy, public
from tenfold.edge.nginx import Edge
from tenfold.errors import DependencyError
from tenfold.settings import Settings
from tenfold.stack.ports import free_port
from tenfold.stack.programs import NGINX, find_nginx, require

POLICY = EdgePolicy({"/**": public(ttl=3600, browser_ttl=3600, tags=["catalogue"], ignore_query=["utm_*"])})
BODY = b"x" * 2048
AT_ONCE = 50
ROUND_TRIP_S = 0.08

# ------------------------------------------------------------------ nginx


class Origin(BaseHTTPRequestHandler):
    """The app behind the cache."""

    def do_GET(self) -> None:
        """Answer with the body, to be stored."""
        self.send_response(200)
        self.send_header("Cache-Control", "public, max-age=3600")
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def origin() -> Iterator[int]:
    """Run the app; yield its port."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Origin)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def nginx_before(app_port: int, folder: Path) -> Iterator[tuple[int, psutil.Process]]:
    """Run nginx, with a file beside the cache; yield its port and its worker."""
    program, port = require(find_nginx, NGINX, Settings()), free_port()
    door = FrontDoor(
        listen=f"127.0.0.1:{port}",
        upstream=Upstream(nodes=(Node(address=f"127.0.0.1:{app_port}"),)),
        version=tuple(map(int, re.findall(r"\d+", program.version))),
        account=("root", "root") if os.geteuid() == 0 else None,
        edge=Edge(policy=POLICY),
    )
    for file in render(door):
        (folder / file.path).write_text(file.text)
    (folder / "file").write_bytes(BODY)
    text = (folder / "nginx.conf").read_text()
    location = re.search(r"        location / \{\n(?:.*\n)*?        \}\n", text)
    assert location
    no_age = (
        location[0].replace("location /", "location /no-age/").replace("add_header Age $edge_age always;", "")
    )
    file_location = f"        location = /file {{ root {folder}; default_type text/plain; }}\n"
    (folder / "nginx.conf").write_text(text.replace(location[0], location[0] + no_age + file_location, 1))
    process = subprocess.Popen(
        [program.path, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"],
        cwd=folder,
        stderr=subprocess.DEVNULL,
    )
    try:
        while not (children := psutil.Process(process.pid).children()):
            if process.poll() is not None:
                raise RuntimeError(f"nginx ended with status {process.returncode}")
            time.sleep(0.02)
        time.sleep(0.2)
        worker = next(child for child in children if "worker" in " ".join(child.cmdline()))
        yield port, worker
    finally:
        process.terminate()
        process.wait(10)


def cpu_s(worker: psutil.Process) -> float:
    """CPU time of a process so far, seconds."""
    times = worker.cpu_times()
    return float(times.user + times.system)


def send_many(port: int, worker: psutil.Process, path: str, count: int) -> float:
    """Send pipelined requests over one connection; return the worker's CPU time of one, seconds."""
    request = f"GET {path} HTTP/1.1\r\nHost: shop.example\r\nAccept: */*\r\n\r\n".encode() * AT_ONCE
    before = cpu_s(worker)
    with socket.create_connection(("127.0.0.1", port)) as connection:
        for _ in range(count // AT_ONCE):
            connection.sendall(request)
            received = 0
            while received < AT_ONCE:
                received += connection.recv(1 << 20).count(b"HTTP/1.1 200")
            # The last body may still be on its way: it does not begin the next answer.
    return (cpu_s(worker) - before) / (count // AT_ONCE * AT_ONCE)


def measure_nginx(rounds: int, count: int) -> list[Result]:
    """Let cache and file take turns."""
    paths = {"from the cache": "/page", "from the cache, no Age": "/no-age/page", "a file": "/file"}
    taken: dict[str, list[float]] = {name: [] for name in paths}
    with (
        tempfile.TemporaryDirectory(prefix="tenfold-edge-") as folder,
        origin() as app_port,
        nginx_before(app_port, Path(folder)) as (port, worker),
    ):
        for path in paths.values():
            send_many(port, worker, path, AT_ONCE)
        for name in turns(list(paths), rounds):
            taken[name].append(send_many(port, worker, paths[name], count))
    rate = 1 / statistics.median(taken["from the cache"])
    file = taken.pop("a file")
    throughput = [
        Result(
            f"{name}: throughput beside a file",
            statistics.median(file) / statistics.median(times),
            0.8,
            at_least=True,
        )
        for name, times in taken.items()
    ]
    return [Result("requests a CPU-second from the cache", rate, 10_000, at_least=True), *throughput]


# ------------------------------------------------------------------ distance


@contextmanager
def distant(port: int) -> Iterator[int]:
    """Run a proxy before a port that delays what passes by half the round trip each way; yield its port."""
    loop = asyncio.new_event_loop()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            loop.call_later(ROUND_TRIP_S / 2, writer.write, data)
        loop.call_later(ROUND_TRIP_S / 2 + 0.01, writer.close)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_app, to_app = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, to_app), carry(from_app, writer), return_exceptions=True)

    server = loop.run_until_complete(asyncio.start_server(accept, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def visit(port: int, count: int) -> list[float]:
    """Read pages one after another, the first ones most often; return what each took, seconds."""
    pages = [f"/page/{number}" for number in range(40)]
    weights = [1 / (rank + 1) for rank in range(len(pages))]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    taken = []
    for page in random.Random(1).choices(pages, weights, k=count):
        begun = time.perf_counter()
        connection.request("GET", page)
        body = connection.getresponse().read()
        taken.append(time.perf_counter() - begun)
        assert body == BODY
    connection.close()
    return taken[1:]  # the first has the connection's own round trip


def measure_distance(count: int) -> list[Result]:
    """Read without nginx, then with it beside the visitors; its cache is empty at first."""
    with (
        tempfile.TemporaryDirectory(prefix="tenfold-edge-") as folder,
        origin() as app_port,
        distant(app_port) as far,
        nginx_before(far, Path(folder)) as (near, _),
    ):
        results = []
        for name, port in (("without an edge", far), ("with an edge", near)):
            taken = visit(port, count)
            results.append(Result(f"80 ms away, {name}: mean, ms", statistics.mean(taken) * 1000))
            results.append(Result(f"80 ms away, {name}: p50, ms", statistics.median(taken) * 1000))
        return results


# ------------------------------------------------------------------ middleware


class HashedTag:
    """An ETag by the usual recipe: hash what is sent, compare, answer 304."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the start back until the body is there."""
        start: Message = {}

        async def tag(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                start = message
                return
            etag = b'"%s"' % hashlib.md5(message["body"]).hexdigest().encode()
            if (b"if-none-match", etag) in scope["headers"]:
                await send({**start, "status": 304, "headers": [(b"etag", etag)]})
                await send({"type": "http.response.body"})
                return
            await send({**start, "headers": [*start["headers"], (b"etag", etag)]})
            await send(message)

        await self.app(scope, receive, tag)


def service(decorate: Any = None, **options: Any) -> FastAPI:
    """An app with one endpoint; ``options``: of its route."""
    app = FastAPI(openapi_url=None)
    products = [{"id": number, "name": f"Product {number}", "price_cents": 1999} for number in range(40)]

    async def read() -> list[dict[str, Any]]:
        return products

    app.get("/products", **options)(decorate(read) if decorate else read)
    return app


def services() -> dict[str, FastAPI]:
    """The apps that are compared."""
    bare, edge, plain, usual = (service() for _ in range(4))
    edge.add_middleware(EdgeMiddleware, policy=POLICY)
    plain.add_middleware(EdgeMiddleware, policy=POLICY, compress=False)
    usual.add_middleware(HashedTag)
    usual.add_middleware(GZipMiddleware, compresslevel=4)
    return {"bare": bare, "edge": edge, "edge, compress=False": plain, "GZipMiddleware and an ETag": usual}


def caching_services(folder: Path, redis_url: str) -> dict[str, FastAPI]:
    """Apps with a cache of answers inside."""
    try:
        import fastapi_cache
        import fastapi_cache.backends.inmemory
        import fastapi_cache.decorator
        import hishel
        import hishel.asgi
        import redis_fastapi
    except ImportError:
        raise DependencyError(
            "the peers are not installed: pip install 'tenfold[bench]', or make bench"
        ) from None

    def let_caches(response: Response) -> None:
        response.headers["Cache-Control"] = "public, max-age=3600"

    sqlite = service(dependencies=[Depends(let_caches)])
    storage = hishel.AsyncSqliteStorage(database_path=folder / "answers.db")
    sqlite.add_middleware(hishel.asgi.ASGICacheMiddleware, storage=storage)
    fastapi_cache.FastAPICache.init(fastapi_cache.backends.inmemory.InMemoryBackend(), prefix="bench")
    memory = service(fastapi_cache.decorator.cache(expire=3600))
    redis_fastapi.get_settings().url = redis_url
    redis = service(dependencies=[Depends(redis_fastapi.cache(ttl=3600))])
    redis_fastapi.FastAPIRedis(redis).lifespan().caching()
    return {"hishel": sqlite, "fastapi-cache2": memory, "fastapi-redis-sdk": redis}


SCOPE = {
    "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
    "path": "/products", "raw_path": b"/products", "query_string": b"", "root_path": "",
    "headers": [(b"host", b"shop.example"), (b"accept", b"*/*"), (b"accept-encoding", b"gzip")],
    "server": ("127.0.0.1", 80), "client": ("127.0.0.1", 1234),
}  # fmt: skip


async def requests(app: Any, count: int, state: dict[str, Any]) -> float:
    """Return the process time of one request, seconds."""

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        assert message.get("status", 200) == 200

    begun = time.process_time()
    for _ in range(count):
        await app({**SCOPE, "state": dict(state)}, receive, send)
    return (time.process_time() - begun) / count


async def measure_middleware(rounds: int, count: int, folder: Path, redis_url: str) -> list[Result]:
    """Let the apps take turns."""
    apps = services()
    caches = caching_services(folder, redis_url)
    taken: dict[str, list[float]] = {name: [] for name in (*apps, *caches)}
    states: dict[str, dict[str, Any]] = {}
    async with AsyncExitStack() as running:
        for name, app in (apps | caches).items():
            states[name] = dict(await running.enter_async_context(app.router.lifespan_context(app)) or {})
            await requests(app, count, states[name])
        for name in turns(list(taken), rounds):
            taken[name].append(await requests((apps | caches)[name], count, states[name]))
    bare, usual = taken["bare"], taken["GZipMiddleware and an ETag"]
    beside = [ratio_result(f"{name}, × bare", taken[name], bare) for name in taken if name != "bare"]
    return [
        median_result("bare endpoint, µs", [seconds * 1e6 for seconds in bare]),
        *beside,
        ratio_result("edge, × GZipMiddleware and an ETag", taken["edge"], usual, goal=1.0),
    ]


def main() -> None:
    """Print the results."""
    parser = benchmark_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--visits", type=int, default=100)
    options = parser.parse_args()
    results = measure_nginx(options.rounds, options.requests)
    results += measure_distance(options.visits)
    with tempfile.TemporaryDirectory(prefix="tenfold-edge-") as folder, redis_url() as url:
        count = max(options.requests // 10, 1)
        results += asyncio.run(measure_middleware(options.rounds, count, Path(folder), url))
    print_results(results, as_json=options.json)


if __name__ == "__main__":
    main()
