"""nginx as the edge before an app, and what it has stored."""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tenfold.balancing.upstream import Node, Upstream
from tenfold.deploy.nginx import FrontDoor, render
from tenfold.edge.nginx import Edge
from tenfold.edge.rules import EdgePolicy
from tenfold.stack.ports import free_port
from tenfold.stack.programs import Program
from tests.edge.support.unix_http import UnixConnection
from tests.support.waiting import eventually


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry of nginx's cache, as its file begins (ngx_http_file_cache_header_t)."""

    key: str
    valid_until: int
    swr_s: int
    error_s: int


class Client:
    """Sends requests to one port; the answer of the app is dictated by ``status`` and ``answer``."""

    def __init__(self, port: int) -> None:
        self.port = port

    def send(
        self,
        path: str = "/",
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        answer: Sequence[tuple[str, str]] = (),
        status: int = 200,
        delay: float = 0.0,
        body: bytes | None = None,
    ) -> tuple[int, dict[str, str], bytes]:
        wanted = base64.b64encode(
            json.dumps({"status": status, "headers": list(answer), "delay": delay}).encode()
        )
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in {"X-Answer": wanted.decode(), **(headers or {})}.items():
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            found: dict[str, str] = {}
            for name, value in response.getheaders():
                name = name.lower()
                found[name] = f"{found[name]}, {value}" if name in found else value
            return response.status, found, response.read()
        finally:
            connection.close()

    def count(self, path: str = "/", **options: Any) -> int:
        """The number of the answer: the same one twice came from the cache."""
        status, _, body = self.send(path, **options)
        assert status == 200, (status, body)
        return int(json.loads(body)["count"])


class EdgeNginx(Client):
    """A running nginx."""

    def __init__(self, port: int, folder: Path, process: subprocess.Popen[bytes]) -> None:
        super().__init__(port)
        self.folder, self.process = folder, process

    def stored(self) -> list[Stored]:
        found = []
        for file in (self.folder / "cache").rglob("*"):
            if file.is_file():
                data = file.read_bytes()
                _, valid, updating, error = struct.unpack_from("<Qqqq", data)
                key = re.search(rb"\nKEY: (.*)\n", data)
                assert key
                found.append(Stored(key[1].decode(), valid, updating, error))
        return found

    def purge(self, *tags: str) -> int:
        connection = UnixConnection(self.folder / "purge.sock")
        connection.request("POST", "/?" + "&".join(f"tag={tag}" for tag in tags))
        status = connection.getresponse().status
        connection.close()
        return status


@contextmanager
def edge_before(
    nginx: Program,
    folder: Path,
    address: str,
    policy: EdgePolicy,
    *,
    rewrite: Callable[[str], str] = lambda text: text,
    **edge: Any,
) -> Iterator[EdgeNginx]:
    """Run nginx with a policy before an app; ``rewrite`` changes its files for a negative control."""
    port = free_port()
    door = FrontDoor(
        listen=f"127.0.0.1:{port}",
        upstream=Upstream(nodes=(Node(address=address),)),
        version=tuple(map(int, re.findall(r"\d+", nginx.version))),
        account=("root", "root") if os.geteuid() == 0 else None,
        edge=Edge(policy=policy, **edge),
    )
    folder.mkdir(exist_ok=True)
    for file in render(door):
        (folder / file.path).write_text(rewrite(file.text))
    command = [nginx.path, "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    with (folder / "errors").open("w") as errors:
        process = subprocess.Popen(command, cwd=folder, stderr=errors)
    try:
        eventually(lambda: _listens(port, process, folder))
        yield EdgeNginx(port, folder, process)
    finally:
        process.terminate()
        process.wait(10)
        for left in folder.glob("*.sock"):
            left.unlink()


def _listens(port: int, process: subprocess.Popen[bytes], folder: Path) -> bool:
    assert process.poll() is None, (folder / "errors").read_text()
    try:
        http.client.HTTPConnection("127.0.0.1", port, timeout=1).connect()
    except OSError:
        return False
    return True


@contextmanager
def origin(folder: Path, policies: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> Iterator[int]:
    """Serve ``origin.py``; yield its port."""
    port, file = free_port(), folder / "policies.json"
    file.write_text(json.dumps(policies))
    command = [sys.executable, "-m", "granian", "tests.edge.support.origin:app", "--interface", "asgi"]
    process = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--loop", "asyncio", "--no-log"],
        cwd=Path(__file__).parents[3],
        env=os.environ | {"POLICIES": str(file)},
        start_new_session=True,
    )
    try:
        eventually(lambda: _listens(port, process, folder))
        yield port
    finally:
        process.terminate()
        process.wait(10)
