"""A running service scales out and in without a failed request; what was seen decides the same once more."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

import pytest

from tenfold.autoscaling.live import Autoscaler, Observed, replay
from tenfold.autoscaling.proposals import Pod, Sample
from tenfold.errors import StackError
from tenfold.settings import Settings
from tenfold.stack import Stack
from tenfold.stack.server import LocalServer
from tenfold.types import Verdict
from tenfold.verify.autoscaling.follows import check_scaling, shorten
from tenfold.verify.kit.instance_meter import InstanceMeter
from tenfold.verify.kit.load_clients import LoadClients
from tests.support.waiting import eventually
from tests.verify.support import waiting


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, Settings]]:
    with ExitStack() as ending:
        yield waiting.start("own")(tmp_path_factory.mktemp("waiting"), ending)


def test_service_that_scales_passes(running: tuple[Stack, Settings]) -> None:
    finding = check_scaling(*running)
    assert finding.verdict is Verdict.PASS, finding
    assert (finding.numbers["least"], finding.numbers["most"], finding.numbers["left"]) == (1, 3, 1)
    assert sum(server.kind == "app" for server in running[0].servers) == 1


@pytest.mark.guarantee(
    "scaling fails no request", pattern="autoscaling", under="instances start and end under load"
)
def test_no_request_fails_while_instances_start_and_end(running: tuple[Stack, Settings]) -> None:
    stack, _ = running
    with LoadClients(lambda number: post(stack.url), clients=4) as clients:
        stack.scale(3)
        eventually(lambda: len({server.name for server in apps(stack)}) == 3)
        stack.scale(2)
        stack.scale(1)
    assert [one for one in clients.sent if one.status != 200] == []
    assert len(clients.sent) > 50
    assert [server.name for server in apps(stack)] == ["app"]


@pytest.mark.control("scaling fails no request", "an instance is ended without being left out of nginx first")
def test_the_control_instances_that_end_under_load_fail_requests(running: tuple[Stack, Settings]) -> None:
    stack, _ = running
    stack.scale(3)
    try:
        with LoadClients(lambda number: post(stack.url), clients=8) as clients:
            eventually(lambda: len(clients.sent) > 40)
            for server in apps(stack)[1:]:
                server.stop(grace_s=0.0)
        assert [one for one in clients.sent if one.status != 200] != []
    finally:
        for server in apps(stack)[1:]:
            stack.restart(server)
        stack.scale(1)


def test_instance_that_does_not_start_changes_nothing(
    running: tuple[Stack, Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    stack, _ = running
    monkeypatch.setattr("tenfold.stack.servers.app.Instance.is_ready", lambda self: False)
    monkeypatch.setattr("tenfold.stack.server.LocalServer.timeout_s", 1.0, raising=False)
    for server in apps(stack):
        server.timeout_s = 1.0
    settings = stack._settings
    monkeypatch.setattr(
        stack,
        "_settings",
        settings.model_copy(update={"stack": settings.stack.model_copy(update={"start_timeout_s": 1.0})}),
    )
    with pytest.raises(StackError, match="app 2 was not ready within 1 s"):
        stack.scale(2)
    assert [server.name for server in apps(stack)] == ["app"]
    assert post(stack.url) == 200


@pytest.mark.guarantee(
    "what was seen decides the same once more", pattern="autoscaling", under="a recorded live run"
)
def test_what_was_seen_decides_the_same_once_more(running: tuple[Stack, Settings]) -> None:
    stack, settings = running
    scaler = shorten(settings.autoscaling.scaler(), 1, 3)
    meter = InstanceMeter(stack, cpu_request=500, window_s=1.0)
    autoscaler = Autoscaler(scaler, meter, stack.scale, replicas=1, every_s=0.2)
    autoscaler.start()
    try:
        with LoadClients(lambda number: post(stack.url), clients=4):
            eventually(lambda: len(apps(stack)) > 1, within_s=20)
        eventually(lambda: autoscaler.wanted == 1 == len(apps(stack)), within_s=30)
    finally:
        autoscaler.stop()
        stack.scale(1)
    observed = [look.observed for look in autoscaler.looks]
    assert replay(scaler, observed) == [look.decision for look in autoscaler.looks]
    assert {look.decision.replicas for look in autoscaler.looks} >= {1, 2}
    altered = [with_more_requests(observed[0]), *observed[1:]]
    assert replay(scaler, altered) != [look.decision for look in autoscaler.looks]


@pytest.mark.control(
    "what was seen decides the same once more", "one sample is altered; see the end of the test"
)
def test_the_control_an_altered_sample_decides_otherwise() -> None:
    seen = Observed(0.0, 1, (Pod(name="app", request=500),), requests={"app": Sample(1000)})
    from tenfold.autoscaling.settings import AutoscalingSettings

    scaler = shorten(AutoscalingSettings(requests_per_second=30).scaler(), 1, 3)
    assert replay(scaler, [seen]) != replay(scaler, [with_more_requests(seen)])


def with_more_requests(seen: Observed) -> Observed:
    return replace(seen, requests={name: Sample(90_000) for name in seen.requests or {"app": 0}})


def apps(stack: Stack) -> list[LocalServer]:
    return [server for server in stack.servers if server.kind == "app"]


def post(url: str) -> int:
    """Sent once: nginx sends a POST to no second instance."""
    try:
        with urllib.request.urlopen(f"{url}/work", data=b"", timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0
