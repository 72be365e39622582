"""Load by shard, bucket and tenant, and what is to be moved."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from tenfold.sharding import ShardedDatabase
from tenfold.sharding.directory import Directory
from tenfold.sharding.load import LoadCounter, summarize_load
from tests.sharding.conftest import Shards
from tests.support.waiting import eventually

DIRECTORY = Directory.create(["a", "b", "c", "d"], ("int",))


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from("xyz"), st.floats(0, 5)), max_size=60))
def test_nothing_is_lost_between_two_takes(records: list[tuple[int, str, float]]) -> None:
    counter = LoadCounter()
    for record in records:
        counter.record(*record)
    rows = counter.take()
    assert sum(sessions for *_, sessions, _ in rows) == len(records)
    assert abs(sum(seconds for *_, seconds in rows) - sum(seconds for *_, seconds in records)) < 1e-6
    assert counter.take() == []


def test_counter_is_bounded_and_keeps_the_heavy() -> None:
    counter = LoadCounter()
    for number in range(20_000):
        counter.record(number % 4096, f"light {number}", 0.001)
        if number % 10 == 0:
            counter.record(7, "heavy", 0.5)
        assert len(counter._keys) <= 4096 and len(counter._buckets) <= 4096
    rows = counter.take()
    assert (7, "heavy") in {(bucket, key) for bucket, key, *_ in rows}
    assert sum(key != "" for _, key, *_ in rows) <= 200
    assert sum(sessions for *_, sessions, _ in rows) == 22_000


def test_even_load_has_no_finding() -> None:
    rows = [(number, f"i1:{number}", 1, 1.0) for number in range(0, 4096, 16)]
    found = summarize_load(DIRECTORY, rows)
    assert (found.finding, found.peak, found.sessions) == ("", 1.0, 256)
    assert found.shards == dict.fromkeys("abcd", 0.25)


def test_no_load_has_no_finding() -> None:
    assert summarize_load(DIRECTORY, []).finding == ""


def test_heavy_tenant_is_named() -> None:
    rows = [(number, f"i1:{number}", 1, 1.0) for number in range(0, 4096, 16)]
    found = summarize_load(DIRECTORY, [*rows, (5, "i4:4711", 9000, 400.0)])
    assert "shard a takes 71% of the load, 2.8 times its share; tenant 4711 alone takes 61%" in found.finding
    assert next(iter(found.tenants)) == "i4:4711" and next(iter(found.buckets)) == 5


def test_heavy_bucket_without_a_heavy_tenant_is_named() -> None:
    rows = [(4095, f"i4:{number}", 1, 1.0) for number in range(90)]
    found = summarize_load(DIRECTORY, [*rows, (0, "", 1, 10.0), (5000, "unknown bucket", 1, 1.0)])
    assert (
        "shard d takes 90% of the load" in found.finding and "move bucket 4095 (90%) first" in found.finding
    )


def test_load_of_all_processes_is_beside_the_directory(
    make_database: Callable[..., ShardedDatabase], shards: Shards
) -> None:
    user = shards.user_on("shard4")
    for _ in range(2):
        database = make_database(lease_s=0.3)
        for _ in range(5):
            with database.session_for(user):
                pass
        database._lease.renew()
    place = shards.store.load().place(user)

    def counted() -> int:
        return sum(
            sessions
            for bucket, key, sessions, _ in shards.store.read_load()
            if (bucket, key) == (place.bucket, place.key)
        )

    eventually(lambda: counted() == 10)
    silent = make_database(count_load=False)
    with silent.session_for(user):
        pass
    silent._lease.renew()
    assert counted() == 10


def test_load_that_cannot_be_stored_is_left_out(
    make_database: Callable[..., ShardedDatabase], shards: Shards, caplog: object
) -> None:
    import psycopg

    database = make_database()
    user = shards.user_on("shard4")
    with database.session_for(user):
        pass
    with psycopg.connect(shards.directory_url, autocommit=True) as connection:
        connection.execute("ALTER TABLE tenfold.directory_load RENAME TO elsewhere")
        try:
            database._lease.renew()
            with database.session_for(user):
                pass
        finally:
            connection.execute("ALTER TABLE tenfold.elsewhere RENAME TO directory_load")
    assert "the load of shards is not counted" in caplog.text  # type: ignore[attr-defined]
