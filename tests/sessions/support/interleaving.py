"""Concurrent requests without a clock or an event loop, in an order that the test chooses.

A step ends before each store operation: the test chooses which request continues.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import Any

from tenfold.sessions.stores.memory import MemoryStore
from tenfold.sessions.stores.store import StoredPayload


class SteppedStore(MemoryStore):
    """Yields before each operation, and counts operations."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.operations: list[str] = []

    async def read(self, handle: str) -> StoredPayload | None:
        await self._yield_turn("read")
        return await super().read(handle)

    async def create(self, handle: str, payload: bytes, *, ttl_s: float) -> bool:
        await self._yield_turn("create")
        return await super().create(handle, payload, ttl_s=ttl_s)

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        await self._yield_turn("replace")
        return await super().replace(handle, payload, version=version, ttl_s=ttl_s)

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        await self._yield_turn("revoke")
        await super().revoke(handle, ttl_s=ttl_s)

    async def add_member(
        self, group: str, handle: str, *, ttl_s: float, replacing: Sequence[str] = ()
    ) -> list[str]:
        await self._yield_turn("add_member")
        return await super().add_member(group, handle, ttl_s=ttl_s, replacing=replacing)

    async def members(self, group: str) -> list[str]:
        await self._yield_turn("members")
        return await super().members(group)

    async def _yield_turn(self, name: str) -> None:
        self.operations.append(name)
        await _yield_turn()


class LastWriteWins(SteppedStore):
    """Negative control: writes whatever version is stored."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        await self._yield_turn("replace")
        stored = await MemoryStore.read(self, handle)
        return await MemoryStore.replace(
            self, handle, payload, version=stored.version if stored else 0, ttl_s=ttl_s
        )


class Upserts(SteppedStore):
    """Negative control: revoking deletes, and writing creates."""

    async def replace(
        self, handle: str, payload: bytes, *, version: int, ttl_s: float
    ) -> bool | StoredPayload | None:
        await self._yield_turn("replace")
        stored = await MemoryStore.read(self, handle)
        if stored and stored.version != version:
            return stored
        self._put(handle, StoredPayload(version + 1, payload), ttl_s)
        return True

    async def revoke(self, handle: str, *, ttl_s: float) -> None:
        await self._yield_turn("revoke")
        self._entries.pop(handle, None)


@types.coroutine
def _yield_turn() -> Generator[None, None, None]:
    yield


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run one coroutine to its end."""
    result = interleave([coroutine], lambda running: running[0])[0]
    if isinstance(result, Exception):
        raise result
    return result


def interleave(
    coroutines: Sequence[Coroutine[Any, Any, Any]], choose: Callable[[list[int]], int]
) -> list[Any]:
    """Run coroutines step by step in the order of ``choose``; return what each returned or raised."""
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
    finally:  # Hypothesis abandons an example by an exception from ``choose``
        for coroutine in coroutines:
            coroutine.close()
    return results
