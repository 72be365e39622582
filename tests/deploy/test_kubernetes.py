"""Manifests: valid for every supported version of Kubernetes, and closed to injection."""

from __future__ import annotations

from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tenfold.autoscaling.lint import lint
from tenfold.autoscaling.manifests import read_manifests
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.deploy.kubernetes import KubernetesSettings, render
from tenfold.errors import SettingsError

SCALING = AutoscalingSettings(requests_per_second=120)
SHOP = KubernetesSettings(
    name="shop",
    namespace="prod",
    image="registry.example/shop@sha256:0123",
    secret="shop-secrets",
    live_path="/health/live",
    queues=("default", "emails.high"),
    prometheus="http://prometheus.monitoring:9090",
)
VERSIONS = [f"1.{minor}" for minor in range(25, 38)]


def rendered(settings: KubernetesSettings = SHOP, scaling: AutoscalingSettings = SCALING) -> str:
    (file,) = render(settings, scaling, ready_path="/ready", task_app="shop.tasks:celery")
    return file.text


def documents(text: str) -> dict[tuple[str, str], dict[str, Any]]:
    return {(one["kind"], one["metadata"]["name"]): one for one in yaml.safe_load_all(text)}


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid_for_every_supported_version(version: str) -> None:
    for document in documents(rendered()).values():
        kubernetes_validate.validate(document, version, strict=True)


def test_the_control_a_key_that_is_no_key_is_refused() -> None:
    document = documents(rendered())["Deployment", "shop"]
    document["spec"]["replica"] = 3
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.35", strict=True)


@pytest.mark.parametrize("scaler", ["hpa", "keda"])
def test_lint_finds_nothing_and_reads_the_scaler_that_was_meant(scaler: str) -> None:
    manifests = read_manifests(rendered(SHOP.model_copy(update={"scaler": scaler})))
    assert lint(manifests, memory_used=50) == []
    found, meant = manifests.scalers[0], SCALING.scaler()
    assert found.hpa == meant.hpa
    assert [(one.kind, one.target) for one in found.metrics] == [
        (one.kind, one.target) for one in meant.metrics
    ]
    assert len(manifests.scalers) == (1 if scaler == "hpa" else 3)


def test_pods_end_after_their_requests_and_start_before_they_are_killed() -> None:
    pod = documents(rendered())["Deployment", "shop"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["terminationGracePeriodSeconds"] >= 5 + SHOP.longest_request_s
    assert container["lifecycle"]["preStop"]["exec"]["command"] == ["sleep", "5"]
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 3 * SCALING.start_s
    assert container["resources"] == {
        "requests": {"cpu": "500m", "memory": "512Mi"},
        "limits": {"cpu": "1", "memory": "1Gi"},
    }
    assert container["envFrom"] == [{"secretRef": {"name": "shop-secrets"}}]


def test_each_queue_has_its_workers() -> None:
    found = documents(rendered())
    worker = found["Deployment", "shop-worker-emails-high"]["spec"]["template"]["spec"]["containers"][0]
    assert worker["command"][:5] == ["tenfold", "tasks", "worker", "shop.tasks:celery", "emails.high"]
    assert [kind for kind, _ in found] == [
        "Deployment", "Service", "PodDisruptionBudget", "HorizontalPodAutoscaler", "Deployment", "Deployment",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "kubernetes.name is not set"),
        ({"image": ""}, "kubernetes.image is not set"),
        ({"scaler": "keda", "prometheus": ""}, "kubernetes.prometheus is not set"),
        ({"cpu_limit": "100m"}, "above kubernetes.cpu_limit"),
        ({"memory_limit": "1Mi"}, "kubernetes.memory_request is above"),
    ],
)
def test_what_is_missing_or_contradicts_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        rendered(SHOP.model_copy(update=changes))


@pytest.mark.parametrize(
    "keys",
    [
        {"name": "Shop"}, {"name": "a b"}, {"name": "x" * 60}, {"image": "shop\nx: y"}, {"secret": "../x"},
        {"cpu_limit": "lots"}, {"prometheus": "http://user:pass@host"}, {"prometheus": 'http://h"'},
        {"queues": ['a"}) or (x{y="']}, {"live_path": "live"},
    ],
)  # fmt: skip
def test_value_that_cannot_be_one_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        KubernetesSettings(**keys)


@given(text=st.text(max_size=60), key=st.sampled_from(["name", "namespace", "image", "secret", "live_path"]))
def test_no_setting_adds_a_document_or_a_key(text: str, key: str) -> None:
    try:
        settings = KubernetesSettings(**{**SHOP.model_dump(), key: text or "shop"})
    except ValidationError:
        return
    found = documents(rendered(settings))
    assert len(found) == 6
    kubernetes_validate.validate(found["Deployment", settings.name], "1.35", strict=True)
