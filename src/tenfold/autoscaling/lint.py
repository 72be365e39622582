"""What is wrong with scalers before they run: contradictions, and what Kubernetes refuses. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from tenfold.autoscaling.manifests import Manifests, Metric, Scaler, Workload
from tenfold.autoscaling.policies import seconds_to_reach

__all__ = ["Problem", "lint"]

_REMOVED = {"autoscaling/v2beta2": "1.26", "keda.k8s.io/v1alpha1": "KEDA 2"}
_SLOW_S = 600.0


class Problem(NamedTuple):
    """One thing that is wrong: where, what, and what to do."""

    place: str
    what: str
    remedy: str


def lint(
    manifests: Manifests, *, kubernetes: tuple[int, int] = (1, 37), memory_used: int = 0
) -> list[Problem]:
    """Look for what will not work.

    Args:
        kubernetes: the version of the cluster.
        memory_used: per cent of its memory request that an idle instance was measured to use; 0: unknown.
    """
    found = [Problem(place, what, "") for place, what in manifests.problems]
    targets = Counter((one.namespace, one.target_kind, one.target_name) for one in manifests.scalers)
    for scaler in manifests.scalers:
        if targets[scaler.namespace, scaler.target_kind, scaler.target_name] > 1:
            found.append(
                Problem(
                    scaler.place,
                    f"another scaler scales {scaler.target_kind} {scaler.target_name}, too: they collide",
                    "keep one; a ScaledObject makes its own HorizontalPodAutoscaler",
                )
            )
        found += _of_scaler(scaler, kubernetes)
        workload = manifests.workload_of(scaler)
        if workload is not None:
            found += _of_target(scaler, workload)
        found += _of_memory(scaler, memory_used)
        for kind, name, resources in manifests.vertical:
            shared = [one.name for one in scaler.metrics if one.name in resources and _is_resource(one)]
            if (kind, name) == (scaler.target_kind, scaler.target_name) and shared:
                found.append(
                    Problem(
                        scaler.place,
                        f"a VerticalPodAutoscaler changes the {shared[0]} requests that this one divides by",
                        f"leave {shared[0]} out of controlledResources, or scale by another metric",
                    )
                )
    return found


def _of_scaler(scaler: Scaler, kubernetes: tuple[int, int]) -> Iterator[Problem]:
    place = scaler.place
    if scaler.api_version in _REMOVED:
        yield Problem(
            place,
            f"{scaler.api_version} is gone since {_REMOVED[scaler.api_version]}",
            "write autoscaling/v2" if "autoscaling" in scaler.api_version else "write keda.sh/v1alpha1",
        )
    if scaler.sets_tolerance and kubernetes < (1, 35):
        yield Problem(
            place,
            f"Kubernetes {kubernetes[0]}.{kubernetes[1]} ignores behavior.*.tolerance",
            "leave it out, or enable HPAConfigurableTolerance (1.33, 1.34)",
        )
    outside = [one for one in scaler.metrics if one.source in ("Object", "External")]
    if (scaler.hpa.min_replicas == 0 or scaler.from_zero) and not outside:
        yield Problem(
            place,
            "nothing is left to be measured at zero replicas: it never comes back",
            "write a minimum of 1, or a metric from outside of the pods (Object, External)",
        )
    elif scaler.hpa.min_replicas == 0 and len(outside) < len(scaler.metrics):
        inside = next(one for one in scaler.metrics if one not in outside)
        yield Problem(
            place,
            f"{inside.name} vanishes with the pods, and a metric that is missing keeps the others from "
            "scaling down",
            "write a minimum of 1, or leave it out",
        )
    elif scaler.hpa.min_replicas == 0 and kubernetes < (1, 37):
        yield Problem(
            place,
            f"Kubernetes {kubernetes[0]}.{kubernetes[1]} refuses minReplicas 0",
            "write 1, enable HPAScaleToZero, or use a ScaledObject",
        )
    behavior = scaler.hpa.behavior
    if (
        behavior is not None
        and behavior.up.select == "Disabled"
        and scaler.hpa.min_replicas < scaler.hpa.max_replicas
    ):
        yield Problem(place, "scaleUp is Disabled: it only ever scales down", "write selectPolicy: Max")
    elif scaler.hpa.max_replicas > scaler.hpa.min_replicas:
        seconds = seconds_to_reach(scaler, scaler.hpa.max_replicas)
        if seconds > _SLOW_S:
            took = "never reaches" if math.isinf(seconds) else f"takes {seconds:.0f} s to"
            yield Problem(
                place,
                f"under any load it {took} {scaler.hpa.max_replicas} replicas",
                "let scaleUp add more in a period, or start from more",
            )


def _of_target(scaler: Scaler, workload: Workload) -> Iterator[Problem]:
    if workload.replicas is not None:
        yield Problem(
            f"{workload.kind} {workload.name}",
            f"replicas: {workload.replicas} undoes what {scaler.place} has scaled, each time it is applied",
            "leave replicas out",
        )
    for metric in scaler.metrics:
        if not (_is_resource(metric) and metric.kind == "Utilization"):
            continue
        without = [
            one.name
            for one in workload.containers
            if metric.name not in one.requests and metric.container in ("", one.name)
        ]
        if without:
            yield Problem(
                f"{workload.kind} {workload.name}",
                f"container {without[0]} requests no {metric.name}: {scaler.place} has no utilization",
                f"write resources.requests.{metric.name} for it"
                + ("" if metric.container else ", or scale by a ContainerResource"),
            )
        limits = [
            one.limits.get(metric.name) for one in workload.containers if metric.container in ("", one.name)
        ]
        request = workload.request(metric.name, metric.container)
        if metric.name == "cpu" and request and None not in limits:
            most = sum(limit or 0 for limit in limits) * 100 // request
            if scaler.tolerance.contains(most / metric.target) or most < metric.target:
                yield Problem(
                    scaler.place,
                    f"the CPU limit allows {most} % of the request, which is within the tolerance of the "
                    f"target of {metric.target} %: it never scales up",
                    "lower the target, or raise the limit",
                )
        if metric.container and metric.container not in {one.name for one in workload.containers}:
            yield Problem(
                scaler.place,
                f"{workload.kind} {workload.name} has no container {metric.container}",
                "correct its name",
            )


def _of_memory(scaler: Scaler, used: int) -> Iterator[Problem]:
    for metric in scaler.metrics:
        if metric.name == "memory" and metric.kind == "Utilization" and used and metric.target <= used:
            yield Problem(
                scaler.place,
                f"an idle instance uses {used} % of its memory request, the target is {metric.target} %: "
                "it goes up to the maximum and stays there",
                "request more memory, or leave memory out",
            )


def _is_resource(metric: Metric) -> bool:
    return metric.source in ("Resource", "ContainerResource")
