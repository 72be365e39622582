"""Coroutines whose every step somebody else chooses: concurrent requests without a clock or a loop.

A step ends where a request asks the store: what is chosen is who is answered next.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

from tenfold.sessions.stores.memory import MemoryStore
from tenfold.sessions.stores.store import StoredPayload


class SteppedStore(MemoryStore):
    """Each operation waits for its turn, and is counted."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.operations: list[str] = []

    async def read(self, handle: str) -> StoredPayload | None:
        await self._turn("read")
        return await super().read(handle)

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        await self._turn("create")
        return await super().create(handle, payload, ttl_s=ttl_s)

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        await self._turn("replace")
        return await super().replace(handle, payload, version=version, ttl_s=ttl_s)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        await self._turn("revoke")
        await super().revoke(handle, ttl_s=ttl_s)

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        await self._turn("add_member")
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)

    async def members(self, group: str) -> list[str]:
        await self._turn("members")
        return await super().members(group)

    async def _turn(self, name: str) -> None:
        self.operations.append(name)
        await _turn()


class LastWriteWins(SteppedStore):
    """The guard off: whoever writes last is right, whatever it had read."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        await self._turn("replace")
        kept = await MemoryStore.read(self, handle)
        return await MemoryStore.replace(
            self, handle, payload, version=kept.version if kept else 0, ttl_s=ttl_s
        )


class Upserts(SteppedStore):
    """The guard off: revoking removes, and writing creates."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        await self._turn("replace")
        kept = await MemoryStore.read(self, handle)
        if kept and kept.version != version:
            return kept
        self._put(handle, StoredPayload(version + 1, payload), ttl_s)
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        await self._turn("revoke")
        self._entries.pop(handle, None)


@types.coroutine
def _turn() -> Generator[None, None, None]:
    yield


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """To its end, alone."""
    result = interleave([coroutine], lambda running: running[0])[0]
    if isinstance(result, Exception):
        raise result
    return result


def interleave(
    coroutines: Sequence[Coroutine[Any, Any, Any]], choose: Callable[[list[int]], int]
) -> list[Any]:
    """What each returned or raised, stepped in the order that ``choose`` picks from those still running."""
    results: list[Any] = [None] * len(coroutines)
    running = list(range(len(coroutines)))
    try:
        while running:
            chosen = choose(running)
            try:
                coroutines[chosen].send(None)
            except StopIteration as done:
                results[chosen] = done.value
                running.remove(chosen)
            except Exception as error:
                results[chosen] = error
                running.remove(chosen)
    finally:  # Hypothesis gives up an example by an exception from ``choose``
        for coroutine in coroutines:
            coroutine.close()
    return results
