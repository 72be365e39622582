"""``stale_read_guard``: a pytest fixture that finds endpoints whose reads miss the write before them.

    pytest_plugins = ["tenfold.database.pytest"]          # in conftest.py

    @pytest.fixture(scope="session")
    def replica_admin_urls(stack):                        # superusers: the fixture changes a server setting
        return [server.admin_url for server in stack.servers if server.kind == "replica"]

    def test_an_order_is_listed_at_once(client, stale_read_guard):
        stale_read_guard.check(
            write=lambda: client.post("/orders", json={"product": 7}),
            read=lambda: client.get("/orders").json(),
        )

Replication on one machine takes a millisecond, so that stale reads hide until production. The guard holds the
replicas back, which makes every stale read certain, whatever the service reads through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from tenfold.database.replay_pause import hold_back
from tenfold.errors import DependencyError

try:
    import pytest
except ImportError as error:
    raise DependencyError("pytest is not installed: pip install pytest") from error

__all__ = ["StaleReadGuard", "replica_admin_urls", "stale_read_guard"]


class StaleReadGuard:
    """Compares a read while replicas are held back with one after they have caught up.

    Args:
        urls: the replicas, as superusers (libpq's URLs).
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    def check(self, *, write: Callable[[], Any], read: Callable[[], Any]) -> Any:
        """Write, read at once, read again when every replica has caught up; return what was read.

        ``write`` and ``read`` act for one visitor: share the client, so that cookies travel.

        Raises:
            AssertionError: the answers differ, although nothing was written in between.
        """
        with self.hold_back():
            write()
            at_once = read()
        later = read()
        if at_once != later:
            raise AssertionError(
                f"a stale read: right after the write it was {at_once!r}, and {later!r} when the replicas "
                "had caught up; read through router.read(), with ConsistencyMiddleware around the app"
            )
        return later

    def hold_back(self) -> AbstractContextManager[None]:
        """Keep commits from arriving on any replica during a block; wait for all of them afterwards."""
        return hold_back(self._urls)


@pytest.fixture(scope="session")
def replica_admin_urls() -> Sequence[str]:
    """The replicas that the service under test reads from, as superusers; override it."""
    pytest.skip(
        "stale_read_guard needs replicas: define a fixture replica_admin_urls that returns their URLs"
    )


@pytest.fixture
def stale_read_guard(replica_admin_urls: Sequence[str]) -> StaleReadGuard:
    """A guard over the replicas of ``replica_admin_urls``."""
    return StaleReadGuard(replica_admin_urls)
