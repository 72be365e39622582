"""Where entries and tags are: in Redis, shared by all processes, or in this process alone.

Methods that need Redis are generators: they yield :class:`Execute` and are sent the replies, so that threads
and asyncio share them.
"""

from __future__ import annotations

import functools
import hashlib
import secrets
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

from tenfold.caching.entry import GENERATION_BYTES, Entry, Tag
from tenfold.caching.keys import shorten
from tenfold.caching.memory import MemoryTier
from tenfold.positions import Token

__all__ = [
    "Command",
    "Execute",
    "Found",
    "LocalStore",
    "RedisStore",
    "Steps",
    "Store",
    "StoreDownError",
    "lease_name",
    "new_generation",
    "new_tag",
    "pack_watermark",
    "unpack_change",
    "unpack_watermark",
]

Result = TypeVar("Result")
Command = tuple[Any, ...]
Steps = Generator[Any, Any, Result]

_MAX_LOCAL_TAGS = 200_000


class StoreDownError(Exception):
    """Redis cannot be asked, or not in time; never leaves the cache.

    Attributes:
        is_refusal: it answered, and refused a command.
    """

    def __init__(self, reason: str, *, is_refusal: bool = False) -> None:
        super().__init__(reason)
        self.is_refusal = is_refusal


@dataclass(frozen=True, slots=True)
class Execute:
    """Send commands to Redis; the replies are sent back, or StoreDownError is raised."""

    commands: Sequence[Command]
    is_urgent: bool = False


@dataclass(slots=True)
class Found:
    """What was read in one go: an entry, tags by name, and the watermark of applied invalidations."""

    entry: Entry | None
    tags: dict[str, Tag | None]
    watermark: Token | None = None
    has_watermark: bool = False
    is_leased: bool = False

    def generations(self) -> dict[str, bytes | None]:
        """The generations of the tags that were found."""
        return {name: tag.generation if tag else None for name, tag in self.tags.items()}


class Store(Protocol):
    """What a lookup needs of a store."""

    def read(self, key: str, tags: Iterable[str], *, lease: str = "") -> Steps[Found]:
        """Read an entry and tags, and whether a lease is held."""

    def create_tags(self, names: Sequence[str], token: Token | None) -> Steps[dict[str, Tag | None]]:
        """Give tags that are missing a generation; return what they have then."""

    def put(self, key: str, entry: Entry, *, ttl: float, lease: str = "") -> Steps[None]:
        """Store an entry for ``ttl`` seconds, and end the lease."""

    def take_lease(self, lease: str, *, ttl: float) -> Steps[bool]:
        """Take the lease of a load; False if another process has it."""

    def release_lease(self, lease: str) -> Steps[None]:
        """End the lease."""

    def renew_tags(self, tags: Mapping[str, Tag]) -> Steps[None]:
        """Replace tags: an invalidation.

        Raises:
            StoreDownError: it was not taken.
        """


def new_generation() -> bytes:
    """A generation that no tag has had."""
    return secrets.token_bytes(GENERATION_BYTES)


def new_tag(token: Token | None) -> Tag:
    """A tag of a new generation."""
    return Tag(new_generation(), token)


def lease_name(key: str, generations: Iterable[bytes]) -> str:
    """The lease of a load: one for a key and the generations of its tags."""
    digest = hashlib.blake2b(b"".join(generations), digest_size=8).hexdigest()
    return f"{key}:{digest}"


# ------------------------------------------------------------------ this process alone


@dataclass(slots=True)
class LocalStore:
    """Entries and tags of this process: invalidations do not reach others."""

    memory: MemoryTier
    tags: dict[str, Tag] = field(default_factory=dict)

    def read(self, key: str, tags: Iterable[str], *, lease: str = "") -> Steps[Found]:
        """See :class:`Store`; entries are in the memory tier, which was asked before."""
        yield from ()
        return Found(None, {name: self.tags.get(name) for name in tags})

    def create_tags(self, names: Sequence[str], token: Token | None) -> Steps[dict[str, Tag | None]]:
        """See :class:`Store`."""
        yield from ()
        if len(self.tags) > _MAX_LOCAL_TAGS:  # new generations: nothing that is kept will be found
            self.tags.clear()
            self.memory.flush()
        return {name: self.tags.setdefault(name, new_tag(token)) for name in names}

    def put(self, key: str, entry: Entry, *, ttl: float, lease: str = "") -> Steps[None]:
        """See :class:`Store`; the memory tier keeps it."""
        yield from ()

    def take_lease(self, lease: str, *, ttl: float) -> Steps[bool]:
        """See :class:`Store`."""
        yield from ()
        return True

    def release_lease(self, lease: str) -> Steps[None]:
        """See :class:`Store`."""
        yield from ()

    def renew_tags(self, tags: Mapping[str, Tag]) -> Steps[None]:
        """See :class:`Store`."""
        yield from ()
        for name, tag in tags.items():
            self.tags[name] = tag
            self.memory.set_generation(name, tag.generation)


# ------------------------------------------------------------------ Redis


