"""Scalers out of Kubernetes' YAML, and what cannot be read of it."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.autoscaling.hpa import DOWN, UP, Behavior, PolicyRule
from tenfold.autoscaling.manifests import Manifests, parse_quantity, read_manifests
from tenfold.errors import SettingsError

HPA = """
---
# Source: web/templates/hpa.yaml
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web, namespace: shop}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 2
  maxReplicas: 20
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 65}}}
  - {type: Resource, resource: {name: memory, target: {type: AverageValue, averageValue: 400Mi}}}
  - type: ContainerResource
    containerResource: {name: cpu, container: app, target: {type: Utilization, averageUtilization: 80}}
  - type: Pods
    pods: {metric: {name: http_requests}, target: {type: AverageValue, averageValue: "120"}}
  - type: Object
    object:
      metric: {name: hits}
      describedObject: {kind: Ingress, name: main}
      target: {type: Value, value: 2k}
  - type: External
    external: {metric: {name: queue}, target: {type: AverageValue, averageValue: 30}}
  behavior:
    scaleUp:
      stabilizationWindowSeconds: 30
      selectPolicy: Min
      tolerance: 50m
      policies: [{type: Percent, value: 50, periodSeconds: 60}, {type: Pods, value: 4, periodSeconds: 30}]
---
null
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    spec:
      initContainers:
      - {name: migrate}
      - {name: mesh, restartPolicy: Always, resources: {requests: {cpu: 20m}}}
      containers:
      - {name: app, resources: {requests: {cpu: 0.5, memory: 512Mi}, limits: {cpu: 1}}}
      - {name: log, resources: {limits: {cpu: 100m}}}
---
kind: Secret
metadata: {name: unrelated}
stringData: {a: b}
"""


def read(text: str) -> Manifests:
    found = read_manifests(text)
    assert found.problems == ()
    return found


def test_hpa_with_every_kind_of_metric() -> None:
    found = read(HPA)
    (scaler,) = found.scalers
    assert (scaler.hpa.min_replicas, scaler.hpa.max_replicas, scaler.namespace) == (2, 20, "shop")
    assert [(one.source, one.name, one.kind, one.target) for one in scaler.metrics] == [
        ("Resource", "cpu", "Utilization", 65),
        ("Resource", "memory", "AverageValue", 400 * 1024**2 * 1000),
        ("ContainerResource", "cpu", "Utilization", 80),
        ("Pods", "http_requests", "AverageValue", 120_000),
        ("Object", "hits", "Value", 2_000_000),
        ("External", "queue", "AverageValue", 30_000),
    ]
    behavior = scaler.hpa.behavior
    assert behavior is not None
    assert behavior.up.policies == (PolicyRule("Percent", 50, 60.0), PolicyRule("Pods", 4, 30.0))
    assert (behavior.up.select, behavior.up.window_s, behavior.down) == ("Min", 30.0, DOWN)
    assert (scaler.tolerance.up, scaler.tolerance.down) == (0.05, 0.1)


def test_target_requests_what_all_its_lasting_containers_do() -> None:
    found = read(HPA)
    workload = found.workload_of(found.scalers[0])
    assert workload is not None
    assert workload.replicas is None
    assert workload.request("cpu") == 500 + 100 + 20  # a limit stands for a request
    assert workload.request("cpu", "app") == 500
    assert workload.request("memory") is None


def test_what_is_left_out_is_as_kubernetes_has_it() -> None:
    text = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec: {scaleTargetRef: {kind: Deployment, name: web}, maxReplicas: 5, behavior: {scaleDown: {}, scaleUp: {}}}
"""
    (scaler,) = read(text).scalers
    assert [(one.name, one.target) for one in scaler.metrics] == [("cpu", 80)]
    assert scaler.hpa.behavior == Behavior(UP, DOWN)
    assert scaler.hpa.min_replicas == 1
    (old,) = read(
        text.replace("/v2", "/v1").replace(", behavior", ", targetCPUUtilizationPercentage: 60, x")
    ).scalers
    assert [(one.name, one.target) for one in old.metrics] == [("cpu", 60)]


