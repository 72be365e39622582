from __future__ import annotations

from tenfold.measure.load import histogram
from tenfold.measure.load.answers import MAX_ENDPOINTS, MAX_MESSAGES, OTHER, Tallies
from tenfold.measure.load.arrivals import Fate


def test_an_endpoint_keeps_both_latencies_and_its_statuses() -> None:
    tallies = Tallies()
    tally = tallies.of("GET", "/a")
    tally.add(200, Fate.GOOD, 30.0, 10.0, 100)
    tally.add(200, Fate.SLOW, 300.0, 10.0, 300)
    tally.add(503, Fate.REFUSED, 1.0, 1.0, 9)
    tally.add(0, Fate.FAILED, 1.0, 1.0, 0)
    (endpoint,) = tallies.endpoints()
    assert (endpoint.name, endpoint.requests, endpoint.failed, endpoint.refused) == ("GET /a", 4, 1, 1)
    assert endpoint.statuses == {"200": 2, "error": 1, "503": 1}
    assert endpoint.bytes_p50 == 300
    assert histogram.share_above(endpoint.corrected, 200) == 0.25
    assert histogram.share_above(endpoint.raw, 200) == 0.0


def test_endpoints_and_messages_are_bounded() -> None:
    tallies = Tallies()
    for i in range(MAX_ENDPOINTS + 50):
        tallies.of("GET", f"/{i}").add(200, Fate.GOOD, 1, 1, 0)
        tallies.error(f"message {i}")
    assert len(tallies.endpoints()) == MAX_ENDPOINTS + 1
    assert tallies.endpoints()[0].name == OTHER
    assert tallies.requests == MAX_ENDPOINTS + 50
    assert len(tallies.errors) == MAX_MESSAGES + 1


def test_what_was_never_sent_took_as_long_as_it_waited() -> None:
    tallies = Tallies()
    tallies.of("GET", "/a").add(200, Fate.GOOD, 1, 1, 0)
    tallies.unsent_ms.append(200)
    assert sorted(tallies.corrected_ms()) == [1, 200]
    assert list(tallies.raw_ms()) == [1]
