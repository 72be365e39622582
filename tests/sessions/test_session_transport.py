"""The token of a request: the one that this server set, or none."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.sessions import BearerTransport, CookieSessions, CookieTransport, MemoryStore
from tests.sessions.support.sealing import PlainSealer
from tests.sessions.support.service import service

NAME = b"__Host-session"


@pytest.mark.guarantee(
    "a cookie of another host does not count",
    pattern="sessions",
    under="planted cookies, other white space, quotes",
    control="the rows that count",
)
@pytest.mark.parametrize(
    ("lines", "token"),
    [
        ([], ""),
        ([b"__Host-session=abc"], "abc"),
        ([b"a=b; __Host-session=abc; c=d"], "abc"),
        ([b"a=b;__Host-session=abc ;c"], "abc"),
        ([b"a=b", b"\t__Host-session=abc"], "abc"),
        ([b"__Host-session=abc; __Host-session=abc"], "abc"),
        # Two that differ: one of them was planted, and it is unknown which.
        ([b"__Host-session=abc; __Host-session=def"], ""),
        ([b"__Host-session=abc", b"__Host-session=def"], ""),
        # Cookies that cannot be ours do not count, at any position.
        ([b"__Host-session=; __Host-session=abc"], "abc"),
        ([b'__Host-session="x"; __Host-session=abc'], "abc"),
        ([b"session=planted; __Host-session=abc"], "abc"),
        ([b"session=planted"], ""),
        ([b"__host-session=planted"], ""),
        ([b"x__Host-session=planted"], ""),
        ([b"__Host-session=a b"], ""),
        ([b"__Host-session=a,b"], ""),
        ([b"x=__Host-session=planted"], ""),
        # White space that only some parsers strip; browsers let another host set these names.
        ([b"\xa0__Host-session=planted"], ""),
        ([b"\xe2\x80\x80__Host-session=planted"], ""),
        ([b"\x85__Host-session=planted"], ""),
        ([b"\x0b__Host-session=planted"], ""),
        # Quotes do not group, $Version means nothing.
        ([b'$Version=1; a="b; __Host-session=abc; c"'], "abc"),
        ([b"__Host-session=" + b"a" * 70_000], ""),
        ([b"__Host-session"], ""),
        ([b";;; = ;__Host-session=abc;"], "abc"),
    ],
)
def test_token_from_cookie_headers(lines: list[bytes], token: str) -> None:
    assert CookieTransport().token([(b"cookie", line) for line in lines]) == token


@pytest.mark.parametrize("age_s", [-1, 0, 1.5, "60", True])
def test_age_of_a_cookie_is_whole_seconds_above_zero(age_s: Any) -> None:
    with pytest.raises(SettingsError, match="max_age_s"):
        CookieTransport(max_age_s=age_s)
    assert b"Max-Age=60" in CookieTransport(max_age_s=60).response_header("x")[1]


@given(st.lists(st.binary(max_size=80), max_size=4))
def test_any_header_bytes_are_accepted(lines: list[bytes]) -> None:
    assert isinstance(CookieTransport().token([(b"cookie", line) for line in lines]), str)
    assert isinstance(BearerTransport().token([(b"authorization", line) for line in lines]), str)


@pytest.mark.parametrize(
    ("lines", "token"),
    [
        ([], ""),
        ([b"Bearer abc.def"], "abc.def"),
        ([b"bearer  abc"], "abc"),
        ([b"Basic abc"], ""),
        ([b"Bearer"], ""),
        ([b"Bearer a b"], ""),
        ([b"Bearer abc", b"Bearer def"], ""),
    ],
)
def test_token_from_authorization_headers(lines: list[bytes], token: str) -> None:
    assert BearerTransport().token([(b"authorization", line) for line in lines]) == token


def test_set_cookie_header() -> None:
    transport = CookieTransport(same_site="strict")
    assert transport.response_header("abc") == (
        b"set-cookie",
        b"__Host-session=abc; Path=/; HttpOnly; SameSite=Strict; Secure",
    )
    assert transport.response_header("")[1].endswith(b"Secure; Max-Age=0")


@pytest.mark.parametrize(
    "options",
    [
        {"name": "a b"},
        {"name": "a;Domain=evil"},
        {"name": ""},
        {"name": "a\r\nb"},
        {"same_site": "nothing"},
        {"same_site": "none", "secure": False},
    ],
)
def test_invalid_cookie_options_are_refused(options: Any) -> None:
    with pytest.raises(SettingsError):
        CookieTransport(**options)


def test_cookie_sessions_need_the_cookie_transport() -> None:
    with pytest.raises(SettingsError, match="cookies"):
        service(outside=True, sessions=CookieSessions(PlainSealer(bytes(32))), transport=BearerTransport())
    service(outside=True, store=MemoryStore(), transport=BearerTransport())
