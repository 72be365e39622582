"""The loop that looks, decides and scales: with made-up instances, and without waiting for real ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from tenfold.autoscaling.live import Autoscaler, Look, Observed, propose, replay
from tenfold.autoscaling.proposals import Pod, Sample
from tenfold.autoscaling.settings import AutoscalingSettings
from tenfold.errors import SettingsError, StackError, TenfoldError
from tests.support.waiting import eventually

SETTINGS = AutoscalingSettings(
    min_replicas=1, max_replicas=10, up_window_s=0, up_percent=100, cpu_percent=0, requests_per_second=10
)
SCALER = SETTINGS.scaler("web")


class Fleet:
    """Instances whose rate is dictated; each look is 15 s after the one before."""

    def __init__(self, *rates: float) -> None:
        self.rates = list(rates)
        self.now = 0.0
        self.running = 1
        self.scaled: list[int] = []

    def observe(self, replicas: int) -> Observed:
        self.now += 15
        rate = self.rates.pop(0) if self.rates else 0.0
        names = [f"app {number}" for number in range(self.running)]
        pods = tuple(Pod(name=name, request=500) for name in names)
        requests = {name: Sample(int(rate * 1000 / self.running)) for name in names}
        return Observed(self.now, replicas, pods, requests=requests)

    def scale(self, count: int) -> None:
        self.scaled.append(count)
        self.running = count


def looked(fleet: Fleet, count: int) -> tuple[list[int], Autoscaler]:
    """The numbers after some looks; instances are there at once."""
    autoscaler = Autoscaler(SCALER, fleet.observe, fleet.scale, replicas=1)
    numbers = []
    for _ in range(count):
        numbers.append(autoscaler.look().decision.replicas)
        fleet.scale(numbers[-1])
    return numbers, autoscaler


def test_numbers_follow_the_rate_and_its_window() -> None:
    numbers, autoscaler = looked(Fleet(10, 35, 80, 80, *[5.0] * 25), 29)
    assert numbers[:4] == [1, 2, 2, 2]  # a hundred per cent a minute
    assert (max(numbers), numbers[-1]) == (2, 1)
    assert replay(SCALER, [look.observed for look in autoscaler.looks]) == [
        look.decision for look in autoscaler.looks
    ]


def test_instances_are_scaled_by_a_thread_of_their_own() -> None:
    is_free = threading.Event()
    fleet = Fleet(*[35.0] * 1000)

    def scale_slowly(count: int) -> None:
        assert is_free.wait(20)
        fleet.scale(count)

    reported: list[Look | TenfoldError] = []
    autoscaler = Autoscaler(
        SCALER, fleet.observe, scale_slowly, replicas=1, every_s=0.01, report=reported.append
    )
    autoscaler.start()
    eventually(lambda: len(autoscaler.looks) > 20)  # it goes on looking meanwhile
    assert fleet.scaled == []
    is_free.set()
    eventually(lambda: fleet.running == autoscaler.wanted > 1)
    autoscaler.stop()
    assert [type(one) for one in reported[:1]] == [Look]
    assert not [thread for thread in threading.enumerate() if thread.name == "autoscaler"]


def test_what_cannot_be_scaled_is_reported_and_tried_again() -> None:
    fleet, failures = Fleet(*[35.0] * 1000), iter([StackError("app 2 did not start"), None])
    reported: list[Look | TenfoldError] = []

    def scale(count: int) -> None:
        if (error := next(failures, None)) is not None:
            raise error
        fleet.scale(count)

    autoscaler = Autoscaler(SCALER, fleet.observe, scale, replicas=1, every_s=0.01, report=reported.append)
    autoscaler.start()
    eventually(lambda: fleet.running > 1)
    autoscaler.stop()
    assert [str(one) for one in reported if isinstance(one, TenfoldError)] == ["app 2 did not start"]


def test_cpu_counts_from_the_first_whole_look_of_a_ready_instance() -> None:
    scaler = AutoscalingSettings(min_replicas=1, memory_percent=0).scaler("web")

    def asked(*pods: Pod, cpu: Sequence[int]) -> int | None:
        samples = {pod.name: Sample(value, 100.0, 0.0) for pod, value in zip(pods, cpu, strict=False)}
        return propose(scaler, Observed(100.0, len(pods), pods, cpu=samples))[0].replicas

    old = Pod(name="a", request=500, started=0.0, ready_changed=5.0)
    fresh = Pod(name="b", request=500, started=95.0, ready_changed=99.0, is_ready=False)
    assert asked(old, cpu=[700]) == 2
    assert asked(old, fresh, cpu=[700, 900]) == 2  # unready: as if it used nothing
    assert asked(old, fresh, cpu=[700]) == 2


def test_memory_alone_is_refused() -> None:
    scaler = AutoscalingSettings(cpu_percent=0).scaler("web")
    with pytest.raises(SettingsError, match="looks at memory alone"):
        Autoscaler(scaler, Fleet().observe, Fleet().scale, replicas=1)
