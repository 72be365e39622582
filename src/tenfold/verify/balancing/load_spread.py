"""Check that load is spread over the instances as declared; where it is not, the finding names the reason.

A *slow instance* takes longer than the others for the same request. A *weight* is the reason where that
instance also has more than an equal share. A *hot key* makes up the surplus of an instance under "hash".
A difference counts when it is both unlikely by chance (Pearson's chi-squared test for counts, Welch's t test
for durations, p below 0.001) and large enough to matter; and when it is there a second time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from tenfold.errors import DependencyError
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.balancing.nginx_probe import NginxProbe, entries_of, probe_nginx
from tenfold.verify.kit.access_log import LogEntry
from tenfold.verify.kit.instances import address_of, app_servers
from tenfold.verify.kit.load_clients import LoadClients
from tenfold.verify.kit.scenario import has_scenario, send_light_load

SPREAD = "load is even"

CHANCE = 0.001
"""Below this probability a difference is not put down to chance."""
_TOLERANCE = 0.25  # of a share
_SLOW_RATIO, _SLOW_S = 1.5, 0.005  # at least, between the mean durations of an instance and of the others
_LEAST_EXPECTED = 5  # requests of an instance, below which chi-squared is no good approximation
_PER_INSTANCE = 150  # so that 40 durations of a slow one, which gets less, are enough for Welch's test
_ROUNDS = 2
_RATE, _SECONDS = 20.0, 8.0
_QUIET_S = 0.1


class Reason(StrEnum):
    """Why load is uneven."""

    SLOW_INSTANCE = "slow instance"
    WEIGHT = "weight"
    HOT_KEY = "hot key"
    UNKNOWN = "unknown"


@dataclass(slots=True)
class InstanceLoad:
    """The requests that one instance answered: their paths, and their durations in seconds."""

    paths: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Fault:
    """Uneven load at one instance; the claim continues the name of the instance."""

    reason: Reason
    address: str
    claim: str
    remedy: str
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)


def check_load_spread(stack: Stack, settings: Settings) -> Finding:
    """Send requests, count them by instance, and compare counts and durations.

    Under "hash" the scenario's requests, because one request has one key; otherwise the declared read.
    """
    balancing = settings.balancing
    if balancing.method in ("ip_hash", "sticky") or balancing.hash_key == "client":
        claim = "a client stays with its instance: load is as uneven as clients are"
        return Finding(SPREAD, claim, Verdict.SKIP, remedy='set balancing.method = "least_conn"')
    if balancing.method == "hash" and not has_scenario(settings):
        claim = "there is no scenario, and one request has one key"
        return Finding(SPREAD, claim, Verdict.SKIP, remedy="set measure.scenario, or run: tenfold init")
    probe = probe_nginx(stack, settings)
    names = {address_of(server): server.name for server in app_servers(stack)}
    for _ in range(_ROUNDS):
        entries = _scenario_entries(stack, settings, probe) if balancing.method == "hash" else _reads(probe)
        finding = judge_spread(loads_of(entries), probe.weights, names=names, method=balancing.method)
        if finding.verdict is not Verdict.FAIL:
            break
    return finding


def _reads(probe: NginxProbe) -> list[LogEntry]:
    log = probe.open_log()
    with LoadClients(probe.send_read, clients=4, pause_s=0.0) as clients:
        clients.wait_for(_PER_INSTANCE * len(probe.weights), within_s=20.0)
    return entries_of(probe.read, log.read_new(quiet_s=_QUIET_S))


def _scenario_entries(stack: Stack, settings: Settings, probe: NginxProbe) -> list[LogEntry]:
    log = probe.open_log()
    send_light_load(stack, settings, rate=_RATE, seconds=_SECONDS)
    return log.read_new(quiet_s=_QUIET_S)


def loads_of(entries: Iterable[LogEntry]) -> dict[str, InstanceLoad]:
    """The load of each instance, by its address, from log entries."""
    loads: dict[str, InstanceLoad] = {}
    for entry in entries:
        if entry.upstreams:
            load = loads.setdefault(entry.upstreams[-1], InstanceLoad())
            load.paths[entry.path] += 1
            load.seconds.append(entry.seconds)
    return loads


# ------------------------------------------------------------------ judgement, pure


def judge_spread(
    loads: Mapping[str, InstanceLoad],
    weights: Mapping[str, int],
    *,
    names: Mapping[str, str],
    method: str,
) -> Finding:
    """The finding about the load of each instance.

    Args:
        loads: by address; see :func:`loads_of`.
        weights: the declared ones, of the instances that should get requests.
        names: of the instances, by address.
        method: "round_robin" and "hash" are held to the weights; the others follow the instances' speed,
            and have to use every one.
    """
    counts = {address: len(loads[address].seconds) if address in loads else 0 for address in weights}
    total, parts = sum(counts.values()), sum(weights.values())
    numbers: dict[str, float | int | str] = {"requests": total}
    if not loads:
        return Finding(SPREAD, "no instance got a request", Verdict.FAIL, numbers, "see nginx's log")
    if total * min(weights.values()) / parts < _LEAST_EXPECTED:
        return Finding(SPREAD, f"{total} requests are too few to judge", Verdict.SKIP, numbers)
    fault = (
        _unexpected_instance(loads, weights)
        or (_slow_instance(loads, weights) if method != "hash" else None)
        or (_uneven_counts if method in ("round_robin", "hash") else _idle_instance)(loads, counts, weights)
    )
    if fault is None:
        shares = " : ".join(str(count) for count in counts.values())
        return Finding(SPREAD, f"{shares} of {total} requests", Verdict.PASS, numbers)
    name = names.get(fault.address, fault.address)
    numbers |= {"reason": fault.reason.value, "instance": name, **fault.numbers}
    claim = f"{name} {fault.claim}"
    return Finding(SPREAD, claim, Verdict.FAIL, numbers, fault.remedy)


def _unexpected_instance(loads: Mapping[str, InstanceLoad], weights: Mapping[str, int]) -> Fault | None:
    for address in sorted(loads.keys() - weights.keys()):
        claim = f"got {len(loads[address].seconds)} requests and should get none"
        return Fault(Reason.UNKNOWN, address, claim, "see that nginx runs with backup servers")
    return None


def _slow_instance(loads: Mapping[str, InstanceLoad], weights: Mapping[str, int]) -> Fault | None:
    """The instance whose requests take longest, if it is much slower than the others."""
    address = max(loads, key=lambda one: _mean(loads[one].seconds))
    here = loads[address].seconds
    others = [one for name, load in loads.items() if name != address for one in load.seconds]
    if not _is_slower(here, others):
        return None
    share = weights[address] / sum(weights.values())
    claim = f"takes {1000 * _mean(here):.1f} ms for a request, the others {1000 * _mean(others):.1f} ms"
    numbers = {"mean_s": round(_mean(here), 6), "mean_elsewhere_s": round(_mean(others), 6)}
    if share > (1 + _TOLERANCE) / len(weights):
        claim += f"; its weight gives it {share:.0%} of the requests"
        return Fault(Reason.WEIGHT, address, claim, "lower its weight in balancing.weights", numbers)
    remedy = 'look at its machine: processor, memory, neighbours; "least_conn" sends it less meanwhile'
    return Fault(Reason.SLOW_INSTANCE, address, claim, remedy, numbers)


def _mean(seconds: Sequence[float]) -> float:
    return sum(seconds) / len(seconds) if seconds else 0.0


def _is_slower(here: Sequence[float], others: Sequence[float]) -> bool:
    if len(here) < _LEAST_EXPECTED or len(others) < _LEAST_EXPECTED:
        return False
    if _mean(here) < max(_SLOW_RATIO * _mean(others), _mean(others) + _SLOW_S):
        return False
    welch = _scipy_stats().ttest_ind(here, others, equal_var=False, alternative="greater")
    return bool(welch.pvalue < CHANCE)


def _idle_instance(
    loads: Mapping[str, InstanceLoad], counts: Mapping[str, int], weights: Mapping[str, int]
) -> Fault | None:
    for address in counts:
        if not counts[address]:
            claim = f"got none of {sum(counts.values())} requests"
            return Fault(Reason.UNKNOWN, address, claim, "look for it in nginx's log")
    return None


def _uneven_counts(
    loads: Mapping[str, InstanceLoad], counts: Mapping[str, int], weights: Mapping[str, int]
) -> Fault | None:
    """The instance that is farthest from its share, if that is more than chance and more than a little."""
    total, parts = sum(counts.values()), sum(weights.values())
    expected = {address: total * weight / parts for address, weight in weights.items()}
    p = _chance(list(counts.values()), list(expected.values()))
    excess = {address: counts[address] / expected[address] - 1 for address in weights}
    address = max(excess, key=lambda one: excess[one])
    if excess[address] <= _TOLERANCE:
        address = min(excess, key=lambda one: excess[one])
    if p >= CHANCE or abs(excess[address]) <= _TOLERANCE:
        return None
    share = weights[address] / parts
    claim = f"has {counts[address] / total:.0%} of {total} requests, its share is {share:.0%}"
    numbers: dict[str, float | int | str] = {"share": round(counts[address] / total, 3), "p": round(p, 6)}
    paths = loads[address].paths if address in loads else Counter[str]()
    if len(paths) > 1 and excess[address] > 0:
        path, count = paths.most_common(1)[0]
        if _explains(count, address, counts, weights):
            claim += f"; {count} of its {counts[address]} are for {path}"
            remedy = 'cache what this key answers, split the key, or set balancing.method = "least_conn"'
            numbers |= {"key": path, "key_requests": count}
            return Fault(Reason.HOT_KEY, address, claim, remedy, numbers)
    remedy = "compare balancing.weights with what nginx runs, and look for failed instances in its log"
    return Fault(Reason.UNKNOWN, address, f"{claim}, p = {p:.2g}", remedy, numbers)


def _explains(hot: int, address: str, counts: Mapping[str, int], weights: Mapping[str, int]) -> bool:
    """Return whether one key is half of an instance's surplus, and the rest as even as chance makes it."""
    total, parts = sum(counts.values()), sum(weights.values())
    share = weights[address] / parts
    if hot < (counts[address] - share * total) / 2:
        return False
    rest = {one: count - hot * (one == address) for one, count in counts.items()}
    expected = [(total - hot) * weights[one] / parts for one in rest]
    even = rest[address] <= (1 + _TOLERANCE) * share * (total - hot)
    return even or _chance(list(rest.values()), expected) >= CHANCE


def _chance(counts: Sequence[int], expected: Sequence[float]) -> float:
    """The probability that chance alone makes ``counts`` this uneven."""
    return float(_scipy_stats().chisquare(counts, expected).pvalue) if len(counts) > 1 else 1.0


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError as error:
        raise DependencyError("scipy is not installed: pip install 'tenfold[measure]'") from error
    return stats
