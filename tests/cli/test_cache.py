"""tenfold cache: what it shows, invalidates and explains."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from rich.cells import cell_len

from tenfold.caching import QueryCache
from tenfold.cli import main
from tests.sessions.conftest import redis_server
from tests.support.servers import RedisServer
from tests.support.waiting import eventually

__all__ = ["redis_server"]

MODULE = """
from sqlalchemy.orm import Session
from tenfold.caching import QueryCache

cache = QueryCache(metrics=False)

@cache.query(ttl=60, tags=["products", "product:{number}"])
def product(session: Session, number: int, *, words: str = "x") -> list[int]:
    return [number]

def plain(number: int) -> int:
    return number
"""


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("REDIS_URL", raising=False)
    (tmp_path / "cached_queries.py").write_text(MODULE)


def run(*arguments: str) -> int:
    return main(["cache", *arguments])


def test_stats_sum_what_processes_count(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    prefix = "cli-stats:"
    for _ in range(2):
        cache = QueryCache(redis_server.url, prefix=prefix, registry=CollectorRegistry(), timeout_s=1.0)

        @cache.query(ttl=60, name="shop.a_module_with_a_long_name.popular_products_of_all_categories")
        def read(number: int) -> int:
            return number

        read(1), read(1), read(1)
        import redis

        client = redis.Redis.from_url(redis_server.url)
        cache._core.counts.flush(prefix, client)
        cache._core.counts.flush(prefix, client)  # nothing twice
        client.close()
        cache.close()
    assert run("stats", "--redis", redis_server.url, "--prefix", prefix) == 0
    shown = capsys.readouterr().out
    assert all(cell_len(line) <= 80 for line in shown.splitlines()), shown
    assert "83.3%" in shown and "hit rate" in shown
    assert run("stats", "--redis", redis_server.url, "--prefix", prefix, "--json") == 0
    (counts,) = json.loads(capsys.readouterr().out).values()
    assert counts["load"] == 1 and sum(counts.values()) == 6
    assert run("stats", "--redis", redis_server.url, "--prefix", "nothing:") == 0
    assert "No process has counted anything" in capsys.readouterr().out


def test_invalidate(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, loads = QueryCache(redis_server.url, prefix="cli:", metrics=False, timeout_s=1.0), [0]

    @cache.query(ttl=60, tags=["products"])
    def read() -> int:
        loads[0] += 1
        return loads[0]

    eventually(lambda: read() == 1 and cache.explain(read)["in_memory"])
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    assert run("invalidate", "products", "others", "--prefix", "cli:") == 0
    assert "✔ invalidated products, others" in capsys.readouterr().out
    eventually(lambda: read() == 2)
    cache.close()


def test_explain(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("explain", "cached_queries:product", "number=7", "words=a b", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["function"] == "cached_queries.product" and facts["tags"] == ["products", "product:7"]
    assert "i7,s3:a" in facts["key"] and facts["ttl"] == 60
    assert run("explain", "cached_queries:product", "number=7") == 0
    assert "tags         products, product:7" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stat"], "no action 'stat': write one of stats, invalidate, explain"),
        (["stats"], "no Redis is named: write --redis URL, or set REDIS_URL"),
        (["stats", "x", "--redis", "redis://127.0.0.1:1"], "stats takes no names"),
        (["stats", "--redis", "http://x"], "this is not the URL of a Redis"),
        (
            ["stats", "--redis", "redis://127.0.0.1:1"],
            "Redis does not answer (ConnectionError): check --redis",
        ),
        (["invalidate", "--redis", "redis://127.0.0.1:1"], "no tag is named"),
        (["invalidate", "@b", "--redis", "redis://127.0.0.1:1"], "'@b' is no tag"),
        (["explain"], "no function is named"),
        (["explain", "cached_queries"], "'cached_queries' is no function: write module:function"),
        (["explain", "missing_module:f"], "missing_module cannot be imported"),
        (["explain", "cached_queries:missing"], "cached_queries has no missing"),
        (["explain", "cached_queries:plain"], "cached_queries:plain is not cached"),
        (["explain", "cached_queries:product", "number"], "'number' is no argument: write name=value"),
        (["explain", "cached_queries:product", "nummer=1"], "takes session, number, words"),
    ],
)
def test_wrong_input_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    shown = capsys.readouterr().err
    assert words in " ".join(shown.split()) and "Traceback" not in shown


def test_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "Example: tenfold cache invalidate products" in capsys.readouterr().out
