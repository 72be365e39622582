"""The ``[sizing]`` table: what users do, what a request costs, and prices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["RegionSettings", "SizingSettings"]


class RegionSettings(BaseModel):
    """Users who are far away."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    share: float = Field(gt=0, le=1, description="of the users")
    rtt_ms: float = Field(gt=0, le=2000, description="their round trip to the service, milliseconds")
    edge_rtt_ms: float = Field(20, gt=0, le=2000, description="and to the nearest edge")


class SizingSettings(BaseModel):
    """What is assumed where nothing is measured. A key that is set here is no assumption any more."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    active_share: float = Field(
        0.05, gt=0, le=1, description="share of the users who are active in the busiest hour"
    )
    think_s: float = Field(20, gt=0, le=3600, description="seconds between two requests of an active user")
    peak_factor: float = Field(2, ge=1, le=100, description="the busiest minute, relative to that hour")
    edge_share: float = Field(0, ge=0, lt=1, description="share of the requests that a CDN or nginx answers")
    edge_kb: float = Field(20, ge=0, le=100_000, description="kilobytes of an answer from there")
    database_cpu_ms: float = Field(
        0, ge=0, le=10_000, description="CPU of a request in the database, milliseconds; 0: as measured, or 2"
    )
    write_share: float = Field(0.2, gt=0, le=1, description="share of that CPU that only the primary can do")
    database_cores: int = Field(8, ge=1, le=1024, description="cores of a database server")
    session_share: float = Field(0.3, ge=0, le=1, description="share of the users who have a session")
    session_kb: float = Field(2, ge=0, le=1024, description="kilobytes of a session in Redis")
    cache_mb: float = Field(256, ge=0, le=1_000_000, description="megabytes of cached queries")
    task_share: float = Field(0.05, ge=0, le=10, description="background tasks of a request")
    task_s: float = Field(0.5, ge=0, le=3600, description="seconds of a task")
    busy_hours: float = Field(8, gt=0, le=24, description="hours of the peak's load that a day amounts to")
    database_price: float = Field(0, ge=0, le=1000, description="of a database server, an hour")
    redis_price_gb: float = Field(0, ge=0, le=100, description="of a gigabyte of Redis, an hour")
    edge_price_gb: float = Field(0, ge=0, le=100, description="of a gigabyte from the edge")
    regions: Mapping[str, RegionSettings] = Field(
        default_factory=dict,
        description="users who are far away, by the name of their region",
        examples=[{"sa-east": {"share": 0.1, "rtt_ms": 190}}],
    )

    @model_validator(mode="after")
    def _regions_fit(self) -> Self:
        if sum(region.share for region in self.regions.values()) > 1:
            raise ValueError("sizing.regions has shares of more than all users together; make them smaller")
        return self
