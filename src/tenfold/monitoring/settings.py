"""The ``[monitoring]`` table: objectives, thresholds, and where Prometheus finds the service."""

from __future__ import annotations

import re

from pydantic import BaseModel, ConfigDict, Field, field_validator


class MonitoringSettings(BaseModel):
    """What the rules, the dashboard and the scrape configuration need to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    job: str = Field("app", description="the service's name in Prometheus")
    targets: tuple[str, ...] = Field(
        ("127.0.0.1:8000",), description="host:port of each instance, as Prometheus reaches it"
    )
    availability: float = Field(0.999, ge=0.9, lt=1, description="share of requests that are not to fail")
    latency: float = Field(
        0.95, ge=0.5, lt=1, description="share of requests faster than measure.objective.slow_ms"
    )
    scrape_s: int = Field(15, ge=1, le=75, description="seconds between two scrapes")
    least_requests: int = Field(
        20, ge=1, description="requests in a window without which nothing is said about their share"
    )
    capacity: float = Field(
        0, ge=0, description="requests/s that the service was measured to take; 0 leaves its alert out"
    )
    queue_s: float = Field(300, gt=0, description="a task that waits longer is late, seconds")
    replica_lag_s: float = Field(10, gt=0, description="a replica that is later is late, seconds")
    hit_ratio: float = Field(
        0.5, ge=0, lt=1, description="of the query cache, below which it is of little use"
    )
    runbooks: str = Field(
        "", description="where docs/monitoring.md is served", examples=["https://wiki.example/monitoring"]
    )

    @field_validator("job")
    @classmethod
    def _is_a_job(cls, job: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_./-]{0,60}", job):
            raise ValueError("a name has letters, digits and _ . / -, 61 at most")
        return job

    @field_validator("targets")
    @classmethod
    def _are_targets(cls, targets: tuple[str, ...]) -> tuple[str, ...]:
        for target in targets:
            if not re.fullmatch(r"(\[[0-9A-Fa-f:]+\]|[A-Za-z0-9.-]+):\d{1,5}", target):
                raise ValueError(f"{target!r} is no target: write host:port")
        return targets

    @field_validator("runbooks")
    @classmethod
    def _is_a_link(cls, link: str) -> str:
        if link and not re.fullmatch(r"https?://[!-~]+", link):
            raise ValueError("it has to begin with https:// and hold no spaces")
        return link
