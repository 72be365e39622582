"""The subscription that keeps a memory tier true: one thread in each process that uses a cache.

redis-py re-subscribes silently after a lost connection, and what was published meanwhile is lost. So the tier
is flushed at every confirmation of a subscription, and it is used only for a short while after the last ping
that was answered: all that was published before that ping has been heard.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from tenfold.caching.memory import MemoryTier
from tenfold.caching.stores import RedisStore, StoreDownError, unpack_change, unpack_watermark
from tenfold.process_thread import ProcessThread

__all__ = ["MAX_STALE_S", "WATERMARK", "Listener"]

PING_S = 0.25
MAX_STALE_S = 1.0
_PAUSE_S = 0.2
WATERMARK = b"watermark "
_log = logging.getLogger("tenfold.caching")


class Listener(ProcessThread):
    """Hears of changes of tags, and passes them on to the memory tier.

    Args:
        connect: makes a client of redis-py with connections of its own.
        flush_counts: called about once in five seconds, with that client.
        send_pending: called with each ping; sends what Redis did not take before.
    """

    def __init__(
        self,
        memory: MemoryTier,
        store: RedisStore,
        connect: Callable[[], Any],
        flush_counts: Callable[[Any], None],
        send_pending: Callable[[], None],
    ) -> None:
        super().__init__(name="tenfold-cache")
        self._memory, self._store, self._connect = memory, store, connect
        self._flush_counts, self._send_pending = flush_counts, send_pending

    def _prepare(self) -> None:
        self._memory.forget_confirmation()  # in a fork the parent's: its thread is not here

    def _run(self, stopping: threading.Event) -> None:
        is_lost = False
        while not stopping.is_set():
            try:
                self._listen(stopping)
            except StoreDownError:
                pass
            except Exception as error:  # redis-py's, the system's, and what a proxy may answer
                if not is_lost:
                    _log.warning(
                        "the cache's subscription was lost (%s): reads go to Redis", type(error).__name__
                    )
                is_lost = True
            self._memory.forget_confirmation()
            stopping.wait(_PAUSE_S)

    def _listen(self, stopping: threading.Event) -> None:
        client = self._connect()
        subscription = client.pubsub()
        try:
            pinged = time.monotonic()
            subscription.subscribe(self._store.channel)
            is_answered, flushed = True, pinged
            while not stopping.is_set():
                message = subscription.get_message(timeout=PING_S / 4)
                now = time.monotonic()
                if message is not None and self._hear(message, pinged):
                    is_answered = True
                if not is_answered and now - pinged > MAX_STALE_S:
                    raise TimeoutError("the ping was not answered")
                if is_answered and now - pinged >= PING_S:
                    self._send_pending()
                    pinged, is_answered = now, False
                    subscription.ping()
                if now - flushed > 5.0:
                    flushed = now
                    self._flush_counts(client)
        finally:
            subscription.close()
            client.close()

    def _hear(self, message: dict[str, Any], pinged: float) -> bool:
        """Take in a message; return whether it answers the ping, or confirms the subscription."""
        kind, data = message["type"], message["data"]
        if kind == "subscribe":
            self._memory.flush()
            self._memory.confirm(pinged)
            return True
        if kind == "pong":
            self._memory.confirm(pinged)
            return True
        if kind == "message" and isinstance(data, bytes):
            if data.startswith(WATERMARK):
                self._memory.set_watermark(unpack_watermark(data[len(WATERMARK) :]), lasts_s=MAX_STALE_S)
            elif (change := unpack_change(data)) is not None:
                self._memory.hear_generation(*change)
        return False
