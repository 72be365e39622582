"""Small instances that answer with their name, and a real nginx in front of them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil

from tenfold.balancing.upstream import Node, Upstream
from tenfold.deploy.nginx import FrontDoor, render
from tenfold.stack.ports import free_port
from tenfold.stack.programs import Program
from tests.support.waiting import eventually


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _answer(self) -> None:
        instance: Instance = self.server.instance
        self.rfile.read(int(self.headers.get("content-length", 0)))
        instance.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if not instance.behave(self):
            self.close_connection = True  # as a killed instance: the request came, no answer goes
            return
        body = json.dumps({"name": instance.name}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_PUT = _answer

    def log_message(self, *_: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def get_request(self):
        connection, address = super().get_request()
        self.instance.connections.append(connection)
        return connection, address


class Instance:
    """An instance on a port of its own; ``requests`` are those that reached it."""

    def __init__(self, name: str, behave: Callable[[_Handler], bool] = lambda handler: True) -> None:
        self.name, self.behave = name, behave
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.connections: list[socket.socket] = []
        self._server = _Server(("127.0.0.1", free_port()), _Handler)
        self._server.instance = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._server.server_port}"

    def end(self) -> None:
        """Refuse connections, and break those that there are."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
            for connection in self.connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


class RunningNginx:
    """A running nginx."""

    def __init__(self, port: int, process: subprocess.Popen) -> None:
        self.port = port
        self._master = psutil.Process(process.pid)

    def reload(self) -> None:
        """Reload the configuration; return when the old workers are shutting down."""
        old = self._master.children()
        self._master.send_signal(signal.SIGHUP)
        eventually(lambda: all(_is_shutting_down(worker) for worker in old))

    def request(
        self, path: str = "/", *, method: str = "GET", body: bytes | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Send a request over a new connection; return status, headers and the name of the instance."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            text = answer.read().decode()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, found, json.loads(text)["name"] if answer.status == 200 else text
        finally:
            connection.close()

    def instance_for(self, path: str = "/", **headers: str) -> str:
        status, _, name = self.request(path, **headers)
        assert status == 200, status
        return name


def _is_shutting_down(worker: psutil.Process) -> bool:
    try:
        return "shutting down" in " ".join(worker.cmdline()) or worker.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def nginx_before(
    nginx: Program,
    folder: Path,
    nodes: tuple[Node, ...],
    *,
    rewrite: Callable[[str], str] = lambda text: text,
    version: tuple[int, ...] | None = None,
    server_names: tuple[str, ...] = (),
    body_bytes: int = 1 << 20,
    header_bytes: int = 16384,
    client_idle_s: float = 5.0,
    scheme: str = "",
    **upstream: object,
) -> Iterator[RunningNginx]:
    """Run nginx before ``nodes``; ``rewrite`` changes its configuration for a negative control."""
    front = FrontDoor(
        listen=f"127.0.0.1:{free_port()}",
        upstream=Upstream(nodes=nodes, **upstream),
        version=version or tuple(map(int, re.findall(r"\d+", nginx.version))),
        account=("root", "root") if os.geteuid() == 0 else None,
        server_names=server_names,
        body_bytes=body_bytes,
        header_bytes=header_bytes,
        client_idle_s=client_idle_s,
        scheme=scheme,
    )
    (file,) = render(front)
    changed = rewrite(file.text)
    (folder / "nginx.conf").write_text(changed)
    command = [nginx.path, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    process = subprocess.Popen(command, stderr=(folder / "errors").open("w"))
    try:
        made = RunningNginx(int(front.listen.rpartition(":")[2]), process)
        eventually(lambda: _is_listening(made.port, process))
        yield made
    finally:
        process.terminate()
        process.wait(10)


def _is_listening(port: int, process: subprocess.Popen) -> bool:
    assert process.poll() is None, "nginx ended"
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
