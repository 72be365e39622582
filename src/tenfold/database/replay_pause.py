"""Holds replicas back, so that whoever reads too early reads something old for certain."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from tenfold.database.psycopg import ask
from tenfold.errors import TargetError

__all__ = ["caught_up", "held_back"]

_PATIENCE_S = 30.0
_DELAY_S = 30.0  # far longer than any read may wait: what is held back stays so until it is let go


@contextmanager
def held_back(urls: Sequence[str]) -> Iterator[None]:
    """For a block, what is committed does not arrive on these replicas; afterwards all catch up.

    Each commit is applied 30 s late (``recovery_min_apply_delay``); changing the delay back lets them go at
    once.

    Args:
        urls: the replicas, as superusers (libpq's URLs): a setting of the server is changed.

    Raises:
        TargetError: a replica does not get there within 30 s.
        psycopg.Error: a replica cannot be reached, or the role is no superuser.
    """
    _delay(urls, _DELAY_S)
    try:
        yield
    finally:
        _delay(urls, 0)
        for url in urls:
            _await(url, "select pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn()")


def caught_up(primary: str, urls: Sequence[str]) -> None:
    """Return when every replica has replayed what the primary has written by now.

    Raises:
        TargetError: one does not within 30 s.
        psycopg.Error: a server cannot be reached.
    """
    # What was committed with synchronous_commit = off need not be written yet: a commit of ours sees to it.
    ask(primary, "select pg_logical_emit_message(true, 'tenfold', 'caught up')")
    goal = ask(primary, "select pg_current_wal_flush_lsn()::text")
    for url in urls:
        _await(url, f"select pg_last_wal_replay_lsn() >= '{goal}'::pg_lsn")


def _delay(urls: Sequence[str], seconds: float) -> None:
    milliseconds = int(seconds * 1000)
    for url in urls:
        ask(url, f"alter system set recovery_min_apply_delay = {milliseconds}")
        ask(url, "select pg_reload_conf()")
        _await(
            url,
            "select setting::int = "  # noqa: S608 - a number of ours
            f"{milliseconds} from pg_settings where name = 'recovery_min_apply_delay'",
        )


def _await(url: str, query: str) -> None:
    deadline = time.monotonic() + _PATIENCE_S
    while ask(url, query) is not True:
        if time.monotonic() > deadline:
            raise TargetError(f"a replica did not get there within {_PATIENCE_S:g} s: {query}")
        time.sleep(0.01)
