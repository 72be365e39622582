"""When an entry may be served: the decision, by tables and properties."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.caching.entry import Entry, Serving, Tag, TagTemplate, check_tag, covers, judge, required_token
from tenfold.errors import SettingsError
from tenfold.positions import Token

A, B = b"a" * 9, b"b" * 9


def token(position: int, *, timeline: int = 1, system: int = 7) -> Token:
    return Token(system, timeline, position, 2**31)


def entry(**changes: Any) -> Entry:
    position: Token | None = changes.pop("position", token(100))
    values = {
        "value": b"v",
        "tags": (("t", A),),
        "token": position.pack() if position else b"",
        "on_primary": False,
        "fresh_until": 50.0,
        "expires_at": 100.0,
        **changes,
    }
    return Entry(**values)


@pytest.mark.parametrize(
    ("found", "generations", "reader", "now", "expected"),
    [
        (None, {}, None, 0, Serving.MISS),
        (entry(), {"t": A}, None, 0, Serving.HIT),
        (entry(), {"t": A}, None, 49.9, Serving.HIT),
        (entry(), {"t": A}, None, 50, Serving.REFRESH),
        (entry(), {"t": A}, None, 100, Serving.MISS),
        (entry(), {"t": B}, None, 0, Serving.MISS),
        (entry(), {"t": None}, None, 0, Serving.MISS),
        (entry(), {}, None, 0, Serving.MISS),
        (entry(tags=()), {}, None, 0, Serving.HIT),
        (entry(tags=(("t", A), ("u", B))), {"t": A, "u": B}, None, 0, Serving.HIT),
        (entry(tags=(("t", A), ("u", B))), {"t": A, "u": A}, None, 0, Serving.MISS),
        (entry(), {"t": A}, token(100), 0, Serving.HIT),
        (entry(), {"t": A}, token(101), 0, Serving.MISS),
        (entry(on_primary=True), {"t": A}, token(100), 0, Serving.MISS),
        (entry(on_primary=True), {"t": A}, token(99), 0, Serving.HIT),
        (entry(), {"t": A}, token(1, timeline=2), 0, Serving.MISS),
        (entry(), {"t": A}, token(1, system=8), 0, Serving.MISS),
        (entry(position=None), {"t": A}, token(1), 0, Serving.MISS),
        (entry(position=None), {"t": A}, None, 0, Serving.HIT),
        (entry(position=None, follows=False, tags=()), {}, token(1), 0, Serving.HIT),
    ],
)
def test_judgement(
    found: Entry | None, generations: dict[str, Any], reader: Token | None, now: float, expected: Serving
) -> None:
    assert judge(found, generations, reader, now=now) is expected


@pytest.mark.parametrize(
    ("watermark", "expected"),
    [(token(201), True), (token(200), False), (token(300, timeline=2), False), (None, False)],
)
def test_watermark_beyond_the_reader_is_enough(watermark: Token | None, expected: bool) -> None:
    assert covers(entry(), token(200), watermark=watermark) is expected
    assert covers(entry(position=None), token(200), watermark=watermark) is expected


positions = st.integers(0, 2**63)


@given(positions, positions, st.booleans())
def test_newer_reader_is_never_served_what_an_older_one_is_not(at: int, seen: int, on_primary: bool) -> None:
    served = covers(entry(position=token(at), on_primary=on_primary), token(seen))
    later = covers(entry(position=token(at), on_primary=on_primary), token(seen + 1))
    assert served or not later
    assert served == (at > seen or (at == seen and not on_primary))


@given(st.lists(positions, max_size=5), st.none() | positions)
def test_load_has_to_include_the_reader_and_every_invalidation(ats: list[int], seen: int | None) -> None:
    tags = [Tag(A, token(at)) for at in ats]
    found = required_token(None if seen is None else token(seen), tags)
    wanted = [*ats, *([] if seen is None else [seen])]
    assert (found.position if found else None) == (max(wanted) if wanted else None)


@given(st.binary(max_size=60))
def test_formats_read_anything(data: bytes) -> None:
    Tag.unpack(data), Entry.unpack(data)
    assert Tag.unpack(None) is Entry.unpack(None) is None


@pytest.mark.parametrize("tag", [Tag(A), Tag(A, token(5))])
def test_tags_come_back(tag: Tag) -> None:
    assert Tag.unpack(tag.pack()) == tag


def test_entries_come_back() -> None:
    one = entry(tags=(("é", A), ("u", B)))
    assert Entry.unpack(one.pack()) == one
    assert one.position == replace(token(100))


@pytest.mark.parametrize(
    "name", ["a", "product:42", "x" * 2000, "é", "a@b", "schema.table", "two words", "{a}"]
)
def test_names_of_tags(name: str) -> None:
    assert check_tag(name) == name


@pytest.mark.parametrize("name", ["", "@a", None, 1, b"a"])
def test_wrong_names_of_tags(name: Any) -> None:
    with pytest.raises(SettingsError, match="is no tag"):
        check_tag(name)


def test_templates() -> None:
    template = TagTemplate("p:{a}-{b}", parameters=["a", "b"], function="f")
    assert template.name({"a": 1, "b": "x"}) == "p:1-x"
    assert template.name({"a": "two words", "b": "}{\n"}) == "p:two words-}{\n", (
        "users may search for anything"
    )
    own = TagTemplate("{a}", parameters=["a"], function="f")
    assert own.name({"a": "@function:f"}) == "\\@function:f", "no tag of the cache's own"


@pytest.mark.parametrize("text", ["", "a b", "{a} b", "@a", "a{", "x" * 201, "{b}", 1])
def test_wrong_templates(text: Any) -> None:
    with pytest.raises(SettingsError, match=r"is no tag|names 'b'"):
        TagTemplate(text, parameters=["a"], function="f")