@dataclass(slots=True)
class RedisStore:
    """Entries and tags in Redis, and a channel on which changes of tags are published.

    Args:
        prefix: of all keys, and the channel's name.
        tag_ttl: seconds for which a tag is kept after its last change; at least the ttl of every entry.
        is_durable: whether reads have to find the watermark of the relay.
    """

    prefix: str
    tag_ttl: float
    is_cluster: bool = False
    is_durable: bool = False

    def key(self, kind: str, name: str) -> str:
        """The key in Redis of a kind of name: v(alue), t(ag), l(ease)."""
        return _key(self.prefix, kind, name)

    @property
    def channel(self) -> str:
        """The channel on which changes of tags are published."""
        return f"{self.prefix}changes"

    @property
    def watermark_key(self) -> str:
        """The key that the relay renews while all invalidations of the log have been applied."""
        return f"{self.prefix}watermark"

    def read(self, key: str, tags: Iterable[str], *, lease: str = "") -> Steps[Found]:
        """See :class:`Store`: one MGET; in a cluster one GET each, pipelined."""
        names = tuple(tags)
        keys = [self.key("v", key)] if key else []
        keys += [self.key("t", name) for name in names]
        if self.is_durable:
            keys.append(self.watermark_key)
        if lease:
            keys.append(self.key("l", lease))
        if not keys:
            return Found(None, {})
        commands: list[Command] = [("GET", each) for each in keys]
        if self.is_cluster:
            values = yield Execute(commands)
        else:
            (values,) = yield Execute([("MGET", *keys)])
        values = list(values)
        found = Found(None, {}, is_leased=bool(lease) and values.pop() is not None)
        if self.is_durable:
            packed = values.pop()
            found.has_watermark = packed is not None
            found.watermark = unpack_watermark(packed)
        if key:
            found.entry = Entry.unpack(values.pop(0))
        found.tags = {name: Tag.unpack(value) for name, value in zip(names, values, strict=True)}
        return found

    def create_tags(self, names: Sequence[str], token: Token | None) -> Steps[dict[str, Tag | None]]:
        """See :class:`Store`. They are published, so that other processes keep entries of this generation."""
        commands: list[Command] = []
        for name in names:
            key = self.key("t", name)
            commands += [("SET", key, new_tag(token).pack(), "NX", "PX", _ms(self.tag_ttl)), ("GET", key)]
        replies = yield Execute(commands)
        found = {name: Tag.unpack(value) for name, value in zip(names, replies[1::2], strict=True)}
        published = [self._publish(name, tag) for name, tag in found.items() if tag]
        if published:
            yield Execute(published)
        return found

    def put(self, key: str, entry: Entry, *, ttl: float, lease: str = "") -> Steps[None]:
        """See :class:`Store`."""
        commands: list[Command] = [("SET", self.key("v", key), entry.pack(), "PX", _ms(ttl))]
        if lease:
            commands.append(("DEL", self.key("l", lease)))
        yield Execute(commands)

    def take_lease(self, lease: str, *, ttl: float) -> Steps[bool]:
        """See :class:`Store`."""
        (reply,) = yield Execute([("SET", self.key("l", lease), b"1", "NX", "PX", _ms(ttl))])
        return bool(reply)

    def release_lease(self, lease: str) -> Steps[None]:
        """See :class:`Store`."""
        yield Execute([("DEL", self.key("l", lease))])

    def renew_tags(self, tags: Mapping[str, Tag]) -> Steps[None]:
        """See :class:`Store`. It is tried even while Redis is taken to be down."""
        try:
            yield Execute(self.renewal(tags), is_urgent=True)
        except StoreDownError as error:
            if not error.is_refusal:
                raise
            # A full Redis takes no writes, but deletions: who misses a tag gives it a new generation.
            deletions: list[Command] = [("DEL", self.key("t", name)) for name in tags]
            yield Execute(
                [*deletions, *(self._publish(name, tag) for name, tag in tags.items())], is_urgent=True
            )

    def renewal(self, tags: Mapping[str, Tag]) -> list[Command]:
        """The commands that replace tags, and publish that."""
        commands: list[Command] = [
            ("SET", self.key("t", name), tag.pack(), "PX", _ms(self.tag_ttl)) for name, tag in tags.items()
        ]
        return [*commands, *(self._publish(name, tag) for name, tag in tags.items())]

    def _publish(self, name: str, tag: Tag) -> Command:
        return ("PUBLISH", self.channel, tag.generation + name.encode(errors="surrogatepass"))


@functools.lru_cache(4096)
def _key(prefix: str, kind: str, name: str) -> str:
    return f"{prefix}{kind}:{shorten(name)}"


def unpack_change(data: bytes) -> tuple[str, bytes] | None:
    """The name and new generation of a tag in a message of the channel; None for another message."""
    if len(data) <= GENERATION_BYTES:
        return None
    return data[GENERATION_BYTES:].decode(errors="surrogatepass"), data[:GENERATION_BYTES]


def pack_watermark(token: Token | None) -> bytes:
    """Encode a watermark, whose position may be unknown: no two are the same."""
    return new_generation() + (token.pack() if token else b"")


def unpack_watermark(data: bytes | None) -> Token | None:
    """The position of a watermark; None if it has none."""
    position = (data or b"")[GENERATION_BYTES:]
    return Token.unpack(position) if position else None


def _ms(seconds: float) -> int:
    return max(1, int(seconds * 1000))
