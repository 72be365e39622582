"""The probe in a real service: two granian workers, SQLAlchemy sync and async, PostgreSQL."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.probe.collector import Collector
from tenfold.measure.probe.evidence import ROUND_TRIPS, Evidence, RouteStats, StatementStats
from tenfold.measure.probe.probe_protocol import STOP_TRACING, TRACE_MEMORY
from tests.measure.conftest import Service, mark
from tests.support.waiting import eventually


@pytest.fixture
def collector(service: Service) -> Iterator[Collector]:
    with Collector(service.probe_address) as collector:
        eventually(lambda: collector.workers == 2)
        collector.reset()
        yield collector


def evidence_after(collector: Collector, requests: int) -> Evidence:
    eventually(lambda: collector.evidence().requests >= requests)
    return collector.evidence()


def repetitions(evidence: Evidence) -> list[StatementStats]:
    return [use for use in evidence.statements if use.repeating_requests]


def statements_of(evidence: Evidence) -> int:
    return sum(use.executions for use in evidence.statements if use.fingerprint not in ROUND_TRIPS)


def route(evidence: Evidence, label: str) -> RouteStats:
    return next(use for use in evidence.routes if use.route == label)


@pytest.mark.guarantee("N+1 is named with file and line", pattern="evidence", under="sync and async engines")
@pytest.mark.parametrize(
    ("path", "label", "site", "times"),
    [
        ("/lazy/1", "GET /lazy/{customer}", "lazy", 25),
        ("/loop", "GET /loop", "loop", 25),
        ("/async", "GET /async", "async", 25),
    ],
)
def test_n_plus_one_is_found_with_its_line(
    service: Service, collector: Collector, path: str, label: str, site: str, times: int
) -> None:
    service.get(path, 4)
    (found,) = repetitions(evidence_after(collector, 4))
    assert (found.route, found.site) == (label, mark(site))
    assert found.repeating_requests == 4
    assert found.repetitions_mean == found.executions_max == times
    assert 0 < found.mean_ms < 1000


@pytest.mark.control("N+1 is named with file and line")
@pytest.mark.parametrize("path", ["/eager/1", "/four"])
def test_eager_loading_is_not_reported_as_n_plus_one(
    service: Service, collector: Collector, path: str
) -> None:
    service.get(path, 4)
    evidence = evidence_after(collector, 4)
    assert statements_of(evidence) in (4 * 2, 4 * 4)
    assert repetitions(evidence) == []


def test_routes_are_named_by_template(service: Service, collector: Collector) -> None:
    service.get("/outer/inner/ada/orders")
    service.get("/lazy/2")
    service.get("/orders/17/a3f8c2d41b9e")
    labels = {use.route for use in evidence_after(collector, 3).routes}
    assert labels == {"GET /outer/inner/{name}/orders", "GET /lazy/{customer}", "GET /orders/{id}/{id}"}


def test_workers_and_failed_requests_are_counted(service: Service, collector: Collector) -> None:
    service.get("/broken", 3)
    evidence = evidence_after(collector, 3)
    assert route(evidence, "GET /broken").requests == 3
    assert statements_of(evidence) == 3  # a failed statement is a statement
    eventually(lambda: service.get("/broken") or all(collector.evidence().seen.values()))
    evidence = collector.evidence()
    assert evidence.workers == 2
    assert set(evidence.seen) == {"requests", "statements", "pool", "event loop", "threads"}


@pytest.mark.guarantee("a full pool and a blocked loop are seen", pattern="evidence")
def test_pool_waits_are_recorded(service: Service, collector: Collector) -> None:
    threads = [threading.Thread(target=service.get, args=("/hold", 3)) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    evidence = evidence_after(collector, 36)
    (pool,) = evidence.pools
    assert (pool.size, pool.max_overflow, pool.checked_out_max, pool.pools) == (1, 1, 2, 2)
    assert pool.site == mark("pool")
    assert pool.full_share > 0.3
    assert pool.wait_p95_ms > 50
    assert pool.held_s > 36 * 0.1 * 0.6
    hold = route(evidence, "GET /hold")
    assert hold.slow_wait_s > 0.3 * hold.slow_s


@pytest.mark.control("a full pool and a blocked loop are seen")
def test_pool_with_free_connections_records_no_wait(service: Service, collector: Collector) -> None:
    # A worker's first batch after a reset covers time before it, too, and is left out.
    eventually(lambda: service.get("/hold") or collector.evidence().pools)
    (pool,) = collector.evidence().pools
    assert (pool.wait_count, pool.wait_p95_ms, pool.full_share) == (0, 0, 0)


def test_engine_of_each_request_is_seen_with_its_line(service: Service, collector: Collector) -> None:
    eventually(lambda: service.get("/engine", 8) or len(collector.evidence().pools) > 0)
    service.get("/engine", 40)
    evidence = evidence_after(collector, 40)
    (pool,) = [pool for pool in evidence.pools if pool.site == mark("engine")]
    assert pool.pools > 4  # there are two workers
    churn = next(one for one in BottleneckDetector().rank(evidence, None) if "new connection" in one.title)
    assert churn.where == mark("engine")
    assert churn.remedy.startswith("create the engine once")


def test_engine_without_a_pool_is_named(service: Service, collector: Collector) -> None:
    service.get("/unpooled", 20)
    evidence = evidence_after(collector, 20)
    assert evidence.pools == ()
    assert "NullPool" in evidence.pool_kinds
    analysis = BottleneckDetector().rank(evidence, None)
    churn = next(one for one in analysis if "new connection" in one.title)
    assert (churn.where, churn.remedy[:21]) == (mark("unpooled"), "keep connections open")
    assert any("uses NullPool" in line or "NullPool" in line for line in analysis.not_measured)


def stopped(collector: Collector) -> bool:
    """Ask for the lines; the workers look for a command four times a second."""
    time.sleep(0.6)
    collector.trace_memory(STOP_TRACING)
    time.sleep(0.6)
    if any(collector.kept()):  # lines; one worker may have none
        return True
    collector.trace_memory(TRACE_MEMORY)
    return False


def test_line_that_keeps_memory_is_found_by_tracing(service: Service, collector: Collector) -> None:
    collector.trace_memory(TRACE_MEMORY)
    eventually(lambda: service.get("/keeps", 10) or stopped(collector))
    kept = collector.kept()
    line, size = max(((line, size) for line, size in kept.items() if line), key=lambda item: item[1])
    assert (line, 50_000 <= size <= kept[""]) == (mark("keeps"), True)


@pytest.mark.guarantee("a full pool and a blocked loop are seen")
def test_blocked_event_loop_is_recorded_with_its_line(service: Service, collector: Collector) -> None:
    service.get("/blocked", 6)
    evidence = evidence_after(collector, 6)
    assert evidence.loop is not None
    assert evidence.loop.max_ms > 100
    assert mark("blocked") in dict(evidence.loop.blockers)


@pytest.mark.control("a full pool and a blocked loop are seen")
def test_awaiting_does_not_count_as_blocking(service: Service, collector: Collector) -> None:
    service.get("/hold", 6)
    evidence = evidence_after(collector, 6)
    assert evidence.loop is not None
    assert evidence.loop.p50_ms < 50
    assert mark("blocked") not in dict(evidence.loop.blockers)


def test_new_collector_receives_all_texts_again(service: Service) -> None:
    for _ in range(2):
        with Collector(service.probe_address) as collector:
            eventually(lambda c=collector: c.workers == 2)
            service.get("/loop", 2)
            (found,) = repetitions(evidence_after(collector, 2))
            assert found.site == mark("loop")
        assert not service.probe_address.exists()


def test_reset_discards_evidence(service: Service, collector: Collector) -> None:
    service.get("/loop", 2)
    evidence_after(collector, 2)
    collector.reset()
    assert collector.evidence().requests == 0


PAUSED = """
import sys, time
from pathlib import Path
from tenfold.measure.probe.collector import Collector
with Collector(Path(sys.argv[1])) as collector:
    print("listening", flush=True)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and collector.evidence().dropped == 0:
        time.sleep(0.05)
    print(collector.evidence().dropped, flush=True)
