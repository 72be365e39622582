"""Valkey or Redis with a password and without persistence: what it holds dies with the stack."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tenfold.settings import Settings
from tenfold.stack.ports import HOST
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.programs import REDIS, Program, find_redis, required
from tenfold.stack.server import PLAIN_ENVIRONMENT, LocalServer
from tenfold.stack.workdir import Place


def servers(settings: Settings, place: Place) -> list[LocalServer]:
    """One Redis, if the settings want it."""
    if not settings.stack.redis:
        return []
    program = required(find_redis, REDIS, settings)
    return [Redis(place, program, timeout_s=settings.stack.start_timeout_s)]


class Redis(LocalServer):
    """A Redis server; neither snapshots nor an append-only file, so a restart comes up empty."""

    kind = "redis"

    def __init__(self, place: Place, program: Program, *, timeout_s: float) -> None:
        super().__init__(place, name="redis", timeout_s=timeout_s)
        self.program = program
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        """``redis://:password@host:port/0``."""
        return f"redis://:{self._password}@{self.address}/0"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"{self.program.name or 'Redis'} {self.program.version}".rstrip()

    def offers(self) -> Mapping[str, str]:
        """``redis_url``."""
        return {"redis_url": self.url}

    def secrets(self) -> Sequence[str]:
        """The password."""
        return (self._password,)

    @property
    def configuration(self) -> Path:
        """Its file: no process list shows the password."""
        return self.place.folder / "redis" / "redis.conf"

    def install(self) -> None:
        """Write the configuration."""
        self.place.subfolder("redis", account=self.place.account)
        self.place.write(
            self.configuration,
            f"bind {HOST}\nport {self.port}\nprotected-mode yes\nrequirepass {self._password}\n"
            'save ""\nappendonly no\ndaemonize no\n',
            account=self.place.account,
        )

    def launch(self) -> ProcessGroup:
        """Start it with that configuration."""
        return self.place.launch(
            self.name,
            [str(self.program.path), str(self.configuration)],
            cwd=self.configuration.parent,
            environment=PLAIN_ENVIRONMENT,
            account=self.place.account,
            number=self.stop_signal,
        )

    def ready(self) -> bool:
        """Whether it answers PING to this password: another Redis on the port would not."""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (received := connection.recv(256)):
                    answer += received
        except OSError:
            return False
        return answer == b"+OK\r\n+PONG\r\n"
