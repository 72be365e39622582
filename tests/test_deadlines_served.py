"""Deadlines on a real server: clients that leave, bodies that come late."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tenfold.stack.ports import free_port

SERVED = """
import asyncio, sys
from pathlib import Path
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tenfold.deadlines import DeadlineMiddleware

notes = Path(__file__).with_name("notes")

def note(what):
    with notes.open("a") as file:
        file.write(what + "\\n")

async def patient(request):
    note("began")
    try:
        await asyncio.sleep(2)
        note("done")
    except asyncio.CancelledError:
        note("cancelled")
        raise
    return PlainTextResponse("done")

async def ready(request):
    return PlainTextResponse("ok")

async def echo(request):
    await asyncio.sleep(float(request.query_params["after"]))
    return PlainTextResponse((await request.body()).decode())

app = Starlette(
    routes=[
        Route("/patient", patient, methods=["GET", "POST"]),
        Route("/echo", echo, methods=["POST"]),
        Route("/ready", ready),
    ]
)
guarded = DeadlineMiddleware(app, timeout_s=30)
"""


@contextlib.contextmanager
def granian(folder: Path, name: str) -> Iterator[int]:
    (folder / "served.py").write_text(SERVED)
    port = free_port()
    server = subprocess.Popen(
        [sys.executable, "-m", "granian", f"served:{name}", "--interface", "asgi", "--loop", "asyncio",
         "--host", "127.0.0.1", "--port", str(port)],
        cwd=folder, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )  # fmt: skip
    try:
        until(lambda: answers(port))
        yield port
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/ready", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def until(condition: Callable[[], object]) -> None:
    ends = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < ends, "it never happened"
        time.sleep(0.02)


def leave(port: int, notes: Path, body: bytes) -> str:
    """The end of a handler whose client left."""
    head = f"POST /patient HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(head.encode() + body)
        until(lambda: notes.exists() and notes.read_text())
    until(lambda: notes.read_text() != "began\n")
    return notes.read_text().split()[1]


@pytest.mark.guarantee(
    "a handler is cancelled when its client has left",
    pattern="overload",
    under="a client that disconnects from granian",
)
@pytest.mark.parametrize("body", [b"", b"x" * 100], ids=["no body", "an unread body"])
def test_a_handler_whose_client_left_is_cancelled(tmp_path: Path, body: bytes) -> None:
    with granian(tmp_path, "guarded") as port:
        assert leave(port, tmp_path / "notes", body) == "cancelled"


def test_body_arrives_with_a_slow_client_or_a_slow_app(tmp_path: Path) -> None:
    """granian's ``receive`` answers with a future of its own kind, which calls back one listener."""
    moments = [(sent, read) for sent in (0.0, 0.02, 0.15) for read in (0.0, 0.03, 0.1, 0.2)]
    with granian(tmp_path, "guarded") as port:
        for sent_after_s, read_after_s in moments:
            head = f"POST /echo?after={read_after_s} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
                client.sendall(head.encode())
                time.sleep(sent_after_s)  # a client may be slow: that is what is varied
                client.sendall(b"whole")
                answer = b""
                while not answer.endswith(b"whole"):
                    received = client.recv(4096)
                    assert received, (sent_after_s, read_after_s, answer)
                    answer += received


@pytest.mark.control("a handler is cancelled when its client has left")
def test_the_control_without_the_middleware_the_handler_works_on(tmp_path: Path) -> None:
    with granian(tmp_path, "app") as port:
        assert leave(port, tmp_path / "notes", b"") == "done"
