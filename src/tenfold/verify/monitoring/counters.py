"""Checks of metrics: every request is counted, and asking for them costs little."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping

from tenfold.errors import TargetError
from tenfold.metrics import REQUEST_SECONDS
from tenfold.monitoring.top import parse_metrics
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.access_log import AccessLog
from tenfold.verify.kit.instances import address_of, app_servers
from tenfold.verify.kit.load_clients import LoadClients
from tenfold.verify.kit.session_user import user_of
from tenfold.verify.kit.user_agent import UserAgent

COUNTED = "every request is counted"
CHEAP = "metrics cost little"

_CLIENTS, _LOAD_S = 4, 3.0
_COUNT = f"{REQUEST_SECONDS.name}_count"
_ASKED = 7
_SCRAPE_S, _SHARE = 15.0, 0.02  # of one core, at one scrape in that time
_MIDDLEWARE = "let MetricsMiddleware stand outside of everything that answers requests"


def check_counts(stack: Stack, settings: Settings) -> Finding:
    """Send reads through nginx and compare its log with the counters of each instance."""
    known = settings.verify
    line = known.read or f"GET {settings.service.ready_path}"
    readers = [user_of(stack, known) for _ in range(_CLIENTS)]
    assert stack.access_log is not None
    log = AccessLog(stack.access_log)
    log.read_new(quiet_s=0.3)
    before = _counts(stack, known.metrics)
    with LoadClients(lambda number: readers[number].status(line), clients=_CLIENTS):
        time.sleep(_LOAD_S)
    entries = log.read_new(quiet_s=0.3)
    after = _counts(stack, known.metrics)
    reached = Counter(address for entry in entries for address in entry.upstreams)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}
    return judge_counts({name: reached[name] for name in grown}, grown)


def _counts(stack: Stack, line: str) -> dict[str, float]:
    """Requests counted by each instance so far, those for the metrics themselves left out."""
    path = line.partition(" ")[2]
    found = {}
    for server in app_servers(stack):
        samples = parse_metrics(_ask(UserAgent(server.url), line))
        found[address_of(server)] = sum(
            value
            for (name, labels), value in samples.items()
            if name == _COUNT and ("http_route", path) not in labels
        )
    return found


def _ask(agent: UserAgent, line: str) -> str:
    answer = agent.request(line)
    if not answer.ok:
        raise TargetError(f"{line} answers {answer.status} at {agent.url}: correct verify.metrics")
    return answer.text


def judge_counts(sent: Mapping[str, int], counted: Mapping[str, float]) -> Finding:
    """The finding about the requests that nginx sent to each instance, and those that it counted; pure."""
    numbers = {"sent": sum(sent.values()), "counted": int(sum(counted.values()))}
    if not numbers["sent"]:
        return Finding(COUNTED, "no request reached an instance", Verdict.SKIP, numbers, "set verify.read")
    if not numbers["counted"]:
        claim = f"none of {numbers['sent']} requests is in {_COUNT}"
        return Finding(COUNTED, claim, Verdict.FAIL, numbers, "add MetricsMiddleware to the app")
    wrong = [name for name in sent if sent[name] != counted[name]]
    if wrong:
        name = wrong[0]
        claim = f"{name} got {sent[name]} requests and counted {counted[name]:.0f}"
        more = counted[name] < sent[name]
        remedy = f"{_MIDDLEWARE}; with several workers set PROMETHEUS_MULTIPROC_DIR" if more else _MIDDLEWARE
        return Finding(COUNTED, claim, Verdict.FAIL, numbers, remedy)
    claim = f"{numbers['sent']} requests in nginx's log, and as many in the counters of {len(sent)} instances"
    return Finding(COUNTED, claim, Verdict.PASS, numbers)


def check_cost(stack: Stack, settings: Settings) -> Finding:
    """Ask an instance for its metrics a few times."""
    agent, line = UserAgent(app_servers(stack)[0].url), settings.verify.metrics
    seconds, size = [], 0
    for _ in range(_ASKED):
        started = time.perf_counter()
        size = len(_ask(agent, line))
        seconds.append(time.perf_counter() - started)
    return judge_cost(statistics.median(seconds), size)


def judge_cost(seconds: float, size: int) -> Finding:
    """The finding about the duration of one answer, an upper bound of the CPU it takes; pure."""
    share = seconds / _SCRAPE_S
    numbers = {"ms": round(seconds * 1000, 1), "bytes": size, "share_of_core": round(share, 4)}
    said = (
        f"{seconds * 1000:,.0f} ms for {size:,} bytes: {share:.1%} of a core at one scrape in {_SCRAPE_S:g} s"
    )
    if share > _SHARE:
        remedy = (
            "fewer labels, and an empty PROMETHEUS_MULTIPROC_DIR at each start: ended workers leave files"
        )
        return Finding(CHEAP, said, Verdict.FAIL, numbers, remedy)
    return Finding(CHEAP, said, Verdict.PASS, numbers)
