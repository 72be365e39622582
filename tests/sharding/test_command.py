"""`tenfold shards` on running shards: what people see, JSON, exit codes, wrong words."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tenfold.cli import main
from tenfold.sharding import ShardedDatabase
from tenfold.sharding.administration import push
from tests.sharding.conftest import Shards
from tests.sharding.support.models import Order


class Command:
    """Runs `tenfold shards` in this process; the answer is its exit code, stdout and stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self.capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        self.capsys.readouterr()
        code = main(["shards", *words])
        out, err = self.capsys.readouterr()
        return code, out, err

    def json(self, *words: str) -> Any:
        code, out, _ = self(words[0], "--json", *words[1:])
        return code, json.loads(out)


@pytest.fixture
def command(shards: Shards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    for name in ("SHARD_URLS", "SHARD_DIRECTORY_URL"):
        monkeypatch.setenv(name, shards.stack.environment[name])
    monkeypatch.setenv("COLUMNS", "80")
    return Command(capsys)


def test_status_shows_each_shard(command: Command, shards: Shards) -> None:
    code, out, _ = command("status")
    assert code == 0
    assert [line.split()[:2] for line in out.splitlines()] == [["✔", name] for name in shards.urls]
    assert all("% of keys" in line and len(line) <= 80 for line in out.splitlines())
    code, facts = command.json("init")  # can be repeated; shows the status
    assert (code, facts["key"], list(facts["shards"])) == (0, "int", list(shards.urls))
    assert sum(shard["buckets"] - shard["tenants"] for shard in facts["shards"].values()) == 4096


def test_status_names_a_shard_that_is_behind_or_down(
    command: Command, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    former = shards.store.load()
    directory = former.move(3, "shard2")
    shards.store.save(directory)
    code, out, _ = command("status")
    assert code == 1 and "run tenfold shards init" in " ".join(out.split())
    assert command("init")[0] == 0
    urls = ",".join(f"{name}={url}" for name, url in shards.urls.items() if name != "shard4")
    monkeypatch.setenv("SHARD_URLS", f"{urls},shard4=postgresql://u:secret-word@127.0.0.1:1/x")
    code, out, err = command("status")
    assert code == 1 and "shard shard4: " in " ".join(out.split()) and "secret-word" not in out + err
    monkeypatch.setenv("SHARD_URLS", urls)
    assert command("status")[2] == "tenfold: the directory has a shard shard4: add its URL to SHARD_URLS\n"
    monkeypatch.undo()
    back = shards.store.load().move(3, "shard1")
    shards.store.save(back)
    for name in ("shard1", "shard2"):
        push(back, name, shards.urls[name])


def test_plan_changes_nothing(command: Command, shards: Shards, database: ShardedDatabase) -> None:
    user = shards.user_on("shard1")
    database.run(user, lambda session: session.add(Order(user_id=user)))
    before = shards.store.load()
    code, out, _ = command("plan", "shard5")
    assert code == 0 and "would move; nothing was changed." in out
    assert "shard5                             0" in out and "peak to average" in out
    code, facts = command.json("plan", "shard5", "--by", "rows")
    assert facts["peak_after"] <= facts["peak_before"] and facts["before"]["shard5"] == 0
    assert shards.store.load() == before
    assert "has a shard shard4 already" in command("plan", "shard4")[2]
    assert "cannot even out 'colours'" in command("plan", "--by", "colours")[2]


def test_load_is_shown_with_its_finding(
    command: Command, shards: Shards, make_database: Callable[..., ShardedDatabase]
) -> None:
    with psycopg.connect(shards.directory_url) as connection:
        connection.execute("DELETE FROM tenfold.directory_load")
    assert command("load") == (0, "No process has counted a session in the last ten minutes.\n", "")
    assert "there are no load to even out yet" not in command("plan", "--by", "load")[1]
    user = shards.user_on("shard3")
    database = make_database()
    for _ in range(3):
        with database.session_for(user):
            pass
    database.close()
    code, out, _ = command("load")
    assert code == 1 and "shard3               100.0%  ████" in out
    assert f"tenant {user} alone takes 100%: give it a shard of its own" in " ".join(out.split())
    code, facts = command.json("load")
    assert (code, facts["sessions"], facts["peak"]) == (1, 3, 4.0)
    assert list(facts["rows"].values()) == [0]
    assert command("plan", "--by", "load")[0] == 0


def test_check_names_what_is_wrong_and_prints_sql(command: Command, shards: Shards) -> None:
    for name in shards.urls:
        shards.execute(name, "DELETE FROM tenfold.tables WHERE name LIKE 'audited%'")
    assert command("check") == (0, "✔ every table can be sharded\n", "")
    code, out, _ = command("check", "tenfold.shard=name")
    assert code == 1 and "has no column bucket" in out
    code, facts = command.json("check", "tenfold.shard=name")
    assert code == 1 and {one["shard"] for one in facts["problems"]} == set(shards.urls)
    code, out, _ = command("check", "tenfold.shard=name", "--sql")
    assert code == 0 and out.startswith("ALTER TABLE tenfold.shard ADD COLUMN IF NOT EXISTS bucket smallint;")
    assert "'x' names no table and key: write orders=user_id" in command("check", "x")[2]


def test_check_before_there_is_a_directory(
    command: Command, shards: Shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service that still has one database asks what it would have to change."""
    for name in ("SHARD_URLS", "SHARD_DIRECTORY_URL"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("DATABASE_URL", shards.primary.url)
    code, out, _ = command("check", "tenfold.directory=version")
    assert code == 1 and "has no column bucket" in out
    assert "database has no sharded table: name some" in command("check")[2]


def test_tenant_is_assigned(command: Command, shards: Shards) -> None:
    user = shards.user_on("shard1")
    code, facts = command.json("assign", str(user), "shard4")
    assert (code, facts["shard"], facts["bucket"] >= 4096) == (0, "shard4", True)
    assert "is no key of type int" in command("assign", "acme", "shard4")[2]
    assert "no shard nowhere in the directory: it has shard1" in command("assign", "1", "nowhere")[2]
    assert "assign takes a key and a shard" in command("assign", "1")[2]


def test_migration_reports_each_shard(command: Command, shards: Shards) -> None:
    code, out, _ = command("migrate", "--", sys.executable, "-c", "")
    assert code == 0 and [line.split()[:2] for line in out.splitlines()[:1]] == [["✔", "shard1"]]
    code, out, _ = command("migrate", "--", sys.executable, "-c", "raise SystemExit('no such revision')")
    assert code == 1 and "no such revision" in out
    assert "The canary shard1 failed: shard2, shard3, shard4 were not touched." in out
    code, facts = command.json("migrate", "--", sys.executable, "-c", "raise SystemExit(3)")
    assert code == 1 and facts["untouched"] == ["shard2", "shard3", "shard4"]
    assert facts["shards"] == [{"shard": "shard1", "succeeded": False, "said": "exit code 3"}]


@pytest.mark.parametrize(
    ("words", "variables", "says"),
    [
        (
            ["nothing"],
            {},
            "no action 'nothing': write one of init, status, plan, check, assign, load, migrate",
        ),
        (["status"], {"SHARD_URLS": ""}, "no shards are named: set SHARD_URLS"),
        (["status"], {"SHARD_DIRECTORY_URL": ""}, "no directory is named: write --directory URL"),
        (["status"], {"SHARD_URLS": "one=secret-word"}, "cannot be read at one"),
        (["init", "--key", "float"], {}, "no type of keys 'float'"),
        (["status", "--directory", "postgresql://u:secret-word@127.0.0.1:1/x"], {}, "cannot be read"),
    ],
)
def test_wrong_words_are_one_sentence(
    command: Command, monkeypatch: pytest.MonkeyPatch, words: list[str], variables: dict[str, str], says: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, out, err = command(*words)
    assert (code, out) == (2, "") and says in err
    assert err.count("\n") == 1 and "secret-word" not in err
