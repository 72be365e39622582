"""No password shows in a name, a label, an error or a report, whatever characters it has."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from psycopg import ProgrammingError
from psycopg.conninfo import conninfo_to_dict
from sqlalchemy import create_engine
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from tenfold.cli.doctor import check_connections
from tenfold.database import DatabaseRouter, pool_options
from tenfold.database.urls import database_url, libpq_url, server_name
from tenfold.errors import SettingsError, TargetError
from tenfold.measure.load.target import require_loopback, without_credentials
from tenfold.redaction import has_password, mask_host, redact
from tenfold.redis_pool import RedisPool
from tenfold.sessions.stores.redis import RedisStore
from tenfold.sessions.stores.sqlalchemy import SQLStore
from tenfold.settings import Settings, load
from tenfold.verify.runner import Check, run

MARK = "S3CRET"
SIGNS = ",@/#%?&=:;[]{}<>()|\\^`'\"~+-_.! \t0125é\u2028"
passwords = st.lists(st.text(SIGNS, max_size=3), min_size=1, max_size=3).map(
    lambda parts: MARK + MARK.join(parts) + MARK
)


def is_lost(password: str) -> bool:
    """Return whether SQLAlchemy's URL has a piece of the password as its host, and the rest nowhere."""
    return "?" in password.partition("@")[2]


def ignoring_refusals(call: Callable[[], object]) -> str:
    """Return what ``call`` shows: its value, or the error that it was refused with."""
    try:
        return str(call())
    except (SettingsError, TargetError) as error:
        assert error.__cause__ is None
        return str(error)


def pool_name(url: str) -> str:
    """Return the options of a pool, with its name in metrics and errors."""
    return repr(pool_options(url))


@pytest.mark.guarantee(
    "no password of a URL shows in a server's name, a metric's label or an error",
    pattern="pools",
    under="passwords with any characters, percent-encoded or not",
)
@given(passwords, st.sampled_from(["db.example:5432", "one:5432,two:5433", "[::1]", "db", ""]))
@example("S3CRET,S3CRET", "db.example:5432")
@example("S3CRET@S3CRET", "db.example:5432")
@example("S3CRET@S3CRET/S3CRET", "db.example")
def test_database_names_and_errors_show_no_password(password: str, hosts: str) -> None:
    for written in (password, quote(password, safe=""), quote(password)):
        for start in ("shop:", ":", "shop,a:", "s/hop:", "/:", "s[:"):
            text = f"postgresql://{start}{written}@{hosts}/shop"
            assert MARK not in ignoring_refusals(lambda text=text: server_name(database_url(text)))
            assert MARK not in ignoring_refusals(lambda text=text: database_url(text))
            assert MARK not in ignoring_refusals(lambda text=text: pool_name(text))
            try:
                url = make_url(text)
            except (ArgumentError, ValueError):  # SQLAlchemy itself refuses it
                continue
            if "/" in start or is_lost(written):
                continue
            assert MARK not in server_name(url)
            assert MARK not in ignoring_refusals(lambda url=url: server_name(database_url(url)))


@pytest.mark.control(
    "no password of a URL shows in a server's name, a metric's label or an error",
    "SQLAlchemy's host is believed",
)
def test_the_control_host_of_a_misread_url_is_the_password() -> None:
    assert make_url(f"postgresql://shop:a@{MARK}@db/shop").host == f"{MARK}@db"


@given(passwords)
@example("S3CRET@1/S3CRET")
def test_router_and_doctor_show_no_password(password: str) -> None:
    for written in (password, quote(password, safe="")):
        text = f"postgresql://shop:{written}@127.0.0.1:1/shop"

        def names(text: str = text) -> list[str]:
            router = DatabaseRouter(text, [text.replace(":1/", ":2/")])
            return [router._primary.name, *(replica.name for replica in router._replicas)]

        assert MARK not in ignoring_refusals(names)
    text = f"postgresql://shop:{password}@127.0.0.1:1/shop"
    settings = Settings.model_validate({"database": {"url": text}})
    assert MARK not in str(check_connections(settings))


@given(
    st.text(SIGNS, min_size=1, max_size=8),
    st.text(SIGNS + "abc", min_size=1, max_size=8),
    st.sampled_from(["::1", "db.example"]),
)
def test_libpq_reads_the_same_parts(user: str, password: str, host: str) -> None:
    url = URL.create(
        "postgresql+psycopg", user, password, host, 5432, "sh op", query={"options": "-c search_path=a,b"}
    )
    read = conninfo_to_dict(libpq_url(url))
    assert (read["user"], read["password"], read["host"]) == (user, password, host)
    assert (read["dbname"], read["options"]) == ("sh op", "-c search_path=a,b")


