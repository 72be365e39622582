"""The ``[edge]`` table: the cache policy by path, and nginx's cache for it."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from tenfold.edge.rules import EdgePolicy, Rule
from tenfold.errors import SettingsError

__all__ = ["EdgeSettings", "load_policy"]


class EdgeSettings(BaseModel):
    """What caches may store, by path. Without rules nginx caches nothing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: Mapping[str, Rule] = Field(
        default_factory=dict,
        description='rules by path, "/api/products" or "/static/**"; each a table of its own, with cache = '
        '"public", "private", "immutable" or "no-store"',
        examples=[{"/static/**": {"cache": "public", "ttl": 3600}}],
    )
    country_header: str = Field(
        "", description="the request header in which your CDN names the visitor's country"
    )
    tag_header: str = Field("Cache-Tag", description="the header in which your CDN reads tags")
    disk_mb: int = Field(1024, ge=1, le=1_048_576, description="nginx's cache on disk, megabytes")

    @model_validator(mode="after")
    def _is_a_policy(self) -> Self:
        try:
            self.policy()
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return self

    def policy(self) -> EdgePolicy:
        """The policy.

        Raises:
            SettingsError: two rules of equal rank match one path; a pattern cannot be read.
        """
        return EdgePolicy(self.rules, country_header=self.country_header, tag_header=self.tag_header)


def load_policy(file: Path | str) -> EdgePolicy:
    """The policy in the ``[edge]`` table of a TOML file, so that app and nginx have one.

    Raises:
        SettingsError: the file cannot be read, or a rule is impossible.
    """
    try:
        table = tomllib.loads(Path(file).read_text()).get("edge", {})
        return EdgeSettings.model_validate(table).policy()
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise SettingsError(f"the edge's rules cannot be read from {file}: {error}") from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, ("edge", *first["loc"])))
        raise SettingsError(f"{file}: {place}: {first['msg'].removeprefix('Value error, ')}") from None