"""


@pytest.mark.guarantee(
    "the probe never makes a request wait", pattern="evidence", under="a collector that is paused"
)
def test_paused_collector_does_not_block_worker_and_drops_are_counted(address: Path) -> None:
    """While the receiver is stopped requests run as fast as before; dropped ones are reported later."""
    from tenfold.measure.probe.probe import Probe

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    collecting = subprocess.Popen(
        [sys.executable, "-c", PAUSED, str(address)], stdout=subprocess.PIPE, text=True
    )
    probe = Probe(app, address, root=Path(__file__).parent)
    try:
        assert collecting.stdout is not None
        assert collecting.stdout.readline() == "listening\n"
        _send_requests(probe, 1)
        eventually(lambda: probe.recorder.is_on)
        os.kill(collecting.pid, signal.SIGSTOP)
        slowest, deadline = 0.0, time.monotonic() + 30
        while not probe.recorder.dropped:
            slowest = max(slowest, _send_requests(probe, 500))
            assert time.monotonic() < deadline, "nothing was ever dropped"
        assert slowest < 2  # for 500 requests; a blocked sender would stand still until the collector reads
        os.kill(collecting.pid, signal.SIGCONT)
        eventually(lambda: _send_requests(probe, 1) and collecting.poll() is not None, within_s=20)
        assert int(collecting.stdout.read()) > 0
    finally:
        probe.close()
        collecting.kill()
        collecting.wait()


@pytest.mark.control("the probe never makes a request wait")
def test_the_control_sender_without_queue_blocks(address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as paused, socket.socket(socket.AF_UNIX) as sender:
        paused.bind(str(address))
        paused.listen()
        sender.settimeout(1)
        sender.connect(str(address))  # the kernel accepts it, and no process reads
        with pytest.raises(TimeoutError):
            sender.sendall(b"a record of a request " * 1_000_000)


def _send_requests(probe, requests: int) -> float:
    """Send requests through the probe in this process; return the seconds they took."""
    import asyncio

    async def silent(message):
        pass

    async def run():
        for number in range(requests):
            scope = {"type": "http", "method": "GET", "path": f"/p{number % 7}", "root_path": ""}
            await probe(scope, None, silent)

    started = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - started


FORKING = """
import asyncio, os, sys, time
from pathlib import Path
from tenfold.measure.probe.probe import Probe