def test_libpq_reads_several_hosts() -> None:
    text = f"postgresql://shop:{quote('p,w@x')}@one:1,two,[::1]:3,[::2]/shop?connect_timeout=2"
    read = conninfo_to_dict(libpq_url(database_url(text)))
    assert (read["host"], read["port"]) == ("one,two,::1,::2", "1,5432,3,5432")
    assert (read["password"], read["connect_timeout"]) == ("p,w@x", "2")
    assert server_name(database_url(text)) == "one:1,two,[::1]:3,[::2]/shop"


def test_the_control_sqlalchemys_text_is_not_what_libpq_reads() -> None:
    url = URL.create("postgresql", "shop", "a b", "db", query={"options": "-c a=b"})
    try:
        read = conninfo_to_dict(url.render_as_string(hide_password=False))
    except ProgrammingError as error:
        assert "a b" in str(error)
    else:
        assert read["options"] != "-c a=b"


def test_files_of_sqlite_may_have_an_at_sign() -> None:
    assert database_url("sqlite:////home/me@example/shop.db").database == "/home/me@example/shop.db"
    assert server_name(make_url("sqlite:////home/me@example/shop.db")).endswith("/home/me@example/shop.db")


@given(passwords | st.text("1/?#@:", min_size=1).map(lambda text: "1" + text + MARK))
def test_stores_show_no_password(password: str) -> None:
    for written in (password, quote(password, safe="")):
        for start in ("", "shop"):
            text = f"redis://{start}:{written}@127.0.0.1:1/0"
            assert MARK not in ignoring_refusals(lambda text=text: RedisStore(text)._name)
            assert MARK not in ignoring_refusals(
                lambda text=text: RedisPool(text, max_connections=1, connect_timeout_s=1)
            )
        try:
            engine = create_engine(f"postgresql+psycopg://shop:{written}@127.0.0.1:1/shop")
        except (ArgumentError, ValueError):
            continue
        if is_lost(written):
            continue
        assert MARK not in SQLStore(engine)._name


def test_redis_password_is_read_whole() -> None:
    pool = RedisPool("redis://:a@b%2F,c@h:1/0", max_connections=1, connect_timeout_s=1)
    assert pool.connection_options["password"] == "a@b/,c"
    with pytest.raises(SettingsError, match="write / as %2F"):
        RedisPool("redis://u:1/x@host:1/0", max_connections=1, connect_timeout_s=1)


@given(passwords | st.text("1/?#@:", min_size=1).map(lambda text: "1" + text + MARK))
def test_targets_show_no_password(password: str) -> None:
    for scheme in ("http", "https", "ftp", ""):
        url = f"{scheme}://me:{password}@127.0.0.1:1"
        assert MARK not in ignoring_refusals(lambda url=url: require_loopback(url, owned=False))
        assert MARK not in without_credentials(url)


@given(passwords)
def test_messages_show_no_password(password: str) -> None:
    for text in (
        f"cannot connect to postgresql://shop:{password}@db/shop: refused",
        f"cannot connect to redis://:{password}@db:1/0",
    ):
        assert MARK not in redact(text)
        assert MARK not in mask_host(text)

        def fail(*_: object, text: str = text) -> None:
            raise OSError(text)

        check = Check("fails", "stack", fail)
        (outcome,) = run([check], None, Settings())
        assert MARK not in outcome.finding.claim
        assert "OSError" in outcome.finding.claim


@given(passwords)
def test_refused_settings_show_no_password(password: str) -> None:
    url = f"postgresql://shop:{password}@db/shop"
    for name in ("TENFOLD_SERVICE__APP", "TENFOLD_STACK__REPLICAS", "TENFOLD_DATABASE__URLL"):
        with pytest.raises(SettingsError) as refused:
            load(environ={name: url.replace("\t", " ")})
        assert MARK not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://shop:a b@c@db:1/shop", "postgresql://***@db:1/shop"),
        ("host=db password='a \\' b' dbname=shop", "host=db password=*** dbname=shop"),
        ("postgresql:///shop?host=db&password=x&user=a", "postgresql:///shop?host=db&password=***&user=a"),
        ("http://127.0.0.1:8000/ answered 500", "http://127.0.0.1:8000/ answered 500"),
        ("mail me@example.com", "mail me@example.com"),
    ],
)
def test_redacted_text(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert has_password(text) is (text != shown)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://shop:secret@127.0.0.1:5433/shop", "postgresql://…:5433/shop"),
        ("postgresql://shop:a/b@[::1]:5433/shop?x=1", "postgresql://…:5433/shop"),
        ("redis://:secret@127.0.0.1:6380/0", "redis://…:6380"),
        ("http://127.0.0.1:8080", "http://127.0.0.1:8080"),
    ],
)
def test_masked_host(url: str, shown: str) -> None:
    assert mask_host(url) == shown
