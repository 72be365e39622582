"""Processes with different rings are detected; a rollout between neighbouring epochs is allowed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tenfold.errors import SettingsError
from tenfold.hashing import HashRing, RingState, disagreement
from tenfold.hashing import ring as module

RING = HashRing({"a": 1, "b": 2})


@pytest.mark.guarantee(
    "processes with different rings are detected; a rollout is allowed",
    pattern="hashing",
    under="another node, weight, count of points, algorithm or epoch",
)
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
def test_rings_that_place_differently_have_different_fingerprints(other: HashRing) -> None:
    assert other.fingerprint != RING.fingerprint
    assert disagreement(RING.state(3), other.state(3))


def test_fingerprint_depends_on_the_algorithm_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = RING.fingerprint
    monkeypatch.setattr(module, "VERSION", b"tenfold ring 2")
    assert RING.fingerprint != before


@pytest.mark.control("processes with different rings are detected; a rollout is allowed")
def test_the_control_equal_rings_have_equal_fingerprints() -> None:
    ring = HashRing(["b", "c"])
    ring.add("b", weight=2)
    ring.add("a", weight=1)
    ring.remove("c")
    assert ring.fingerprint == RING.fingerprint
    assert disagreement(RING.state(3), ring.state(3)) is None


@pytest.mark.guarantee("processes with different rings are detected; a rollout is allowed")
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
def test_only_neighbouring_epochs_may_coexist(mine: str, theirs: str, sentence: str | None) -> None:
    found = disagreement(RingState.parse(mine), RingState.parse(theirs))
    assert found is None if sentence is None else sentence in str(found)


def test_state_round_trips() -> None:
    state = RING.state(12)
    assert RingState.parse(str(state)) == state
    assert replace(state, epoch=13) != state


@pytest.mark.parametrize(
    "text", ["", "7", "7:", "7:xyz", "-1:00000000000000aa", "7:00000000000000aa\n", "7" * 10_000]
)
def test_invalid_state_text_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="is no ring's state") as caught:
        RingState.parse(text)
    assert len(str(caught.value)) < 160


@pytest.mark.parametrize(("epoch", "fingerprint"), [(-1, "0" * 16), (1.5, "0" * 16), (1, "x")])
def test_invalid_state_values_are_refused(epoch: int, fingerprint: str) -> None:
    with pytest.raises(SettingsError, match="is no ring's state"):
        RingState(epoch, fingerprint)
