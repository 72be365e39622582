"""A check that scales the running service: out under a load step, in again afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tenfold.autoscaling.hpa import Behavior, Hpa, PolicyRule, ScalingRules
from tenfold.autoscaling.live import Autoscaler
from tenfold.autoscaling.manifests import Scaler
from tenfold.measure.trial import Trial, TrialRequest
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.access_log import AccessLog
from tenfold.verify.kit.scenario import has_scenario, open_generator

if TYPE_CHECKING:
    from tenfold.measure.load.generator import Generator

FOLLOWS = "instances follow the load"

MORE = 2
_SHORTER = 60.0  # minutes become seconds
_EVERY_S, _WINDOW_S = 0.5, 2.0
_STEP_S, _HOLD_S, _CHUNKS = 2.0, 4.0, 12
_BELOW = 0.95  # of what all are meant to take: one fewer would have too much


@dataclass(frozen=True, slots=True)
class Step:
    """What a load step showed.

    Attributes:
        least, most: instances before the step, and those that it takes.
        reached: the most there were.
        out_s: from the step until there were ``most``, seconds.
        hold: the trial with all of them.
        failed: requests that failed while instances came and went, those refused left out.
        requests: all of them.
        left: instances at the end, after the load.
    """

    least: int
    most: int
    reached: int
    out_s: float
    hold: Trial
    failed: int
    requests: int
    left: int


def check_scaling(stack: Stack, settings: Settings) -> Finding:
    """Run the settings' scaler on the stack, minutes as seconds, and send what two more instances take.

    The request rate decides alone: on one machine the instances share the CPU. The declared scenario is sent,
    with as many arrivals as give ``autoscaling.requests_per_second`` to each instance.
    """
    declared = settings.autoscaling
    instances = [server for server in stack.servers if server.kind == "app"]
    most = min(len(instances) + MORE, declared.max_replicas)
    if not declared.requests_per_second:
        claim = "no request rate is set that an instance is meant to take"
        return Finding(FOLLOWS, claim, Verdict.SKIP, remedy="set autoscaling.requests_per_second")
    if not has_scenario(settings) or most <= len(instances):
        claim = f"there is no scenario {settings.measure.scenario}, or no room for another instance"
        return Finding(FOLLOWS, claim, Verdict.SKIP, remedy="write one with tenfold init; see max_replicas")
    from tenfold.verify.kit.instance_meter import InstanceMeter

    scaler = shorten(declared.scaler(), len(instances), most)
    meter = InstanceMeter(stack, cpu_request=declared.cpu_request, window_s=_WINDOW_S)
    autoscaler = Autoscaler(scaler, meter, stack.scale, replicas=len(instances), every_s=_EVERY_S)
    with open_generator(stack, settings) as generator:
        generator.start_users(settings.measure.users)
        try:
            step = _send_step(generator, stack, settings, autoscaler, len(instances), most)
        finally:
            autoscaler.stop()
            stack.scale(len(instances))
    return judge_step(
        step, slow_ms=settings.measure.objective.slow_ms, bad=settings.measure.objective.bad_share
    )


def shorten(scaler: Scaler, least: int, most: int) -> Scaler:
    """The scaler by its request rate alone, between other bounds, with seconds for minutes."""
    behavior = scaler.hpa.behavior or Behavior()

    def rules(found: ScalingRules) -> ScalingRules:
        policies = tuple(
            PolicyRule(kind, value, max(period_s / _SHORTER, _EVERY_S))
            for kind, value, period_s in found.policies
        )
        return ScalingRules(policies, found.window_s / _SHORTER, found.select)

    hpa = Hpa(
        min_replicas=least, max_replicas=most, behavior=Behavior(rules(behavior.up), rules(behavior.down))
    )
    rates = tuple(metric for metric in scaler.metrics if metric.source == "Pods")
    return replace(scaler, hpa=hpa, metrics=rates)


def _send_step(
    generator: Generator, stack: Stack, settings: Settings, autoscaler: Autoscaler, least: int, most: int
) -> Step:
    each, seed = settings.autoscaling.requests_per_second, settings.measure.seed
    trials: list[Trial] = []
    log = AccessLog(stack.access_log) if stack.access_log else None
    ratio = 1.0  # requests of an arrival that reach an instance: caches take more and more of them

    def send(requests_per_s: float, seconds: float) -> Trial:
        nonlocal ratio
        trial = generator.run(TrialRequest(requests_per_s / ratio, seconds, "confirm", seed + len(trials)))
        trials.append(trial)
        used = sum(bool(entry.upstreams) for entry in log.read_new(quiet_s=0.1)) if log else 0
        ratio = max(used / max(trial.offered, 1), 0.1)
        return trial

    def count() -> int:
        return sum(server.kind == "app" for server in stack.servers)

    def send_until(rate: float, is_enough: Callable[[int], bool]) -> None:
        for _ in range(_CHUNKS):
            send(rate, _STEP_S)
            if is_enough(count()) and autoscaler.wanted == count():
                return

    send(0.5 * each * least, _STEP_S)
    autoscaler.start()
    began = time.monotonic()
    rate = _BELOW * each * most
    send_until(rate, lambda running: running >= most)
    reached, out_s = count(), time.monotonic() - began
    hold = send(rate, _HOLD_S)
    send_until(0.3 * each * least, lambda running: running <= least)
    return Step(
        least=least,
        most=most,
        reached=reached,
        out_s=out_s,
        hold=hold,
        failed=sum(endpoint.failed for trial in trials for endpoint in trial.endpoints),
        requests=sum(trial.requests for trial in trials),
        left=count(),
    )


def judge_step(step: Step, *, slow_ms: float, bad: float) -> Finding:
    """The finding about a load step; pure."""
    share = step.hold.bad_share
    numbers = {
        "least": step.least,
        "most": step.most,
        "reached": step.reached,
        "out_s": round(step.out_s, 1),
        "bad_share": round(share, 3),
        "failed": step.failed,
        "requests": step.requests,
        "left": step.left,
    }

    def fail(claim: str, remedy: str) -> Finding:
        return Finding(FOLLOWS, claim, Verdict.FAIL, numbers, remedy)

    path = f"{step.least} → {step.most} → {step.left} instances"
    if step.reached < step.most:
        return fail(
            f"the load takes {step.most} instances, and there were {step.reached} after {step.out_s:.0f} s",
            "let scale-up add more, and instances start sooner: see tenfold simulate --explain",
        )
    if step.failed:
        return fail(
            f"{path}: {step.failed} of {step.requests} requests failed while instances came and went",
            "answer on every instance, and be ready only when requests can be answered",
        )
    if share > bad:
        return fail(
            f"with {step.most} instances {share:.0%} of the arrivals miss {slow_ms:g} ms at "
            f"{_BELOW:.0%} of what they are meant to take",
            "measure one instance, and set autoscaling.requests_per_second below that; or what they share is "
            "the limit",
        )
    if step.left > step.least:
        return fail(f"{step.left} instances are left without load", "see down_window_s and down_percent")
    return Finding(FOLLOWS, f"{path}: none of {step.requests} requests failed", Verdict.PASS, numbers)
