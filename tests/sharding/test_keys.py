"""Shard keys: a frozen mapping, which PostgreSQL computes too."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tenfold.errors import SettingsError
from tenfold.sharding.keys import BUCKETS, bucket_of, encode_key, parse_key, parse_key_types
from tests.sharding.conftest import Shards

UUID = uuid.UUID("018f4d3c-7a31-7abc-8def-0123456789ab")

# Frozen: a version with other numbers would look for every user's rows in the wrong place.
FROZEN: list[tuple[Any, str, str, int]] = [
    (0, "int", "i1:0", 2948),
    (42, "int", "i2:42", 288),
    (-1, "int", "i2:-1", 3272),
    (2**63 - 1, "int", "i19:9223372036854775807", 3617),
    ("42", "text", "t2:42", 2438),
    ("acme", "text", "t4:acme", 2930),
    ("Zoë \\x41", "text", "t9:Zoë \\x41", 546),
    (UUID, "uuid", "u36:018f4d3c-7a31-7abc-8def-0123456789ab", 1692),
    (("acme", 42), "text,int", "t4:acmei2:42", 588),
    (("a", "bc"), "text,text", "t1:at2:bc", 1897),
    (("ab", "c"), "text,text", "t2:abt1:c", 3038),
]


@pytest.mark.guarantee("no version re-hashes a shard key", pattern="sharding", under="a new version")
@pytest.mark.parametrize(("key", "types", "encoded", "bucket"), FROZEN)
def test_mapping_of_keys_is_frozen(key: Any, types: str, encoded: str, bucket: int) -> None:
    assert encode_key(key, parse_key_types(types)) == encoded
    assert bucket_of(encoded) == bucket


@pytest.mark.control("no version re-hashes a shard key", "with another encoding")
def test_the_control_another_encoding_gives_other_buckets() -> None:
    assert [bucket_of(str(key)) for key, *_ in FROZEN] != [bucket for *_, bucket in FROZEN]


def keys() -> st.SearchStrategy[tuple[str, Any]]:
    texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=40)
    return st.one_of(
        st.integers(-(2**63), 2**63 - 1).map(lambda key: ("int", key)),
        texts.map(lambda key: ("text", key)),
        st.uuids().map(lambda key: ("uuid", key)),
    )


@settings(deadline=None, max_examples=300)
@given(found=st.lists(keys(), min_size=1, max_size=3))
def test_postgresql_computes_the_same_bucket(shards: Shards, found: list[tuple[str, Any]]) -> None:
    types = parse_key_types(",".join(kind for kind, _ in found))
    key = tuple(value for _, value in found) if len(found) > 1 else found[0][1]
    parts = " || ".join(f"tenfold.key(%s::{'bigint' if kind == 'int' else kind})" for kind, _ in found)
    with psycopg.connect(shards.urls["shard1"]) as connection:
        row = connection.execute(
            f"SELECT {parts}, tenfold.bucket({parts})".encode(), [value for _, value in found] * 2
        ).fetchone()
    encoded = encode_key(key, types)
    assert row == (encoded, bucket_of(encoded))
    assert 0 <= bucket_of(encoded) < BUCKETS


@given(
    one=st.tuples(st.text(min_size=1), st.text(min_size=1)),
    other=st.tuples(st.text(min_size=1), st.text(min_size=1)),
)
def test_different_tuples_have_different_texts(one: tuple[str, str], other: tuple[str, str]) -> None:
    types = parse_key_types("text,text")
    with suppress(SettingsError):  # half a surrogate pair, or a zero byte
        assert (encode_key(one, types) == encode_key(other, types)) == (one == other)


@pytest.mark.parametrize(
    ("key", "types", "says"),
    [
        ("42", "int", "'42' is no shard key here: pass an int of 64 bits, as the directory declares"),
        (True, "int", "True is no shard key here"),
        (2**63, "int", "pass an int of 64 bits"),
        (None, "int", "None is no shard key here"),
        (1.0, "int", "1.0 is no shard key here"),
        (42, "text", "42 is no shard key here: pass a str"),
        ("", "text", "text of 1 to 1024 bytes"),
        ("a\0b", "text", "without a zero byte"),
        ("\ud800", "text", "half of a surrogate pair"),
        ("x" * 1025, "text", "text of 1 to 1024 bytes"),
        (str(UUID), "uuid", "pass a uuid.UUID"),
        (1, "text,int", "1 is no shard key here: pass a tuple of text, int"),
        (("a", 1, 2), "text,int", "pass a tuple of text, int"),
    ],
)
def test_key_of_another_type_is_refused(key: Any, types: str, says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        encode_key(key, parse_key_types(types))
    assert says in str(refused.value)


def test_typed_keys_are_parsed() -> None:
    assert parse_key("42", ("int",)) == 42
    assert parse_key("acme,42", ("text", "int")) == ("acme", 42)
    assert parse_key(str(UUID), ("uuid",)) == UUID
    with pytest.raises(SettingsError, match="'x' is no key of type int"):
        parse_key("x", ("int",))
    with pytest.raises(SettingsError, match="no type of keys 'float'"):
        parse_key_types("int,float")
