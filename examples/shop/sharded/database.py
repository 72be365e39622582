"""The shards: `SHARD_URLS` has their addresses, `SHARD_DIRECTORY_URL` says which has whose orders."""

from __future__ import annotations

import os

from tenfold.database import DatabaseRouter
from tenfold.sharding import ShardedDatabase, parse_shard_urls

POOL = {"pool_size": 3, "max_overflow": 5, "pool_timeout": 2, "connect_args": {"connect_timeout": 2}}

shards = ShardedDatabase(
    os.environ["SHARD_DIRECTORY_URL"],
    {
        name: DatabaseRouter(url, keys=os.environ["SECRET_KEY"], options={"engine": POOL})
        for name, url in parse_shard_urls(os.environ["SHARD_URLS"]).items()
    },
)
