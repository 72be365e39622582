"""nginx as the edge: what it answers from its cache, for how long, and when it stops."""

from __future__ import annotations

import http.client
import json
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from tenfold.edge import EdgePolicy, Purger, immutable, no_store, public
from tenfold.edge.decision import choose_variants
from tenfold.errors import SettingsError
from tenfold.stack.programs import Program
from tests.edge.support.served import EdgeNginx, edge_before, origin
from tests.support.waiting import eventually

POLICY = EdgePolicy(
    {
        "/": public(ttl=60).ab("hero", A=50, B=50).ab("buy", red=1, green=99),
        "/products": public(ttl=300, tags=["catalogue"], browser_ttl=300),
        "/prices": public(ttl=300, tags=["catalogue", "prices"], browser_ttl=300),
        "/about": public(ttl=300),
        "/brief": public(ttl=2, swr=600),
        "/sure": public(ttl=2, stale_if_error=600),
        "/country": public(ttl=60).geo(CN="https://cn.example.com/?a=1&b=%20"),
        "/open": public(ttl=60, authorization=True),
        "/static/**": immutable(),
        "/private": no_store(),
    },
    country_header="CF-IPCountry",
)
RULES = {pattern: rule.model_dump(exclude_unset=True) for pattern, _, rule in POLICY.rules}
OPTIONS = {"country_header": "CF-IPCountry"}


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with origin(tmp_path_factory.mktemp("origin"), [(RULES, OPTIONS)]) as port:
        yield f"127.0.0.1:{port}"


@pytest.fixture
def edge(nginx: Program, app: str, tmp_path: Path) -> Iterator[EdgeNginx]:
    with edge_before(nginx, tmp_path / "nginx", app, POLICY) as running:
        yield running


def test_reads_are_answered_from_the_cache(edge: EdgeNginx) -> None:
    first = edge.count("/about")
    assert edge.count("/about") == first
    assert edge.count("/about", headers={"Cookie": "a=b", "User-Agent": "x"}) == first
    assert edge.count("/about?page=2") != first
    status, headers, body = edge.send("/about", method="HEAD")
    assert (status, body) == (200, b"")
    assert headers["cache-control"] == "public, max-age=300"
    assert "x-edge-stored" not in headers and "x-edge-cache-control" not in headers
    log = edge.folder / "access.log"
    lines = eventually(lambda: len(found := log.read_text().splitlines()) >= 5 and found)
    entries = [json.loads(line) for line in lines]
    assert [entry["upstream_cache_status"] for entry in entries].count("HIT") == 3
    assert len(entries) == 5  # each request once


def test_age_tells_how_old_an_answer_is(edge: EdgeNginx) -> None:
    _, headers, _ = edge.send("/about", answer=[("Age", "100")])
    assert headers["age"] == "100"
    _, headers, _ = edge.send("/about")
    assert 100 <= int(headers["age"]) <= 110
    assert int(headers["age"]) + 200 <= 310  # and the rest of the lifetime is shorter
    assert [one.valid_until - int(time.time()) <= 200 for one in edge.stored()] == [True]


def test_cache_status_tells_where_an_answer_is_from(edge: EdgeNginx) -> None:
    said = [edge.send("/about")[1].get("cache-status") for _ in range(2)]
    assert said == ["tenfold; fwd=uri-miss; stored", "tenfold; hit"]
    own = [("Cache-Control", "private")]
    assert edge.send("/prices", answer=own)[1]["cache-status"] == "tenfold; fwd=uri-miss"
    assert "cache-status" not in edge.send("/private")[1]  # no cache was asked
    cdn = [("Cache-Status", "origin; hit")]
    assert edge.send("/products", answer=cdn)[1]["cache-status"].startswith("origin; hit, tenfold;")


@pytest.mark.guarantee(
    "nginx's cache holds no personal answer", pattern="edge", under="Authorization, cookies, no rule"
)
def test_what_is_somebody_s_own_is_not_stored(edge: EdgeNginx) -> None:
    signed_in = {"Authorization": "Bearer x"}
    assert edge.count("/about", headers=signed_in) != edge.count("/about", headers=signed_in)
    assert edge.count("/open", headers=signed_in) == edge.count("/open", headers=signed_in)
    for path in ("/private", "/other", "/ABOUT", "/about/"):
        assert edge.count(path) != edge.count(path), path
    cookie = [("Set-Cookie", "session=1")]
    assert edge.count("/products", answer=cookie) != edge.count("/products", answer=cookie)
    own = [("Cache-Control", "private")]
    assert edge.count("/prices", answer=own) != edge.count("/prices", answer=own)


