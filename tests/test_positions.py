"""Log positions and the token that carries one."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import PositionError
from tenfold.positions import (
    Token,
    format_position,
    merge_tokens,
    normalize_position,
    parse_position,
    renew_token,
)

MIB = 1024 * 1024
POSITIONS = st.integers(0, 2**64 - 1)
SEGMENTS = st.sampled_from([2**n * MIB for n in range(11)])


def tokens(systems: st.SearchStrategy[int] = st.just(7)) -> st.SearchStrategy[Token]:  # noqa: B008
    return st.builds(Token, systems, st.integers(1, 4), POSITIONS, st.integers(0, 2**32 - 1))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0/0", 0),
        ("16/B374D848", 0x16B374D848),
        ("16/0B374D48", 0x160B374D48),  # PostgreSQL 19 pads
        ("FFFFFFFF/FFFFFFFF", 2**64 - 1),
        ("0/ab", 0xAB),
    ],
)
def test_parse_position(text: str, number: int) -> None:
    assert parse_position(text) == number


@pytest.mark.parametrize(
    "text", ["", "0", "/", "0/", "1/2/3", "x/1", "1/-1", " 0/1", "0/1\n", "123456789/0", "0/1_0"]
)
def test_invalid_positions_are_refused(text: str) -> None:
    with pytest.raises(PositionError, match="16/B374D848"):
        parse_position(text)


@given(POSITIONS)
def test_positions_round_trip(position: int) -> None:
    assert parse_position(format_position(position)) == position


@pytest.mark.parametrize(
    ("position", "start"),
    [
        (24, 24),  # within the long header of a segment: no position that PostgreSQL would give
        (40, 0),
        (16 * MIB + 40, 16 * MIB),
        (16 * MIB + 8192 + 24, 16 * MIB + 8192),
        (16 * MIB + 8192 + 40, 16 * MIB + 8192 + 40),  # the first page has the long header, others the short
        (8192, 8192),
        (8192 + 25, 8192 + 25),
        (8191, 8191),
    ],
)
def test_a_position_behind_a_header_is_the_start_before_it(position: int, start: int) -> None:
    assert normalize_position(position) == start


def test_the_size_of_a_segment_matters() -> None:
    position = 17 * MIB + 40
    assert normalize_position(position) == position
    assert normalize_position(position, segment_bytes=MIB) == 17 * MIB


@given(POSITIONS, SEGMENTS)
def test_normalizing_removes_a_header_and_nothing_else(position: int, segment_bytes: int) -> None:
    start = normalize_position(position, segment_bytes=segment_bytes)
    assert position - start in {0, 24, 40}
    assert normalize_position(start, segment_bytes=segment_bytes) == start
    assert start == position or start % 8192 == 0


@given(tokens(POSITIONS))
def test_tokens_round_trip(token: Token) -> None:
    assert Token.unpack(token.pack()) == token
    assert len(token.pack()) == 25


@given(st.binary(max_size=60))
def test_other_bytes_are_refused(data: bytes) -> None:
    with contextlib.suppress(PositionError):
        assert Token.unpack(data).pack() == data


@given(tokens(), tokens(), tokens())
def test_merging_is_commutative(a: Token, b: Token, c: Token) -> None:
    assert merge_tokens(a, b) == merge_tokens(b, a)
    assert merge_tokens(merge_tokens(a, b), c) == merge_tokens(a, merge_tokens(b, c))
    assert merge_tokens(a, a) == a == merge_tokens(a, None) == merge_tokens(None, a)


@given(tokens(), tokens())
def test_merging_keeps_the_furthest_position_of_the_latest_timeline(a: Token, b: Token) -> None:
    found = merge_tokens(a, b)
    assert found is not None
    latest = max(a.timeline, b.timeline)
    assert found.timeline == latest
    assert found.position == max(token.position for token in (a, b) if token.timeline == latest)
    assert found.expires_at == max(a.expires_at, b.expires_at)


@given(tokens(st.just(11)), tokens(st.just(12)))
def test_merging_two_systems_keeps_the_latest(a: Token, b: Token) -> None:
    assert merge_tokens(a, b) == merge_tokens(b, a) == (a if a.expires_at > b.expires_at else b)


@given(tokens())
def test_unsure_token_lasts_until_the_primary_was_used(token: Token) -> None:
    unsure = Token.unsure(expires_at=0)
    assert merge_tokens(unsure, token) == merge_tokens(token, unsure) == unsure
    assert renew_token(unsure, token) == token


@pytest.mark.parametrize(
    ("held", "primary", "found"),
    [
        (None, Token(7, 1, 50, 9), Token(7, 1, 50, 9)),
        (Token(7, 1, 60, 8), Token(7, 1, 50, 9), Token(7, 1, 60, 9)),
        (Token(7, 1, 90, 9), Token(7, 2, 50, 9), Token(7, 2, 50, 9)),  # promoted: the end of 1 is lost
        (Token(7, 3, 90, 9), Token(7, 2, 50, 9), Token(7, 2, 50, 9)),  # restored from an older branch
        (Token(5, 3, 90, 9), Token(7, 2, 50, 9), Token(7, 2, 50, 9)),  # another cluster altogether
    ],
)
def test_renewed_token_is_of_the_primarys_timeline(held: Token | None, primary: Token, found: Token) -> None:
    assert renew_token(held, primary) == found
