"""What PostgreSQL is asked about where a backend is, and what its answer means. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.database.freshness import Place, shown
from tenfold.positions import format_position, normalised, parse_position

__all__ = ["POSITION", "WHOLE_PLACE", "Answer", "answered", "waiting"]

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