@pytest.mark.control("nginx's cache holds no personal answer", "Authorization is not looked at")
def test_the_control_without_a_look_at_authorization_one_s_own_is_stored(
    nginx: Program, app: str, tmp_path: Path
) -> None:
    def rewrite(text: str) -> str:
        return text.replace("default a;", 'default "";')

    signed_in = {"Authorization": "Bearer x", "X-Policy": "none"}
    lives = [("Cache-Control", "max-age=60")]
    with edge_before(nginx, tmp_path / "nginx", app, POLICY, rewrite=rewrite) as edge:
        first = edge.count("/about", headers=signed_in, answer=lives)
        assert edge.count("/about", headers=signed_in, answer=lives) == first


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_change_of_a_path_invalidates_its_answers(edge: EdgeNginx, method: str) -> None:
    before = edge.count("/products"), edge.count("/products?page=2"), edge.count("/about")
    edge.send("/products", method=method, body=b"", status=500)
    assert edge.count("/products") == before[0]
    edge.send("/products?by=1", method=method, body=b"x", status=201)
    assert edge.count("/products") != before[0]
    assert edge.count("/products?page=2") != before[1]
    assert edge.count("/about") == before[2]


def test_purge_of_a_tag(edge: EdgeNginx) -> None:
    before = {path: edge.count(path) for path in ("/products", "/prices", "/about")}
    assert edge.purge("prices") == 204
    assert edge.count("/products") == before["/products"]
    assert edge.count("/prices") != before["/prices"]
    assert edge.count("/about") == before["/about"]
    assert edge.purge("catalogue") == 204
    assert edge.count("/products") != before["/products"]
    assert edge.purge("*") == 204
    assert edge.count("/about") != before["/about"]
    assert edge.purge("") == 400


@pytest.mark.guarantee("an answer that was on its way during a purge is not stored for later", pattern="edge")
def test_answer_that_is_on_its_way_during_a_purge_is_not_found(edge: EdgeNginx) -> None:
    with ThreadPoolExecutor() as pool:
        late = pool.submit(edge.count, "/products", delay=0.5)
        time.sleep(0.2)  # it has to be on its way
        assert edge.purge("catalogue") == 204
        old = late.result()
    assert edge.count("/products") != old


def no_versions(text: str) -> str:
    return text.replace("const own = dict.get", "return 1; const own = dict.get")


@pytest.mark.control(
    "an answer that was on its way during a purge is not stored for later", "keys without versions"
)
def test_the_control_without_versions_it_is_found(nginx: Program, app: str, tmp_path: Path) -> None:
    with edge_before(nginx, tmp_path / "nginx", app, POLICY, rewrite=no_versions) as edge:
        old = edge.count("/products", delay=0.1)
        assert edge.purge("catalogue") == 204
        assert edge.count("/products") == old


def test_purge_after_a_commit(edge: EdgeNginx, tmp_path: Path) -> None:
    purger = Purger(f"unix:{edge.folder}/purge.sock")
    engine = create_engine(f"sqlite:///{tmp_path}/db")
    before = edge.count("/products")
    with Session(engine) as session:
        session.execute(text("create table t (x int)"))
        purger.after_commit(session, "prices")
        purger.after_commit(session, "catalogue")
        session.rollback()
        assert purger.flush() and edge.count("/products") == before
        session.execute(text("create table u (x int)"))
        purger.after_commit(session, "catalogue")
        session.commit()
    assert purger.flush()
    assert edge.count("/products") != before
    purger.stop()


def test_purge_reaches_an_nginx_that_was_away(nginx: Program, app: str, tmp_path: Path) -> None:
    purger = Purger(f"unix:{tmp_path}/nginx/purge.sock")
    purger.purge("catalogue")
    assert not purger.flush(within_s=0.3)
    with edge_before(nginx, tmp_path / "nginx", app, POLICY):
        assert purger.flush(within_s=10)
    purger.stop()


