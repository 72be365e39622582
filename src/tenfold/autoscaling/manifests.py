"""Scalers and their targets out of any stream of Kubernetes' YAML, such as ``helm template`` prints it.

Read are HorizontalPodAutoscalers (v1, v2, v2beta2), KEDA's ScaledObjects, VerticalPodAutoscalers and what
they scale; everything else is passed over. What cannot be read is a problem with its place, not an error.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal, TypeVar

from tenfold.autoscaling.hpa import DOWN, UP, Behavior, Hpa, PolicyRule, ScalingRules
from tenfold.autoscaling.proposals import Tolerance
from tenfold.errors import DependencyError, SettingsError

__all__ = ["Container", "Manifests", "Metric", "Scaler", "Workload", "parse_quantity", "read_manifests"]

_WORKLOADS = ("Deployment", "StatefulSet", "ReplicaSet")
_MOST_TEXT = 16 * 1024 * 1024
_SUFFIXES = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,2})|([numkMGTPE]|[KMGTPE]i)?)")

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that runs as long as its pod; ``requests`` and ``limits`` in milli by resource."""

    name: str
    requests: Mapping[str, int]
    limits: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What a scaler scales; ``replicas`` is None where the manifest leaves the number open."""

    kind: str
    name: str
    namespace: str
    replicas: int | None
    containers: tuple[Container, ...]

    def request(self, resource: str, container: str = "") -> int | None:
        """What a pod requests of a resource, milli; None where a container requests none."""
        found = [one.requests.get(resource) for one in self.containers if container in ("", one.name)]
        requests = [request for request in found if request is not None]
        return sum(requests) if requests and len(requests) == len(found) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What a scaler looks at.

    Attributes:
        source: ``Resource``, ``ContainerResource``, ``Pods``, ``Object`` or ``External``.
        target: per cent of the request for ``Utilization``, else milli; 0 for a trigger whose threshold has
            no name that is known.
    """

    source: str
    name: str
    kind: Literal["Utilization", "AverageValue", "Value"]
    target: int
    container: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaler:
    """A HorizontalPodAutoscaler, or the one that KEDA makes of a ScaledObject.

    Attributes:
        from_zero: KEDA starts the first replica, and ends the last after ``cooldown_s``.
    """

    kind: str
    api_version: str
    name: str
    namespace: str
    target_kind: str
    target_name: str
    hpa: Hpa
    metrics: tuple[Metric, ...]
    tolerance: Tolerance = field(default_factory=Tolerance)
    sets_tolerance: bool = False
    from_zero: bool = False
    cooldown_s: float = 300.0

    @property
    def place(self) -> str:
        """Kind and name, for messages."""
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifests:
    """What a stream has of scaling.

    Attributes:
        vertical: of VerticalPodAutoscalers: kind, name and the resources they change.
        problems: of documents that cannot be read: kind and name, and a sentence.
    """

    scalers: tuple[Scaler, ...]
    workloads: tuple[Workload, ...]
    vertical: tuple[tuple[str, str, tuple[str, ...]], ...]
    problems: tuple[tuple[str, str], ...]

    def workload_of(self, scaler: Scaler) -> Workload | None:
        """The scaler's target, if the stream has it."""
        for workload in self.workloads:
            if (workload.kind, workload.name) == (scaler.target_kind, scaler.target_name) and (
                workload.namespace == scaler.namespace or not (workload.namespace and scaler.namespace)
            ):
                return workload
        return None


def parse_quantity(text: object) -> int:
    """A quantity of Kubernetes in milli, rounded up: ``250m`` is 250, ``1.5`` is 1500, ``1Gi`` 1024³ × 1000.

    Raises:
        SettingsError: it is none.
    """
    match = None if isinstance(text, bool) else _QUANTITY.fullmatch(str(text))
    if match is None:
        raise SettingsError(f'{str(text)[:40]!r} is no quantity: write one like "500m", "1.5" or "512Mi"')
    number, exponent, suffix = match.groups()
    factor = Fraction(10) ** int(exponent) if exponent else _SUFFIXES[suffix or ""]
    return math.ceil(Fraction(number) * factor * 1000)


