"""The collector: stale sockets, invalid frames, and the aggregate's bounds."""

from __future__ import annotations

import random
import socket
import stat
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import MeasurementError
from tenfold.measure.diagnosis.detector import BottleneckDetector
from tenfold.measure.probe import probe_protocol
from tenfold.measure.probe.aggregate import STATEMENTS, Aggregate
from tenfold.measure.probe.collector import Collector
from tenfold.measure.probe.evidence import is_repetition
from tenfold.measure.probe.sample_totals import TextTable
from tests.support.waiting import eventually


def connect(address: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.connect(str(address))
    return link


def batch(*requests: probe_protocol.RequestRecord, **more) -> probe_protocol.Batch:
    return probe_protocol.Batch(0.25, 0, True, requests=list(requests), **more)


def test_socket_is_private_and_removed_on_exit(address: Path) -> None:
    with Collector(address):
        assert stat.S_IMODE(address.stat().st_mode) == 0o600
    assert not address.exists()


def test_stale_socket_is_replaced_and_one_in_use_is_refused(address: Path) -> None:
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(address))
    with Collector(address) as collector:
        with pytest.raises(MeasurementError, match="another measurement listens"), Collector(address):
            pass
        with connect(address) as link:
            link.sendall(probe_protocol.pack(probe_protocol.Hello(1, "app 1")))
            eventually(lambda: collector.workers == 1)


def test_socket_path_over_100_characters_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(MeasurementError, match="shorter than 100 characters"),
        Collector(tmp_path / ("x" * 200)),
    ):
        pass


@pytest.mark.parametrize(
    "garbage", [b"\xff" * 64, probe_protocol.LENGTH.pack(5) + b"hello", probe_protocol.LENGTH.pack(2**31)]
)
def test_invalid_frame_closes_only_its_own_connection(address: Path, garbage: bytes) -> None:
    with Collector(address) as collector, connect(address) as good, connect(address) as bad:
        good.sendall(probe_protocol.pack(probe_protocol.Hello(1, "app 1")))
        bad.sendall(garbage)
        bad.settimeout(5)
        assert bad.recv(1) == b""
        # A frame in two pieces, as a full socket delivers it.
        frame = probe_protocol.pack(batch(probe_protocol.RequestRecord(time.perf_counter(), 0.1)))
        good.sendall(frame[:10])
        good.sendall(frame[10:])
        eventually(lambda: collector.evidence().requests == 1)
        assert collector.workers == 1


def test_evidence_does_not_contain_sql_texts(address: Path) -> None:
    text = probe_protocol.StatementText(7, "SELECT ?", "app.py:1", "SELECT 'secret'")
    with Collector(address) as collector, connect(address) as link:
        request = probe_protocol.RequestRecord(time.perf_counter(), 0.1, executions={7: [1, 0.01]})
        link.sendall(
            probe_protocol.pack(probe_protocol.Hello(1, ""))
            + probe_protocol.pack(batch(request, statements=[text]))
        )
        eventually(lambda: collector.evidence().requests == 1)
        assert collector.sql_examples() == {"SELECT ?": "SELECT 'secret'"}
        assert "secret" not in repr(collector.evidence())


def test_requests_started_before_reset_are_not_counted() -> None:
    aggregate = Aggregate(since=100.0)
    aggregate.add(
        1,
        batch(probe_protocol.RequestRecord(99.9, 0.5), probe_protocol.RequestRecord(100.1, 0.1)),
        TextTable(),
        now=100.5,
    )
    assert aggregate.evidence(101.0).requests == 1


def test_aggregate_memory_is_bounded() -> None:
    aggregate, texts = Aggregate(since=0.0), TextTable()
    for number in range(1, STATEMENTS + 500):
        texts.statements[number] = (f"SELECT {number}", "", "")
        aggregate.add(
            1, batch(probe_protocol.RequestRecord(1, 0.1, executions={number: [1, 0.01]})), texts, now=2
        )
    evidence = aggregate.evidence(3.0)
    assert len(evidence.statements) == STATEMENTS + 1
    assert sum(use.executions for use in evidence.statements) == STATEMENTS + 499


def test_slow_time_is_attributed_to_slow_statement() -> None:
    """Half of the requests are slow, because of one statement only."""
    aggregate, texts = Aggregate(since=0.0), TextTable()
    texts.routes[1] = ("GET /", "app.py:1")
    texts.statements |= {1: ("SELECT fast", "a.py:1", ""), 2: ("SELECT slow", "a.py:2", "")}
    for number in range(1000):
        slow = number % 2
        executions = {1: [1, 0.01]} | ({2: [1, 0.08]} if slow else {})
        aggregate.add(
            1,
            batch(probe_protocol.RequestRecord(1, 0.1 if slow else 0.02, 1, 0, executions)),
            texts,
            now=2,
        )
    evidence = aggregate.evidence(3.0)
    shares = {use.fingerprint: use.slow_s / evidence.slow_s for use in evidence.statements}
    assert shares["SELECT slow"] == pytest.approx(0.8, abs=0.02)
    assert shares["SELECT fast"] == pytest.approx(0.1, abs=0.02)
    (route,) = evidence.routes
    assert (route.route, route.endpoint, route.requests) == ("GET /", "app.py:1", 1000)
    assert route.total_s == pytest.approx(60)


