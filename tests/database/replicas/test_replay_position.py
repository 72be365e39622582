"""Parsing of position answers, and the statement that waits for one."""

from __future__ import annotations

import pytest

from tenfold.database.replicas.freshness import PositionAnswer, ReplayPosition, parse_answer, wait_statement

MIB = 1024 * 1024
KNOWN = ReplayPosition(7, 1, 0x10)


@pytest.mark.parametrize(
    ("row", "replayed", "visible"),
    [
        (("0/20", "0/20", 1), ReplayPosition(7, 1, 0x20), 0x20),
        (("0/20", "0/28", 1), ReplayPosition(7, 1, 0x20), 0x21),  # a record may be under way
        (("0/20", None, None), ReplayPosition(7, 1, 0x20), 0x20),  # a role that may not know the timeline
        (
            ("0/20", "0/20", 2),
            ReplayPosition(7, 2, 0x20),
            0x20,
        ),  # it followed a promotion, on the same connection
        (
            ("0/20", "0/20", None, 3, "9", str(MIB)),
            ReplayPosition(9, 3, 0x20),
            0x20,
        ),  # as the control data say
        (("0/20", "0/20", 4, 3, "9", str(MIB)), ReplayPosition(9, 4, 0x20), 0x20),  # which are late
        (
            ("0/100028", None, 1, 1, "7", str(MIB)),
            ReplayPosition(7, 1, MIB),
            MIB,
        ),  # a primary, at a segment of its size
    ],
)
def test_parse_answer(row: tuple, replayed: ReplayPosition, visible: int) -> None:
    segment_bytes = MIB if len(row) > 3 else 16 * MIB
    assert parse_answer(row, known=KNOWN, segment_bytes=16 * MIB) == PositionAnswer(
        replayed, visible, segment_bytes
    )


@pytest.mark.parametrize(
    ("wait_s", "timeout"), [(0.05, "50ms"), (0.0001, "1ms"), (0.0, "1ms"), (2, "2000ms")]
)
def test_wait_statement_always_has_a_timeout(wait_s: float, timeout: str) -> None:
    expected = f"WAIT FOR LSN '16/B374D848' WITH (TIMEOUT '{timeout}', NO_THROW)"
    assert wait_statement(0x16_B374D848, wait_s) == expected
