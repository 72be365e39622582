"""PostgreSQL servers with the databases of shards."""

from __future__ import annotations

from collections.abc import Mapping

from tenfold.settings import Settings
from tenfold.stack.programs import POSTGRESQL, Program, find_postgresql, require
from tenfold.stack.server import LocalServer
from tenfold.stack.servers.postgresql import ADMIN, Primary, connect
from tenfold.stack.workdir import WorkDir


def create_servers(settings: Settings, workdir: WorkDir) -> list[LocalServer]:
    """Create the servers of ``[sharding]``, each with an equal part of the shards."""
    count = settings.sharding.servers if settings.sharding.shards else 0
    if not count:
        return []
    program = require(find_postgresql, POSTGRESQL, settings)
    names = [f"shard{number}" for number in range(1, settings.sharding.shards + 1)]
    return [
        ShardServer(
            workdir,
            program,
            number=number,
            shards=tuple(names[(number - 1) * len(names) // count : number * len(names) // count]),
            max_connections=settings.stack.max_connections,
            timeout_s=settings.stack.start_timeout_s,
        )
        for number in range(1, count + 1)
    ]


class ShardServer(Primary):
    """A server with one or more databases, each a shard; its role owns them all."""

    kind = "shard server"

    def __init__(
        self,
        workdir: WorkDir,
        program: Program,
        *,
        number: int,
        shards: tuple[str, ...],
        max_connections: int,
        timeout_s: float,
    ) -> None:
        super().__init__(
            workdir,
            program,
            name=shards[0],
            max_connections=max_connections,
            replicas=0,
            timeout_s=timeout_s,
            server_name=f"shard server {number}",
        )
        self.user = "shards"
        self.shards = shards

    @property
    def about(self) -> str:
        """Program, version and shards."""
        return f"{super().about}: {', '.join(self.shards)}"

    def shard_urls(self) -> dict[str, str]:
        """The URL of each shard, as its owner."""
        return {name: self._url(self.user, self.password, name) for name in self.shards}

    def shard_admin_urls(self) -> dict[str, str]:
        """The URL of each shard, as the server's superuser."""
        return {name: self._url(ADMIN, self.admin_password, name) for name in self.shards}

    def placeholders(self) -> Mapping[str, str]:
        """Return ``shard_urls``: the app gets those of all shards, each with its name."""
        return {"shard_urls": ",".join(f"{name}={url}" for name, url in self.shard_urls().items())}

    def _create_owner(self) -> bool:
        if not super()._create_owner():
            return False
        with connect(self.admin_url) as connection:
            for name in self.shards[1:]:
                connection.execute(f"create database {name} owner {self.user}".encode())
        return True
