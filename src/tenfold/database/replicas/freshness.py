"""Has this backend seen what the visitor has seen? Pure: a token comes in, a verdict comes out.

A position is compared with what *one physical connection* is known to have replayed, never with what a server
was last heard to have: a replica that crashed may come back with less than it had shown before, but then its
connections are gone. On a connection that lives, the position only grows; once it covers a token, that check
need not be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tenfold.positions import Token, format_position, normalised, parse_position

__all__ = [
    "POSITION",
    "WHOLE_PLACE",
    "Answer",
    "FreshnessLimits",
    "Place",
    "Verdict",
    "answered",
    "can_wait",
    "judge",
    "pauses",
    "pinned",
    "shown",
    "waiting",
]


_WAITS_SINCE = 190000


@dataclass(frozen=True, slots=True)
class FreshnessLimits:
    """What a read may cost to be fresh, and for how long a visitor is remembered.

    Attributes:
        wait_s: longest wait for a replica to catch up, before the primary is asked.
        token_s: how long a token lives; more than the lag with which a replica may still serve.
        pin_s: where positions cannot be had, reads go to the primary for so long after a write.
        monotonic: whether what was *read* counts as seen too, so that the next read shows no older state.
            One statement more at the end of each read; a visitor's own writes are seen without it as well.
    """

    wait_s: float = 0.05
    token_s: float = 900.0
    pin_s: float = 5.0
    monotonic: bool = True


@dataclass(frozen=True, slots=True)
class Place:
    """What a physical connection's backend is known to have reached."""

    system: int
    timeline: int
    position: int


class Verdict(Enum):
    """What to do about a read on this connection."""

    FRESH = "read here"
    ASK = "ask the backend where it is"
    BEHIND = "another replica, or wait"
    FOREIGN = "the primary: the token is of a timeline that is over, or of another system"


def judge(token: Token | None, place: Place | None, *, asked: bool = False) -> Verdict:
    """Whether a read by the holder of ``token`` may run where ``place`` was reached.

    Args:
        token: None when nothing was seen.
        place: None when this connection has not been asked yet.
        asked: whether ``place`` was learned just now, for this read.
    """
    if token is None:
        return Verdict.FRESH
    if place is None:
        return Verdict.ASK
    if (place.system, place.timeline) == (token.system, token.timeline):
        if place.position >= token.position:
            return Verdict.FRESH
    elif place.system != token.system or place.timeline > token.timeline:
        return Verdict.FOREIGN
    # Behind, or not yet where the token's timeline began, for all that is known.
    return Verdict.BEHIND if asked else Verdict.ASK


def shown(replayed: int, received: int | None, *, segment_bytes: int) -> int:
    """The position whose state a read on this replica may have shown, given where it was right afterwards.

    A commit becomes visible while its record is being replayed, a moment before ``pg_last_wal_replay_lsn()``
    counts it. When more log is there than was replayed, that record may be under way: one byte more asks for
    a server that has finished it. When there is no more, nothing is under way, and one byte more would never
    be reached while nobody writes.
    """
    under_way = received is not None and received > replayed
    return replayed + 1 if under_way else normalised(replayed, segment_bytes=segment_bytes)


def can_wait(token: Token, place: Place | None, *, version: int) -> bool:
    """Whether the server can be told to wait for the token itself, by ``WAIT FOR LSN`` of PostgreSQL 19.

    That compares numbers and knows nothing of timelines: on another one than the token's it would answer at
    once, and say nothing.

    Args:
        version: ``server_version_num``; 0 when it is not known.
    """
    return (
        version >= _WAITS_SINCE
        and place is not None
        and (place.system, place.timeline) == (token.system, token.timeline)
    )


def pinned(token: Token | None, *, now: float, pin_s: float) -> bool:
    """Whether a visitor without positions wrote so recently that only the primary will do."""
    return token is not None and now - token.position / 1000 < pin_s


def pauses(wait_s: float) -> list[float]:
    """How long to sleep between two questions to a replica that is nearly there: 1 ms, growing to 8."""
    found: list[float] = []
    pause, left = 0.001, wait_s
    while left > 0:
        found.append(min(pause, left))
        left -= pause
        pause = min(2 * pause, 0.008)
    return found


# What PostgreSQL is asked about where a backend is, and what its answer means. Pure.
# Where it is, what it has received, and on which timeline that is; NULL for a role that may not know (without
# pg_monitor), and when no log comes in. A replica that was promoted answers as the primary that it is.
POSITION = """
select
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text,
    case when pg_is_in_recovery() then pg_last_wal_receive_lsn() end::text,
    case when pg_is_in_recovery() then (select received_tli from pg_stat_wal_receiver)
    else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int end"""
# Control data know the timeline too, for everybody, but only from the next restartpoint on.
_MORE = """
    (select greatest(c.timeline_id, r.min_recovery_end_timeline)
     from pg_control_checkpoint() c, pg_control_recovery() r),
    (select system_identifier from pg_control_system()),
    pg_size_bytes(current_setting('wal_segment_size'))"""
WHOLE_PLACE = f"{POSITION},{_MORE}"


@dataclass(frozen=True, slots=True)
class Answer:
    """A backend's answer.

    Attributes:
        place: how far it surely is.
        shown: how far a read that came before the question may have seen.
        segment_bytes: the size of the cluster's WAL segments.
    """

    place: Place
    shown: int
    segment_bytes: int


def answered(row: Sequence[Any], *, known: Place | None, segment_bytes: int) -> Answer:
    """What the row of :data:`WHOLE_PLACE` says, or that of :data:`POSITION` where the rest is ``known``."""
    position, received, timeline = row[:3]
    if len(row) > 3:
        system, segment_bytes = int(row[4]), int(row[5])
        timeline = timeline or row[3]
    else:
        assert known is not None
        system, timeline = known.system, timeline or known.timeline
    reached = parse_position(position)
    return Answer(
        Place(system, int(timeline), normalised(reached, segment_bytes=segment_bytes)),
        shown(reached, parse_position(received) if received else None, segment_bytes=segment_bytes),
        segment_bytes,
    )


def waiting(position: int, wait_s: float) -> str:
    """The statement that ends when a standby has replayed ``position``, or after ``wait_s``; PostgreSQL 19.

    What it answers (success, timeout, not in recovery) is no proof: it knows no timelines. Ask afterwards.
    """
    timeout_ms = max(1, math.ceil(wait_s * 1000))  # 0 would mean: for ever
    return f"WAIT FOR LSN '{format_position(position)}' WITH (TIMEOUT '{timeout_ms}ms', NO_THROW)"