def test_scaled_object() -> None:
    text = """
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: web}
spec:
  scaleTargetRef: {name: web}
  maxReplicaCount: 30
  cooldownPeriod: 60
  advanced: {horizontalPodAutoscalerConfig: {behavior: {scaleDown: {selectPolicy: Disabled}}}}
  triggers:
  - {type: cpu, metricType: Utilization, metadata: {value: "70"}}
  - {type: prometheus, metadata: {query: "sum(rate(http_requests_total[1m]))", threshold: "100"}}
  - {type: rabbitmq, metricType: Value, metadata: {queueName: q, value: "20"}}
"""
    (scaler,) = read(text).scalers
    assert (scaler.target_kind, scaler.from_zero, scaler.cooldown_s) == ("Deployment", True, 60.0)
    assert (scaler.hpa.min_replicas, scaler.hpa.max_replicas) == (1, 30)
    assert [(one.source, one.kind, one.target) for one in scaler.metrics] == [
        ("Resource", "Utilization", 70),
        ("External", "AverageValue", 100_000),
        ("External", "Value", 20_000),
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("minReplicas: 2", "minReplicas: 30"), "spec.minReplicas 30 is above spec.maxReplicas 20"),
        (("minReplicas: 2", 'minReplicas: "2"'), "spec.minReplicas is 2: write a whole number"),
        (("maxReplicas: 20", "maxReplicas: true"), "spec.maxReplicas is True"),
        (("  maxReplicas: 20\n", ""), "spec.maxReplicas is None"),
        (("type: Pods\n", "type: Pod\n"), "spec.metrics[3].type 'Pod' is none of"),
        (("averageValue: 400Mi", "averageValue: 400MB"), "'400MB' is no quantity"),
        (("averageUtilization: 65", "averageUtilization: 0"), "averageUtilization is 0"),
        (("target: {type: Value, value: 2k}", "target: {}"), "spec.metrics[4] has no target"),
        (("selectPolicy: Min", "selectPolicy: Fast"), "selectPolicy 'Fast'"),
        (("periodSeconds: 30", "periodSeconds: 3000"), "periodSeconds 3000 is above 1800"),
        (("autoscaling/v2", "autoscaling/v2beta1"), "gone since Kubernetes 1.25"),
        (("scaleTargetRef: {", "target: {"), "spec.scaleTargetRef is missing"),
        (("cpu: 0.5", "cpu: lots"), "'lots' is no quantity"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_its_key(change: tuple[str, str], words: str) -> None:
    assert change[0] in HPA
    ((place, what),) = read_manifests(HPA.replace(*change, 1)).problems
    assert words in what
    assert place in ("HorizontalPodAutoscaler web", "Deployment web")


@pytest.mark.parametrize(
    "text", ["a: [", "a: &x [*x]\n---\n- {", "\x00", "!!python/object/apply:os.system [ls]"]
)
def test_no_yaml_is_one_sentence(text: str) -> None:
    with pytest.raises(SettingsError, match="this is no YAML"):
        read_manifests(text)


def test_template_that_is_not_rendered_is_named() -> None:
    with pytest.raises(SettingsError, match="render it first"):
        read_manifests("replicas: {{ .Values.replicas }}\n{{- if .x }}\na: 1\n{{- end }}")


def test_trigger_whose_threshold_has_another_name_is_read() -> None:
    text = """
kind: ScaledObject
metadata: {name: web}
spec:
  scaleTargetRef: {name: web}
  triggers:
  - {type: kafka, metadata: {topic: t, activationLagThreshold: "1", lagThreshold: "50"}}
  - {type: cron, metadata: {start: 0 6 * * *, end: 0 20 * * *, desiredReplicas: "10"}}
"""
    (scaler,) = read(text).scalers
    assert [(one.name, one.target) for one in scaler.metrics] == [("kafka", 50_000), ("cron", 0)]


def test_lists_and_other_documents() -> None:
    item = HPA.split("---")[1].replace("\n", "\n    ")
    assert len(read(f"kind: List\nitems:\n  - {item.strip()}").scalers) == 1
    assert read("- 1\n- 2\n---\ntext\n---\n").scalers == ()


@pytest.mark.parametrize(
    ("text", "milli"),
    [
        ("250m", 250), (1, 1000), ("1.5", 1500), (".5", 500), ("2k", 2_000_000), ("1Ki", 1_024_000),
        ("1e3", 1_000_000), ("1E", 10**21), ("100n", 1), ("1u", 1), (0, 0), ("1E2", 100_000),
    ],
)  # fmt: skip
def test_quantity_in_milli(text: object, milli: int) -> None:
    assert parse_quantity(text) == milli


@pytest.mark.parametrize("text", ["", "1 Gi", "1KB", "--1", "1e999", "½", None, True, [], "1" * 400 + "x"])
def test_no_quantity(text: object) -> None:
    with pytest.raises(SettingsError, match="is no quantity"):
        parse_quantity(text)


@given(text=st.text(max_size=300))
def test_no_text_is_an_error_of_another_kind(text: str) -> None:
    with suppress(SettingsError):
        read_manifests(f"kind: HorizontalPodAutoscaler\nspec:\n  {text}")


@given(
    spec=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 500) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["scaleTargetRef", "minReplicas", "maxReplicas", "metrics", "behavior", "scaleUp", "policies",
                 "type", "resource", "target", "triggers", "metadata", "template", "spec", "containers"]
            ),
            inner,
            max_size=5,
        ),
        max_leaves=12,
    ),
    kind=st.sampled_from(["HorizontalPodAutoscaler", "ScaledObject", "Deployment", "VerticalPodAutoscaler"]),
)  # fmt: skip
def test_no_document_is_an_error(spec: object, kind: str) -> None:
    import yaml

    read_manifests(
        yaml.safe_dump({"kind": kind, "apiVersion": "autoscaling/v2", "metadata": spec, "spec": spec})
    )
