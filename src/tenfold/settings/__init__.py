"""``tenfold.toml`` and the environment, as one frozen value made of each pattern's own settings.

The variables are read here and not by pydantic-settings: its environment source leaves values as text, lowers
the names in ``[service.environment]`` and ignores variables of an unknown table.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from tenfold import schema
from tenfold.autoscaling.aws import AwsSettings
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.balancing.settings import BalancingSettings
from tenfold.database.settings import DatabaseSettings
from tenfold.deploy.kubernetes import KubernetesSettings
from tenfold.edge.settings import EdgeSettings
from tenfold.errors import SettingsError
from tenfold.measure.settings import MeasureSettings
from tenfold.monitoring.settings import MonitoringSettings
from tenfold.settings.verify import MOVED, VerifySettings
from tenfold.sharding.settings import ShardingSettings
from tenfold.sizing.settings import SizingSettings
from tenfold.tasks.settings import StackTaskSettings

__all__ = ["FILE_NAME", "PLACEHOLDERS", "ServiceSettings", "Settings", "StackSettings", "load"]

FILE_NAME = "tenfold.toml"
PREFIX = "TENFOLD_"

# Names between braces in [service.environment], and the server that has to run for each.
PLACEHOLDERS: Mapping[str, str] = {
    "database_url": "database",
    "database_host": "database",
    "database_port": "database",
    "database_user": "database",
    "database_password": "database",
    "database_name": "database",
    "replica_urls": "database",
    "redis_url": "redis",
    "redis_host": "redis",
    "redis_port": "redis",
    "redis_password": "redis",
    "shard_urls": "database",
    "shard_directory_url": "database",
}
_PLACEHOLDER = re.compile(r"\{([a-z][a-z_]*)\}")


class ServiceSettings(BaseModel):
    """The ``[service]`` table: the app, and what it needs to start."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    app: str = Field(
        "", description='the ASGI or WSGI app, "package.module:attribute"', examples=["main:app"]
    )
    factory: bool = Field(False, description="the attribute is called, without arguments, to make the app")
    folder: Path = Field(Path(), description="where the app is imported from, relative to tenfold.toml")
    working_folder: Path | None = Field(
        None,
        description="where app and prepare run and find their files (.env, alembic.ini), relative to "
        "tenfold.toml; the same as folder by default",
        examples=["."],
    )
    python: str = Field(
        "",
        description="the service's own Python, or the folder of its environment, relative to tenfold.toml: "
        "3.10 or newer, with an app server in it, and without tenfold; tenfold's own by default",
        examples=[".venv"],
    )
    server: Literal["auto", "granian", "uvicorn", "hypercorn", "gunicorn", "waitress"] = Field(
        "auto",
        description="the app server: granian, uvicorn, hypercorn for ASGI, granian, gunicorn, waitress for "
        "WSGI; auto takes the first that is installed",
    )
    interface: Literal["auto", "asgi", "wsgi"] = Field(
        "auto", description="what kind of app it is; auto looks at its arguments"
    )
    threads: int = Field(
        4, ge=1, le=1000, description="threads that run a WSGI app's requests, in each instance"
    )
    prepare: str = Field(
        "",
        description='run once before the app starts: a callable "package.module:name", or a command line '
        "(split as a shell would, never given to one); both see the same environment as the app",
        examples=["alembic upgrade head"],
    )
    environment: dict[str, str] = Field(
        default_factory=dict,
        description="variables for the app; {database_url}, {database_host}, {database_port}, "
        "{database_user}, {database_password}, {database_name}, {replica_urls}, {redis_url}, {redis_host}, "
        "{redis_port}, {redis_password}, {shard_urls}, {shard_directory_url} are filled "
        "in",
        examples=[{"DATABASE_URL": "{database_url}"}],
    )
    env_file: Path | None = Field(
        None,
        description="a file of variables for the app, relative to tenfold.toml; those of the stack's servers "
        "and of [service.environment] win",
        examples=[".env"],
    )
    ready_path: str = Field(
        "/health/ready",
        description="answers 2xx when an instance can take requests; "
        "a 404 counts as ready: the app has no such page",
    )

    @field_validator("app")
    @classmethod
    def _app_names_an_attribute(cls, app: str) -> str:
        module, _, attribute = app.partition(":")
        names = [*module.split("."), *attribute.split(".")]
        if app and not all(name.isidentifier() for name in names):
            raise ValueError('it has to be "package.module:attribute", for example "main:app"')
        return app

    @field_validator("prepare")
    @classmethod
    def _prepare_can_be_split(cls, prepare: str) -> str:
        try:
            shlex.split(prepare)
        except ValueError:
            raise ValueError("close every quotation mark in it") from None
        return prepare

    @field_validator("environment")
    @classmethod
    def _environment_can_be_set(cls, environment: dict[str, str]) -> dict[str, str]:
        for name, value in environment.items():
            if not name or "=" in name or "\0" in name + value:
                raise ValueError("a variable has a name without = and a value without a zero byte")
        return environment

    @field_validator("ready_path")
    @classmethod
    def _ready_path_is_a_path(cls, path: str) -> str:
        if not re.fullmatch(r"/[!-~]*", path):
            raise ValueError('it has to begin with "/" and hold no spaces')
        return path