def test_purge_works_after_the_clock_was_set_back(nginx: Program, app: str, tmp_path: Path) -> None:
    def rewrite(text: str) -> str:  # as if it were set back between the first request and the first purge
        return text.replace("|| 0, Date.now() * 1000)", "|| 0, 1000)")

    with edge_before(nginx, tmp_path / "nginx", app, POLICY, rewrite=rewrite) as edge:
        before = edge.count("/products")
        assert edge.purge("catalogue") == 204
        assert edge.count("/products") != before


def test_tag_with_a_colon_is_purged(nginx: Program, app: str, tmp_path: Path) -> None:
    policy = EdgePolicy({"/products": public(ttl=300, tags=["product:7"])})
    with edge_before(nginx, tmp_path / "nginx", app, policy) as edge:
        purger, before = Purger(f"unix:{edge.folder}/purge.sock"), edge.count("/products")
        purger.purge("product:7")
        assert purger.flush() and edge.count("/products") != before
        with pytest.raises(SettingsError, match="is no tag"):
            purger.purge("%zz")
        purger.stop()


def test_place_that_takes_no_purges_is_refused() -> None:
    with pytest.raises(SettingsError, match="no place to purge"):
        Purger("shop.example")


def test_nginx_that_was_killed_finds_nothing_of_before(nginx: Program, app: str, tmp_path: Path) -> None:
    """What was purged is in memory alone, so that entries on disk cannot be trusted."""
    with edge_before(nginx, tmp_path / "nginx", app, POLICY) as edge:
        before = edge.count("/about")
        eventually(edge.stored)
        for process in [*psutil.Process(edge.process.pid).children(), edge.process]:
            process.kill()
        edge.process.wait(10)
    with edge_before(nginx, tmp_path / "nginx", app, POLICY) as edge:
        assert edge.count("/about") != before


def test_stale_answer_while_it_asks_again(edge: EdgeNginx) -> None:
    first = edge.count("/brief")
    assert eventually(lambda: edge.count("/brief", delay=0.2) != first)
    assert eventually(lambda: _is_stale(edge))


def _is_stale(edge: EdgeNginx) -> bool:
    return '"upstream_cache_status":"STALE"' in (edge.folder / "access.log").read_text()


@pytest.mark.parametrize("said", ["must-revalidate", "max-age=2, proxy-revalidate"])
def test_answer_that_has_to_be_fresh_is_not_served_stale(edge: EdgeNginx, said: str) -> None:
    answer = [("Cache-Control", said)]
    first = edge.count("/brief", answer=answer)
    assert eventually(lambda: edge.count("/brief", answer=answer) != first)
    assert not _is_stale(edge)


def test_dead_app_is_covered_for_where_the_rule_says_so(nginx: Program, tmp_path: Path) -> None:
    with origin(tmp_path, [(RULES, OPTIONS)]) as port:
        running = edge_before(nginx, tmp_path / "nginx", f"127.0.0.1:{port}", POLICY)
        edge = running.__enter__()
        sure, brief = edge.count("/sure"), edge.count("/brief")
    try:
        time.sleep(2.1)  # their lifetime
        assert edge.count("/sure") == sure
        assert edge.count("/brief") == brief  # stale, while nginx asks in vain
        assert edge.send("/about")[0] == 502
    finally:
        running.__exit__(None, None, None)


def test_one_of_many_who_ask_at_once_reaches_the_app(edge: EdgeNginx) -> None:
    with ThreadPoolExecutor(20) as pool:
        counts = list(pool.map(lambda _: edge.count("/about?many", delay=0.3), range(20)))
    assert len(set(counts)) == 1


VISITORS = 5000


@pytest.mark.guarantee("a visitor has one variant everywhere", pattern="edge", under="5,000 visitors")
def test_nginx_and_the_middleware_choose_the_same_variants(edge: EdgeNginx) -> None:
    _, rule = POLICY.find("/")
    found: dict[str, int] = {}
    connection = http.client.HTTPConnection("127.0.0.1", edge.port)
    for number in range(VISITORS):
        visitor = f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}"
        connection.request("GET", "/", headers={"Cookie": f"__Host-edge-visitor={visitor}", "X-Variant": "x"})
        variants = json.loads(connection.getresponse().read())["variants"]
        # Answers come from the cache: of each combination of variants there is one.
        wanted = choose_variants(rule, visitor)
        found[variants.get("hero", "")] = found.get(variants.get("hero", ""), 0) + 1
        if variants:
            assert variants == wanted
    assert len(edge.stored()) <= 4
    assert abs(found["A"] - VISITORS / 2) < 200


