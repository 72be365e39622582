"""Identifiers that carry their bucket, so that a row is found by its id alone.

Either UUIDs of version 7 (RFC 9562) made in the service, with the bucket in ``rand_a``; or 64 bits made by
the shard (``tenfold.next_id()``): a zero, 41 bits of milliseconds since 2025, 12 of the bucket, one that
says whether the tenant has a bucket of its own, 9 that count. JavaScript keeps 53 bits of a number: send
the latter as text.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from tenfold.errors import SettingsError
from tenfold.sharding.keys import BUCKETS

__all__ = ["DecodedId", "decode_id", "make_uuid"]

EPOCH_MS: Final = 1_735_689_600_000  # 2025-01-01
_COUNTER_BITS = 61
_OWN = 1 << _COUNTER_BITS  # the highest bit of rand_b
_ROOM = 1 << 48  # a random start leaves the counter so far from its end

_lock = threading.Lock()
_pid, _last_ms, _counter = 0, 0, 0


@dataclass(frozen=True, slots=True)
class DecodedId:
    """The parts of an identifier.

    Attributes:
        bucket: 0 to 4095, or 4096 more for a tenant that has a bucket of its own.
        created_at: to the millisecond, by the clock of its maker.
    """

    bucket: int
    created_at: datetime


def make_uuid(bucket: int) -> uuid.UUID:
    """Make a UUID of version 7 for a row of this bucket; later ones of this process are greater.

    Within a millisecond the random part is counted up (RFC 9562, 6.2, method 2), also while the clock goes
    back.
    """
    global _pid, _last_ms, _counter  # noqa: PLW0603 - one clock for the process
    now_ms = time.time_ns() // 1_000_000
    with _lock:
        if now_ms > _last_ms or _pid != os.getpid():
            _pid, _last_ms = os.getpid(), max(now_ms, _last_ms)
            _counter = int.from_bytes(os.urandom(8)) % (_OWN - _ROOM)
        else:
            _counter += 1 + int.from_bytes(os.urandom(2))
            if _counter >= _OWN:
                _last_ms, _counter = _last_ms + 1, 0
        moment, counter = _last_ms, _counter
    counter |= _OWN if bucket >= BUCKETS else 0
    value = moment << 80 | 7 << 76 | bucket % BUCKETS << 64 | 2 << 62 | counter
    return uuid.UUID(int=value)


def decode_id(value: int | uuid.UUID) -> DecodedId:
    """Read bucket and time from an identifier.

    Raises:
        SettingsError: it was made neither by :func:`make_uuid` nor by ``tenfold.next_id()``.
    """
    if isinstance(value, uuid.UUID):
        if value.version != 7:
            raise SettingsError(f"{value} is no UUID of version 7: only make_uuid puts a bucket into one")
        bucket, own, moment = value.int >> 64 & 0xFFF, value.int >> _COUNTER_BITS & 1, value.int >> 80
    elif type(value) is int and 0 <= value < 2**63:
        bucket, own, moment = value >> 10 & 0xFFF, value >> 9 & 1, (value >> 22) + EPOCH_MS
    else:
        raise SettingsError("that is no identifier of a row: pass a UUID or an int of 63 bits")
    return DecodedId(bucket + own * BUCKETS, datetime.fromtimestamp(moment / 1000, UTC))
