"""Valkey or Redis with a password and without persistence: its data end with the stack."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from tenfold.settings import Settings
from tenfold.stack.ports import HOST
from tenfold.stack.processes import ProcessGroup
from tenfold.stack.programs import REDIS, Program, find_redis, require
from tenfold.stack.server import MINIMAL_ENVIRONMENT, LocalServer
from tenfold.stack.workdir import WorkDir


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create one Redis, if the settings enable it."""
    if not settings.stack.redis:
        return []
    program = require(find_redis, REDIS, settings)
    stack = settings.stack
    return [Redis(workdir, program, timeout_s=stack.start_timeout_s, has_password=stack.redis_password)]


class Redis(LocalServer):
    """A Redis server; neither snapshots nor an append-only file, so a restart comes up empty."""

    kind = "redis"

    def __init__(
        self, workdir: WorkDir, program: Program, *, timeout_s: float, has_password: bool = True
    ) -> None:
        super().__init__(workdir, name="redis", timeout_s=timeout_s)
        self.program = program
        self._password = secrets.token_hex(16) if has_password else ""

    @property
    def url(self) -> str:
        """``redis://:password@host:port/0``."""
        user = f":{self._password}@" if self._password else ""
        return f"redis://{user}{self.address}/0"

    @property
    def about(self) -> str:
        """Program and version."""
        return f"{self.program.name or 'Redis'} {self.program.version}".rstrip()

    def placeholders(self) -> Mapping[str, str]:
        """Return its URL, and the parts of it."""
        return {
            "redis_url": self.url,
            "redis_host": HOST,
            "redis_port": str(self.port),
            "redis_password": self._password,
        }

    def secrets(self) -> Sequence[str]:
        """Return the password."""
        return (self._password,) if self._password else ()

    @property
    def configuration(self) -> Path:
        """Its configuration file, so that no process list shows the password."""
        return self.workdir.folder / "redis" / "redis.conf"

    def install(self) -> None:
        """Write the configuration."""
        self.workdir.subfolder("redis", account=self.workdir.account)
        self.workdir.write(
            self.configuration,
            f"bind {HOST}\nport {self.port}\nprotected-mode yes\n"
            f"{f'requirepass {self._password}' if self._password else ''}\n"
            'save ""\nappendonly no\ndaemonize no\n',
            account=self.workdir.account,
        )

    def launch(self) -> ProcessGroup:
        """Start it with its configuration."""
        return self.workdir.launch(
            self.name,
            [str(self.program.path), str(self.configuration)],
            cwd=self.configuration.parent,
            environment=MINIMAL_ENVIRONMENT,
            account=self.workdir.account,
            stop_signal=self.stop_signal,
        )

    def is_ready(self) -> bool:
        """Return whether it answers PING, with its password if it has one."""
        authentication = f"AUTH {self._password}\r\n" if self._password else ""
        try:
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"{authentication}PING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 1 + bool(authentication) and (received := connection.recv(256)):
                    answer += received
        except OSError:
            return False
        return answer == (b"+OK\r\n+PONG\r\n" if authentication else b"+PONG\r\n")
