"""The estimate of random bits in session ids, by tables and properties."""

from __future__ import annotations

import random
import secrets
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.verify.sessions.id_entropy import ENOUGH_BITS, estimate, signature

seeds = st.integers(0, 10_000)


def issued(kind: str, seed: int = 1, count: int = 12) -> list[str]:
    drawn = random.Random(seed)
    makers = {
        "hex": lambda number: f"{drawn.getrandbits(128):032x}",
        "token": lambda number: secrets.token_urlsafe(32),
        "uuid4": lambda number: str(uuid.UUID(int=drawn.getrandbits(128), version=4)),
        "prefixed": lambda number: f"sess-{drawn.getrandbits(128):032x}",
        "signed": lambda number: f"eyJ1c2VyIjoiYWxpY2UifQ.aGVsbG8.{secrets.token_urlsafe(20)}",
        "number": lambda number: str(95 + number),
        "padded number": lambda number: f"{95 + number:032d}",
        "clock": lambda number: f"{1_700_000_000_000 + 7919 * number:x}",
        "short": lambda number: f"{drawn.getrandbits(40):010x}",
        "clock and little": lambda number: f"{1_700_000_000 + number:016x}{drawn.getrandbits(40):010x}",
        "few digits": lambda number: f"{drawn.randrange(10**9):09d}",
    }
    return [makers[kind](number) for number in range(count)]


@pytest.mark.parametrize("kind", ["hex", "token", "uuid4", "prefixed", "signed"])
@given(seed=seeds)
def test_random_ids_have_enough_bits(kind: str, seed: int) -> None:
    assert estimate(issued(kind, seed)).bits >= ENOUGH_BITS


@pytest.mark.parametrize(
    "kind", ["number", "padded number", "clock", "short", "clock and little", "few digits"]
)
@given(seed=seeds)
def test_guessable_ids_have_too_few_bits(kind: str, seed: int) -> None:
    assert estimate(issued(kind, seed)).bits < 64


def test_reason_is_named() -> None:
    assert estimate(issued("padded number")).why == "each is greater than the one before"
    assert "never change" in estimate(issued("prefixed")).why
    assert estimate(["a", "b", "a", "c"]).why == "1 of 4 were given out before"


@given(st.text("abc.", max_size=40))
def test_signature_is_part_of_the_value(text: str) -> None:
    assert signature(text) in text
