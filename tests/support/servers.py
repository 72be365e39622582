"""Servers that tests of session stores pause, kill and restart; a proxy that delays replies."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import psutil

from tenfold.stack import ports
from tenfold.stack.processes import is_running
from tests.support.waiting import eventually


def free_port() -> int:
    """One that no outgoing connection takes meanwhile, and whose cluster port, 10,000 above, is free, too."""
    return next(port for port in iter(ports.free_port, 0) if port < 22_000 and ports.is_free(port + 10_000))


class RedisServer:
    """A Redis or Valkey with a password, without persistence, on a free port of loopback."""

    def __init__(self, program: Path, *options: str, password: str | None = None) -> None:
        self.program, self.options = program, options
        self.port, self.password = free_port(), password or secrets.token_hex(16)
        self.url = f"redis://:{self.password}@127.0.0.1:{self.port}/0"
        self.folder = Path(tempfile.mkdtemp(prefix="tenfold-redis-"))
        self.process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        options = [
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--requirepass",
            self.password,
        ]
        self.process = subprocess.Popen(
            [self.program, *options, *self.options],
            cwd=self.folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        eventually(lambda: self.command("PING") == b"+PONG")

    def raw_reply(self, *words: str) -> bytes:
        """Return the raw reply to one command; empty if the server cannot be reached."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(f"AUTH {self.password}\r\n{' '.join(words)}\r\nQUIT\r\n".encode())
                reply = b"".join(iter(lambda: connection.recv(65_536), b""))
        except OSError:
            return b""
        return reply.removeprefix(b"+OK\r\n").removesuffix(b"+OK\r\n")

    def command(self, *words: str) -> bytes:
        """Return the first line of the reply."""
        return self.raw_reply(*words).partition(b"\r\n")[0]

    def calls(self) -> dict[str, int]:
        """Count the executions of each command since the last CONFIG RESETSTAT."""
        found = re.findall(rb"cmdstat_(\S+?):calls=(\d+)", self.raw_reply("INFO", "commandstats"))
        counts = {name.decode(): int(calls) for name, calls in found}
        own = ("auth", "info", "quit", "config", "client")  # and their subcommands, as Redis 7 counts them
        return {name: calls for name, calls in counts.items() if name.partition("|")[0] not in own}

    def signal(self, number: signal.Signals) -> None:
        assert self.process
        self.process.send_signal(number)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait(10)

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder)


def form_cluster(nodes: list[RedisServer]) -> None:
    share = 16_384 // len(nodes)
    for number, node in enumerate(nodes):
        slots = range(number * share, (number + 1) * share)
        assert node.command("CLUSTER", "ADDSLOTS", *map(str, slots)) == b"+OK"
        assert node.command("CONFIG", "SET", "masterauth", node.password) == b"+OK"
        assert node.command("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1)) == b"+OK"
    for node in nodes[1:]:
        assert nodes[0].command("CLUSTER", "MEET", "127.0.0.1", str(node.port)) == b"+OK"
    eventually(
        lambda: all(b"cluster_state:ok" in node.raw_reply("CLUSTER", "INFO") for node in nodes), within_s=20
    )
    eventually(
        lambda: all(node.raw_reply("CLUSTER", "NODES").count(b" connected") == len(nodes) for node in nodes)
    )


class Proxy:
    """Forwards a port of its own to another; while it stalls, commands get through and replies do not."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.cut_next_reply = False
        self.open = self.peak = 0
        self.tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Proxy:
        self.server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self.server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.peak = max(self.peak, self.open)
        there, back = await asyncio.open_connection("127.0.0.1", self.target)
        for pump in (self._pump(reader, back, stalls=False), self._pump(there, writer, stalls=True)):
            task = asyncio.ensure_future(pump)
            self.tasks.add(task)
            task.add_done_callback(self.tasks.discard)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stalls: bool
    ) -> None:
        try:
            while data := await reader.read(65_536):
                if stalls:
                    await self.flowing.wait()
                    if self.cut_next_reply:
                        self.cut_next_reply = False
                        break
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            self.open -= stalls
            writer.close()


class PostgreSQLServer:
    """A PostgreSQL without a password and without fsync, on a free port of loopback."""

    def __init__(self, programs: Path) -> None:
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="tenfold-pg-")), free_port()
        user = _other_user() if os.getuid() == 0 else None  # PostgreSQL does not run as root
        if user:
            shutil.chown(self.folder, user)
        data = self.folder / "data"
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "owner", "-A", "trust", "-N"],
            user=user, cwd="/", check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._programs, self._user = programs, user
        self.url = f"postgresql+psycopg://owner@127.0.0.1:{self.port}/postgres"
        self.start()

    def start(self) -> None:
        options = [f"port={self.port}", "listen_addresses=127.0.0.1", "fsync=off",
                   f"unix_socket_directories={self.folder}"]  # fmt: skip
        command = [self._programs / "postgres", "-D", self.folder / "data"]
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(
                [*command, *(f"-c{option}" for option in options)],
                user=self._user, cwd="/", stderr=log, start_new_session=True,
            )  # fmt: skip
        eventually(self._accepts, within_s=30)

    def kill(self) -> None:
        """End it with all its processes: one that is left would keep the next from starting."""
        self.process.send_signal(signal.SIGSTOP)  # it would start others in place of those that die
        children = psutil.Process(self.process.pid).children(recursive=True)
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()
        self.process.kill()
        self.process.wait(20)
        eventually(lambda: not any(map(is_running, children)))

    def _accepts(self) -> bool:
        import psycopg

        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        try:
            psycopg.connect(self.url.replace("+psycopg", ""), connect_timeout=1).close()
        except psycopg.OperationalError:
            return False
        return True

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGCONT)
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(20)
        shutil.rmtree(self.folder)


def _other_user() -> str:
    import pwd

    return next(entry.pw_name for entry in pwd.getpwall() if entry.pw_name in ("postgres", "nobody"))