def read_manifests(text: str) -> Manifests:
    """Read a stream of YAML documents.

    Raises:
        SettingsError: it is no YAML, or longer than 16 MB.
        DependencyError: PyYAML is not installed.
    """
    scalers: list[Scaler] = []
    workloads: list[Workload] = []
    vertical: list[tuple[str, str, tuple[str, ...]]] = []
    problems: list[tuple[str, str]] = []
    for document in _documents(text):
        kind, name = str(document.get("kind", "")), _name(document)
        try:
            if kind == "HorizontalPodAutoscaler":
                scalers.append(_read_hpa(document, name))
            elif kind == "ScaledObject":
                scalers.append(_read_scaled_object(document, name))
            elif kind in _WORKLOADS:
                workloads.append(_read_workload(document, name))
            elif kind == "VerticalPodAutoscaler":
                vertical.append(_read_vertical(document))
        except SettingsError as error:
            problems.append((f"{kind} {name}", str(error)))
    return Manifests(
        scalers=tuple(scalers), workloads=tuple(workloads), vertical=tuple(vertical), problems=tuple(problems)
    )


def _documents(text: str) -> Iterator[Mapping[str, Any]]:
    try:
        import yaml
    except ImportError:
        raise DependencyError("PyYAML is not installed: pip install 'tenfold[autoscaling]'") from None
    if len(text) > _MOST_TEXT:
        raise SettingsError("the manifests are longer than 16 MB: leave out what does not scale")
    try:
        found = list(yaml.load_all(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if "{{" in text:
            raise SettingsError("this is a template: render it first, as helm template does") from None
        first = " ".join(str(error).split())[:160]
        raise SettingsError(f"this is no YAML: {first}") from None
    for document in found:
        if not isinstance(document, dict):
            continue
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
            yield from (item for item in items if isinstance(item, dict))
        else:
            yield document


# ------------------------------------------------------------------ documents


def _read_hpa(document: Mapping[str, Any], name: str) -> Scaler:
    spec, version = _table(document, "spec"), str(document.get("apiVersion", ""))
    if version == "autoscaling/v2beta1":
        raise SettingsError("autoscaling/v2beta1 is gone since Kubernetes 1.25: write autoscaling/v2")
    target = _table(spec, "scaleTargetRef", "spec")
    least = _whole(spec, "minReplicas", 1, least=0)
    most = _whole(spec, "maxReplicas", None, least=1)
    if least > most:
        raise SettingsError(f"spec.minReplicas {least} is above spec.maxReplicas {most}")
    if version == "autoscaling/v1":
        percent = _whole(spec, "targetCPUUtilizationPercentage", 80, least=1)
        metrics = [Metric(source="Resource", name="cpu", kind="Utilization", target=percent)]
    else:
        metrics = [
            _read_metric(_as_table(one, f"metrics[{index}]"), index)
            for index, one in enumerate(_list(spec, "metrics"))
        ] or [Metric(source="Resource", name="cpu", kind="Utilization", target=80)]
    behavior, tolerance, sets_tolerance = _read_behavior(spec.get("behavior"))
    return Scaler(
        kind="HorizontalPodAutoscaler",
        api_version=version,
        name=name,
        namespace=_namespace(document),
        target_kind=str(target.get("kind", "")),
        target_name=str(target.get("name", "")),
        hpa=Hpa(min_replicas=least, max_replicas=most, behavior=behavior),
        metrics=tuple(metrics),
        tolerance=tolerance,
        sets_tolerance=sets_tolerance,
    )


_SOURCES = {
    "Resource": "resource",
    "ContainerResource": "containerResource",
    "Pods": "pods",
    "Object": "object",
    "External": "external",
}


def _read_metric(table: Mapping[str, Any], index: int) -> Metric:
    source, place = str(table.get("type", "")), f"spec.metrics[{index}]"
    if source not in _SOURCES:
        raise SettingsError(f"{place}.type {source[:40]!r} is none of {', '.join(_SOURCES)}")
    body = _table(table, _SOURCES[source], place)
    target = _table(body, "target", place)
    named = body if "esource" in source else _table(body, "metric", place)
    keys = {"Utilization": "averageUtilization", "AverageValue": "averageValue", "Value": "value"}
    kind = next((kind for kind, key in keys.items() if target.get(key) is not None), None)
    if kind is None:
        raise SettingsError(f"{place} has no target: write averageUtilization, averageValue or value")
    value = target[keys[kind]]
    if kind == "Utilization":
        number = _whole(target, "averageUtilization", None, least=1, place=place)
    elif (number := _placed(place, parse_quantity, value)) < 1:
        raise SettingsError(f"{place}: {keys[kind]} {value} is not above 0")
    return Metric(
        source=source,
        name=str(named.get("name", "")),
        kind=kind,  # type: ignore[arg-type]  # one of the keys above
        target=number,
        container=str(body.get("container", "")),
    )


def _read_behavior(found: object) -> tuple[Behavior | None, Tolerance, bool]:
    """The behavior with what the API fills in, the tolerances, and whether they are set."""
    if not isinstance(found, dict) or not found:
        return None, Tolerance(), False
    rules, tolerances = {}, {}
    for key, usual in (("scaleUp", UP), ("scaleDown", DOWN)):
        given = _as_table(found.get(key) or {}, f"spec.behavior.{key}")
        place = f"spec.behavior.{key}"
        policies = tuple(_read_policy(one, f"{place}.policies") for one in _list(given, "policies"))
        select = str(given.get("selectPolicy") or "Max")
        if select not in ("Max", "Min", "Disabled"):
            raise SettingsError(f"{place}.selectPolicy {select[:20]!r} is none of Max, Min, Disabled")
        window = _whole(given, "stabilizationWindowSeconds", int(usual.window_s), least=0, place=place)
        if window > 3600:
            raise SettingsError(f"{place}.stabilizationWindowSeconds {window} is above 3600")
        rules[key] = ScalingRules(policies or usual.policies, float(window), select)  # type: ignore[arg-type]
        if given.get("tolerance") is not None:
            tolerances[key] = _placed(place, parse_quantity, given["tolerance"]) / 1000
    tolerance = Tolerance(up=tolerances.get("scaleUp", 0.1), down=tolerances.get("scaleDown", 0.1))
    return Behavior(rules["scaleUp"], rules["scaleDown"]), tolerance, bool(tolerances)


def _read_policy(found: object, place: str) -> PolicyRule:
    table = _as_table(found, place)
    kind = str(table.get("type", ""))
    if kind not in ("Pods", "Percent"):
        raise SettingsError(f"{place}: type {kind[:20]!r} is none of Pods, Percent")
    period = _whole(table, "periodSeconds", None, least=1, place=place)
    if period > 1800:
        raise SettingsError(f"{place}: periodSeconds {period} is above 1800")
    value = _whole(table, "value", None, least=1, place=place)
    return PolicyRule(kind, value, float(period))  # type: ignore[arg-type]


def _read_scaled_object(document: Mapping[str, Any], name: str) -> Scaler:
    spec = _table(document, "spec")
    target = _table(spec, "scaleTargetRef", "spec")
    least = _whole(spec, "minReplicaCount", 0, least=0)
    most = _whole(spec, "maxReplicaCount", 100, least=1)
    if least > most:
        raise SettingsError(f"spec.minReplicaCount {least} is above spec.maxReplicaCount {most}")
    advanced = spec.get("advanced") if isinstance(spec.get("advanced"), dict) else {}
    configured = (advanced or {}).get("horizontalPodAutoscalerConfig") or {}
    behavior, tolerance, sets_tolerance = _read_behavior(
        configured.get("behavior") if isinstance(configured, dict) else None
    )
    triggers = [
        _read_trigger(_as_table(one, f"triggers[{index}]"), f"spec.triggers[{index}]")
        for index, one in enumerate(_list(spec, "triggers"))
    ]
    if not triggers:
        raise SettingsError("spec.triggers is empty: write one")
    return Scaler(
        kind="ScaledObject",
        api_version=str(document.get("apiVersion", "")),
        name=name,
        namespace=_namespace(document),
        target_kind=str(target.get("kind") or "Deployment"),
        target_name=str(target.get("name", "")),
        hpa=Hpa(min_replicas=max(least, 1), max_replicas=most, behavior=behavior),
        metrics=tuple(triggers),
        tolerance=tolerance,
        sets_tolerance=sets_tolerance,
        from_zero=least == 0,
        cooldown_s=float(_whole(spec, "cooldownPeriod", 300, least=0)),
    )


_THRESHOLD = re.compile(r"(?!activation)(?:.*Threshold|threshold|value|target\w*|\w*Length|\w*Count)")


def _read_trigger(table: Mapping[str, Any], place: str) -> Metric:
    kind, metadata = str(table.get("type", "")), _table(table, "metadata", place)
    given = str(table.get("metricType") or metadata.get("type") or "")
    if kind in ("cpu", "memory"):
        value = metadata.get("value")
        container = str(metadata.get("containerName", ""))
        source = "ContainerResource" if container else "Resource"
        if given == "AverageValue":
            number = _placed(place, parse_quantity, value)
            return Metric(source=source, name=kind, kind="AverageValue", target=number, container=container)
        if not str(value).isdecimal() or int(str(value)) < 1:
            raise SettingsError(f"{place}.metadata.value {str(value)[:20]!r} is no percentage")
        percent = int(str(value))
        return Metric(source=source, name=kind, kind="Utilization", target=percent, container=container)
    number = next((_amount(metadata[key]) for key in metadata if _THRESHOLD.fullmatch(str(key))), 0)
    name = str(table.get("name") or metadata.get("metricName") or metadata.get("query") or kind)
    return Metric(
        source="External", name=name, kind="Value" if given == "Value" else "AverageValue", target=number
    )


def _amount(found: object) -> int:
    try:
        return max(parse_quantity(found), 0)
    except SettingsError:
        return 0


def _read_workload(document: Mapping[str, Any], name: str) -> Workload:
    spec = _table(document, "spec")
    pod = _table(_table(spec, "template"), "spec")
    lasting = [
        one
        for one in _list(pod, "initContainers")
        if isinstance(one, dict) and one.get("restartPolicy") == "Always"
    ]
    containers = []
    for index, found in enumerate([*_list(pod, "containers"), *lasting]):
        one = _as_table(found, f"containers[{index}]")
        resources, place = one.get("resources"), f"containers[{index}].resources"
        given = resources if isinstance(resources, dict) else {}
        limits = _read_amounts(given.get("limits"), f"{place}.limits")
        # Without a request Kubernetes takes the limit.
        requests = limits | _read_amounts(given.get("requests"), f"{place}.requests")
        containers.append(Container(name=str(one.get("name", "")), requests=requests, limits=limits))
    replicas = None if spec.get("replicas") is None else _whole(spec, "replicas", None, least=0)
    return Workload(
        kind=str(document["kind"]),
        name=name,
        namespace=_namespace(document),
        replicas=replicas,
        containers=tuple(containers),
    )


def _read_amounts(found: object, place: str) -> dict[str, int]:
    if not isinstance(found, dict):
        return {}
    return {
        resource: _placed(place, parse_quantity, found[resource])
        for resource in ("cpu", "memory")
        if found.get(resource) is not None
    }


def _read_vertical(document: Mapping[str, Any]) -> tuple[str, str, tuple[str, ...]]:
    spec = _table(document, "spec")
    target = _table(spec, "targetRef")
    update = spec.get("updatePolicy")
    if isinstance(update, dict) and update.get("updateMode") == "Off":
        return str(target.get("kind", "")), str(target.get("name", "")), ()
    policy = spec.get("resourcePolicy")
    policies = policy.get("containerPolicies") if isinstance(policy, dict) else None
    given = [one.get("controlledResources") for one in policies or [] if isinstance(one, dict)]
    resources = {str(name) for names in given for name in (names or ("cpu", "memory"))}
    return (
        str(target.get("kind", "")),
        str(target.get("name", "")),
        tuple(sorted(resources)) or ("cpu", "memory"),
    )


# ------------------------------------------------------------------ values


def _name(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("name", ""))[:253] if isinstance(metadata, dict) else ""


def _namespace(document: Mapping[str, Any]) -> str:
    metadata = document.get("metadata")
    return str(metadata.get("namespace") or "") if isinstance(metadata, dict) else ""


def _as_table(found: object, place: str) -> Mapping[str, Any]:
    if not isinstance(found, dict):
        raise SettingsError(f"{place} is {'missing' if found is None else 'no table of keys'}")
    return found


def _table(table: Mapping[str, Any], key: str, place: str = "") -> Mapping[str, Any]:
    return _as_table(table.get(key), f"{place}.{key}".lstrip("."))


def _list(table: Mapping[str, Any], key: str) -> Sequence[Any]:
    found = table.get(key)
    if found is None:
        return ()
    if not isinstance(found, list):
        raise SettingsError(f"{key} is no list")
    return found


def _whole(table: Mapping[str, Any], key: str, usual: int | None, *, least: int, place: str = "spec") -> int:
    found = table.get(key)
    if found is None and usual is not None:
        return usual
    if isinstance(found, bool) or not isinstance(found, int) or found < least:
        raise SettingsError(f"{place}.{key} is {str(found)[:20]}: write a whole number from {least}")
    return found


def _placed(place: str, read: Callable[[object], Found], value: object) -> Found:
    try:
        return read(value)
    except SettingsError as error:
        raise SettingsError(f"{place}: {error}") from None
