"""What a visitor has seen on several shards, as one token for ConsistencyMiddleware."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

__all__ = ["ShardContexts", "ShardTokens"]

_MOST = 4  # shards whose tokens one visitor carries


class ShardContexts:
    """The consistency contexts of all shards' routers, as one.

    Attributes:
        others: True if the visitor has seen more shards than a token names: their primaries have to answer.
    """

    def __init__(self, contexts: Mapping[str, Any], *, others: bool = False) -> None:
        self.contexts = contexts
        self.others = others

    @property
    def token(self) -> ShardContexts | None:
        """Itself, when anything was seen."""
        return self if self.others or any(one.token for one in self.contexts.values()) else None

    def add(self, brought: ShardContexts) -> None:
        """Add what a visitor brought."""
        self.others = self.others or brought.others
        for name, context in self.contexts.items():
            if token := brought.contexts[name].token:
                context.add(token)

    @property
    def has_changed(self) -> bool:
        """Whether a token was moved."""
        return any(one.has_changed for one in self.contexts.values())

    @has_changed.setter
    def has_changed(self, value: bool) -> None:
        for one in self.contexts.values():
            one.has_changed = value

    @property
    def has_written(self) -> bool:
        """Whether something was committed."""
        return any(one.has_written for one in self.contexts.values())

    @has_written.setter
    def has_written(self, value: bool) -> None:
        for one in self.contexts.values():
            one.has_written = value


class ShardTokens:
    """Tokens as text: ``one.<token>~two.<token>``, for four shards at most, the last ones used.

    Args:
        routers: those of the shards that are DatabaseRouters, by name.
    """

    def __init__(self, routers: Mapping[str, Any]) -> None:
        self.routers = routers
        self._current: ContextVar[ShardContexts | None] = ContextVar("tenfold_shards", default=None)

    @contextmanager
    def open(self, text: str | None) -> Iterator[ShardContexts]:
        """Open a context of each router for a block, with what the token says of its shard."""
        parts = (text or "").split("~")
        brought = dict(part.split(".", 1) for part in parts if "." in part)
        with ExitStack() as exits:
            contexts = {
                name: exits.enter_context(router.consistency_context(brought.get(name)))
                for name, router in self.routers.items()
            }
            found = ShardContexts(contexts, others="*" in parts)
            mark = self._current.set(found)
            try:
                yield found
            finally:
                self._current.reset(mark)

    def text(self) -> str | None:
        """The token of the current context."""
        context = self._current.get()
        found: dict[str, str] = {}
        for name, router in self.routers.items():
            if token := router.token():
                found[name] = token
        names = list(found)
        if context is not None:
            names.sort(key=lambda name: context.contexts[name].has_changed)
        parts = [f"{name}.{found[name]}" for name in names[-_MOST:]]
        if len(names) > _MOST or (context is not None and context.others):
            parts.append("*")
        return "~".join(parts) or None

    def require_primary(self, shard: str) -> bool:
        """Whether a read needs the shard's primary: the visitor may have seen it, no token says what."""
        context = self._current.get()
        return context is not None and context.others and context.contexts[shard].token is None
