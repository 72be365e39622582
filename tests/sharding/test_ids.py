"""Identifiers: their bucket and time can be read, they grow, and no two are the same."""

from __future__ import annotations

import os
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.sharding import ids
from tenfold.sharding.ids import decode_id, make_uuid
from tenfold.sharding.keys import BUCKETS
from tests.sharding.conftest import Shards

BUCKET = st.integers(0, 2 * BUCKETS - 1)


@given(bucket=BUCKET)
def test_uuid_carries_its_bucket_and_time(bucket: int) -> None:
    made = make_uuid(bucket)
    assert (made.version, made.variant) == (7, uuid.RFC_4122)
    found = decode_id(made)
    assert found.bucket == bucket
    assert abs(datetime.now(UTC) - found.created_at) < timedelta(minutes=1)


@given(buckets=st.lists(BUCKET, min_size=1, max_size=1).map(lambda one: one * 300))
def test_uuids_of_a_bucket_grow(buckets: list[int]) -> None:
    made = [make_uuid(bucket) for bucket in buckets]
    assert made == sorted(made) and len(set(made)) == len(made)


def test_uuids_grow_while_the_clock_goes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    made = [make_uuid(7)]
    monkeypatch.setattr(time, "time_ns", lambda: 1_000_000_000)
    made += [make_uuid(7) for _ in range(1000)]
    assert made == sorted(made) and len(set(made)) == len(made)


def test_full_counter_takes_the_next_millisecond(monkeypatch: pytest.MonkeyPatch) -> None:
    first = make_uuid(7)
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    monkeypatch.setattr(ids, "_counter", ids._OWN - 2)
    second = make_uuid(7)
    assert decode_id(second).created_at == decode_id(first).created_at + timedelta(milliseconds=1)
    assert second > first


def test_fork_begins_with_another_counter() -> None:
    make_uuid(1)
    before = ids._counter
    read, write = os.pipe()
    if not (child := os.fork()):
        os.write(write, str(make_uuid(1)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    theirs = uuid.UUID(os.read(read, 100).decode())
    assert abs((theirs.int & (ids._OWN - 1)) - before) > 1_000_000


@pytest.mark.parametrize("wrong", [uuid.uuid4(), -1, 2**63, True, "x"])
def test_something_else_is_no_identifier(wrong: Any) -> None:
    with pytest.raises(SettingsError, match=r"no UUID of version 7|no identifier of a row"):
        decode_id(wrong)


# ------------------------------------------------------------------ made by the shard


def next_ids(url: str, bucket: int, count: int) -> list[int]:
    with psycopg.connect(url) as connection:
        connection.execute("SELECT set_config('tenfold.bucket', %s, true)", (str(bucket),))
        rows = connection.execute("SELECT tenfold.next_id() FROM generate_series(1, %s)", (count,)).fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize("bucket", [0, 5, 4095, 4096, 4101, 8191])
def test_shard_puts_bucket_and_time_into_an_id(shards: Shards, bucket: int) -> None:
    (made,) = next_ids(shards.urls["shard1"], bucket, 1)
    assert 0 < made < 2**63
    found = decode_id(made)
    assert found.bucket == bucket
    assert abs(datetime.now(UTC) - found.created_at) < timedelta(minutes=1)


@pytest.mark.guarantee("no two rows get the same id", pattern="sharding", under="eight writers at once")
def test_ids_of_many_writers_are_different_and_grow(shards: Shards) -> None:
    made: dict[int, list[int]] = {}

    def work(number: int) -> None:
        made[number] = [one for _ in range(8) for one in next_ids(shards.urls["shard1"], 5, 1500)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    every = [one for found in made.values() for one in found]
    assert len(set(every)) == len(every) == 8 * 8 * 1500
    assert all(found == sorted(found) for found in made.values())


@pytest.mark.control("no two rows get the same id", "setting the clock beside others who count")
def test_the_control_setval_without_the_lock_repeats_ids(shards: Shards) -> None:
    """Between the decision to call setval() and the call, nextval() passes the value, then repeats it."""
    url = shards.urls["shard4"]
    next_ids(url, 5, 1)
    ((last,),) = shards.execute("shard4", "SELECT last_value FROM tenfold.clock")
    target = ((last >> 9) + 60_000) << 9
    shards.execute("shard4", f"SELECT setval('tenfold.clock', {target - 3})")
    before = next_ids(url, 5, 10)
    shards.execute("shard4", f"SELECT setval('tenfold.clock', {target})")
    assert set(before) & set(next_ids(url, 5, 10))
    shards.execute("shard4", f"SELECT setval('tenfold.clock', {target + 1000})")


def test_nextval_waits_for_setval_and_setval_is_skipped_under_nextval(shards: Shards) -> None:
    url = shards.urls["shard2"]
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock_shared(1952804454, 1)")  # as nextval() does
        next_ids(url, 5, 3)
    with psycopg.connect(url) as other:
        other.execute("SELECT pg_advisory_xact_lock(1952804454, 1)")  # as setval() does
        with pytest.raises(psycopg.Error, match="lock timeout"), psycopg.connect(url) as connection:
            connection.execute(
                "SELECT set_config('tenfold.bucket', '5', true), set_config('lock_timeout', '50', true)"
            )
            connection.execute("SELECT tenfold.next_id()")
    next_ids(url, 5, 3)
    assert shards.execute("shard2", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


@pytest.mark.control("no two rows get the same id", "from the clock alone")
def test_the_control_ids_from_the_clock_alone_repeat(shards: Shards) -> None:
    clock = "(floor(extract(epoch FROM clock_timestamp()) * 1000)::bigint << 22) | (5 << 10)"
    rows = shards.execute("shard1", f"SELECT {clock} FROM generate_series(1, 300)")
    assert len(set(rows)) < len(rows)


def test_ids_grow_while_the_servers_clock_goes_back(shards: Shards) -> None:
    """The clock is the sequence: ahead of the server's time it goes on counting."""
    url = shards.urls["shard3"]
    (last,) = next_ids(url, 5, 1)
    shards.execute(
        "shard3", "SELECT setval('tenfold.clock', (SELECT last_value FROM tenfold.clock) + (60000 << 9))"
    )
    (first, *others) = next_ids(url, 5, 2000)
    assert last < first and others == sorted({*others})
    assert decode_id(first).created_at > datetime.now(UTC) + timedelta(seconds=50)


def test_cancelled_writer_leaves_no_lock(shards: Shards) -> None:
    next_ids(shards.urls["shard1"], 1, 10)
    assert shards.execute("shard1", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'") == [(0,)]


def test_ids_need_a_bucket(shards: Shards) -> None:
    with pytest.raises(psycopg.Error, match=r"tenfold\.bucket"):
        shards.execute("shard1", "SELECT tenfold.next_id()")
