"""A cached function: how its calls are keyed, its values encoded, and what its loads have shown."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tenfold.caching.entry import TagTemplate
from tenfold.caching.keys import CallKey, annotations_of
from tenfold.caching.values import Codec
from tenfold.errors import SettingsError

__all__ = ["MAX_TTL", "CachedFunction", "QueryOptions", "check_function", "check_ttl", "plain_function"]

MAX_TTL = 7 * 24 * 3600.0
NEGATIVE_TTL = 30.0


@dataclass(frozen=True, slots=True)
class QueryOptions:
    """What was declared of a function; see :meth:`tenfold.caching.QueryCache.query`."""

    ttl: float = 300.0
    tags: Sequence[str] | None = ()
    key: Callable[..., Any] | None = None
    ignore: Collection[str] = ()
    returns: Any = None
    negative_ttl: float | None = None
    frozen: bool = False
    session_factory: Callable[[], Any] | None = None
    names: Mapping[str, Any] | None = None


class CachedFunction:
    """One function of a cache: how its calls are keyed, its values encoded, and what its loads have shown."""

    def __init__(
        self,
        function: Callable[..., Any],
        name: str,
        options: QueryOptions,
        *,
        max_value_bytes: int = 1_000_000,
    ) -> None:
        check_ttl(name, options.ttl, options.negative_ttl)
        ttl, tags, key, returns = options.ttl, options.tags, options.key, options.returns
        self.function, self.name, self.ttl = function, name, ttl
        self.negative_ttl = min(ttl, NEGATIVE_TTL if options.negative_ttl is None else options.negative_ttl)
        self.is_async = inspect.iscoroutinefunction(function)
        self._hints = hints = annotations_of(function, name, names=options.names)
        if returns is None and "return" not in hints:
            raise SettingsError(
                f"{name} has no return annotation, which says how its values are stored: add one"
            )
        if returns is None and hints["return"] is Any:
            raise SettingsError(f"{name} returns Any, which says nothing of its values: name their type")
        self.codec = Codec(
            hints["return"] if returns is None else returns, name=name, max_bytes=max_value_bytes
        )
        self.is_frozen = options.frozen
        if self.is_frozen and not self.codec.is_immutable:
            raise SettingsError(
                f"{name} is frozen=True, but callers could change what it returns: return a tuple, a frozen "
                "dataclass or a struct of immutable fields"
            )
        self.key_function = key
        ignored = list(inspect.signature(function).parameters) if key else options.ignore
        self.call_key = CallKey(function, name=name, ignore=ignored, names=options.names)
        self.derives_tags = tags is None
        parameters = inspect.signature(function).parameters if key else self.call_key.names
        self.templates = [TagTemplate(tag, parameters=parameters, function=name) for tag in tags or ()]
        self.session_factory = options.session_factory
        self.longest_load_s = 0.2
        self.key_prefix = f"{name}:{self.codec.schema}:"
        self._tables: tuple[str, ...] = ()
        self._places = {name: place for place, name in enumerate(self.call_key.signature.parameters)}

    def show_signature(self, wrapper: Any) -> None:
        """Give a wrapper the function's signature, with annotations that need no names of its module."""
        signature, hints = self.call_key.signature, self._hints
        parameters = [
            parameter.replace(annotation=hints.get(parameter.name, parameter.annotation))
            for parameter in signature.parameters.values()
        ]
        returns = hints.get("return", signature.return_annotation)
        wrapper.__signature__ = signature.replace(parameters=parameters, return_annotation=returns)
        wrapper.__annotations__ = dict(hints)

    def tags(self, values: Sequence[Any]) -> list[str]:
        """The declared tags of a call with these bound values."""
        arguments = self.call_key.arguments(values)
        return [template.name(arguments) for template in self.templates]

    def find_session(self, values: Sequence[Any]) -> Any:
        """The SQLAlchemy session among the bound values of a call; None without one."""
        for name in self.call_key.ignored:
            value = values[self._places[name]]
            if hasattr(value, "in_transaction") and hasattr(value, "get_bind"):
                return value
        return None

    @property
    def lease_s(self) -> float:
        """Seconds after which another process may load what one has begun to."""
        return min(30.0, max(1.0, 5 * self.longest_load_s))

    def record_load(self, seconds: float) -> None:
        """Record the duration of a load; old ones fade."""
        self.longest_load_s = max(seconds, 0.95 * self.longest_load_s)

    def lifetimes(self, value: Any) -> tuple[float, float]:
        """Seconds until a value expires, and until it is loaded again in the background; spread at random."""
        ttl = self.negative_ttl if value is None else self.ttl
        expires_s = ttl * random.uniform(0.9, 1.0)  # noqa: S311
        can_refresh = self.session_factory is not None or not self.call_key.ignored
        return expires_s, expires_s * random.uniform(0.7, 0.9) if can_refresh else expires_s  # noqa: S311

    def known_tables(self) -> tuple[str, ...]:
        """The tables that its loads have read, as far as this process knows."""
        return self._tables

    def learn_tables(self, tables: Iterable[str]) -> None:
        """Add tables that a load has read."""
        found = {table for table in tables if not table.startswith("@")}
        if self.derives_tags and not found <= set(self._tables):
            self._tables = tuple(sorted(found | set(self._tables)))


@functools.lru_cache(256)
def plain_function(is_async: bool, ttl: float, returns: Any, max_value_bytes: int) -> CachedFunction:
    """The function that stands for all loaders of :meth:`tenfold.caching.QueryCache.get_or_load`."""

    async def load_async() -> None: ...

    def load() -> None: ...

    options = QueryOptions(ttl=ttl, returns=returns)
    return CachedFunction(
        load_async if is_async else load, "get_or_load", options, max_value_bytes=max_value_bytes
    )


def check_function(function: Any) -> None:
    """Refuse what cannot be cached as a function.

    Raises:
        SettingsError: it is none, or a generator.
    """
    if not inspect.isfunction(function):
        raise SettingsError(
            f"{function!r} is no function: decorate the function itself, under @staticmethod and the like"
        )
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise SettingsError(f"{function.__qualname__} is a generator, which is consumed once: return a list")


def check_ttl(name: str, ttl: float, negative_ttl: float | None) -> None:
    """Refuse a lifetime that is none.

    Raises:
        SettingsError: one is not above 0 and up to 7 days.
    """
    for label, seconds in (("ttl", ttl), ("negative_ttl", negative_ttl)):
        if seconds is None:
            continue
        if not isinstance(seconds, int | float) or not 0 < seconds <= MAX_TTL:
            raise SettingsError(
                f"the {label} of {name} is {seconds}: write seconds, above 0 and up to 7 days"
            )
