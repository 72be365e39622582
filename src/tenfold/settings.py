"""``tenfold.toml`` and the environment, as one frozen value made of each folder's own settings."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from tenfold.measure.settings import MeasureSettings


class ServiceSettings(BaseModel):
    """The ``[service]`` table: what runs."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str = Field("", description='the ASGI app, "package.module:attribute"')
    factory: bool = Field(False, description="the attribute is called, without arguments, to make the app")
    folder: Path = Field(Path(), description="where the app is imported from, relative to tenfold.toml")
    prepare: str = Field(
        "",
        description='run once before the app starts: a callable "package.module:name", or a command line '
        "(split as a shell would, never given to one); both see the same environment as the app",
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="variables for the app; {database_url}, {database_host}, {database_port}, "
        "{database_user}, {database_password}, {database_name}, {replica_urls}, {redis_url} are filled in",
    )
    ready_path: str = Field(
        "/health/ready",
        description="answers 2xx when an instance can take requests; "
        "a 404 counts as ready: the app has no such page",
    )


class StackSettings(BaseModel):
    """The ``[stack]`` table: which servers, how many, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    instances: int = Field(1, ge=1, le=64, description="app instances behind nginx, one process each")
    database: bool = Field(True, description="start PostgreSQL")
    replicas: int = Field(0, ge=0, le=16, description="streaming replicas of the primary")
    redis: bool = Field(True, description="start Redis")
    nginx: bool = Field(True, description="start nginx in front of the instances")
    port: int = Field(0, ge=0, le=65535, description="the front door's port on 127.0.0.1; 0 takes a free one")
    max_connections: int = Field(200, ge=10, le=10_000, description="PostgreSQL's max_connections")
    postgresql_bin: Path | None = Field(
        None, description="folder of PostgreSQL's programs, in place of the wheel"
    )
    redis_server: Path | None = Field(None, description="a redis-server or valkey-server to use")
    nginx_binary: Path | None = Field(None, description="an nginx to use")
    start_timeout_s: float = Field(30.0, gt=0, le=600, description="longest wait for one server to be ready")


class Settings(BaseModel):
    """Everything a user declares. Frozen; made by :func:`load`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path = Field(Path(), description="the folder of tenfold.toml; not a key of it")
    service: ServiceSettings = ServiceSettings()
    stack: StackSettings = StackSettings()
    measure: MeasureSettings = MeasureSettings()
