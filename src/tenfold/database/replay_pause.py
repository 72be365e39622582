"""Replay pauses: hold replicas back, so that a read that is too early is certainly stale."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tenfold.database.psycopg import query_value
from tenfold.errors import TargetError

__all__ = ["hold_back", "wait_for_replicas"]

_TIMEOUT_S = 30.0
_DELAY_S = 30.0  # far longer than any read may wait: replicas stay behind until they are let go


@contextmanager
def hold_back(urls: Sequence[str]) -> Iterator[None]:
    """Keep commits from arriving on these replicas during a block; wait for all of them afterwards.

    Each commit is applied 30 s late (``recovery_min_apply_delay``); changing the delay back lets them go at
    once.

    Args:
        urls: the replicas, as superusers (libpq's URLs): a setting of the server is changed.

    Raises:
        TargetError: a replica does not catch up within 30 s.
        psycopg.Error: a replica cannot be reached, or the role is no superuser.
    """
    _set_delay(urls, _DELAY_S)
    try:
        yield
    finally:
        _set_delay(urls, 0)
        for url in urls:
            _await(url, "select pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()")


def wait_for_replicas(primary: str, urls: Sequence[str]) -> None:
    """Wait until every replica has replayed what the primary has written by now.

    Raises:
        TargetError: one does not within 30 s.
        psycopg.Error: a server cannot be reached.
    """
    # What was committed with synchronous_commit = off need not be written yet: a commit of ours sees to it.
    query_value(primary, "select pg_logical_emit_message(true, 'tenfold', 'caught up')")
    goal = query_value(primary, "select pg_current_wal_flush_lsn()::text")
    for url in urls:
        _await(url, f"select pg_last_wal_replay_lsn() >= '{goal}'::pg_lsn")


def _set_delay(urls: Sequence[str], seconds: float) -> None:
    milliseconds = int(seconds * 1000)
    for url in urls:
        query_value(url, f"alter system set recovery_min_apply_delay = {milliseconds}")
        query_value(url, "select pg_reload_conf()")
        _await(
            url,
            "select setting::int = "  # noqa: S608 - a number of ours
            f"{milliseconds} from pg_settings where name = 'recovery_min_apply_delay'",
        )


def _await(url: str, query: str) -> None:
    deadline = time.monotonic() + _TIMEOUT_S
    while query_value(url, query) is not True:
        if time.monotonic() > deadline:
            raise TargetError(f"a replica did not get there within {_TIMEOUT_S:g} s: {query}")
        time.sleep(0.01)
