"""What a cache needs to know of log positions; a ``DatabaseRouter`` has it as ``router.fence``."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, Protocol

from tenfold.positions import Token

__all__ = ["Fence", "LoadWatch"]


class LoadWatch(Protocol):
    """What was found out of the connections that one load used.

    Attributes:
        token: the lowest position that all of them had reached before they were used; None if one is unknown.
        on_primary: whether one was to the primary.
        obstacle: why the value must not be kept; empty if it may.
    """

    token: Token | None
    on_primary: bool
    obstacle: str


class Fence(Protocol):
    """Positions of readers, commits and loads."""

    @property
    def has_positions(self) -> bool:
        """Whether the database has positions."""

    def token(self) -> Token | None:
        """What the reader of the current context has seen; None if nothing, or long ago."""

    def commit_token(self, session: Any) -> Token | None:
        """A position at or after the commit that a session has just made in this context; None: of now."""

    def record_hit(self, token: Token) -> None:
        """Record that the reader has seen the state at a position."""

    def primary_token(self) -> Token | None:
        """The primary's position now; None if it does not say."""

    def watch_load(self, required: Token | None) -> AbstractContextManager[LoadWatch]:
        """Watch the connections of a block, and let them be of servers that have reached ``required``."""

    def check_session(self, watch: LoadWatch, session: Any, required: Token | None) -> None:
        """Take the connection that a Session already holds into the watch."""
