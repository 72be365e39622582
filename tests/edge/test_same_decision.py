"""Random policies and requests: middleware and nginx do what the pure decision says."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tenfold.edge.decision import Answer, Request, Storage, cache_key, choose_variants, describe, may_store
from tenfold.edge.rules import EdgePolicy, Rule
from tenfold.stack.programs import Program
from tests.edge.support.served import EdgeNginx, Stored, edge_before, origin
from tests.support.waiting import eventually

SAME = "the middleware and nginx store what the policy says, as long as it says, and nothing else"

PATTERNS = ["/", "/a", "/a/*", "/a/*/c", "/b/**", "/b/*.css", "/b/c/**", "/c%20d/**", "/é/**", "/**"]
PATHS = [
    *("/", "/a", "/a/b", "/a/b/c", "/b", "/b/", "/b/x.css", "/b/c/x.css", "/c%20d/x", "/%C3%A9/x", "/z"),
    *("/%61", "/b//x", "/b/./x", "/b/../a", "/b/%2e%2e/a", "/b/x%2fy", "/b/x;y=1", "/%c3%a9/x"),
]
QUERIES = ["", "x=1", "utm_source=a", "x=1&utm_source=a&y=2", "utm_source", "ref=1&ref=2", "x=%2F", "&&x"]


def random_rule(chance: random.Random) -> dict[str, Any]:
    kind = chance.choice(["public", "public", "public", "private", "immutable", "no-store"])
    rule: dict[str, Any] = {"cache": kind}
    if kind in ("public", "private"):
        rule["ttl"] = chance.choice([0, 5, 60, 3600])
        if chance.random() < 0.4:
            rule["swr"] = chance.choice([5, 600])
    if kind == "public" and chance.random() < 0.3:
        rule["stale_if_error"] = 60
    if kind == "public" and chance.random() < 0.3:
        rule["browser_ttl"] = chance.choice([0, 10])
    if kind in ("public", "immutable"):
        if chance.random() < 0.5:
            rule["tags"] = chance.sample(["one", "two:2", "three"], 2)
        if chance.random() < 0.5:
            rule["ignore_query"] = chance.choice([["utm_*"], ["ref", "x"], ["*"][:0]])
        if chance.random() < 0.3:
            rule["authorization"] = True
        if chance.random() < 0.4:
            rule["experiments"] = {"hero": {"A": 30, "B": 70}} | (
                {"buy": {"red": 1, "green": 99}} if chance.random() < 0.5 else {}
            )
    if chance.random() < 0.3:
        rule["vary"] = ["X-Kind"]
    return rule


def random_policy(chance: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    patterns = chance.sample(PATTERNS, chance.randint(2, 6))
    return {pattern: random_rule(chance) for pattern in patterns}, {"tag_header": "Surrogate-Key"}


def random_answer(chance: random.Random) -> tuple[int, list[tuple[str, str]]]:
    status = chance.choice([200, 200, 200, 200, 301, 404, 500, 204])
    headers: list[tuple[str, str]] = []
    if chance.random() < 0.4:
        said = ["no-store", "private", "no-cache", "max-age=5", "s-maxage=7, max-age=2", "public, max-age=9"]
        said += ["must-revalidate", "max-age=30, must-revalidate", "max-age=a", 'max-age="4"', "MAX-AGE=8,,"]
        headers.append(("Cache-Control", chance.choice(said)))
    if chance.random() < 0.15:
        headers.append(("CDN-Cache-Control", chance.choice(["max-age=11", "no-store", "max-age=x", "a b"])))
    if chance.random() < 0.1:
        headers.append(("Set-Cookie", "a=b"))
    if chance.random() < 0.2:
        headers.append(("Vary", chance.choice(["*", "X-Kind", "Accept, *", "x-other"])))
    if chance.random() < 0.2:
        headers.append(("Age", chance.choice(["3", "100", "-1", "x", "1, 2"])))
    return status, headers


def expected(
    policy: EdgePolicy, request: Request, status: int, given: list[tuple[str, str]], now: float
) -> Storage:
    """What the pure functions say of an answer of the app."""
    headers: dict[str, str] = {}
    for name, value in given:
        name = name.lower()
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    _, rule = policy.find(request.path)
    headers |= describe(rule, request, Answer(status, headers), tag_header=policy.tag_header)
    if not rule.is_shared:
        return Storage(reason="no rule")
    return may_store(request, Answer(status, headers), now=now, authorization=rule.authorization)


def check(edge: EdgeNginx, policy: EdgePolicy, chance: random.Random, number: int, seen: set[str]) -> None:
    path, query = chance.choice(PATHS), chance.choice(QUERIES)
    query += ("&" if query else "") + f"n={number}"
    headers = {"X-Policy": edge.folder.name}
    if chance.random() < 0.2:
        headers["Authorization"] = "Bearer x"
    visitor = f"{chance.getrandbits(128):032x}"
    headers["Cookie"] = f"a=1; __Host-edge-visitor={visitor}"
    status, answer = random_answer(chance)
    target = f"{path}?{query}"
    request = Request("GET", path, query, {name.lower(): value for name, value in headers.items()})
    _, rule = policy.find(path)
    before = int(time.time())
    first = edge.send(target, headers=headers, status=status, answer=answer)
    second = edge.send(target, headers=headers, status=status, answer=answer)
    wanted = expected(policy, request, status, answer, now=before)
    context = repr((edge.folder.name, target, headers, status, answer, first, wanted, rule))
    assert first[0] == second[0] == status, context
    variants = choose_variants(rule, visitor)
    if first[2]:
        assert (first[2] == second[2]) is wanted.is_stored, context
        assert json.loads(first[2])["variants"] == variants, context
    key = cache_key(policy, request, variants)

    def find() -> list[Stored]:
        return [one for one in edge.stored() if key in one.key and one.key not in seen]

    own = eventually(find) if wanted.is_stored else find()  # the file follows the answer
    assert bool(own) is wanted.is_stored, (context, key)
    for one in own:
        assert 0 <= one.valid_until - before - wanted.lifetime_s <= 2, (context, one)
        assert (one.swr_s, one.error_s) == (wanted.swr_s, wanted.error_s), (context, one)
        seen.add(one.key)


def run(
    nginx: Program,
    folder: Path,
    *,
    policies: int,
    requests: int,
    seed: int,
    rewrite: Callable[[str], str] = lambda text: text,
) -> None:
    chance = random.Random(seed)
    made = [random_policy(chance) for _ in range(policies)]
    with origin(folder, made) as port:
        for number, (rules, options) in enumerate(made):
            policy = EdgePolicy({name: Rule(**rule) for name, rule in rules.items()}, **options)
            seen: set[str] = set()
            address = f"127.0.0.1:{port}"
            with edge_before(nginx, folder / str(number), address, policy, rewrite=rewrite) as edge:
                for one in range(requests):
                    check(edge, policy, chance, one, seen)


@pytest.mark.guarantee(SAME, pattern="edge", under="random policies, requests and answers")
def test_middleware_and_nginx_do_what_the_decision_says(nginx: Program, tmp_path: Path) -> None:
    run(nginx, tmp_path, policies=10, requests=50, seed=1)


@pytest.mark.control(SAME, "edge.js takes no notice of Age")
def test_the_control_a_script_that_decides_otherwise_is_found(nginx: Program, tmp_path: Path) -> None:
    def rewrite(text: str) -> str:
        return text.replace("lifetime - age, 0", "lifetime, 0")

    with pytest.raises(AssertionError):
        run(nginx, tmp_path, policies=10, requests=50, seed=1, rewrite=rewrite)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_middleware_and_nginx_do_what_the_decision_says_for_long(nginx: Program, tmp_path: Path) -> None:
    run(nginx, tmp_path, policies=200, requests=50, seed=2)
