"""Settings of the ``[measure]`` table: the objective, and the limits of the search."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Objective(BaseModel):
    """The service level objective: the share of arrivals that may be bad, and the definition of bad.

    An arrival is bad when it is slower than ``slow_ms`` counted from its due time, when it failed or was
    refused, or when no user was free to send it. With the defaults the objective
    reads "p95 < 200 ms and errors < 5 %", both at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    slow_ms: float = Field(200.0, gt=0, description="an arrival slower than this is bad, milliseconds")
    bad_share: float = Field(0.05, gt=0, lt=0.5, description="the share of arrivals that may be bad")
    achieved_share: float = Field(0.98, gt=0.5, le=1, description="completed / offered, at the least")


class MeasureSettings(BaseModel):
    """Defaults of ``tenfold measure``; each has an option of the same name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    scenario: Path = Field(Path("locustfile.py"), description="the locustfile, relative to tenfold.toml")
    objective: Objective = Objective()
    budget_s: float = Field(90.0, ge=10, le=3600, description="longest search for the capacity, seconds")
    width: float = Field(
        0.10, gt=0, lt=1, description="stop when the interval is this narrow, (high-low)/mid"
    )
    users: int = Field(10, ge=1, le=20_000, description="users logged in before the first trial")
    spawn_rate: float = Field(100.0, gt=0, le=1000, description="most logins per second")
    max_users: int = Field(1000, ge=1, le=20_000, description="most users logged in at once")
    seed: int = Field(1, ge=0, description="seed of the arrival times")
    overload_s: float = Field(10.0, ge=0, le=120, description="length of the overload probe; 0 leaves it out")