class StackSettings(BaseModel):
    """The ``[stack]`` table: the servers, their number, and where they come from."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    instances: int = Field(1, ge=1, le=64, description="app instances behind nginx, one process each")
    database: bool = Field(True, description="start PostgreSQL")
    replicas: int = Field(0, ge=0, le=16, description="streaming replicas of the primary")
    redis: bool = Field(True, description="start Redis")
    redis_password: bool = Field(
        True, description="give Redis a generated password; false for an app that cannot send one"
    )
    nginx: bool = Field(True, description="start nginx in front of the instances")
    port: int = Field(0, ge=0, le=65535, description="the front door's port on 127.0.0.1; 0 takes a free one")
    max_connections: int = Field(200, ge=10, le=10_000, description="PostgreSQL's max_connections")
    postgresql_bin: Path | None = Field(
        None,
        description="folder of PostgreSQL's programs, in place of the wheel",
        examples=["/usr/lib/postgresql/17/bin"],
    )
    redis_server: Path | None = Field(
        None, description="a valkey-server or redis-server to use", examples=["/usr/bin/valkey-server"]
    )
    nginx_binary: Path | None = Field(None, description="an nginx to use", examples=["/usr/sbin/nginx"])
    start_timeout_s: float = Field(30.0, gt=0, le=600, description="longest wait for one server to be ready")

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.replicas and not self.database:
            raise ValueError(
                f"stack.replicas is {self.replicas} but stack.database is false; "
                "set stack.database = true or stack.replicas = 0"
            )
        if self.instances > 1 and not self.nginx:
            raise ValueError(
                f"stack.instances is {self.instances} but stack.nginx is false, so nothing would share out "
                "the requests; set stack.nginx = true or stack.instances = 1"
            )
        return self


class Settings(BaseModel):
    """Everything a user declares. Frozen; made by :func:`load`.

    A validator of a table names the keys it speaks of in full (``stack.replicas is 2 but …``), because
    its message is what the user reads.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    root: Path = Field(Path(), exclude=True, description="the folder of tenfold.toml; not a key of it")
    service: ServiceSettings = ServiceSettings()
    stack: StackSettings = StackSettings()
    measure: MeasureSettings = MeasureSettings()
    database: DatabaseSettings = DatabaseSettings()
    balancing: BalancingSettings = BalancingSettings()
    edge: EdgeSettings = EdgeSettings()
    sharding: ShardingSettings = ShardingSettings()
    tasks: StackTaskSettings = StackTaskSettings()
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    monitoring: MonitoringSettings = MonitoringSettings()
    sizing: SizingSettings = SizingSettings()
    aws: AwsSettings = AwsSettings()
    verify: VerifySettings = VerifySettings()

    @property
    def working_folder(self) -> Path:
        """The folder in which app and ``prepare`` run."""
        named = self.service.working_folder
        return self.app_folder if named is None else (self.root / named.expanduser()).resolve()

    @property
    def app_folder(self) -> Path:
        """The folder that the app is imported from."""
        return (self.root / self.service.folder.expanduser()).resolve()

    @model_validator(mode="after")
    def _every_instance_has_its_share(self) -> Self:
        weights, backups, instances = self.balancing.weights, self.balancing.backups, self.stack.instances
        if weights and len(weights) != instances:
            raise ValueError(
                f"balancing.weights has {len(weights)} entries but stack.instances is {instances}; "
                "set one weight for each instance, or remove balancing.weights"
            )
        if backups >= instances:
            raise ValueError(
                f"balancing.backups is {backups} but stack.instances is {instances}, so that no instance "
                "would get requests in ordinary times; set stack.instances higher or balancing.backups = 0"
            )
        return self

    @model_validator(mode="after")
    def _shards_have_a_directory(self) -> Self:
        if self.sharding.shards and not self.stack.database:
            raise ValueError(
                f"sharding.shards is {self.sharding.shards} but stack.database is false, and the directory "
                "of the shards is on the primary; set stack.database = true"
            )
        return self

    @model_validator(mode="after")
    def _placeholders_can_be_filled(self) -> Self:
        for name, value in self.service.environment.items():
            for server in {PLACEHOLDERS.get(found, "") for found in _PLACEHOLDER.findall(value)} - {""}:
                if not getattr(self.stack, server):
                    raise ValueError(
                        f"service.environment.{name} needs what stack.{server} = false leaves out; "
                        f"set stack.{server} = true or remove the variable"
                    )
        return self


