"""Read freshness by log position: the arithmetic, the SQL that asks for positions, and its answers. Pure.

A token is compared with the position that *one physical connection* is known to have replayed, never with the
one that a server was last heard to have: a replica that crashed may come back with less than it had shown
before, but then its connections are gone. On a connection that lives, the position only grows; once it covers
a token, that check need not be repeated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from tenfold.positions import Token, format_position, normalize_position, parse_position

__all__ = [
    "FULL_POSITION_QUERY",
    "POSITION_QUERY",
    "Freshness",
    "FreshnessLimits",
    "PositionAnswer",
    "ReplayPosition",
    "can_wait",
    "freshness",
    "is_pinned",
    "parse_answer",
    "poll_intervals",
    "visible_position",
    "wait_statement",
]


_WAITS_SINCE = 190000


@dataclass(frozen=True, slots=True)
class FreshnessLimits:
    """Limits of the waits for a fresh read, and of the time for which tokens are kept.

    Attributes:
        wait_s: longest wait for a replica to catch up, before the primary is asked.
        token_s: lifetime of a token; more than the lag with which a replica may still serve.
        pin_s: where positions cannot be had, reads go to the primary for so long after a write.
        monotonic: whether what was *read* counts, too, so that the next read shows no older state. One
            statement more at the end of each read; visitors see their own writes without it as well.
    """

    wait_s: float = 0.05
    token_s: float = 900.0
    pin_s: float = 5.0
    monotonic: bool = True


@dataclass(frozen=True, slots=True)
class ReplayPosition:
    """The log position that a physical connection's backend is known to have reached."""

    system: int
    timeline: int
    position: int


class Freshness(Enum):
    """The relation of a connection's replay position to a token, and what it means for a read."""

    FRESH = "read here"
    UNKNOWN = "ask the backend for its position"
    BEHIND = "take another replica, or wait"
    FOREIGN = "take the primary: the token is of a timeline that is over, or of another system"


def freshness(token: Token | None, replayed: ReplayPosition | None, *, asked: bool = False) -> Freshness:
    """Compare a reader's token with a connection's replay position.

    Args:
        token: None when the reader has seen nothing.
        replayed: None when this connection has not been asked yet.
        asked: whether ``replayed`` was learned just now, for this read.
    """
    if token is None:
        return Freshness.FRESH
    if replayed is None:
        return Freshness.UNKNOWN
    if (replayed.system, replayed.timeline) == (token.system, token.timeline):
        if replayed.position >= token.position:
            return Freshness.FRESH
    elif replayed.system != token.system or replayed.timeline > token.timeline:
        return Freshness.FOREIGN
    # Behind, or not yet where the token's timeline began, for all that is known.
    return Freshness.BEHIND if asked else Freshness.UNKNOWN


def is_pinned(token: Token | None, *, now: float, pin_s: float) -> bool:
    """Return whether a visitor without positions wrote so recently that only the primary will do."""
    return token is not None and now - token.position / 1000 < pin_s


# ------------------------------------------------------------------ waiting for a replica


def poll_intervals(wait_s: float) -> list[float]:
    """The pauses between two questions to a replica that is nearly there: 1 ms, growing to 8."""
    found: list[float] = []
    pause, left = 0.001, wait_s
    while left > 0:
        found.append(min(pause, left))
        left -= pause
        pause = min(2 * pause, 0.008)
    return found


def can_wait(token: Token, replayed: ReplayPosition | None, *, version: int) -> bool:
    """Return whether the server can wait for the token by itself, by ``WAIT FOR LSN`` of PostgreSQL 19.

    That compares numbers and knows nothing of timelines: on another one than the token's it would answer at
    once, and say nothing.

    Args:
        version: ``server_version_num``; 0 when it is not known.
    """
    return (
        version >= _WAITS_SINCE
        and replayed is not None
        and (replayed.system, replayed.timeline) == (token.system, token.timeline)
    )


def wait_statement(position: int, wait_s: float) -> str:
    """The statement that ends when a standby has replayed ``position``, or after ``wait_s``; PostgreSQL 19.

    Its answer (success, timeout, not in recovery) is no proof: it knows no timelines. Ask afterwards.
    """
    timeout_ms = max(1, math.ceil(wait_s * 1000))  # 0 would mean: for ever
    return f"WAIT FOR LSN '{format_position(position)}' WITH (TIMEOUT '{timeout_ms}ms', NO_THROW)"


# ------------------------------------------------------------------ asking for a position

# The replayed and the received position, and the timeline of the latter; NULL for a role that may not know
# (without pg_monitor), and when no log comes in. A promoted replica answers as the primary that it is.
POSITION_QUERY = """
select
    case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else pg_current_wal_insert_lsn() end::text,
    case when pg_is_in_recovery() then pg_last_wal_receive_lsn() end::text,
    case when pg_is_in_recovery() then (select received_tli from pg_stat_wal_receiver)
    else ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int end"""
# Control data know the timeline too, for every role, but only from the next restartpoint on.
_MORE = """
    (select greatest(c.timeline_id, r.min_recovery_end_timeline)
     from pg_control_checkpoint() c, pg_control_recovery() r),
    (select system_identifier from pg_control_system()),
    pg_size_bytes(current_setting('wal_segment_size'))"""
FULL_POSITION_QUERY = f"{POSITION_QUERY},{_MORE}"


@dataclass(frozen=True, slots=True)
class PositionAnswer:
    """A backend's answer.

    Attributes:
        replayed: the position that it has surely reached.
        visible: the position whose state a read before the question may have shown.
        segment_bytes: the size of the cluster's WAL segments.
    """

    replayed: ReplayPosition
    visible: int
    segment_bytes: int


def parse_answer(row: Sequence[Any], *, known: ReplayPosition | None, segment_bytes: int) -> PositionAnswer:
    """Parse a row of :data:`FULL_POSITION_QUERY`, or of :data:`POSITION_QUERY` if the rest is ``known``."""
    position, received, timeline = row[:3]
    if len(row) > 3:
        system, segment_bytes = int(row[4]), int(row[5])
        timeline = timeline or row[3]
    else:
        assert known is not None
        system, timeline = known.system, timeline or known.timeline
    reached = parse_position(position)
    return PositionAnswer(
        ReplayPosition(system, int(timeline), normalize_position(reached, segment_bytes=segment_bytes)),
        visible_position(
            reached, parse_position(received) if received else None, segment_bytes=segment_bytes
        ),
        segment_bytes,
    )


def visible_position(replayed: int, received: int | None, *, segment_bytes: int) -> int:
    """The position whose state a read on this replica may have shown, given its positions right afterwards.

    A commit becomes visible while its record is being replayed, a moment before ``pg_last_wal_replay_lsn()``
    counts it. When more log is there than was replayed, that record may be under way: one byte more asks for
    a server that has finished it. When there is no more, nothing is under way, and one byte more would not be
    reached before the next write.
    """
    under_way = received is not None and received > replayed
    return replayed + 1 if under_way else normalize_position(replayed, segment_bytes=segment_bytes)
