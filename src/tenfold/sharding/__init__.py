"""Shards: a directory of buckets, sessions on the shard of a key, and queries over all shards."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.sharding.administration import DirectoryStore, parse_shard_urls
    from tenfold.sharding.database import Page, ShardedDatabase
    from tenfold.sharding.ids import decode_id, make_uuid
    from tenfold.sharding.tables import Sharded, next_id, shard_table

__all__ = [
    "DirectoryStore",
    "Page",
    "Sharded",
    "ShardedDatabase",
    "decode_id",
    "make_uuid",
    "next_id",
    "parse_shard_urls",
    "shard_table",
]

_HOMES = {
    "DirectoryStore": "administration",
    "Page": "database",
    "Sharded": "tables",
    "ShardedDatabase": "database",
    "decode_id": "ids",
    "make_uuid": "ids",
    "next_id": "tables",
    "parse_shard_urls": "administration",
    "shard_table": "tables",
}


def __getattr__(name: str) -> Any:
    # Lazy: each piece loads only the library it is about.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.sharding.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
