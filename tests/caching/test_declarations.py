"""Declarations that are refused, each in one sentence."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from tenfold.caching import QueryCache
from tenfold.errors import SettingsError
from tests.caching.support.library import Author

# ------------------------------------------------------------------ bad input


def returns_nothing_said(number: int):  # type: ignore[no-untyped-def]
    return number


def generates(number: int) -> Iterator[int]:
    yield number


async def generates_async(number: int) -> AsyncIterator[int]:
    yield number


def plain(number: int) -> int:
    return number


def returns_any(number: int) -> Any:
    return number


def returns_entity(number: int) -> Author:
    return Author()


@pytest.mark.parametrize(
    ("options", "function", "words"),
    [
        ({"ttl": -1}, plain, "the ttl of .*plain is -1: write seconds, above 0 and up to 7 days"),
        ({"ttl": 0}, plain, "above 0"),
        ({"ttl": "60"}, plain, "is 60: write seconds"),
        ({"ttl": 8 * 24 * 3600}, plain, "up to 7 days"),
        ({"negative_ttl": 0}, plain, "the negative_ttl of"),
        ({"tags": "products"}, plain, r"are one text: write tags=\['products'\]"),
        ({"tags": ["two words"]}, plain, "'two words' is no tag"),
        ({"tags": ["product:{id}"]}, plain, "'product:{id}' names 'id', which is no keyed parameter"),
        ({"tags": ["@own"]}, plain, "'@own' is no tag"),
        ({"tags": ["a{"]}, plain, "'a{' is no tag"),
        ({"tags": [1]}, plain, "'1' is no tag"),
        ({"tags": [""]}, plain, "'' is no tag"),
        ({"frozen": True, "returns": list[int]}, plain, "is frozen=True, but callers could change"),
        ({"ignore": ["nummer"]}, plain, "ignore= names 'nummer'"),
        ({}, returns_nothing_said, "has no return annotation"),
        ({}, returns_any, "returns Any, which says nothing"),
        ({}, returns_entity, "returns the ORM entity Author"),
        ({}, generates, "is a generator, which is consumed once: return a list"),
        ({}, generates_async, "is a generator"),
        ({}, len, "is no function"),
        ({}, staticmethod(plain), "is no function"),
    ],
)
def test_wrong_declarations_are_refused_in_one_sentence(
    options: dict[str, Any], function: Any, words: str
) -> None:
    cache = QueryCache(metrics=False)
    with pytest.raises(SettingsError, match=words) as caught:
        cache.query(**options)(function)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"redis": "http://127.0.0.1"}, "not the URL of a Redis"),
        ({"redis": "redis://:a/b@127.0.0.1"}, "in a password write / as %2F"),
        ({"redis": 7}, "takes a URL or a client of redis-py, no int"),
        ({"redis": "redis+sentinel://127.0.0.1:1"}, "behind Sentinel"),
        ({"redis": "redis+sentinel://127.0.0.1/name/x"}, "not the URL"),
        ({"shadow": 2}, "shadow is 2"),
        ({"prefix": ""}, "prefix is ''"),
        ({"prefix": "a b"}, "prefix is 'a b'"),
        ({"memory_bytes": 0}, "nothing could be kept"),
    ],
)
def test_wrong_caches_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words) as caught:
        QueryCache(**arguments, metrics=False)
    assert "a/b" not in str(caught.value)


def test_client_that_decodes_is_refused() -> None:
    import redis

    with pytest.raises(SettingsError, match="without decode_responses"):
        QueryCache(redis.Redis(decode_responses=True), metrics=False)


def test_functions_that_are_not_cached_are_said(make_cache: Callable[..., QueryCache]) -> None:
    with pytest.raises(SettingsError, match="'plain' is not cached: decorate it"):
        make_cache().explain(plain)
    with pytest.raises(SettingsError, match="'@own' is no tag"):
        make_cache().invalidate("@own")
