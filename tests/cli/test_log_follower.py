"""Lines of nginx's access log as `tenfold up` prints them."""

from __future__ import annotations

import json

import pytest

from tenfold.cli.log_follower import format_request

LINE = {
    "method": "GET",
    "path": "/orders",
    "status": 200,
    "request_time": 0.0123,
    "upstream_addr": "127.0.0.1:1, 127.0.0.1:2",
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "GET /orders 200 12 ms  app 1, 127.0.0.1:2"),
        ({"upstream_addr": "-", "status": 404}, "GET /orders 404 12 ms"),
    ],
)
def test_request_is_shown_with_names_of_its_instances(changes: dict[str, object], text: str) -> None:
    assert format_request(json.dumps(LINE | changes), {"127.0.0.1:1": "app 1"}) == text


@pytest.mark.parametrize("line", ["oops", "{}", '{"method": "GET"}'])
def test_line_of_another_format_is_shown_unchanged(line: str) -> None:
    assert format_request(line, {}) == line