def heavy_and_cheap() -> list[tuple[int, probe_protocol.RequestRecord]]:
    """Ten requests of a route with 150 statements, forty of a cheap one: 10.2 of 11.1 seconds."""
    heavy = [(1, probe_protocol.RequestRecord(1, 1.02, 1, 0, {1: [150, 0.9]})) for _ in range(10)]
    return heavy + [(1, probe_protocol.RequestRecord(1, 0.0225, 2, 0, {2: [1, 0.01]})) for _ in range(40)]


def aggregate_of(requests: list[tuple[int, probe_protocol.RequestRecord]]) -> Aggregate:
    aggregate, texts = Aggregate(since=0.0), TextTable()
    texts.routes |= {1: ("GET /heavy", "app.py:1"), 2: ("GET /cheap", "app.py:9")}
    texts.statements |= {
        1: ("SELECT heavy FROM t WHERE a = ?", "a.py:1", ""),
        2: ("SELECT cheap", "a.py:2", ""),
    }
    for worker, request in requests:
        aggregate.add(worker, batch(request), texts, now=2)
    return aggregate


@pytest.mark.guarantee(
    "a rare and heavy route is found beside a frequent and cheap one",
    pattern="measure",
    under="ten requests with 150 statements each",
    control="the share of the cheap route's statement in the same test",
)
def test_rare_and_heavy_route_is_found_beside_a_frequent_and_cheap_one() -> None:
    evidence = aggregate_of(heavy_and_cheap()).evidence(3.0)
    shares = {use.fingerprint: use.slow_s / evidence.slow_s for use in evidence.statements}
    assert shares["SELECT heavy FROM t WHERE a = ?"] > 0.75 > 0.05 > shares["SELECT cheap"]
    first = BottleneckDetector().rank(evidence, None)[0]
    assert (first.title, first.severity) == ("N+1 in GET /heavy", "critical")


durations = st.lists(st.floats(0.0001, 20.0), min_size=1, max_size=60)


@given(durations, st.randoms())
def test_slow_half_depends_neither_on_the_order_nor_on_the_split(
    values: list[float], shuffle: random.Random
) -> None:
    requests = [
        (1, probe_protocol.RequestRecord(1, value, 1, value / 4, {1: [1, value / 2]})) for value in values
    ]
    whole = aggregate_of(requests).evidence(3.0)
    shuffle.shuffle(requests)
    cut = shuffle.randrange(len(requests) + 1)
    parts = [(aggregate_of(part), 1.5) for part in (requests[:cut], requests[cut:])]
    merged = Aggregate.merge(parts).evidence(0.0)
    assert merged.seconds == 3.0
    for one, other in ((whole.routes, merged.routes), (whole.statements, merged.statements)):
        assert [vars_of(a) for a in one] == [vars_of(b) for b in other]
    (route,) = whole.routes
    above = sum(sorted(values)[(len(values) + 1) // 2 :])
    assert above * 0.9 <= route.slow_s <= sum(values) + 1e-9  # buckets are 9 % wide
    assert route.slow_wait_s == pytest.approx(route.slow_s / 4)


def vars_of(one: object) -> dict[str, object]:
    named = {name: getattr(one, name) for name in type(one).__struct_fields__}  # type: ignore[attr-defined]
    return {
        name: pytest.approx(value) if isinstance(value, float) else value for name, value in named.items()
    }


def test_first_requests_of_a_route_are_slow_when_they_are() -> None:
    slow = [(1, probe_protocol.RequestRecord(1, 2.0, 1, 0, {1: [1, 1.9]})) for _ in range(9)]
    fast = [(1, probe_protocol.RequestRecord(1, 0.01, 1)) for _ in range(100)]
    evidence = aggregate_of(slow + fast).evidence(3.0)
    assert evidence.statements[0].slow_s == pytest.approx(9 * 1.9)


@pytest.mark.parametrize(
    ("executions", "seconds", "expected"),
    [(4, 9.0, False), (5, 0.020, False), (5, 0.0201, True), (19, 0.001, False), (20, 0.0, True)],
)
def test_repetition_thresholds(executions: int, seconds: float, expected: bool) -> None:
    assert is_repetition(executions, seconds) is expected
