"""The same Alembic revision on all shards: canary first, resumable, alone."""

from __future__ import annotations

import sys
from pathlib import Path

import psycopg
import pytest

from tenfold.errors import DirectoryConflictError, SettingsError
from tenfold.sharding.migrations import migrate
from tests.sharding.conftest import Shards

ENV = """
import os
from alembic import context
from sqlalchemy import create_engine
engine = create_engine(os.environ["DATABASE_URL"].replace("postgresql:", "postgresql+psycopg:"))
with engine.connect() as connection:
    context.configure(connection=connection)
    with context.begin_transaction():
        context.run_migrations()
"""
REVISION = """
import os
from alembic import op
revision, down_revision = "{name}", {down}
def upgrade():
    if os.environ["TENFOLD_SHARD"] in os.environ.get("BROKEN", "").split():
        raise RuntimeError("postgresql://u:secret-word@h/x is broken")
    op.execute("CREATE TABLE IF NOT EXISTS {table} (id int)")
def downgrade():
    op.execute("DROP TABLE {table}")
"""


@pytest.fixture
def alembic(tmp_path: Path, shards: Shards, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """An Alembic project with two revisions; the command that runs it."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (tmp_path / "alembic.ini").write_text(f"[alembic]\nscript_location = {tmp_path}/migrations\n")
    (tmp_path / "migrations" / "env.py").write_text(ENV)
    (tmp_path / "migrations" / "script.py.mako").write_text("")
    (versions / "a.py").write_text(REVISION.format(name="aaa", down=None, table="migrated_a"))
    (versions / "b.py").write_text(REVISION.format(name="bbb", down="'aaa'", table="migrated_b"))
    for shard in shards.urls:
        shards.execute(shard, "DROP TABLE IF EXISTS alembic_version, migrated_a, migrated_b")
    return [sys.executable, "-m", "alembic", "-c", str(tmp_path / "alembic.ini"), "upgrade"]


def test_all_shards_get_the_revision(alembic: list[str], shards: Shards) -> None:
    first, *others = list(migrate(shards.store, shards.urls, [*alembic, "head"]))
    assert first == ("shard1", True, "bbb")
    assert {one.shard for one in others} == {"shard2", "shard3", "shard4"}
    assert {one.said for one in others} == {"bbb"}
    for shard in shards.urls:
        assert shards.execute(shard, "SELECT to_regclass('migrated_b') IS NOT NULL") == [(True,)]


def test_failed_canary_leaves_the_others_alone(
    alembic: list[str], shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "shard1")
    (only,) = list(migrate(shards.store, shards.urls, [*alembic, "head"]))
    assert (only.shard, only.succeeded) == ("shard1", False)
    assert "is broken" in only.said and "secret-word" not in only.said
    for shard in shards.urls:
        assert shards.execute(shard, "SELECT to_regclass('migrated_b') IS NULL") == [(True,)]


def test_repetition_completes_what_failed(
    alembic: list[str], shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", "shard3")
    done = {one.shard: one.succeeded for one in migrate(shards.store, shards.urls, [*alembic, "head"])}
    assert done == {"shard1": True, "shard2": True, "shard3": False, "shard4": True}
    monkeypatch.delenv("BROKEN")
    assert all(
        one.succeeded and one.said == "bbb" for one in migrate(shards.store, shards.urls, [*alembic, "head"])
    )


def test_two_migrations_at_once_are_refused(alembic: list[str], shards: Shards) -> None:
    running = migrate(shards.store, shards.urls, [*alembic, "aaa"])
    next(running)
    with pytest.raises(DirectoryConflictError, match="is running: wait for it"):
        next(migrate(shards.store, shards.urls, [*alembic, "head"]))
    running.close()


def test_command_that_cannot_be_run_is_named(shards: Shards) -> None:
    with pytest.raises(SettingsError, match=r"no-such-program cannot be run: \w"):
        list(migrate(shards.store, shards.urls, ["no-such-program"]))


def test_command_without_alembic_has_no_revision(shards: Shards) -> None:
    with psycopg.connect(shards.urls["shard1"]) as connection:
        connection.execute("DROP TABLE IF EXISTS alembic_version")
    (only, *_) = list(migrate(shards.store, {"shard1": shards.urls["shard1"]}, [sys.executable, "-c", ""]))
    assert only == ("shard1", True, "")
    (slow, *_) = list(
        migrate(
            shards.store,
            {"shard1": shards.urls["shard1"]},
            [sys.executable, "-c", "import time; time.sleep(9)"],
            timeout_s=0.3,
        )
    )
    assert slow == ("shard1", False, "did not end within 0.3 s")