@pytest.mark.control("a visitor has one variant everywhere", "nginx hashes something else")
def test_the_control_another_hash_gives_other_variants(nginx: Program, app: str, tmp_path: Path) -> None:
    def rewrite(text: str) -> str:
        return text.replace('"hero.$edge_visitor"', '"other.$edge_visitor"')

    _, rule = POLICY.find("/")
    different = 0
    with edge_before(nginx, tmp_path / "nginx", app, POLICY, rewrite=rewrite) as edge:
        for number in range(100):
            visitor = f"{number:032x}"
            _, _, body = edge.send("/", headers={"Cookie": f"__Host-edge-visitor={visitor}"})
            different += json.loads(body)["variants"] != choose_variants(rule, visitor)
    assert different > 10


def test_new_visitor_gets_a_cookie_and_keeps_the_variant(edge: EdgeNginx) -> None:
    _, headers, _ = edge.send("/")
    cookie = headers["set-cookie"]
    assert re.fullmatch(
        r"__Host-edge-visitor=[0-9a-f]{32}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=7776000", cookie
    )
    assert "set-cookie" not in edge.send("/about")[1]
    known = {"Cookie": cookie.partition(";")[0]}
    assert "set-cookie" not in edge.send("/", headers=known)[1]


def test_redirect_by_country_is_stored_nowhere(edge: EdgeNginx) -> None:
    status, headers, _ = edge.send("/country", headers={"CF-IPCountry": "CN"})
    assert (status, headers["location"]) == (302, "https://cn.example.com/?a=1&b=%20")
    assert headers["cache-control"] == "private, no-store"
    assert edge.send("/country")[0] == 200


def broken(text: str) -> str:
    return text.replace("function key(r) {", "function key(r) { throw new Error('broken');")


def unguarded(text: str) -> str:
    return re.sub(r"proxy_(cache_bypass|no_cache) \$edge_has_no_key;", "", broken(text))


@pytest.mark.guarantee("answers without a key are not stored", pattern="edge", under="edge.js that raises")
def test_broken_script_shares_nothing(nginx: Program, app: str, tmp_path: Path) -> None:
    with edge_before(nginx, tmp_path / "nginx", app, POLICY, rewrite=broken) as edge:
        assert edge.count("/about") != edge.count("/products")


@pytest.mark.control("answers without a key are not stored")
def test_the_control_without_a_guard_a_broken_script_mixes_answers_up(
    nginx: Program, app: str, tmp_path: Path
) -> None:
    with edge_before(nginx, tmp_path / "nginx", app, POLICY, rewrite=unguarded) as edge:
        assert edge.count("/about") == edge.count("/products")


def test_full_dictionary_of_purges_purges_everything(edge: EdgeNginx) -> None:
    before = edge.count("/about")
    for batch in range(150):
        assert edge.purge(*(f"tag-{batch}-{number:050}" for number in range(100))) == 204
    assert edge.count("/about") != before
    again = edge.count("/products")
    assert edge.count("/products") == again


def test_what_a_policy_says_cannot_add_directives(nginx: Program, app: str, tmp_path: Path) -> None:
    policy = EdgePolicy({"/it's (a+b)^c|d~e/*.x": public(ttl=9).ab("a.b", **{"c:d": 50, "e": 50})})
    with edge_before(nginx, tmp_path / "nginx", app, policy) as edge:
        path = "/it's%20(a+b)%5Ec%7Cd~e/1.x"
        assert policy.find(path)[0]
        assert edge.send(path, headers={"X-Policy": "none"})[0] == 200


def test_several_workers_and_reloads_keep_what_was_purged(edge: EdgeNginx) -> None:
    before = edge.count("/products")
    assert edge.purge("catalogue") == 204
    after = edge.count("/products")
    assert after != before
    edge.process.send_signal(signal.SIGHUP)
    stop = time.monotonic() + 1.0
    while time.monotonic() < stop:
        assert edge.count("/products") == after
