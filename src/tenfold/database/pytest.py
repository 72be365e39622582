"""``stale_read_guard``: a pytest fixture that finds endpoints which do not show what was just written.

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

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tenfold.database.psycopg import ask
from tenfold.errors import DependencyError

try:
    import pytest
except ImportError as error:
    raise DependencyError("pytest is not installed: pip install pytest") from error

__all__ = ["StaleReadGuard", "replica_admin_urls", "stale_read_guard"]

_PATIENCE_S = 30.0
_DELAY_S = 30.0  # far longer than any read may wait: what is held back stays so until it is let go


class StaleReadGuard:
    """Holds replicas back, and compares what is read then with what is read once they have caught up.

    Args:
        urls: the replicas, as superusers (libpq's URLs).
    """

    def __init__(self, urls: Sequence[str]) -> None:
        self._urls = list(urls)

    def check(self, *, write: Callable[[], Any], read: Callable[[], Any]) -> Any:
        """Write, read at once, read again when every replica has everything. Returns what was read.

        ``write`` and ``read`` act for one visitor: share the client, so that cookies travel.

        Raises:
            AssertionError: the answers differ, although nothing was written in between.
        """
        with self.held_back():
            write()
            at_once = read()
        later = read()
        if at_once != later:
            raise AssertionError(
                f"a stale read: right after the write it was {at_once!r}, and {later!r} when the replicas "
                "had caught up; read through router.read(), with ConsistencyMiddleware around the app"
            )
        return later

    @contextmanager
    def held_back(self) -> Iterator[None]:
        """For a block, what is committed does not arrive on any replica; afterwards all catch up.

        Each commit is applied 30 s late; changing the delay back lets them go at once.
        """
        self._delay(_DELAY_S)
        try:
            yield
        finally:
            self._delay(0)
            for url in self._urls:
                self._await(url, "select pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()")

    def _delay(self, seconds: float) -> None:
        milliseconds = int(seconds * 1000)
        for url in self._urls:
            ask(url, f"alter system set recovery_min_apply_delay = {milliseconds}")
            ask(url, "select pg_reload_conf()")
            self._await(
                url,
                "select setting::int = "  # noqa: S608 - a number of ours
                f"{milliseconds} from pg_settings where name = 'recovery_min_apply_delay'",
            )

    def _await(self, url: str, query: str) -> None:
        deadline = time.monotonic() + _PATIENCE_S
        while ask(url, query) is not True:
            if time.monotonic() > deadline:
                raise AssertionError(f"a replica did not get there within {_PATIENCE_S:g} s: {query}")
            time.sleep(0.01)


@pytest.fixture(scope="session")
def replica_admin_urls() -> Sequence[str]:
    """Override it: the replicas that the service under test reads from, as superusers."""
    pytest.skip(
        "stale_read_guard needs replicas: define a fixture replica_admin_urls that returns their URLs"
    )


@pytest.fixture
def stale_read_guard(replica_admin_urls: Sequence[str]) -> StaleReadGuard:
    """A guard over the replicas of ``replica_admin_urls``."""
    return StaleReadGuard(replica_admin_urls)
