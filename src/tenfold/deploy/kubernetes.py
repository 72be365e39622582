"""The service on Kubernetes: Deployments, a Service, a scaler and a disruption budget. Pure.

What is rendered is valid for Kubernetes 1.25 to 1.37 and passes the "restricted" pod security standard.
"""

from __future__ import annotations

import math
import re
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tenfold.autoscaling.hpa import Behavior, ScalingRules
from tenfold.autoscaling.manifests import parse_quantity
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.errors import DependencyError, SettingsError
from tenfold.types import File

__all__ = ["KubernetesSettings", "render"]

_LABEL = re.compile(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?")
_IMAGE = re.compile(r"[a-z0-9][A-Za-z0-9._/:@-]{0,400}")
_PRE_STOP_S = 5
_HEALTH_PORT = 8081


class KubernetesSettings(BaseModel):
    """What the manifests need to know beside ``[service]``, ``[autoscaling]`` and ``[tasks]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = Field("", description="of all resources; without it nothing is rendered", examples=["shop"])
    namespace: str = Field("", description="empty leaves it to kubectl")
    image: str = Field("", description="the app's image", examples=["registry.example/shop:1.4.2"])
    command: tuple[str, ...] = Field((), description="in place of the image's own")
    port: int = Field(8000, ge=1024, le=65535, description="where the app listens")
    live_path: str = Field(
        "", description="answers 200 as long as the process does; empty asks for a connection only"
    )
    secret: str = Field("", description="a Secret whose keys the containers get as environment variables")
    cpu_limit: str = Field("1", description="of a pod; its request is autoscaling.cpu_request")
    memory_request: str = Field("512Mi", description="of a pod")
    memory_limit: str = Field("1Gi", description="of a pod")
    longest_request_s: float = Field(
        60, ge=1, le=3600, description="how long a request may go on in a pod that ends"
    )
    queues: tuple[str, ...] = Field(
        (),
        description="queues of [tasks] app: each has a Deployment of workers",
        examples=[["default", "emails"]],
    )
    scaler: Literal["hpa", "keda"] = Field(
        "hpa", description='"hpa", or "keda": a ScaledObject, which reads Prometheus itself'
    )
    prometheus: str = Field(
        "", description="Prometheus' address, for KEDA", examples=["http://prometheus.monitoring:9090"]
    )

    @field_validator("name", "namespace", "secret")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not _LABEL.fullmatch(name):
            raise ValueError("a name has lower-case letters, digits and hyphens, 52 at most")
        return name

    @field_validator("queues")
    @classmethod
    def _queues_are_names(cls, queues: tuple[str, ...]) -> tuple[str, ...]:
        for queue in queues:
            if not re.fullmatch(r"[a-z0-9]([a-z0-9_.-]{0,40}[a-z0-9])?", queue):
                raise ValueError(f"{queue!r} cannot be part of a Deployment's name")
        return queues

    @field_validator("image")
    @classmethod
    def _is_an_image(cls, image: str) -> str:
        if image and not _IMAGE.fullmatch(image):
            raise ValueError('it has to look like "registry.example/shop:1.4.2"')
        return image

    @field_validator("cpu_limit", "memory_request", "memory_limit")
    @classmethod
    def _is_a_quantity(cls, text: str) -> str:
        try:
            parse_quantity(text)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return text

    @field_validator("live_path")
    @classmethod
    def _is_a_path(cls, path: str) -> str:
        if path and not re.fullmatch(r"/[!-~]*", path):
            raise ValueError('it has to begin with "/" and hold no spaces')
        return path

    @field_validator("prometheus")
    @classmethod
    def _is_an_address(cls, address: str) -> str:
        if address and not re.fullmatch(r"https?://[A-Za-z0-9.:\[\]_-]+(/[!-~]*)?", address):
            raise ValueError("it has to be an address without user and password, as http://prometheus:9090")
        return address


def render(
    settings: KubernetesSettings,
    scaling: AutoscalingSettings,
    *,
    ready_path: str = "/health/ready",
    task_app: str = "",
) -> tuple[File, ...]:
    """The manifests, in one file.

    Args:
        ready_path: answers 200 while a pod should get requests.
        task_app: the Celery app, ``package.module:attribute``.

    Raises:
        SettingsError: a key that is needed is missing, or two contradict each other.
        DependencyError: PyYAML is not installed.
    """
    _require(settings, scaling, task_app)
    documents = [
        _app(settings, scaling, ready_path),
        _service(settings),
        _disruption_budget(settings),
        _hpa(settings, scaling) if settings.scaler == "hpa" else _scaled_object(settings, scaling),
        *(_worker(settings, queue, task_app) for queue in settings.queues),
    ]
    if settings.scaler == "keda":
        documents += [_scaled_workers(settings, queue, scaling) for queue in settings.queues]
    return (File(PurePosixPath("kubernetes.yaml"), _dump(documents)),)


def _require(settings: KubernetesSettings, scaling: AutoscalingSettings, task_app: str) -> None:
    for key in ("name", "image"):
        if not getattr(settings, key):
            raise SettingsError(f"kubernetes.{key} is not set: manifests cannot be rendered without it")
    if settings.queues and not task_app:
        raise SettingsError("kubernetes.queues is set but tasks.app is not: name the Celery app in [tasks]")
    if settings.scaler == "keda" and not settings.prometheus:
        raise SettingsError('kubernetes.scaler is "keda" but kubernetes.prometheus is not set')
    limit = parse_quantity(settings.cpu_limit)
    if scaling.cpu_request > limit:
        raise SettingsError(
            f"autoscaling.cpu_request is {scaling.cpu_request}m, above kubernetes.cpu_limit {limit}m"
        )
    if parse_quantity(settings.memory_request) > parse_quantity(settings.memory_limit):
        raise SettingsError("kubernetes.memory_request is above kubernetes.memory_limit")


# ------------------------------------------------------------------ documents


def _metadata(settings: KubernetesSettings, name: str, component: str) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": settings.name, "app.kubernetes.io/component": component}
    found: dict[str, Any] = {"name": name, "labels": labels}
    if settings.namespace:
        found["namespace"] = settings.namespace
    return found


def _selector(settings: KubernetesSettings, component: str) -> dict[str, str]:
    return {"app.kubernetes.io/name": settings.name, "app.kubernetes.io/component": component}


def _app(settings: KubernetesSettings, scaling: AutoscalingSettings, ready_path: str) -> dict[str, Any]:
    ready = {"httpGet": {"path": ready_path, "port": "http"}}
    live = {"httpGet": {"path": settings.live_path, "port": "http"}} if settings.live_path else None
    container: dict[str, Any] = {
        "name": "app",
        "image": settings.image,
        "ports": [{"name": "http", "containerPort": settings.port}],
        # As long as the app may take to start, three times: then it is started again.
        "startupProbe": {
            **ready,
            "periodSeconds": 2,
            "failureThreshold": max(math.ceil(3 * scaling.start_s / 2), 15),
        },
        "readinessProbe": {**ready, "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2},
        "livenessProbe": {
            **(live or {"tcpSocket": {"port": "http"}}),
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
        # Requests still come until every node knows that the pod ends.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PRE_STOP_S)]}}},
        "resources": _resources(settings, scaling.cpu_request),
    }
    if settings.command:
        container["command"] = list(settings.command)
    grace_s = math.ceil(_PRE_STOP_S + settings.longest_request_s) + 5
    return _deployment(settings, settings.name, "app", container, grace_s)


def _worker(settings: KubernetesSettings, queue: str, task_app: str) -> dict[str, Any]:
    probe = {"port": "health"}
    container = {
        "name": "worker",
        "image": settings.image,
        "command": ["tenfold", "tasks", "worker", task_app, queue, "--health", f"0.0.0.0:{_HEALTH_PORT}"],
        "ports": [{"name": "health", "containerPort": _HEALTH_PORT}],
        "livenessProbe": {"httpGet": {"path": "/live", **probe}, "periodSeconds": 15, "failureThreshold": 4},
        "readinessProbe": {"httpGet": {"path": "/ready", **probe}, "periodSeconds": 15},
        "resources": _resources(settings, 250),
    }
    name = _worker_name(settings, queue)
    return _deployment(settings, name, f"worker-{_slug(queue)}", container, 300)


def _worker_name(settings: KubernetesSettings, queue: str) -> str:
    return f"{settings.name[: 63 - len('-worker-') - len(queue)]}-worker-{_slug(queue)}"


def _slug(queue: str) -> str:
    return re.sub(r"[._]", "-", queue)


def _deployment(
    settings: KubernetesSettings, name: str, component: str, container: dict[str, Any], grace_s: int
) -> dict[str, Any]:
    labels = _selector(settings, component)
    if settings.secret:
        container["envFrom"] = [{"secretRef": {"name": settings.secret}}]
    container["securityContext"] = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    spread = [
        {
            "maxSkew": 1,
            "topologyKey": key,
            "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": {"matchLabels": labels},
        }
        for key in ("topology.kubernetes.io/zone", "kubernetes.io/hostname")
    ]
    pod = {
        "terminationGracePeriodSeconds": grace_s,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "topologySpreadConstraints": spread,
        "containers": [container],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _metadata(settings, name, component),
        # Without replicas: the scaler has the number.
        "spec": {
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def _resources(settings: KubernetesSettings, cpu_request: int) -> dict[str, Any]:
    return {
        "requests": {"cpu": f"{cpu_request}m", "memory": settings.memory_request},
        "limits": {"cpu": settings.cpu_limit, "memory": settings.memory_limit},
    }


def _service(settings: KubernetesSettings) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(settings, settings.name, "app"),
        "spec": {
            "selector": _selector(settings, "app"),
            "ports": [{"name": "http", "port": 80, "targetPort": "http"}],
        },
    }


def _disruption_budget(settings: KubernetesSettings) -> dict[str, Any]:
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _metadata(settings, settings.name, "app"),
        "spec": {"maxUnavailable": "10%", "selector": {"matchLabels": _selector(settings, "app")}},
    }


# ------------------------------------------------------------------ scalers


def _behavior(scaling: AutoscalingSettings) -> dict[str, Any]:
    behavior = scaling.scaler().hpa.behavior or Behavior()

    def rules(found: ScalingRules) -> dict[str, Any]:
        return {
            "stabilizationWindowSeconds": int(found.window_s),
            "policies": [
                {"type": kind, "value": value, "periodSeconds": int(period_s)}
                for kind, value, period_s in found.policies
            ],
        }

    return {"scaleUp": rules(behavior.up), "scaleDown": rules(behavior.down)}


def _hpa(settings: KubernetesSettings, scaling: AutoscalingSettings) -> dict[str, Any]:
    metrics: list[dict[str, Any]] = [
        {
            "type": "Resource",
            "resource": {"name": name, "target": {"type": "Utilization", "averageUtilization": percent}},
        }
        for name, percent in (("cpu", scaling.cpu_percent), ("memory", scaling.memory_percent))
        if percent
    ]
    if scaling.requests_per_second:
        target = {"type": "AverageValue", "averageValue": f"{int(scaling.requests_per_second * 1000)}m"}
        metrics.append(
            {"type": "Pods", "pods": {"metric": {"name": "requests_per_second"}, "target": target}}
        )
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": _metadata(settings, settings.name, "app"),
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": settings.name},
            "minReplicas": scaling.min_replicas,
            "maxReplicas": scaling.max_replicas,
            "metrics": metrics,
            "behavior": _behavior(scaling),
        },
    }


def _scaled_object(settings: KubernetesSettings, scaling: AutoscalingSettings) -> dict[str, Any]:
    triggers: list[dict[str, Any]] = [
        {"type": name, "metricType": "Utilization", "metadata": {"value": str(percent)}}
        for name, percent in (("cpu", scaling.cpu_percent), ("memory", scaling.memory_percent))
        if percent
    ]
    if scaling.requests_per_second:
        pods = f"{settings.name}-.*"
        query = f'sum(rate(http_server_request_duration_seconds_count{{pod=~"{pods}"}}[1m]))'
        triggers.append(_prometheus(settings, query, scaling.requests_per_second))
    return _scaled(
        settings,
        settings.name,
        "app",
        triggers,
        scaling.min_replicas,
        scaling.max_replicas,
        _behavior(scaling),
    )


def _scaled_workers(settings: KubernetesSettings, queue: str, scaling: AutoscalingSettings) -> dict[str, Any]:
    query = " + ".join(f'max(tenfold_tasks_{state}{{queue="{queue}"}})' for state in ("waiting", "running"))
    name, most = _worker_name(settings, queue), scaling.max_replicas
    return _scaled(
        settings, name, f"worker-{_slug(queue)}", [_prometheus(settings, query, 10)], 1, most, None
    )


def _prometheus(settings: KubernetesSettings, query: str, threshold: float) -> dict[str, Any]:
    metadata = {"serverAddress": settings.prometheus, "query": query, "threshold": f"{threshold:g}"}
    return {"type": "prometheus", "metadata": metadata}


def _scaled(
    settings: KubernetesSettings,
    name: str,
    component: str,
    triggers: list[dict[str, Any]],
    least: int,
    most: int,
    behavior: dict[str, Any] | None,
) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "scaleTargetRef": {"name": name},
        "minReplicaCount": least,
        "maxReplicaCount": most,
        "pollingInterval": 15,
        "triggers": triggers,
    }
    if behavior is not None:
        spec["advanced"] = {"horizontalPodAutoscalerConfig": {"behavior": behavior}}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": _metadata(settings, name, component),
        "spec": spec,
    }


def _dump(documents: list[dict[str, Any]]) -> str:
    try:
        import yaml
    except ImportError:
        raise DependencyError("PyYAML is not installed: pip install 'tenfold[autoscaling]'") from None

    class Plain(yaml.SafeDumper):  # type: ignore[misc]
        def ignore_aliases(self, data: object) -> bool:
            return True

    return str(yaml.dump_all(documents, Dumper=Plain, sort_keys=False, explicit_start=True, width=110))
