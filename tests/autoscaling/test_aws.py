"""The Auto Scaling group on moto's server; what moto lacks, on botocore's Stubber."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.stub import Stubber
from pydantic import ValidationError

from tenfold.autoscaling import aws
from tenfold.autoscaling.aws import AwsSettings, Change
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.cli import main
from tenfold.errors import SettingsError, TargetError
from tenfold.stack.ports import free_port
from tests.support.waiting import eventually

REGION = "eu-west-1"
ACCOUNT = {"aws_access_key_id": "test", "aws_secret_access_key": "test", "region_name": REGION}
LABEL = "app/shop/50dc6c495c0c9188/targetgroup/shop/943f017f100becff"
SCALING = AutoscalingSettings(requests_per_second=100)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def answers() -> bool:
        assert process.poll() is None
        try:
            return httpx.get(f"http://127.0.0.1:{port}/moto-api/").is_success
        except httpx.HTTPError:
            return False

    try:
        eventually(answers)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def client(address: str) -> Any:
    httpx.post(f"{address}/moto-api/reset")
    return boto3.client("autoscaling", endpoint_url=address, **ACCOUNT)


@pytest.fixture
def settings(address: str, client: Any) -> AwsSettings:
    """A network, a launch template and two target groups, and settings that name them."""
    ec2 = boto3.client("ec2", endpoint_url=address, **ACCOUNT)
    balancers = boto3.client("elbv2", endpoint_url=address, **ACCOUNT)
    network = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    subnets = [
        ec2.create_subnet(VpcId=network, CidrBlock=f"10.0.{number}.0/24", AvailabilityZone=f"{REGION}{zone}")
        for number, zone in enumerate("ab")
    ]
    image = ec2.describe_images()["Images"][0]["ImageId"]
    ec2.create_launch_template(
        LaunchTemplateName="shop", LaunchTemplateData={"ImageId": image, "InstanceType": "t3.micro"}
    )
    groups = [
        balancers.create_target_group(Name=name, Protocol="HTTP", Port=80, VpcId=network)
        for name in ("shop", "other")
    ]
    arns = [group["TargetGroups"][0]["TargetGroupArn"] for group in groups]
    return AwsSettings(
        group="shop",
        region=REGION,
        launch_template="shop",
        subnets=tuple(subnet["Subnet"]["SubnetId"] for subnet in subnets),
        target_groups=(arns[0],),
        request_label=LABEL,
        tags={"service": "shop"},
        warm_up_s=0,  # moto does not tell it
    )


def group_of(client: Any) -> dict[str, Any]:
    (found,) = client.describe_auto_scaling_groups(AutoScalingGroupNames=["shop"])["AutoScalingGroups"]
    return dict(found)


def test_group_is_made_once_and_then_nothing_differs(client: Any, settings: AwsSettings) -> None:
    planned = aws.preview(client, settings, SCALING)
    assert planned[0] == Change("group shop", "", "5 instances")
    assert Change("policy shop-cpu", "", "ASGAverageCPUUtilization 70") in planned
    assert Change("policy shop-requests", "", "ALBRequestCountPerTarget 6000") in planned  # a minute's
    assert client.describe_auto_scaling_groups()["AutoScalingGroups"] == []
    assert aws.apply(client, settings, SCALING) == planned
    group = group_of(client)
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (3, 100, 5)
    assert (group["HealthCheckType"], group["HealthCheckGracePeriod"]) == ("ELB", 300)
    assert group["TargetGroupARNs"] == list(settings.target_groups)
    assert aws.preview(client, settings, SCALING) == []
    assert aws.apply(client, settings, SCALING) == []


def test_number_that_the_scaler_has_chosen_is_left_alone(client: Any, settings: AwsSettings) -> None:
    aws.apply(client, settings, SCALING)
    client.set_desired_capacity(AutoScalingGroupName="shop", DesiredCapacity=17)
    changes = aws.apply(client, settings, SCALING.model_copy(update={"max_replicas": 50}))
    assert changes == [Change("MaxSize", "100", "50")]
    assert (group_of(client)["DesiredCapacity"], group_of(client)["MaxSize"]) == (17, 50)


def test_group_that_exists_is_adopted_and_only_what_differs_is_changed(
    client: Any, settings: AwsSettings
) -> None:
    client.create_auto_scaling_group(
        AutoScalingGroupName="shop",
        MinSize=3,
        MaxSize=100,
        DesiredCapacity=9,
        LaunchTemplate={"LaunchTemplateName": "shop", "Version": "$Default"},
        VPCZoneIdentifier=",".join(reversed(settings.subnets)),
        HealthCheckType="EC2",
        HealthCheckGracePeriod=300,
    )
    changed = {change.what for change in aws.apply(client, settings, SCALING)}
    assert "HealthCheckType" in changed
    assert changed.isdisjoint({"group shop", "MinSize", "MaxSize", "VPCZoneIdentifier", "LaunchTemplate"})
    assert group_of(client)["DesiredCapacity"] == 9
    assert aws.preview(client, settings, SCALING) == []


def test_policies_and_target_groups_that_are_not_wanted_any_more_go(
    client: Any, settings: AwsSettings
) -> None:
    aws.apply(client, settings, SCALING)
    fewer = settings.model_copy(update={"target_groups": (), "request_label": ""})
    changes = aws.apply(client, fewer, AutoscalingSettings())
    assert Change("policy shop-requests", "ALBRequestCountPerTarget 6000", "") in changes
    assert Change("target group", settings.target_groups[0], "") in changes
    assert group_of(client)["TargetGroupARNs"] == []
    assert aws.preview(client, fewer, AutoscalingSettings()) == []


def test_destroy(client: Any, settings: AwsSettings) -> None:
    assert not aws.destroy(client, settings)
    aws.apply(client, settings, SCALING)
    assert aws.destroy(client, settings)
    assert client.describe_auto_scaling_groups()["AutoScalingGroups"] == []


def test_aws_errors_are_one_sentence(client: Any, settings: AwsSettings) -> None:
    missing = settings.model_copy(update={"launch_template": "nothing"})
    with pytest.raises(TargetError, match="AWS refused to make the group shop: ") as raised:
        aws.apply(client, missing, SCALING)
    assert "\n" not in str(raised.value)
    unreachable = boto3.client("autoscaling", endpoint_url="http://127.0.0.1:9", **ACCOUNT)
    with pytest.raises(TargetError, match="AWS cannot be asked for reading the group"):
        aws.preview(unreachable, settings, SCALING)


def test_new_launch_template_replaces_the_instances() -> None:
    """On botocore's Stubber: moto has no instance refresh, and does not tell the warm-up."""
    settings = AwsSettings(group="shop", launch_template="lt-0123", subnets=("subnet-0a1b2c3d",))
    scaling = AutoscalingSettings(cpu_percent=0)
    client = boto3.client("autoscaling", **ACCOUNT)
    group = {
        "AutoScalingGroupName": "shop", "MinSize": 3, "MaxSize": 100, "DesiredCapacity": 8,
        "DefaultCooldown": 300, "AvailabilityZones": [], "CreatedTime": "2026-01-01",
        "HealthCheckType": "EC2", "HealthCheckGracePeriod": 300,
        "LaunchTemplate": {"LaunchTemplateId": "lt-0999", "Version": "$Default"},
        "VPCZoneIdentifier": "subnet-0a1b2c3d", "DefaultInstanceWarmup": 120,
    }  # fmt: skip
    wanted = {"LaunchTemplateId": "lt-0123", "Version": "$Default"}
    with Stubber(client) as stub:
        stub.add_response("describe_auto_scaling_groups", {"AutoScalingGroups": [group]})
        stub.add_response("describe_policies", {"ScalingPolicies": []})
        stub.add_response(
            "update_auto_scaling_group",
            {},
            {"AutoScalingGroupName": "shop", "LaunchTemplate": wanted, "DefaultInstanceWarmup": 300},
        )
        stub.add_response(
            "start_instance_refresh",
            {"InstanceRefreshId": "1"},
            {
                "AutoScalingGroupName": "shop",
                "Preferences": {"MinHealthyPercentage": 90, "SkipMatching": True},
            },
        )
        changed = [change.what for change in aws.apply(client, settings, scaling)]
        assert changed == ["LaunchTemplate", "DefaultInstanceWarmup"]
        stub.assert_no_pending_responses()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"group": ""}, "aws.group is not set"),
        ({"launch_template": ""}, "aws.launch_template is not set"),
        ({"subnets": ()}, "aws.subnets is not set"),
        ({"request_label": ""}, "aws.request_label is not"),
    ],
)
def test_key_that_is_needed_is_named(keys: dict[str, Any], words: str) -> None:
    settings = AwsSettings(
        group="shop", launch_template="shop", subnets=("subnet-0a1b2c3d",), request_label=LABEL
    )
    with pytest.raises(SettingsError, match=words):
        aws.preview(None, settings.model_copy(update=keys), SCALING)


