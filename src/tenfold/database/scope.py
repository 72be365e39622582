"""A transaction as a block: ``with`` gives a Session, ``async with`` an AsyncSession."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

__all__ = ["SessionScope"]


class SessionScope:
    """Made by the router, used once. The block's end commits a write, an exception rolls it back."""

    __slots__ = ("_async_session", "_commits", "_make", "_make_async", "_session")
    _session: Session
    _async_session: AsyncSession

    def __init__(
        self, make: Callable[[], Session], make_async: Callable[[], AsyncSession], *, commits: bool
    ) -> None:
        self._make, self._make_async, self._commits = make, make_async, commits

    def __enter__(self) -> Session:
        self._session = self._make()
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._commits:
                self._session.commit()
        finally:
            self._session.close()  # which rolls back what was not committed

    async def __aenter__(self) -> AsyncSession:
        self._async_session = self._make_async()
        return self._async_session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        async with self._async_session as session:
            if kind is None and self._commits:
                await session.commit()
