"""PgBouncer's files: rendering and refusals; the real one is in ``test_pgbouncer_served``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.database.pools import pgbouncer
from tenfold.database.pools.budget import Fleet, ServerLimits
from tenfold.database.pools.pgbouncer import PgBouncer, connection_limits, driver_options, render
from tenfold.errors import SettingsError
from tests.database.support.pgbouncer_files import UnreadableError, read_databases, read_ini, read_users

PLAIN = {"host": "db.internal", "databases": {"shop": "shop"}, "users": {"shop": "secret"}}


def pooler(**changed: Any) -> PgBouncer:
    return PgBouncer(**{**PLAIN, **changed})  # type: ignore[arg-type]


def rendered(**changed: Any) -> dict[str, str]:
    return {str(file.path): file.text for file in render(pooler(**changed))}


# ------------------------------------------------------------------ rendering


def test_rendered_files() -> None:
    files = rendered(max_db_connections=90, max_clients=2000)
    lines = files["pgbouncer.ini"].splitlines()
    assert lines[1] == "shop = host=db.internal port=5432 dbname='shop'"
    assert {"pool_mode = transaction", "max_db_connections = 90", "max_client_conn = 2000"} <= set(lines)
    assert files["userlist.txt"] == '"shop" "secret"\n'
    assert "secret" not in files["pgbouncer.ini"]
    assert "secret" not in repr(PgBouncer(**PLAIN))  # type: ignore[arg-type]


@pytest.mark.parametrize(("version", "known"), [((1, 18), False), ((1, 20), False), ((1, 21), True)])
def test_an_old_version_is_not_told_of_prepared_statements(version: tuple[int, int], known: bool) -> None:
    assert ("max_prepared_statements" in rendered(version=version)["pgbouncer.ini"]) is known


@pytest.mark.parametrize(
    ("driver", "version", "closes", "expected"),
    [
        ("psycopg", (1, 18), True, {"prepare_threshold": None}),
        ("psycopg", (1, 21), True, {"prepare_threshold": None}),
        ("psycopg", (1, 22), False, {"prepare_threshold": None}),
        ("psycopg", (1, 22), True, None),
        ("psycopg2", (1, 18), False, None),
        ("asyncpg", (1, 18), False, {"statement_cache_size": 0, "prepared_statement_cache_size": 0}),
        ("asyncpg", (1, 21), False, None),
    ],
)
def test_driver_options(
    driver: str, version: tuple[int, int], closes: bool, expected: dict[str, Any] | None
) -> None:
    options = driver_options(driver, version=version, closes_prepared=closes)
    assert options.pop("statement_timeout") == "transaction"
    assert options.get("connect_args") == expected


def test_connection_limits() -> None:
    fleet = Fleet(hosts=4, workers=8)
    assert connection_limits(fleet, ServerLimits()) == (87, 970)
    with pytest.raises(SettingsError, match="leaves none for PgBouncer"):
        connection_limits(fleet, ServerLimits(max_connections=13))


HOSTILE = [
    {"host": "db\nlisten_addr = *"},
    {"host": "db password=x"},
    {"host": ""},
    {"listen": "127.0.0.1\nauth_type = any"},
    {"databases": {"shop = host=evil\n*": "shop"}},
    {"databases": {"pgbouncer": "shop"}},
    {"databases": {"*": "shop"}},
    {"databases": {"%include /etc/passwd": "shop"}},
    {"databases": {"shop": "shop\nx"}},
    {"databases": {}},
    {"users": {}},
    {"users": {"shop": "a\nb"}},
    {"users": {"shop": "\udcff"}},
    {"databases": {"shop": "\ud800"}},
    {"userlist": "\udcff"},
    {"users": {"": "x"}},
    {"users": {"shop": ""}},
    {"userlist": "users\nauth_type = any"},
]


def misread(meant: PgBouncer, files: dict[str, str]) -> list[str]:
    """The settings that PgBouncer would read in these files and that were not meant."""
    try:
        "".join(files.values()).encode()
        settings = read_ini(files["pgbouncer.ini"])["pgbouncer"]
        databases = read_databases(files["pgbouncer.ini"])
        users = read_users(files["userlist.txt"])
    except (UnreadableError, UnicodeEncodeError) as error:
        return [str(error)]
    place = [("host", meant.host), ("port", str(meant.port))]
    ours = {"listen_addr": meant.listen, "auth_file": meant.userlist}
    plain = read_ini(rendered()["pgbouncer.ini"])["pgbouncer"]
    found = {
        "settings": settings == [(key, ours.get(key, value)) for key, value in plain],
        "databases": databases
        == [(alias, [*place, ("dbname", name)]) for alias, name in meant.databases.items()],
        "users": users == list(meant.users.items()),
    }
    return [what for what, as_meant in found.items() if not as_meant]


def test_plain_names_are_read_back() -> None:
    assert misread(pooler(), rendered()) == []


@pytest.mark.guarantee("nothing injects into PgBouncer's files")
@pytest.mark.parametrize("changed", HOSTILE, ids=str)
def test_unsafe_values_are_refused(changed: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        rendered(**changed)


@pytest.mark.control("nothing injects into PgBouncer's files")
@pytest.mark.parametrize("changed", HOSTILE, ids=str)
def test_the_control_refused_values_would_be_misread(
    changed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for guard in ("_alias", "_address", "_path"):
        monkeypatch.setattr(pgbouncer, guard, str)
    monkeypatch.setattr(pgbouncer, "_has_controls", lambda _: False)
    monkeypatch.setattr(pgbouncer, "_quoted", lambda text, **_: '"' + text.replace('"', '""') + '"')
    meant = pooler(**changed)
    files = {"pgbouncer.ini": pgbouncer._ini(meant), "userlist.txt": pgbouncer._userlist(meant.users)}
    assert misread(meant, files)


TELLING = st.sampled_from("'\"\\ ;#%=*[]\n") | st.characters(exclude_categories=["Cs"])
TEXTS = st.tuples(*[st.text(TELLING, min_size=1, max_size=20)] * 3)


def injects(name: str, user: str, password: str) -> list[str]:
    """The names and passwords that are written and then misread."""
    changed = {"databases": {"shop": name}, "users": {user: password}}
    try:
        files = rendered(**changed)
    except SettingsError:
        return []
    return misread(pooler(**changed), files)


@pytest.mark.guarantee(
    "nothing injects into PgBouncer's files", pattern="pools", under="hostile names and passwords"
)
@given(TEXTS)
def test_no_text_injects_a_line_or_a_value(texts: tuple[str, str, str]) -> None:
    assert injects(*texts) == []


@pytest.mark.control("nothing injects into PgBouncer's files")
@pytest.mark.parametrize(
    ("guard", "without"),
    [
        ("_literal", lambda text: f"'{text}'"),
        ("_quoted", lambda text, **_: f'"{text}"'),
        ("_has_controls", lambda _: False),
    ],
)
def test_the_control_without_escapes_some_text_injects(
    guard: str, without: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgbouncer, guard, without)
    search = hypothesis.settings(derandomize=True, database=None, max_examples=1000)
    assert hypothesis.find(TEXTS, lambda texts: bool(injects(*texts)), settings=search)