@pytest.mark.parametrize(
    "keys",
    [
        {"group": "a b"}, {"subnets": ["net-1"]}, {"target_groups": ["shop"]}, {"request_label": "shop"},
        {"launch_template": "x;y"}, {"desired": 0},
    ],
)  # fmt: skip
def test_what_aws_would_accept_wrongly_is_refused(keys: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        AwsSettings(**keys)


def test_commands_show_the_difference_first_and_ask_before_they_delete(
    client: Any,
    settings: AwsSettings,
    address: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    keys = settings.model_dump(mode="json", exclude={"tags"})
    lines = [f"{name} = {json.dumps(value)}" for name, value in keys.items()]
    text = "\n".join(["[autoscaling]", "requests_per_second = 100", "[aws]", *lines])
    (tmp_path / "tenfold.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    variables = {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(["autoscale", "preview"]) == 0
    assert "+ group shop               5 instances" in capsys.readouterr().out
    assert main(["autoscale", "apply"]) == 0
    assert main(["autoscale", "preview"]) == 0
    assert capsys.readouterr().out.endswith("✔ nothing differs\n")
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    assert main(["autoscale", "destroy"]) == 1
    assert group_of(client)
    assert main(["autoscale", "destroy", "--yes"]) == 0
    assert "✔ shop is deleted" in capsys.readouterr().out
