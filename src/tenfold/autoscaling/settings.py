"""The ``[autoscaling]`` table: bounds, targets and speeds of the scaler, and what one instance takes."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tenfold.autoscaling.hpa import Behavior, Hpa, PolicyRule, ScalingRules
from tenfold.autoscaling.manifests import Metric, Scaler
from tenfold.autoscaling.simulation import Service

__all__ = ["AutoscalingSettings"]


class AutoscalingSettings(BaseModel):
    """How the service scales, and what simulations are told of an instance."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    min_replicas: int = Field(3, ge=1, le=10_000, description="instances at least")
    max_replicas: int = Field(100, ge=1, le=10_000, description="instances at most")
    cpu_percent: int = Field(
        70, ge=0, le=1000, description="CPU to aim for, of the request; 0: not looked at"
    )
    memory_percent: int = Field(
        80, ge=0, le=1000, description="memory to aim for, of the request; 0: not looked at"
    )
    requests_per_second: float = Field(
        0, ge=0, le=1_000_000, description="rate of an instance to aim for; 0: not looked at"
    )
    up_percent: int = Field(50, ge=1, le=10_000, description="at most so much more in `up_period_s`")
    up_period_s: int = Field(60, ge=1, le=1800, description="see `up_percent`")
    up_window_s: int = Field(60, ge=0, le=3600, description="the lowest wish of so long counts on the way up")
    down_percent: int = Field(10, ge=1, le=100, description="at most so much less in `down_period_s`")
    down_period_s: int = Field(60, ge=1, le=1800, description="see `down_percent`")
    down_window_s: int = Field(
        300, ge=0, le=3600, description="the highest wish of so long counts on the way down"
    )
    instance_rps: float = Field(
        0, ge=0, le=1_000_000, description="what one instance takes within the objective; 0: as measured"
    )
    instance_cpu: int = Field(1000, ge=1, le=1_000_000, description="milli-cores that it uses at that rate")
    cpu_request: int = Field(500, ge=1, le=1_000_000, description="milli-cores that a pod requests")
    memory_used_percent: int = Field(
        50, ge=0, le=1000, description="of its memory request that an instance uses, at any rate"
    )
    start_s: float = Field(20, ge=0, le=3600, description="from a pod's start until it is ready")
    node_start_s: float = Field(90, ge=0, le=3600, description="how long a new node takes")
    pods_per_node: int = Field(0, ge=0, le=1000, description="pods of a node; 0: there is always room")
    most_instances: int = Field(
        0, ge=0, le=10_000, description="instances that use up the database's connections; 0: no limit"
    )
    price_per_hour: float = Field(0, ge=0, le=1000, description="of one instance; 0: costs are not shown")

    @model_validator(mode="after")
    def _is_a_scaler(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"autoscaling.min_replicas is {self.min_replicas} but autoscaling.max_replicas is "
                f"{self.max_replicas}; set max_replicas higher"
            )
        if not (self.cpu_percent or self.memory_percent or self.requests_per_second):
            raise ValueError(
                "autoscaling looks at nothing; set cpu_percent, memory_percent or requests_per_second"
            )
        return self

    def scaler(self, name: str = "tenfold.toml") -> Scaler:
        """The scaler that these settings describe."""
        metrics = [
            Metric(source="Resource", name=resource, kind="Utilization", target=percent)
            for resource, percent in (("cpu", self.cpu_percent), ("memory", self.memory_percent))
            if percent
        ]
        if self.requests_per_second:
            each = int(self.requests_per_second * 1000)
            metrics.append(
                Metric(source="Pods", name="requests_per_second", kind="AverageValue", target=each)
            )
        up = PolicyRule("Percent", self.up_percent, self.up_period_s)
        down = PolicyRule("Percent", self.down_percent, self.down_period_s)
        behavior = Behavior(ScalingRules((up,), self.up_window_s), ScalingRules((down,), self.down_window_s))
        hpa = Hpa(min_replicas=self.min_replicas, max_replicas=self.max_replicas, behavior=behavior)
        return Scaler(
            kind="tenfold",
            api_version="autoscaling/v2",
            name=name,
            namespace="",
            target_kind="Deployment",
            target_name=name,
            hpa=hpa,
            metrics=tuple(metrics),
        )

    def service(self, *, instance_rps: float = 0.0, cpu: int = 0, cpu_request: int = 0) -> Service:
        """What is known of an instance; arguments that are not 0 win over the settings."""
        return Service(
            instance_rps=instance_rps or self.instance_rps,
            cpu=cpu or self.instance_cpu,
            cpu_request=cpu_request or self.cpu_request,
            memory_percent=self.memory_used_percent,
            start_s=self.start_s,
            node_start_s=self.node_start_s,
            pods_per_node=self.pods_per_node,
            most_instances=self.most_instances,
        )
