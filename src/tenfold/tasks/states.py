"""The states of a task, and what happens after each of its ends: the decisions."""

from __future__ import annotations

import json
import random
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4, uuid5

from tenfold.errors import TaskError

__all__ = ["HEARTBEAT_FILE", "MAX_BYTES", "State", "decode", "encode", "retry_delay_s", "task_id"]

MAX_BYTES = 64 * 1024
HEARTBEAT_FILE = "TENFOLD_WORKER_HEARTBEAT"  # the variable that names what a worker touches
_NAMESPACE = UUID("4a0d1f6e-3f0f-5d0a-9c55-5d9d5a8a7f01")


class State(StrEnum):
    """What is known of a task."""

    UNKNOWN = "unknown"  # never committed, or longer ago than finished tasks are kept
    ENQUEUED = "enqueued"
    STARTED = "started"
    RETRYING = "retrying"  # it raised, and waits for its next attempt
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    LOST = "lost"  # its worker gives no sign of life; it is about to be started again
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether it will not change any more."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


def task_id(task: str, key: str | None) -> UUID:
    """The id of a task under a key: the same key of the same task always has the same id."""
    return uuid4() if key is None else uuid5(_NAMESPACE, f"{len(task)}:{task}{key}")


def retry_delay_s(attempt: int, *, base_s: float, jitter: float | None = None) -> float:
    """Seconds to wait after a failed attempt: ``base_s`` × 2ⁿ, ± 25 %, a day at most.

    Args:
        attempt: how many have failed, from 1.
        jitter: between 0 and 1; None is random.
    """
    if jitter is None:
        jitter = random.random()  # noqa: S311 - it spreads load
    return min(base_s * 2.0 ** min(attempt - 1, 30), 86_400.0) * (0.75 + 0.5 * jitter)


def encode(value: Any, what: str) -> str:
    """JSON as Celery writes it: datetime, date, time, Decimal and UUID keep their types.

    Raises:
        TaskError: the value has another type, or is larger than 64 KiB.
    """
    from kombu.utils import json as kombu_json

    try:
        text: str = kombu_json.dumps(value, allow_nan=False, sort_keys=True)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError, OverflowError) as error:
        raise TaskError(
            f"{what} cannot be written as JSON ({error}): pass ids and plain values, and load the rest there"
        ) from None
    if size > MAX_BYTES:
        raise TaskError(
            f"{what} is {size:,} bytes long and {MAX_BYTES:,} are allowed: "
            "store it, and pass its id or its address"
        )
    return text


def decode(text: str) -> Any:
    """What :func:`encode` wrote; plain JSON types as Celery's markers, which its worker resolves."""
    return json.loads(text)
