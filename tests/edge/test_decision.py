"""What is said of an answer, and what a shared cache makes of it: tables and properties."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.edge.cache_control import format_date, parse_date, parse_directives, parse_targeted, split_tags
from tenfold.edge.conditional import evaluate
from tenfold.edge.decision import Answer, Request, describe, may_store, murmur2
from tenfold.edge.rules import NOTHING_SAID, Rule, immutable, private, public

NOW = 1_800_000_000.0
GET = Request("GET", "/")


def said(rule: Rule, status: int = 200, request: Request = GET, **headers: str) -> dict[str, str]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return {name: value for name, value in describe(rule, request, Answer(status, named)).items() if value}


@pytest.mark.parametrize(
    ("rule", "headers", "cache_control"),
    [
        (public(ttl=300), {}, "public, max-age=300"),
        (public(ttl=300, swr=60), {}, "public, max-age=300, stale-while-revalidate=60"),
        (public(ttl=300, tags=["a"]), {}, "public, max-age=0, s-maxage=300"),
        (private(ttl=5), {}, "private, max-age=5"),
        (immutable(), {}, "public, max-age=31536000, immutable"),
        (NOTHING_SAID, {"cache_control": "public, max-age=9"}, "private, no-store"),
        (public(ttl=300), {"cache_control": "max-age=10"}, "public, max-age=10"),
        (public(ttl=300), {"cache_control": "max-age=900"}, "public, max-age=300"),
        (public(ttl=300), {"cache_control": "s-maxage=10"}, "public, max-age=300, s-maxage=10"),
        (
            public(ttl=300, swr=60),
            {"cache_control": "must-revalidate"},
            "public, max-age=300, must-revalidate",
        ),
        (public(ttl=300), {"set_cookie": "a=b"}, "private, no-store"),
        (private(ttl=5), {"set_cookie": "a=b"}, "private, max-age=5"),
        (private(ttl=5), {"cache_control": "private"}, "private, max-age=5"),
    ],
)
def test_cache_control_of_a_rule(rule: Rule, headers: dict[str, str], cache_control: str) -> None:
    assert said(rule, **headers)["cache-control"] == cache_control


@pytest.mark.parametrize("own", ["no-store", "private", "no-cache", "private, max-age=3", "No-Store, x=1"])
def test_app_that_is_stricter_is_left_as_it_is(own: str) -> None:
    assert "cache-control" not in said(public(ttl=300), cache_control=own)


@pytest.mark.parametrize(
    ("status", "stored"), [(200, True), (404, False), (500, False), (302, False), (301, True)]
)
def test_errors_are_not_stored(status: int, stored: bool) -> None:
    headers = said(public(ttl=300), status)
    assert may_store(GET, Answer(status, headers), now=NOW).is_stored is stored


def test_stale_answers_under_a_shared_lifetime_need_the_cdn_s_own_header() -> None:
    headers = said(public(ttl=300, swr=60, tags=["a", "b"]))
    assert headers["cdn-cache-control"] == "max-age=300, stale-while-revalidate=60"
    assert headers["cache-tag"] == "a,b"
    storage = may_store(GET, Answer(200, headers), now=NOW)
    assert (storage.lifetime_s, storage.swr_s) == (300, 60)


def test_answers_to_authorized_requests_are_shared_if_the_rule_says_so() -> None:
    request = Request("GET", "/", headers={"authorization": "Bearer x"})
    assert said(public(ttl=300), request=request)["cache-control"] == "private, no-store"
    assert (
        said(public(ttl=300, authorization=True), request=request)["cache-control"] == "public, max-age=300"
    )


DATE = format_date(NOW)


@pytest.mark.parametrize(
    ("headers", "lifetime_s"),
    [
        ({}, 0),
        ({"cache-control": "max-age=9"}, 9),
        ({"cache-control": "max-age=9, s-maxage=5"}, 5),
        ({"cache-control": "max-age=9", "age": "4"}, 5),
        ({"cache-control": "max-age=9", "age": "9"}, 0),
        ({"cache-control": "max-age=9", "age": "-1"}, 9),
        ({"cache-control": "max-age=9", "date": format_date(NOW - 3)}, 6),
        ({"cache-control": "max-age=9", "date": format_date(NOW + 90)}, 9),
        ({"cache-control": "max-age=a"}, 0),
        ({"cache-control": 'max-age="9"'}, 9),
        ({"cache-control": "max-age=99999999999999"}, 2_147_483_648),
        ({"cache-control": "max-age=9", "vary": "Accept"}, 9),
        ({"cache-control": "max-age=9", "vary": "Accept, *"}, 0),
        ({"cache-control": "max-age=9", "set-cookie": "a=b"}, 0),
        ({"cache-control": "max-age=9, no-cache"}, 0),
        ({"cache-control": 'max-age=9, private="a, b"'}, 0),
        ({"cache-control": 'x="no-store", max-age=9'}, 9),
        ({"expires": format_date(NOW + 7), "date": DATE}, 7),
        ({"expires": format_date(NOW - 7), "date": DATE}, 0),
        ({"expires": "0", "date": DATE}, 0),
        ({"expires": format_date(NOW + 7), "date": DATE, "cache-control": "max-age=2"}, 2),
        ({"cdn-cache-control": "max-age=4", "cache-control": "no-store"}, 4),
        ({"cdn-cache-control": "no-store", "cache-control": "max-age=4"}, 0),
        ({"cdn-cache-control": "max-age=4, &&&", "cache-control": "no-store"}, 0),
        ({"cdn-cache-control": 'max-age="4"', "cache-control": "max-age=2"}, 2),
    ],
)
def test_lifetime_in_a_shared_cache(headers: dict[str, str], lifetime_s: int) -> None:
    assert may_store(GET, Answer(200, headers), now=NOW).lifetime_s == lifetime_s


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=30), st.text(max_size=30))
def test_no_header_raises_or_stores_what_is_private(one: str, two: str, three: str, four: str) -> None:
    headers = {"cache-control": one, "cdn-cache-control": two, "expires": three, "age": four, "vary": four}
    may_store(GET, Answer(200, headers), now=NOW)
    for own in ("no-store", "private"):
        closed = headers | {"cache-control": f"{own}, {one}", "cdn-cache-control": ""}
        assert not may_store(GET, Answer(200, closed), now=NOW).is_stored
    describe(public(ttl=3), GET, Answer(200, headers))
    parse_directives(one), parse_targeted(two), parse_date(three), split_tags(four)


@given(st.floats(0, 4e9))
def test_date_is_read_as_it_was_written(seconds: float) -> None:
    assert parse_date(format_date(seconds)) == int(seconds)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("Sun, 06 Nov 1994 08:49:37 GMT", 784_111_777),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 784_111_777),
        ("Sun Nov  6 08:49:37 1994", 784_111_777),
        ("Sun, 06 Nov 1994 08:49:37 UTC", None),
        ("0", None),
        ("", None),
    ],
)
def test_dates_have_three_forms(text: str, seconds: float | None) -> None:
    assert parse_date(text) == seconds


# From the reference implementation's known values.
@pytest.mark.parametrize(("data", "hashed"), [(b"", 0), (b"a", 0x92685F5E), (b"hello", 0xE56129CB)])
def test_murmur2(data: bytes, hashed: int) -> None:
    assert murmur2(data) == hashed


OLD, NEW = format_date(NOW - 100), format_date(NOW)


@pytest.mark.parametrize(
    ("method", "headers", "status"),
    [
        ("GET", {}, None),
        ("GET", {"if-none-match": '"a"'}, 304),
        ("HEAD", {"if-none-match": 'W/"a"'}, 304),
        ("GET", {"if-none-match": '"b", W/"a" ,"c"'}, 304),
        ("GET", {"if-none-match": "*"}, 304),
        ("PUT", {"if-none-match": "*"}, 412),
        ("PUT", {"if-none-match": '"b"'}, None),
        ("GET", {"if-none-match": '"b"', "if-modified-since": NEW}, None),
        ("GET", {"if-modified-since": NEW}, 304),
        ("GET", {"if-modified-since": OLD}, None),
        ("POST", {"if-modified-since": NEW}, None),
        ("GET", {"if-modified-since": "yesterday"}, None),
        ("GET", {"if-match": '"a"'}, None),
        ("GET", {"if-match": 'W/"a"'}, 412),
        ("PUT", {"if-match": '"b"'}, 412),
        ("PUT", {"if-match": "*"}, None),
        ("PUT", {"if-match": '"a"', "if-unmodified-since": OLD}, None),
        ("PUT", {"if-unmodified-since": OLD}, 412),
        ("PUT", {"if-unmodified-since": NEW}, None),
        ("GET", {"if-match": '"b"', "if-none-match": '"a"'}, 412),
        ("GET", {"if-none-match": "a"}, None),
    ],
)
def test_preconditions_in_their_order(method: str, headers: dict[str, str], status: int | None) -> None:
    assert evaluate(method, headers, etag='"a"', last_modified=NEW) == status


def test_preconditions_before_anything_exists() -> None:
    assert evaluate("PUT", {"if-none-match": "*"}, exists=False) is None
    assert evaluate("PUT", {"if-match": "*"}, exists=False) == 412


def test_weak_tags_match_no_if_match() -> None:
    assert evaluate("PUT", {"if-match": 'W/"a"'}, etag='W/"a"') == 412


@given(
    st.dictionaries(st.sampled_from(["if-match", "if-none-match", "if-modified-since"]), st.text(max_size=20))
)
def test_no_condition_raises(headers: dict[str, Any]) -> None:
    assert evaluate("GET", headers, etag='"a"', last_modified=NEW) in (None, 304, 412)
