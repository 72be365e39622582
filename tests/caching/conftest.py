"""Real servers for caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from tenfold.caching import QueryCache
from tests.database.conftest import disposable_servers, make_router, postgresql, servers
from tests.sessions.conftest import own_redis, redis_server
from tests.support.servers import RedisServer

__all__ = ["disposable_servers", "make_router", "own_redis", "postgresql", "redis_server", "servers"]


# What depends on the server's version runs on the oldest one, too.
BOTH_SERVERS = {"test_redis_failures", "test_redis_kinds", "test_stampede"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the oldest server where it makes no difference."""
    left_out = [item for item in items if _is_superfluous(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _is_superfluous(item: pytest.Item) -> bool:
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    is_here = item.nodeid.startswith("tests/caching/")
    return is_here and parameters.get("redis_program") == "redis" and item.path.stem not in BOTH_SERVERS


@pytest.fixture
def make_cache(
    redis_server: RedisServer, request: pytest.FixtureRequest
) -> Iterator[Callable[..., QueryCache]]:
    """A factory of caches over one Redis, as several processes have them; closed afterwards."""
    made: list[QueryCache] = []

    def make(**options: Any) -> QueryCache:
        options = {
            "prefix": f"{request.node.nodeid.encode().hex()}:",
            "registry": CollectorRegistry(),
            "timeout_s": 1.0,  # a machine that stands still for a tenth of a second is no Redis that is down
            **options,
        }
        made.append(QueryCache(options.pop("redis", redis_server.url), **options))
        return made[-1]

    yield make
    for cache in made:
        cache.close()
