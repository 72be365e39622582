"""Questions to brokers that Celery does not ask: what is left of what was published?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any
from uuid import uuid4

from tenfold.errors import DependencyError

try:
    from amqp.exceptions import NotFound
except ImportError:
    raise DependencyError("Celery is not installed: pip install 'tenfold[tasks]'") from None

__all__ = ["EPOCH_KEY", "HEADER", "read_depth", "read_epoch", "read_head", "send_together"]

EPOCH_KEY = "tenfold:tasks:epoch"
HEADER = "tenfold"  # of messages that were enqueued through the outbox: when they were published


@contextmanager
def send_together(broker: Any) -> Iterator[None]:
    """Send what is published to a Redis inside of a block in one go, at its end."""
    if (client := _redis(broker)) is None:
        yield
        return
    channel = broker.default_channel
    pipeline = client.pipeline(transaction=False)
    channel.conn_or_acquire = lambda *_: nullcontext(pipeline)
    try:
        yield
        pipeline.execute()
    finally:
        del channel.conn_or_acquire


def read_epoch(broker: Any) -> str | None:
    """The random mark of a Redis, set where there is none: another one means that it was emptied.

    None for other brokers.
    """
    client = _redis(broker)
    if client is None:
        return None
    prefix = broker.default_channel.global_keyprefix or ""
    for _ in range(2):
        if (found := client.get(prefix + EPOCH_KEY)) is not None:
            return found.decode() if isinstance(found, bytes) else str(found)
        client.set(EPOCH_KEY, uuid4().hex, nx=True)  # which adds the prefix
    return None


def read_head(broker: Any, queue: str) -> tuple[bool, float | None]:
    """When the message was published that is taken next from a queue.

    Returns:
        whether that is known (of other brokers than Redis, only that a queue is empty), and the time as of
        the database; None for an empty queue.
    """
    if (client := _redis(broker)) is None:
        return read_depth(broker, queue) == 0, None
    message = client.lindex((broker.default_channel.global_keyprefix or "") + queue, -1)
    if not message:
        return True, None
    try:
        return True, float(json.loads(message)["headers"][HEADER])
    except (ValueError, KeyError, TypeError):
        return False, None  # sent past the outbox


def read_depth(broker: Any, queue: str) -> int:
    """The number of messages that wait in a queue; of SQS roughly, and as of up to a minute ago."""
    if (client := _redis(broker)) is not None:
        return int(client.llen((broker.default_channel.global_keyprefix or "") + queue))
    if broker.transport.driver_type == "amqp":
        with broker.channel() as channel:  # its own: an error closes it
            try:
                return int(channel.queue_declare(queue=queue, passive=True).message_count)
            except NotFound:
                return 0
    return int(broker.default_channel._size(queue))


def _redis(broker: Any) -> Any:
    is_redis = broker.transport.driver_type == "redis"
    return getattr(broker.default_channel, "client", None) if is_redis else None
