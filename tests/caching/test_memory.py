"""The memory tier: bounded, and never older than what was heard."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.caching.entry import Entry
from tenfold.caching.memory import MemoryTier


def entry(size: int = 10, generation: bytes = b"1", tag: str = "t") -> Entry:
    return Entry(b"v" * size, ((tag, generation),), b"", False, time.time() + 60, time.time() + 60)


def keep(memory: MemoryTier, key: str, one: Entry) -> None:
    memory.keep(key, one, epoch=memory.epoch)


def test_entry_is_found_until_its_tag_changes() -> None:
    memory = MemoryTier(max_bytes=10_000)
    keep(memory, "a", entry())
    assert memory.find("a", None)
    memory.set_generation("t", b"2")
    assert memory.find("a", None) is None
    keep(memory, "a", entry())
    assert memory.find("a", None) is None, "of a generation that is over"
    keep(memory, "a", entry(generation=b"2"))
    assert memory.find("a", None)


def test_what_was_read_before_a_flush_is_not_kept() -> None:
    memory = MemoryTier(max_bytes=10_000)
    epoch = memory.epoch
    memory.flush()
    memory.keep("a", entry(), epoch=epoch)
    assert memory.find("a", None) is None


def test_nothing_is_found_without_a_recent_confirmation() -> None:
    memory = MemoryTier(max_bytes=10_000, max_stale_s=60)
    keep(memory, "a", entry())
    assert memory.find("a", None) is None
    memory.confirm(time.monotonic())
    assert memory.find("a", None)
    memory.confirm(time.monotonic() - 61)
    assert memory.find("a", None) is None
    memory.confirm(time.monotonic())
    memory.forget_confirmation()
    assert memory.find("a", None) is None


def test_clock_steps_do_not_prolong_a_life(monkeypatch) -> None:  # type: ignore[no-untyped-def]
    memory = MemoryTier(max_bytes=10_000)
    keep(memory, "a", entry())
    now = time.monotonic()
    monkeypatch.setattr(time, "time", lambda: 0.0)  # an hour back, and more
    assert memory.find("a", None)
    monkeypatch.setattr(time, "monotonic", lambda: now + 61)
    assert memory.find("a", None) is None


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 3000)), max_size=60))
def test_size_is_bounded_and_counted(puts: list[tuple[int, int]]) -> None:
    memory = MemoryTier(max_bytes=5_000)
    for key, size in puts:
        keep(memory, str(key), entry(size))
        memory.find(str(key // 2), None)
        assert memory._bytes <= 5_000
    assert memory._bytes == sum(slot.size for slot in memory._slots.values())
    memory.flush()
    assert memory._bytes == len(memory._slots) == 0


def test_entries_that_are_read_stay() -> None:
    memory = MemoryTier(max_bytes=5_000)
    keep(memory, "popular", entry())
    for number in range(100):
        assert memory.find("popular", None)
        keep(memory, str(number), entry())
    assert memory.find("popular", None)


def test_entry_above_the_limit_is_not_kept() -> None:
    memory = MemoryTier(max_bytes=5_000)
    keep(memory, "a", entry(5_001))
    assert not memory._slots


EVENTS = st.lists(st.sampled_from(["renew", "hear", "elsewhere", "fill"]), max_size=30)


def find_what_was_renewed(events: list[str], *, expects: bool) -> bool:
    """Return whether an entry of a generation that this process has renewed since is found at any time.

    The channel hands over what was published in its order, but late: a tag's creation after its renewal.
    """
    memory, number, renewed = MemoryTier(max_bytes=100_000), 1, 0
    channel = [b"1"]  # published when the tag was created
    for event in [*events, *["hear"] * len(events)]:
        if event == "hear" and channel:
            heard = channel.pop(0)
            (memory.hear_generation if expects else memory.set_generation)("t", heard)
        elif event == "fill":
            keep(memory, "a", entry(generation=b"%d" % number))
        elif event in {"renew", "elsewhere"}:
            number += 1
            channel.append(b"%d" % number)
            if event == "renew":
                renewed = number
                (memory.expect_generation if expects else memory.set_generation)("t", b"%d" % number)
        found = memory.find("a", None)
        if found is not None and int(dict(found[0].entry.tags)["t"]) < renewed:
            return True
    return False


@pytest.mark.guarantee(
    "a process does not serve what it has invalidated itself",
    pattern="caching",
    under="messages about a tag come late, in any interleaving",
)
@given(EVENTS)
def test_message_from_before_a_renewal_revives_no_entry(events: list[str]) -> None:
    assert not find_what_was_renewed(events, expects=True)


@pytest.mark.control("a process does not serve what it has invalidated itself")
def test_taking_every_message_as_it_comes_revives_one() -> None:
    assert find_what_was_renewed(["fill", "renew", "hear"], expects=False)
    assert not find_what_was_renewed(["fill", "renew", "hear"], expects=True)


def test_generation_that_could_not_be_published_is_not_waited_for() -> None:
    memory = MemoryTier(max_bytes=10_000)
    memory.expect_generation("t", b"2")
    memory.hear_generation("t", b"1")
    keep(memory, "a", entry(generation=b"2"))
    assert memory.find("a", None)
    memory.stop_expecting("t", b"2")
    memory.hear_generation("t", b"3")
    assert memory.find("a", None) is None
