from __future__ import annotations

import pytest

from tenfold.measure.load import histogram
from tenfold.measure.load.answers import MAX_ENDPOINTS, MAX_MESSAGES, OTHER, AnswerCounts
from tenfold.measure.load.arrivals import ArrivalResult


def test_endpoint_counts_corrected_and_raw_latencies_and_statuses() -> None:
    answers = AnswerCounts()
    endpoint_counts = answers.endpoint("GET", "/a")
    endpoint_counts.add(200, ArrivalResult.GOOD, 30.0, 10.0, 100)
    endpoint_counts.add(200, ArrivalResult.SLOW, 300.0, 10.0, 300)
    endpoint_counts.add(503, ArrivalResult.REFUSED, 9000.0, 9000.0, 9)
    endpoint_counts.add(0, ArrivalResult.FAILED, 1.0, 1.0, 0)
    (endpoint,) = answers.summaries()
    assert (endpoint.name, endpoint.requests, endpoint.failed, endpoint.refused) == ("GET /a", 4, 1, 1)
    assert endpoint.statuses == {"200": 2, "error": 1, "503": 1}
    assert endpoint.bytes_p50 == 300
    # The refusal is in no latency, neither in those of its endpoint nor in those of all.
    assert histogram.count(endpoint.corrected) == histogram.count(endpoint.raw) == 3
    assert sorted(answers.corrected_ms()) == [1.0, 30.0, 300.0]
    assert sorted(answers.raw_ms()) == [1.0, 10.0, 10.0]
    assert histogram.share_above(endpoint.corrected, 200) == pytest.approx(1 / 3)
    assert histogram.share_above(endpoint.raw, 200) == 0.0


def test_number_of_endpoints_and_error_messages_is_bounded() -> None:
    answers = AnswerCounts()
    for i in range(MAX_ENDPOINTS + 50):
        answers.endpoint("GET", f"/{i}").add(200, ArrivalResult.GOOD, 1, 1, 0)
        answers.add_error(f"message {i}")
    assert len(answers.summaries()) == MAX_ENDPOINTS + 1
    assert answers.summaries()[0].name == OTHER
    assert answers.requests == MAX_ENDPOINTS + 50
    assert len(answers.errors) == MAX_MESSAGES + 1


def test_unsent_arrival_counts_with_its_wait_in_corrected_latencies() -> None:
    answers = AnswerCounts()
    answers.endpoint("GET", "/a").add(200, ArrivalResult.GOOD, 1, 1, 0)
    answers.unsent_ms.append(200)
    assert sorted(answers.corrected_ms()) == [1, 200]
    assert list(answers.raw_ms()) == [1]