def load(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings of a service.

    ``path`` names the file; None takes ``tenfold.toml`` of the current folder, or the defaults when there is
    none. Variables override the file: ``TENFOLD_STACK__REPLICAS=2`` is ``stack.replicas``, two underscores
    between table and key. Their values are TOML where the key wants something other than text; an empty one
    counts as unset, and names without two underscores are not settings. ``environ`` replaces ``os.environ``.

    Raises:
        SettingsError: one sentence with the file or the variable, the key and what it should be. Values of
            keys that look secret are never in it.
    """
    file = Path(FILE_NAME) if path is None else path
    declared = _read(file, required=path is not None)
    tables = declared or {}
    variables = _apply_variables(tables, os.environ if environ is None else environ)
    source = "environment" if declared is None else str(file)
    if "root" in tables:  # a field of the model, for those who make one in Python, and no key of the file
        raise SettingsError(f"{variables.get(('root',), source)}: unknown key root")
    _refuse_moved_keys(tables, variables, source)
    try:
        # Through JSON, where strict means strict (no "2" for 2, no 1 for true) and yet a path is text.
        settings = Settings.model_validate_json(json.dumps(tables, default=str), strict=True)
    except ValidationError as error:
        raise SettingsError(
            schema.sentence(error, Settings, source=source, variables=variables, prefix=PREFIX)
        ) from None
    return settings.model_copy(update={"root": file.absolute().parent})


def _read(file: Path, *, required: bool) -> dict[str, Any] | None:
    text = ""
    try:
        text = file.read_bytes().decode()
        return tomllib.loads(text)
    except FileNotFoundError:
        if not required:
            return None
        raise SettingsError(f"no file {file}{_did_you_mean(_nearest_file(file))}") from None
    except OSError as error:
        raise SettingsError(f"{file} cannot be read: {(error.strerror or 'unknown error').lower()}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{file} is not UTF-8 at byte {error.start}; save it as UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{file}, {_syntax_error(str(error), text)}") from None


def _syntax_error(message: str, text: str) -> str:
    what, _, where = message.rpartition(" (at ")
    place = re.match(r"line (\d+), column (\d+)", where)
    lines = text.splitlines() or [""]
    line, column = place.groups() if place else (len(lines), len(lines[-1]) + 1)
    return f"line {line}, column {column}: {what[:1].lower()}{what[1:]}"


def _apply_variables(tables: dict[str, Any], environ: Mapping[str, str]) -> dict[schema.KeyPath, str]:
    """Set the variables in the tables; return the variable of each key that came from one."""
    variables = {}
    for name in sorted(environ):
        if not name.startswith(PREFIX) or "__" not in name or not environ[name]:
            continue
        if any("\ud800" <= letter <= "\udfff" for letter in environ[name]):  # undecodable bytes
            raise SettingsError(f"{name} is not UTF-8; set it again as plain text")
        path = _key_path(name)
        node: Any = tables
        for part in path[:-1]:
            node = node.setdefault(part, {}) if isinstance(node, dict) else None
        if isinstance(node, dict):  # otherwise the file has a value where a table belongs: validation says so
            node[path[-1]] = _parsed_value(path, environ[name])
            variables[path] = name
    return variables


def _key_path(variable: str) -> schema.KeyPath:
    """The key of a variable, in lower case except below a mapping.

    ``TENFOLD_SERVICE__ENVIRONMENT__DEBUG`` sets ``DEBUG``.
    """
    parts = variable.removeprefix(PREFIX).split("__")
    lower = tuple(part.lower() for part in parts)
    for depth in range(1, len(parts)):
        if schema.is_mapping(schema.annotation(Settings, lower[:depth])):
            return (*lower[:depth], "__".join(parts[depth:]))
    return lower


def _parsed_value(path: schema.KeyPath, text: str) -> Any:
    wanted = schema.annotation(Settings, path)
    if {wanted, *get_args(wanted)} <= {str, Path, Path | None, NoneType} or "\n" in text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_moved_keys(
    tables: Mapping[str, Any], variables: Mapping[schema.KeyPath, str], source: str
) -> None:
    for (table, key), now in MOVED.items():
        if not isinstance(tables.get(table), dict) or key not in tables[table]:
            continue
        if variable := variables.get((table, key)):
            raise SettingsError(f"{variable} is now {PREFIX}VERIFY__{now.upper()}")
        raise SettingsError(f"{source}: {table}.{key} is now verify.{now}")


def _nearest_file(file: Path) -> str | None:
    try:
        names = [entry.name for entry in file.absolute().parent.iterdir() if entry.is_file()]
    except OSError:
        return None
    near = difflib.get_close_matches(file.name, names, n=1)
    return str(file.with_name(near[0])) if near else None


def _did_you_mean(name: str | None) -> str:
    return f"; did you mean {name}?" if name else "; write one with: tenfold init"
