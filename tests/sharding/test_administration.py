"""Creating the directory, changing it, and what is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import psycopg
import pytest

from tenfold.errors import BucketMovedError, DirectoryConflictError, DirectoryError, SettingsError
from tenfold.sharding import DirectoryStore, ShardedDatabase, administration
from tenfold.sharding.administration import assign_tenant, create_shards, parse_shard_urls, push
from tenfold.sharding.directory import Directory
from tenfold.sharding.keys import BUCKETS
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Order


@pytest.fixture
def empty(shards: Shards) -> Iterator[dict[str, str]]:
    """Two databases without anything of tenfold: the URLs of a directory and of a shard."""
    names = {"directory": "empty_directory", "new": "empty_shard"}
    with psycopg.connect(shards.primary.admin_url, autocommit=True) as admin:
        for name in names.values():
            admin.execute(f"CREATE DATABASE {name} OWNER {shards.primary.user}")
        yield {key: shards.primary.url.rpartition("/")[0] + f"/{name}" for key, name in names.items()}
        for name in names.values():
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_creation_can_be_repeated_and_completes_what_was_interrupted(
    empty: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DirectoryStore(empty["directory"])
    urls = {"new": empty["new"]}

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(administration, "push", interrupt)
        create_shards(store, urls, ("int",))
    for _ in range(2):
        directory = create_shards(store, urls, ("int",))
        assert (directory.version, len(directory.buckets_of("new"))) == (1, BUCKETS)
    with psycopg.connect(empty["new"]) as connection:
        assert connection.execute("SELECT count(*) FROM tenfold.buckets WHERE owned").fetchone() == (BUCKETS,)
    store.close()


def test_more_shards_are_added_without_buckets(empty: dict[str, str]) -> None:
    store = DirectoryStore(empty["directory"])
    create_shards(
        store, {"first": empty["directory"]}, ("text", "int")
    )  # one of the shards has the directory
    directory = create_shards(store, {"first": empty["directory"], "new": empty["new"]}, ("text", "int"))
    assert directory.buckets_of("new") == {} and store.load() == directory
    with pytest.raises(SettingsError, match="keys are text,int, not int: they are set once"):
        create_shards(store, {"first": empty["directory"]}, ("int",))
    with pytest.raises(SettingsError, match="the database of shard other is shard new already"):
        create_shards(store, {"other": empty["new"]}, ("text", "int"))
    with pytest.raises(SettingsError, match="'Two Words' is no name of a shard"):
        create_shards(store, {"Two Words": empty["new"]}, ("text", "int"))
    store.close()


def test_missing_directory_and_shard_say_what_to_do(empty: dict[str, str], shards: Shards) -> None:
    store = DirectoryStore(empty["directory"])
    with pytest.raises(DirectoryError, match="does not exist: create it with tenfold shards init"):
        store.load()
    store.close()
    down = "postgresql://u:secret-word@127.0.0.1:1/none"
    with pytest.raises(DirectoryError, match=r"^shard gone: ") as refused:
        create_shards(store, {"gone": down}, ("int",))
    assert "secret-word" not in str(refused.value)


@pytest.mark.guarantee(
    "of two writers of the directory one is refused", pattern="sharding", under="both change it at once"
)
def test_second_writer_of_a_version_is_refused(shards: Shards) -> None:
    former = shards.store.load()
    one, other = former.move(1, "shard2"), former.move(2, "shard3")
    shards.store.save(one)
    with pytest.raises(DirectoryConflictError, match="read it again, and repeat the change"):
        shards.store.save(other)
    assert shards.store.load() == one
    restored = one.move(1, "shard1")
    shards.store.save(restored)
    for name in ("shard1", "shard2"):
        push(restored, name, shards.urls[name])


@pytest.mark.control("of two writers of the directory one is refused", "without the version")
def test_the_control_without_the_version_a_change_is_lost(
    shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = shards.store.load()
    one = former.move(1, "shard2")
    shards.store.save(one)
    blind = replace(former.move(2, "shard3"), version=one.version + 1)
    shards.store.save(blind)
    assert shards.store.load().buckets[1].shard != "shard2"
    restored = bring_together(blind, shards)
    assert restored == shards.store.load()


def bring_together(directory: Directory, shards: Shards) -> Directory:
    """Bring directory and shards together again, all epochs above those that were."""
    epochs = {name: epoch + 2 for name, epoch in directory.shard_epochs.items()}
    buckets = {number: one._replace(epoch=one.epoch + 1) for number, one in directory.buckets.items()}
    restored = replace(directory, version=directory.version + 1, shard_epochs=epochs, buckets=buckets).move(
        2, directory.move(2, "shard1").buckets[2].shard
    )
    restored = replace(restored, version=directory.version + 1)
    shards.store.save(restored)
    for name, url in shards.urls.items():
        push(restored, name, url)
    return restored


def test_older_directory_is_not_pushed_over_a_later_one(shards: Shards) -> None:
    older = shards.store.load()
    shards.move(older.place(shards.user_on("shard1")).bucket, "shard2")
    with pytest.raises(DirectoryConflictError, match="shard shard2 knows a later directory"):
        push(older, "shard2", shards.urls["shard2"])


def test_one_migration_or_move_at_a_time(shards: Shards) -> None:
    with shards.store.exclude_changes():
        with (
            pytest.raises(DirectoryConflictError, match="is running: wait for it"),
            shards.store.exclude_changes(),
        ):
            pass
        with pytest.raises(DirectoryConflictError, match="is running"):
            assign_tenant(shards.store, shards.urls, shards.user_on("shard1"), "shard2")


# ------------------------------------------------------------------ tenants


def test_tenant_gets_a_bucket_of_its_own(
    make_database: Callable[..., ShardedDatabase], shards: Shards
) -> None:
    user = shards.user_on("shard1")
    stale, fresh = make_database(lease_s=60), make_database()
    stale.directory()
    directory = assign_tenant(shards.store, shards.urls, user, "shard4")
    assert directory.place(user)[:2] == (directory.place(user).bucket, "shard4")
    with pytest.raises(BucketMovedError), stale.session_for(user) as session:
        session.add(Order(user_id=user))
    for database in (fresh, stale):
        database.run(user, lambda session: session.add(Order(user_id=user)))
    assert shards.home(user) == ["shard4"]
    with fresh.session_for(user) as session:
        session.add(order := Order(user_id=user))
        session.flush()
        order_id = order.id
    with fresh.session_for_id(order_id) as session:
        assert session.get(Order, order_id)
    assert (
        assign_tenant(shards.store, shards.urls, user, "shard4") == directory
    )  # a repetition changes nothing


def test_tenant_with_rows_stays_where_it_is(database: ShardedDatabase, shards: Shards) -> None:
    user = shards.user_on("shard2")
    database.run(user, lambda session: session.add(Order(user_id=user)))
    for target in ("shard3", "shard2"):
        with pytest.raises(SettingsError, match="the tenant has 1 rows on shard shard2"):
            assign_tenant(shards.store, shards.urls, user, target)
        assert shards.store.load().place(user).shard == "shard2"
        database.run(user, lambda session: session.add(Order(user_id=user)))
        shards.execute(
            "shard2", f"DELETE FROM orders WHERE id = (SELECT max(id) FROM orders WHERE user_id = {user})"
        )
    assert shards.home(user) == ["shard2"]


def test_writer_who_is_inside_is_waited_for(database: ShardedDatabase, shards: Shards) -> None:
    """The tenant's first row is being written while it is assigned: the row is found, the tenant stays."""
    user = shards.user_on("shard3")
    errors: list[str] = []

    def assign() -> None:
        try:
            assign_tenant(shards.store, shards.urls, user, "shard4")
        except SettingsError as error:
            errors.append(str(error))

    with database.session_for(user) as session:
        session.add(Order(user_id=user))
        session.flush()
        thread = threading.Thread(target=assign)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(20)
    assert errors and "has 1 rows" in errors[0]
    assert shards.home(user) == ["shard3"]
    database.run(user, lambda session: session.add(Order(user_id=user)))


# ------------------------------------------------------------------ URLs


def test_urls_of_shards_are_parsed() -> None:
    text = "one=postgresql://u:p@a:1,b:2/x,two=postgresql+asyncpg://u:p,q@c/y  three=postgresql://d/z"
    assert parse_shard_urls(text) == {
        "one": "postgresql://u:p@a:1,b:2/x",
        "two": "postgresql+asyncpg://u:p,q@c/y",
        "three": "postgresql://d/z",
    }
    assert parse_shard_urls(" ") == {}


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://u:secret@h/x",
        "one=secret",
        "One=postgresql://h/secret",
        "a=postgresql://secret,a=postgresql://h",
    ],
)
def test_urls_that_cannot_be_read_are_not_shown(text: str) -> None:
    with pytest.raises(SettingsError, match="cannot be read at") as refused:
        parse_shard_urls(text)
    assert "secret" not in str(refused.value)
