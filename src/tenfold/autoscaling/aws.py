"""An Auto Scaling group on AWS, with target tracking: see what would change, change it, take it away.

The group is read, compared with what is wanted, and only what differs is changed; one that exists is adopted.
The desired capacity is set when the group is made, and never again: it is the scaler's. AWS accepts some
nonsense silently, so names, ARNs and labels are looked at before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.errors import SettingsError, TargetError

__all__ = ["AwsSettings", "Change", "apply", "connect", "destroy", "preview"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,100}")
_SUBNET = re.compile(r"subnet-[0-9a-f]{6,20}")
_TARGET_GROUP = re.compile(
    r"arn:aws[a-z-]*:elasticloadbalancing:[a-z0-9-]+:\d{12}:targetgroup/[\w-]+/[0-9a-f]+"
)
_LABEL = re.compile(r"app/[\w-]+/[0-9a-f]+/targetgroup/[\w-]+/[0-9a-f]+")


class AwsSettings(BaseModel):
    """The ``[aws]`` table: the group that runs the instances. Bounds and targets are in ``[autoscaling]``."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    group: str = Field("", description="the Auto Scaling group's name", examples=["shop"])
    region: str = Field("", description="empty: as the AWS client is configured")
    launch_template: str = Field("", description="its name or id (lt-…)", examples=["shop"])
    launch_template_version: str = Field("$Default", description='a number, "$Default" or "$Latest"')
    subnets: tuple[str, ...] = Field(
        (), description="of two or more zones", examples=[["subnet-0a1b2c3d", "subnet-4e5f6a7b"]]
    )
    target_groups: tuple[str, ...] = Field(
        (),
        description="ARNs of the balancer's target groups",
        examples=[["arn:aws:elasticloadbalancing:eu-west-1:123456789012:targetgroup/shop/0123456789abcdef"]],
    )
    request_label: str = Field(
        "",
        description="app/…/targetgroup/…: of whose requests autoscaling.requests_per_second is meant",
        examples=["app/shop/50dc6c495c0c9188/targetgroup/shop/943f017f100becff"],
    )
    desired: int = Field(5, ge=1, le=10_000, description="instances when the group is made")
    grace_s: int = Field(300, ge=0, le=7200, description="how long a new instance may be unhealthy")
    warm_up_s: int = Field(
        300, ge=0, le=3600, description="how long a new instance does not count; 0: not set"
    )
    tags: Mapping[str, str] = Field(
        default_factory=dict, description="of the group and its instances", examples=[{"service": "shop"}]
    )

    @field_validator("group", "launch_template")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if name and not _NAME.fullmatch(name):
            raise ValueError("a name has letters, digits, dots, hyphens and underscores")
        return name

    @field_validator("subnets")
    @classmethod
    def _are_subnets(cls, subnets: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in subnets if not _SUBNET.fullmatch(one)]:
            raise ValueError(f"{wrong[0][:40]!r} is no subnet: it looks like subnet-0a1b2c3d")
        return subnets

    @field_validator("target_groups")
    @classmethod
    def _are_target_groups(cls, arns: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := [one for one in arns if not _TARGET_GROUP.fullmatch(one)]:
            raise ValueError(f"{wrong[0][:60]!r} is no target group's ARN")
        return arns

    @field_validator("request_label")
    @classmethod
    def _is_a_label(cls, label: str) -> str:
        if label and not _LABEL.fullmatch(label):
            raise ValueError("it has to look like app/NAME/ID/targetgroup/NAME/ID, the ends of two ARNs")
        return label


@dataclass(frozen=True, slots=True)
class Change:
    """One difference: what it is about, what is there (empty: nothing), what is wanted (empty: nothing)."""

    what: str
    before: str
    after: str


# ------------------------------------------------------------------ what is wanted


def _wanted(settings: AwsSettings, scaling: AutoscalingSettings) -> dict[str, Any]:
    for key in ("group", "launch_template", "subnets"):
        if not getattr(settings, key):
            raise SettingsError(f"aws.{key} is not set: the group cannot be made without it")
    if scaling.requests_per_second and not settings.request_label:
        raise SettingsError(
            "autoscaling.requests_per_second is set but aws.request_label is not: name the balancer and its "
            "target group, or set requests_per_second = 0"
        )
    key = "LaunchTemplateId" if settings.launch_template.startswith("lt-") else "LaunchTemplateName"
    wanted = {
        "MinSize": scaling.min_replicas,
        "MaxSize": scaling.max_replicas,
        "LaunchTemplate": {key: settings.launch_template, "Version": settings.launch_template_version},
        "VPCZoneIdentifier": ",".join(settings.subnets),
        "HealthCheckType": "ELB" if settings.target_groups else "EC2",
        "HealthCheckGracePeriod": settings.grace_s,
    }
    if settings.warm_up_s:
        wanted["DefaultInstanceWarmup"] = settings.warm_up_s
    return wanted


def _policies(settings: AwsSettings, scaling: AutoscalingSettings) -> dict[str, dict[str, Any]]:
    """The target tracking policies by name. AWS counts requests of a target by the minute."""
    found: dict[str, dict[str, Any]] = {}
    if scaling.cpu_percent:
        metric = {"PredefinedMetricType": "ASGAverageCPUUtilization"}
        found[f"{settings.group}-cpu"] = {
            "PredefinedMetricSpecification": metric,
            "TargetValue": float(scaling.cpu_percent),
            "DisableScaleIn": False,
        }
    if scaling.requests_per_second:
        metric = {"PredefinedMetricType": "ALBRequestCountPerTarget", "ResourceLabel": settings.request_label}
        found[f"{settings.group}-requests"] = {
            "PredefinedMetricSpecification": metric,
            "TargetValue": float(scaling.requests_per_second * 60),
            "DisableScaleIn": False,
        }
    return found


# ------------------------------------------------------------------ what is there


def connect(settings: AwsSettings) -> Any:
    """A client of AWS Auto Scaling, with the credentials that boto3 finds.

    Raises:
        DependencyError: boto3 is not installed.
        TargetError: no region is known.
    """
    from tenfold.errors import DependencyError

    try:
        import boto3
    except ImportError:
        raise DependencyError("boto3 is not installed: pip install 'tenfold[aws]'") from None
    with _refusals("the client"):
        return boto3.client("autoscaling", region_name=settings.region or None)


def _read(client: Any, group: str) -> tuple[dict[str, Any] | None, dict[str, dict[str, Any]]]:
    """The group, if it exists, and its target tracking policies by name."""
    with _refusals("reading the group"):
        groups = client.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
        if not groups:
            return None, {}
        pages = client.get_paginator("describe_policies").paginate(AutoScalingGroupName=group)
        policies = {
            one["PolicyName"]: one.get("TargetTrackingConfiguration", {})
            for page in pages
            for one in page["ScalingPolicies"]
            if one.get("PolicyType") == "TargetTrackingScaling"
        }
    return groups[0], policies


@contextmanager
def _refusals(doing: str) -> Iterator[None]:
    """AWS' errors as one sentence."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except ClientError as error:
        said = error.response.get("Error", {})
        message = " ".join(str(said.get("Message", "")).split())[:200]
        raise TargetError(f"AWS refused {doing}: {said.get('Code', '')}: {message}") from None
    except BotoCoreError as error:
        raise TargetError(f"AWS cannot be asked for {doing}: {' '.join(str(error).split())[:200]}") from None


# ------------------------------------------------------------------ differences


def preview(client: Any, settings: AwsSettings, scaling: AutoscalingSettings) -> list[Change]:
    """What :func:`apply` would change; empty when nothing differs.

    Raises:
        SettingsError: a key that is needed is missing.
        TargetError: AWS refuses, in one sentence.
    """
    wanted, policies = _wanted(settings, scaling), _policies(settings, scaling)
    group, existing = _read(client, settings.group)
    return _compare(settings, group, existing, wanted, policies)


def _compare(
    settings: AwsSettings,
    group: dict[str, Any] | None,
    existing: Mapping[str, dict[str, Any]],
    wanted: Mapping[str, Any],
    policies: Mapping[str, dict[str, Any]],
) -> list[Change]:
    changes = []
    if group is None:
        changes.append(Change(f"group {settings.group}", "", f"{settings.desired} instances"))
    found = _as_wanted(group or {}, wanted)
    changes += [
        Change(key, _shown(found.get(key)), _shown(value))
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    attached = set((group or {}).get("TargetGroupARNs", ()))
    changes += [Change("target group", "", arn) for arn in settings.target_groups if arn not in attached]
    changes += [Change("target group", arn, "") for arn in sorted(attached - set(settings.target_groups))]
    tags = {tag["Key"]: tag.get("Value", "") for tag in (group or {}).get("Tags", ())}
    changes += [
        Change(f"tag {key}", tags.get(key, ""), value)
        for key, value in settings.tags.items()
        if tags.get(key) != value
    ]
    for name, policy in policies.items():
        before = existing.get(name, {})
        if {key: before.get(key) for key in policy} != policy:
            changes.append(Change(f"policy {name}", _target(before), _target(policy)))
    changes += [
        Change(f"policy {name}", _target(existing[name]), "") for name in existing if name not in policies
    ]
    return changes


def _as_wanted(group: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The group's values, with those keys of its launch template that are wanted."""
    found = {key: group.get(key) for key in wanted if key in group}
    if isinstance(template := group.get("LaunchTemplate"), Mapping):
        found["LaunchTemplate"] = {key: template.get(key) for key in wanted["LaunchTemplate"]}
    if isinstance(zones := group.get("VPCZoneIdentifier"), str):
        is_same = set(zones.split(",")) == set(wanted["VPCZoneIdentifier"].split(","))
        found["VPCZoneIdentifier"] = wanted["VPCZoneIdentifier"] if is_same else zones
    return found


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(str(one) for one in value.values())
    return "" if value is None else str(value)


def _target(policy: Mapping[str, Any]) -> str:
    if not policy:
        return ""
    kind = policy.get("PredefinedMetricSpecification", {}).get("PredefinedMetricType", "a metric of its own")
    return f"{kind} {policy.get('TargetValue', 0):g}"


# ------------------------------------------------------------------ changes


def apply(client: Any, settings: AwsSettings, scaling: AutoscalingSettings) -> list[Change]:
    """Make it so; return what was changed. A second call changes nothing.

    Instances are replaced (an instance refresh) when the launch template of a group that existed changes.

    Raises:
        SettingsError: a key that is needed is missing.
        TargetError: AWS refuses, in one sentence; what was changed before stays so.
    """
    wanted, policies = _wanted(settings, scaling), _policies(settings, scaling)
    group, existing = _read(client, settings.group)
    changes = _compare(settings, group, existing, wanted, policies)
    name = settings.group
    if group is None:
        with _refusals(f"to make the group {name}"):
            client.create_auto_scaling_group(
                AutoScalingGroupName=name,
                DesiredCapacity=min(max(settings.desired, scaling.min_replicas), scaling.max_replicas),
                TargetGroupARNs=list(settings.target_groups),
                Tags=_tags(settings),
                **wanted,
            )
    else:
        _update(client, settings, changes, wanted)
    changed = {change.what for change in changes}
    for policy, target in policies.items():
        if f"policy {policy}" in changed:
            with _refusals(f"the policy {policy}"):
                client.put_scaling_policy(
                    AutoScalingGroupName=name,
                    PolicyName=policy,
                    PolicyType="TargetTrackingScaling",
                    TargetTrackingConfiguration=target,
                )
    for policy in existing.keys() - policies.keys():
        with _refusals(f"to delete the policy {policy}"):
            client.delete_policy(AutoScalingGroupName=name, PolicyName=policy)
    return changes


def _update(client: Any, settings: AwsSettings, changes: list[Change], wanted: Mapping[str, Any]) -> None:
    name, changed = settings.group, {change.what for change in changes}
    if keys := {key: value for key, value in wanted.items() if key in changed}:
        with _refusals(f"to change the group {name}"):
            client.update_auto_scaling_group(AutoScalingGroupName=name, **keys)
    added = [change.after for change in changes if change.what == "target group" and change.after]
    removed = [change.before for change in changes if change.what == "target group" and change.before]
    with _refusals(f"the target groups of {name}"):
        if added:
            client.attach_load_balancer_target_groups(AutoScalingGroupName=name, TargetGroupARNs=added)
        if removed:
            client.detach_load_balancer_target_groups(AutoScalingGroupName=name, TargetGroupARNs=removed)
    if any(what.startswith("tag ") for what in changed):
        with _refusals(f"the tags of {name}"):
            client.create_or_update_tags(Tags=_tags(settings))
    if "LaunchTemplate" in changed:
        with _refusals(f"to replace the instances of {name}"):
            client.start_instance_refresh(
                AutoScalingGroupName=name, Preferences={"MinHealthyPercentage": 90, "SkipMatching": True}
            )


def _tags(settings: AwsSettings) -> list[dict[str, Any]]:
    group = {"ResourceId": settings.group, "ResourceType": "auto-scaling-group", "PropagateAtLaunch": True}
    return [{**group, "Key": key, "Value": value} for key, value in settings.tags.items()]


def destroy(client: Any, settings: AwsSettings) -> bool:
    """Delete the group with its instances and policies; False if there is none.

    Raises:
        SettingsError: ``aws.group`` is not set.
        TargetError: AWS refuses.
    """
    if not settings.group:
        raise SettingsError("aws.group is not set")
    group, _ = _read(client, settings.group)
    if group is None:
        return False
    with _refusals(f"to delete the group {settings.group}"):
        client.delete_auto_scaling_group(AutoScalingGroupName=settings.group, ForceDelete=True)
    return True
