"""What is wrong with a scaler: each problem, and the scaler that has none."""

from __future__ import annotations

import pytest

from tenfold.autoscaling.lint import lint
from tenfold.autoscaling.manifests import read_manifests

GOOD = """
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {name: web}
spec:
  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}
  minReplicas: 3
  maxReplicas: 100
  metrics:
  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}
  - {type: Resource, resource: {name: memory, target: {type: Utilization, averageUtilization: 80}}}
  behavior: {scaleUp: {policies: [{type: Percent, value: 100, periodSeconds: 15}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - {name: app, resources: {requests: {cpu: 500m, memory: 512Mi}}}
      - {name: mesh, resources: {requests: {cpu: 100m, memory: 64Mi}}}
"""
QUEUE = "  - {type: External, external: {metric: {name: q}, target: {value: 5}}}\n"
SECOND = """
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: web-too}
spec: {scaleTargetRef: {name: web}, minReplicaCount: 1, triggers: [{type: cpu, metadata: {value: "50"}}]}
"""
VERTICAL = """
---
kind: VerticalPodAutoscaler
metadata: {name: web}
spec: {targetRef: {kind: Deployment, name: web}}
"""


def problems(text: str, kubernetes: tuple[int, int] = (1, 37), memory_used: int = 50) -> list[str]:
    found = lint(read_manifests(text), kubernetes=kubernetes, memory_used=memory_used)
    return [f"{one.place}: {one.what}" for one in found]


def test_nothing_is_wrong_with_a_good_scaler() -> None:
    assert problems(GOOD) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD.replace("autoscaling/v2", "autoscaling/v2beta2"), "autoscaling/v2beta2 is gone since 1.26"),
        (GOOD.replace("autoscaling/v2", "autoscaling/v2beta1"), "autoscaling/v2beta1 is gone"),
        (GOOD.replace("  template:", "  replicas: 3\n  template:", 1), "Deployment web: replicas: 3 undoes"),
        (GOOD.replace("cpu: 100m, ", ""), "container mesh requests no cpu"),
        (GOOD.replace(", memory: 64Mi", ""), "container mesh requests no memory"),
        (GOOD.replace("averageUtilization: 80", "averageUtilization: 50"), "an idle instance uses 50 %"),
        (GOOD + VERTICAL, "VerticalPodAutoscaler changes the cpu requests"),
        (GOOD + SECOND, "HorizontalPodAutoscaler web: another scaler scales Deployment web"),
        (GOOD + SECOND, "ScaledObject web-too: another scaler"),
        (GOOD.replace("minReplicas: 3", "minReplicas: 101"), "minReplicas 101 is above"),
        (GOOD.replace("minReplicas: 3", "minReplicas: 0"), "it never comes back"),
        (GOOD.replace("value: 100", "value: 1"), "under any load it takes"),
        (GOOD.replace("scaleUp: {", "scaleUp: {selectPolicy: Disabled, "), "scaleUp is Disabled"),
        (GOOD.replace("resource: {name: cpu", "containerResource: {container: ap, name: cpu").replace(
            "type: Resource, c", "type: ContainerResource, c"), "no container ap"),
        (GOOD.replace("requests:", "limits:").replace("tion: 70", "tion: 95"), "it never scales up"),
        (GOOD.replace("minReplicas: 3", "minReplicas: 0").replace("  behavior", QUEUE + "  behavior"),
         "cpu vanishes"),
    ],
)  # fmt: skip
def test_each_problem_is_found(text: str, words: str) -> None:
    assert text != GOOD
    assert [one for one in problems(text) if words in one], problems(text)


def test_version_of_the_cluster_counts() -> None:
    tolerant = GOOD.replace("scaleUp: {", "scaleUp: {tolerance: 0.05, ")
    assert problems(tolerant) == []
    assert "ignores behavior.*.tolerance" in problems(tolerant, (1, 34))[0]
    cpu = "  - {type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 70}}}\n"
    memory = cpu.replace("cpu", "memory").replace("70", "80")
    zero = GOOD.replace("minReplicas: 3", "minReplicas: 0").replace(cpu, QUEUE).replace(memory, "")
    assert problems(zero) == []
    assert "refuses minReplicas 0" in problems(zero, (1, 36))[0]


def test_vertical_scaler_of_another_resource_or_without_effect_is_no_problem() -> None:
    off = VERTICAL.replace("spec: {", "spec: {updatePolicy: {updateMode: 'Off'}, ")
    other = VERTICAL.replace(
        "spec: {", "spec: {resourcePolicy: {containerPolicies: [{controlledResources: [disk]}]}, "
    )
    assert problems(GOOD + off) == []
    assert problems(GOOD + other) == []