async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})

async def silent(message): pass

probe = Probe(app, Path(sys.argv[1]), root=Path.cwd())
scope = {"type": "http", "method": "GET", "path": "/", "root_path": ""}
asyncio.run(probe(scope, None, silent))
os.fork()
deadline = time.monotonic() + 20
while time.monotonic() < deadline:
    asyncio.run(probe(scope, None, silent))
    time.sleep(0.02)
"""


def test_forked_worker_connects_by_itself(address: Path) -> None:
    with Collector(address) as collector:
        forking = subprocess.Popen([sys.executable, "-c", FORKING, str(address)], start_new_session=True)
        try:
            eventually(lambda: collector.workers == 2)
            eventually(lambda: collector.evidence().workers == 2)
        finally:
            os.killpg(forking.pid, signal.SIGKILL)
            forking.wait()
        eventually(lambda: collector.workers == 0)


def test_nothing_is_recorded_without_collector(address: Path) -> None:
    from tenfold.measure.probe.probe import Probe

    calls = []

    async def app(scope, receive, send):
        calls.append((scope["type"], send))

    async def silent(message):
        pass

    probe = Probe(app, address, root=Path(__file__).parent)
    import asyncio

    for kind in ("lifespan", "websocket", "http"):
        asyncio.run(probe({"type": kind}, None, silent))
    probe.close()
    assert calls == [("lifespan", silent), ("websocket", silent), ("http", silent)]
    assert not probe.recorder._requests
