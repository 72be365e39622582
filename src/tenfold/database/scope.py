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

    def __init__(
        self, make: Callable[[], Session], make_async: Callable[[], AsyncSession], *, commits: bool
    ) -> None:
        self._make, self._make_async, self._commits = make, make_async, commits
        self._session: Session | None = None
        self._async_session: AsyncSession | None = None

    def __enter__(self) -> Session:
        self._session = self._make()
        return self._session

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        with self._session as session:  # closes it, which rolls back what was not committed
            if kind is None and self._commits:
                session.commit()

    async def __aenter__(self) -> AsyncSession:
        self._async_session = self._make_async()
        return self._async_session

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._async_session is not None
        async with self._async_session as session:
            if kind is None and self._commits:
                await session.commit()
