"""What a backend's answer about where it is means."""

from __future__ import annotations

import pytest

from tenfold.database.replicas.freshness import Answer, Place, answered, waiting

MIB = 1024 * 1024
KNOWN = Place(7, 1, 0x10)


@pytest.mark.parametrize(
    ("row", "place", "shown"),
    [
        (("0/20", "0/20", 1), Place(7, 1, 0x20), 0x20),
        (("0/20", "0/28", 1), Place(7, 1, 0x20), 0x21),  # a record may be under way
        (("0/20", None, None), Place(7, 1, 0x20), 0x20),  # a role that may not know the timeline
        (("0/20", "0/20", 2), Place(7, 2, 0x20), 0x20),  # it followed a promotion, on the same connection
        (("0/20", "0/20", None, 3, "9", str(MIB)), Place(9, 3, 0x20), 0x20),  # as the control data say
        (("0/20", "0/20", 4, 3, "9", str(MIB)), Place(9, 4, 0x20), 0x20),  # they learn of it later
        (
            ("0/100028", None, 1, 1, "7", str(MIB)),
            Place(7, 1, MIB),
            MIB,
        ),  # a primary, at a segment of its size
    ],
)
def test_the_answer(row: tuple, place: Place, shown: int) -> None:
    segment_bytes = MIB if len(row) > 3 else 16 * MIB
    assert answered(row, known=KNOWN, segment_bytes=16 * MIB) == Answer(place, shown, segment_bytes)


@pytest.mark.parametrize(
    ("wait_s", "timeout"), [(0.05, "50ms"), (0.0001, "1ms"), (0.0, "1ms"), (2, "2000ms")]
)
def test_the_statement_that_waits_always_ends(wait_s: float, timeout: str) -> None:
    expected = f"WAIT FOR LSN '16/B374D848' WITH (TIMEOUT '{timeout}', NO_THROW)"
    assert waiting(0x16_B374D848, wait_s) == expected
