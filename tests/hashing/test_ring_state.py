"""Two processes with different rings are noticed, and a rollout is not mistaken for that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenfold.errors import SettingsError
from tenfold.hashing import HashRing, RingState, disagreement
from tenfold.hashing import ring as module

RING = HashRing({"a": 1, "b": 2})


@pytest.mark.parametrize(
    "other",
    [
        HashRing({"a": 1, "c": 2}),
        HashRing({"a": 1, "b": 2, "c": 1}),
        HashRing({"a": 2, "b": 1}),
        HashRing({"a": 1, "b": 2.0000001}),
        HashRing({"a": 1, "b": 2}, virtual_nodes=151),
        HashRing(["ab"]),
        HashRing(),
    ],
)
def test_whatever_places_differently_has_another_fingerprint(other: HashRing) -> None:
    assert other.fingerprint != RING.fingerprint
    assert disagreement(RING.state(3), other.state(3))


def test_another_algorithm_has_another_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RING.fingerprint
    monkeypatch.setattr(module, "VERSION", b"tenfold ring 2")
    assert RING.fingerprint != before


def test_the_control_what_places_alike_has_the_same_fingerprint() -> None:
    ring = HashRing(["b", "c"])
    ring.add("b", weight=2)
    ring.add("a", weight=1)
    ring.remove("c")
    assert ring.fingerprint == RING.fingerprint
    assert disagreement(RING.state(3), ring.state(3)) is None


@pytest.mark.parametrize(
    ("mine", "theirs", "sentence"),
    [
        ("7:00000000000000aa", "7:00000000000000aa", None),
        ("7:00000000000000aa", "8:00000000000000bb", None),
        ("8:00000000000000bb", "7:00000000000000aa", None),
        ("7:00000000000000aa", "8:00000000000000aa", None),
        (
            "7:00000000000000aa",
            "7:00000000000000bb",
            "epoch 7 has two rings, 00000000000000aa here and 00000000000000bb",
        ),
        ("7:00000000000000aa", "9:00000000000000bb", "stop this one until"),
        ("9:00000000000000aa", "7:00000000000000aa", "stop the other until"),
    ],
)
def test_neighbouring_epochs_may_coexist_and_nothing_else(
    mine: str, theirs: str, sentence: str | None
) -> None:
    found = disagreement(RingState.parse(mine), RingState.parse(theirs))
    assert found is None if sentence is None else sentence in str(found)


def test_a_state_reads_back() -> None:
    state = RING.state(12)
    assert RingState.parse(str(state)) == state
    assert replace(state, epoch=13) != state


@pytest.mark.parametrize(
    "text", ["", "7", "7:", "7:xyz", "-1:00000000000000aa", "7:00000000000000aa\n", "7" * 10_000]
)
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no ring's state") as caught:
        RingState.parse(text)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(("epoch", "fingerprint"), [(-1, "0" * 16), (1.5, "0" * 16), (1, "x")])
def test_a_state_that_would_not_read_back_is_not_made(epoch: int, fingerprint: str) -> None:
    with pytest.raises(SettingsError, match="is no ring's state"):
        RingState(epoch, fingerprint)
