"""The ``[sharding]`` table: the shards that the stack starts."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tenfold.errors import SettingsError
from tenfold.sharding.keys import parse_key_types


class ShardingSettings(BaseModel):
    """Shards on this machine: databases on PostgreSQL servers of their own, beside the primary."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shards: int = Field(0, ge=0, le=64, description="shards that the stack starts: shard1, shard2, …")
    servers: int = Field(1, ge=1, le=16, description="PostgreSQL servers that they are spread over")
    key: str = Field(
        "int", description="type of the shard key: int, text, uuid, or several with commas", examples=["uuid"]
    )

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.shards and self.servers > self.shards:
            raise ValueError(
                f"sharding.servers is {self.servers} but sharding.shards is {self.shards}; "
                "set sharding.servers lower"
            )
        try:
            parse_key_types(self.key)
        except SettingsError as error:
            raise ValueError(f"sharding.key: {error}") from None
        return self
