"""The ``[database]`` table: the processes that share a server's connections, and how many each opens."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from tenfold.database.pools.budget import MAX_OVERFLOW, POOL_SIZE, Fleet, ServerLimits


class DatabaseSettings(BaseModel):
    """The fleet that shares one server's connections."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(
        "",
        description="the server that tenfold doctor asks for its limits; better in TENFOLD_DATABASE__URL",
        examples=["postgresql://shop@db.internal/shop"],
    )
    hosts: int = Field(1, ge=1, le=10_000, description="machines or pods that run the service")
    workers: int = Field(1, ge=1, le=1_000, description="worker processes on each of them")
    engines: int = Field(1, ge=1, le=100, description="engines in each process that connect to this server")
    pool_size: int = Field(POOL_SIZE, ge=1, le=1_000, description="connections that an engine keeps")
    max_overflow: int = Field(
        MAX_OVERFLOW, ge=0, le=1_000, description="connections that an engine opens beyond these"
    )
    reserve: int = Field(
        10, ge=0, le=10_000, description="connections for migrations, cron jobs and people with psql"
    )
    max_connections: int = Field(
        100, ge=1, le=262_143, description="the server's max_connections, unless url names a server to ask"
    )

    @property
    def fleet(self) -> Fleet:
        """The fleet whose connections are added up."""
        return Fleet(
            hosts=self.hosts,
            workers=self.workers,
            engines=self.engines,
            pool_size=self.pool_size,
            max_overflow=self.max_overflow,
            reserve=self.reserve,
        )

    @property
    def limits(self) -> ServerLimits:
        """The server's limits as far as the settings know."""
        return ServerLimits(max_connections=self.max_connections)
