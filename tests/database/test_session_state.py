"""What a session sets does not reach the next one: statements by their text, and connections by their use."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
from psycopg.pq import TransactionStatus
from sqlalchemy import Column, MetaData, Table, Text, event, func, make_url, select, text
from sqlalchemy.exc import DBAPIError

from tenfold.database import DatabaseRouter, session_state
from tenfold.database.replicas.checkout import Checkout
from tenfold.database.session_state import Effect, effect_of
from tenfold.deadlines import deadline
from tenfold.errors import DeadlineExceededError, ReadOnlyError
from tests.database.conftest import Servers

MakeRouter = Callable[..., DatabaseRouter]
ONE = {"engine": {"pool_size": 1, "max_overflow": 0}}  # so that the next session has the same connection


@pytest.mark.parametrize(
    ("statement", "effect"),
    [
        ("select 1", Effect.NONE),
        ("SELECT count(*), lower(name) FROM t WHERE id IN (%(a)s) AND (x OR y)", Effect.NONE),
        ("select f.id from app.f where f.note = 'set_config(''a'')' -- set_config(1)", Effect.NONE),
        ("select /* traceparent=f(x) */ pg_catalog.lower($1::VARCHAR(20))", Effect.NONE),
        ("select $$ f(x); commit $$, E'\\'; commit; --', '\\'", Effect.NONE),
        ("(select 1) union (select 2);", Effect.NONE),
        ("show search_path", Effect.NONE),
        ("select f(1)", Effect.POSSIBLE),
        ("select app.lower('A')", Effect.POSSIBLE),
        ("select f/**/ (1)", Effect.POSSIBLE),
        ('select "F" (1)', Effect.POSSIBLE),
        ("with gone as (delete from t returning id) select * from gone", Effect.POSSIBLE),
        ("set local search_path to alpha", Effect.POSSIBLE),
        ("set transaction read write", Effect.POSSIBLE),
        ("savepoint one", Effect.POSSIBLE),
        ("rollback to savepoint one", Effect.POSSIBLE),
        ("do $$ begin set search_path to alpha; end $$", Effect.POSSIBLE),
        ("insert into temp (id) values (1)", Effect.POSSIBLE),
        ("select set_config('a.b', 'c', false)", Effect.SESSION),
        ("select id from orders where tenfold.require_epoch(CAST($1 AS BIGINT))", Effect.NONE),
        ("select tenfold.claim(1, 2)", Effect.POSSIBLE),
        ("select other.require_epoch(1), require_epoch(2)", Effect.POSSIBLE),
        ("select pg_catalog . SET_CONFIG ('a.b', 'c', false)", Effect.SESSION),
        ("select \"set_config\"('a.b', 'c', false)", Effect.SESSION),
        ("  SET search_path TO alpha", Effect.SESSION),
        ("/* a */ set role alice", Effect.SESSION),
        ("reset all", Effect.SESSION),
        ("listen news", Effect.SESSION),
        ("declare c cursor with hold for select 1", Effect.SESSION),
        ("create temp table t (id int)", Effect.SESSION),
        ("create or replace temporary view v as select 1", Effect.SESSION),
        ("select 1 as one into temp t", Effect.SESSION),
        ("select pg_try_advisory_lock_shared(1)", Effect.SESSION),
        ("prepare p as select 1", Effect.LASTING),
        ("commit", Effect.LASTING),
        ("discard all", Effect.LASTING),
        ("select 1; set search_path to alpha", Effect.LASTING),
        ("select '", Effect.LASTING),
        ("select /* /* */ 1; commit --*/", Effect.LASTING),
    ],
)
def test_effect_of_a_statement_is_read_from_its_text(statement: str, effect: Effect) -> None:
    assert effect_of(statement) is effect


# ------------------------------------------------------------------ sessions on real servers


@pytest.fixture(scope="module")
def tenants(servers: Servers) -> Iterator[Servers]:
    """A table with a row for each of two tenants, a policy that shows one of them, and a schema for each."""
    servers.execute(
        servers.primary,
        "create table notes (tenant text, body text)",
        "insert into notes values ('alpha', 'of alpha'), ('beta', 'of beta')",
        "alter table notes enable row level security",
        "create policy own on notes using (tenant = current_setting('app.tenant', true))",
        "grant select, insert on notes to public",
        "create schema alpha create table plans (name text)",
        "insert into alpha.plans values ('of alpha')",
        "grant usage on schema alpha to public",
        "grant select on alpha.plans to public",
        "create function choose(tenant text) returns text language plpgsql as"
        " $$ begin return set_config('app.tenant', tenant, false); end $$",
        "create role reporter",
        f"grant reporter to {make_url(servers.primary.url).username}",
    )
    servers.wait_for_replicas()
    yield servers


STATE = text(
    """select current_setting('search_path'), nullif(current_setting('app.tenant', true), ''), current_user,
       (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
       (select count(*) from pg_prepared_statements where from_sql),
       (select count(*) from pg_cursors where name <> ''),
       current_setting('default_transaction_read_only'), current_setting('statement_timeout'),
       to_regclass('pg_temp.scratch')::text"""
)
SETS = [
    "set search_path to alpha",
    "select set_config('app.tenant', 'alpha', false)",
    "select choose('alpha')",
    "do $$ begin perform set_config('app.tenant', 'alpha', false); end $$",
    "set role reporter",
    "set session authorization default; set role reporter",
    "set statement_timeout = 1234",
    "set default_transaction_read_only = off",
    "select pg_advisory_lock(7)",
    "prepare p as select 1",
    "begin; set search_path to alpha; commit",
]


def state(router: DatabaseRouter, use: str, *statements: str) -> Any:
    """The state that a session finds after another one ran these statements."""
    for statement in statements:
        with getattr(router, use)() as session:
            session.execute(text(statement))
            assert session.execute(STATE).one() is not None
    with getattr(router, use)() as session:
        return session.execute(STATE).one()


@pytest.mark.guarantee(
    "what a session sets does not reach the next one",
    pattern="replicas",
    under="SET, roles, locks, functions, text with COMMIT",
)
@pytest.mark.parametrize("use", ["read", "analytics", "write"])
@pytest.mark.parametrize("statement", SETS)
def test_next_session_finds_no_state(
    tenants: Servers, make_router: MakeRouter, use: str, statement: str
) -> None:
    if use == "write" and ("choose" in statement or statement.startswith("do ")):
        pytest.skip("what a function sets in a session that writes is not seen, which the page says")
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    before = state(router, use)
    assert state(router, use, statement) == before


@pytest.mark.guarantee("what a session sets does not reach the next one")
@pytest.mark.parametrize("statement", SETS)
def test_next_async_session_finds_no_state(tenants: Servers, make_router: MakeRouter, statement: str) -> None:
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)

    async def scenario() -> None:
        found = []
        for statements in ((), (statement,), ()):
            async with router.read() as session:
                for each in statements:
                    await session.execute(text(each))
                found.append((await session.execute(STATE)).one())
        assert found[0] == found[2] != found[1]
        await router.aclose()

    asyncio.run(scenario())


@pytest.mark.guarantee("what a session sets does not reach the next one")
@pytest.mark.parametrize("isolation", ["READ COMMITTED", "REPEATABLE READ"])
def test_commit_of_a_session_that_reads_keeps_no_state(
    tenants: Servers, make_router: MakeRouter, isolation: str
) -> None:
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    for each in (isolation, None):
        with router.get_read_session(isolation=each) as session:
            session.execute(text("set search_path to alpha"))
            session.execute(text("select pg_advisory_lock(7)"))
            session.commit()
    assert state(router, "read")[0] != "alpha"
    assert state(router, "read")[3] == 0


@pytest.mark.guarantee("what a session sets does not reach the next one")
def test_isolation_level_and_reset_of_a_session_do_not_reach_the_next(
    tenants: Servers, make_router: MakeRouter
) -> None:
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    with router.read() as session:
        session.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        session.execute(text("set search_path to alpha"))
        session.reset()
        assert session.scalar(text("show search_path")) != "alpha"
    session = router.get_read_session()
    session.execute(text("set search_path to alpha"))
    session.execute(text("prepare p as select 1"))
    del session
    gc.collect()
    with router.read() as session:
        assert session.scalar(text("show transaction_isolation")) == "read committed"
        assert session.scalar(text("show search_path")) != "alpha"
        assert session.connection().connection.dbapi_connection.autocommit
        assert session.scalar(text("select count(*) from pg_prepared_statements where from_sql")) == 0


@pytest.mark.guarantee("what a session sets does not reach the next one")
@pytest.mark.parametrize("use", ["read", "write"])
def test_pool_of_sqlalchemy_itself_hands_no_state_on(
    tenants: Servers, make_router: MakeRouter, use: str
) -> None:
    primary, replicas = tenants.urls
    plain = {"engine": lambda _: {"pool_size": 1, "max_overflow": 0, "pool_reset_on_return": None}}
    router = make_router((primary, replicas[:1]), options=plain)
    before = state(router, use)
    for statement in SETS:
        if use == "read" or not ("choose" in statement or statement.startswith("do ")):
            assert state(router, use, statement) == before


@pytest.mark.control("what a session sets does not reach the next one")
@pytest.mark.parametrize("use", ["read", "write"])
def test_the_control_without_tracking_the_next_session_finds_the_state(
    tenants: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    monkeypatch.setattr(session_state, "_listen", lambda *_: None)
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    assert state(router, use, "set search_path to alpha")[0] == "alpha"


@pytest.mark.guarantee("what a session sets does not reach the next one")
def test_plain_reads_and_local_settings_keep_their_connection(
    tenants: Servers, make_router: MakeRouter
) -> None:
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    backend = text("select pg_backend_pid()")
    pids = set()
    for statement in (
        select(func.set_config("app.tenant", "alpha", True)),
        text("select set_config('app.tenant', 'beta', true)"),
        text("set local search_path to alpha"),
    ):
        with router.write() as session:
            session.execute(statement)
            pids.add(session.scalar(backend))
    assert len(pids) == 1
    with router.write() as session:
        session.execute(select(func.set_config("app.tenant", "alpha", False)))
    with router.write() as session:
        assert session.scalar(backend) not in pids
    with router.read() as session:
        assert session.scalar(text("select count(*) from counters")) == 100
        raw = session.connection().connection.driver_connection
        assert raw.info.transaction_status == TransactionStatus.IDLE
        session.execute(text("select choose('alpha')"))
        assert raw.info.transaction_status == TransactionStatus.INTRANS


@pytest.mark.guarantee(
    "a session that reads may set the tenant of its policies", pattern="replicas", under="RLS"
)
@pytest.mark.parametrize("by_event", [False, True])
def test_local_setting_holds_until_the_session_ends(
    tenants: Servers, make_router: MakeRouter, by_event: bool
) -> None:
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    notes = text("select body from notes")
    for tenant in ("alpha", "beta"):
        with router.read() as session:
            choose = select(func.set_config("app.tenant", tenant, True))
            if by_event:
                event.listen(session, "after_begin", lambda *args, choose=choose: args[2].execute(choose))
            else:
                session.execute(choose)
            assert session.scalars(notes).all() == [f"of {tenant}"]
            assert session.scalars(notes).all() == [f"of {tenant}"]
            with pytest.raises(ReadOnlyError):
                session.execute(text("insert into notes values ('alpha', 'no')"))
    with router.read() as session:
        assert session.scalars(notes).all() == []


@pytest.mark.control("a session that reads may set the tenant of its policies")
def test_the_control_in_autocommit_the_local_setting_is_gone(
    tenants: Servers, make_router: MakeRouter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_state, "_listen", lambda *_: None)
    router = make_router(tenants.urls)
    with router.read() as session:
        session.execute(select(func.set_config("app.tenant", "alpha", True)))
        assert session.scalars(text("select body from notes")).all() == []


def test_schema_of_a_tenant_is_chosen_by_search_path_or_translation(
    tenants: Servers, make_router: MakeRouter
) -> None:
    router = make_router(tenants.urls, options=ONE)
    with router.read() as session:
        session.execute(text("set local search_path to alpha"))
        assert session.scalar(text("select name from plans")) == "of alpha"
    names = select(Table("plans", MetaData(), Column("name", Text)).c.name)
    with router.read() as session:
        translated = names.execution_options(schema_translate_map={None: "alpha"})
        assert session.scalar(translated) == "of alpha"
    with router.read() as session, pytest.raises(DBAPIError, match="does not exist"):
        session.execute(text("select name from plans"))


def test_deadline_ends_statements_of_a_transaction_for_state(
    tenants: Servers, make_router: MakeRouter
) -> None:
    primary, replicas = tenants.urls
    router = make_router((primary, replicas[:1]), options=ONE)
    for before in (None, 0.3):
        with deadline(60), router.read() as session:
            session.execute(select(func.set_config("app.tenant", "alpha", True)))
            with deadline(before or 0.2), pytest.raises(DeadlineExceededError):
                session.execute(text("select pg_sleep(10)"))
    with router.read() as session:
        assert session.scalar(text("show statement_timeout")) == "0"


@pytest.mark.parametrize("sets", [True, False])
def test_statement_that_relies_on_state_is_not_repeated_on_another_server(
    tenants: Servers, make_router: MakeRouter, sets: bool
) -> None:
    router = make_router(tenants.urls)
    with router.read() as session:
        session.execute(text("set local search_path to alpha" if sets else "select 1"))
        pid = session.scalar(text("select pg_backend_pid()"))
        for replica in tenants.replicas:
            tenants.execute(replica, f"select pg_terminate_backend({pid})")
        with pytest.raises(DBAPIError) if sets else nullcontext():
            assert session.scalar(text("select 1")) == 1
    assert {server["in_flight"] for server in router.servers().values()} == {0}


def test_release_closes_a_marked_connection_once(servers: Servers, make_router: MakeRouter) -> None:
    router = make_router(servers.urls, options=ONE)
    checkout: Checkout = router._acquire_for_write(False)
    checkout.connection.execute(text("set search_path to public"))
    pid = checkout.connection.scalar(text("select pg_backend_pid()"))
    checkout.release()
    checkout.release()
    with router.write() as session:
        assert session.scalar(text("select pg_backend_pid()")) != pid
    assert router._primary.load.in_flight == 0
