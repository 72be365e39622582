"""Which rule a path has; what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenfold.edge.decision import Request, cache_key, filter_query
from tenfold.edge.rules import ODD_PATH, EdgePolicy, Rule, immutable, is_odd, no_store, private, public
from tenfold.edge.settings import load_policy
from tenfold.errors import SettingsError

POLICY = EdgePolicy(
    {
        "/": public(ttl=1),
        "/static/**": immutable(),
        "/static/live/**": no_store(),
        "/api/products": public(ttl=300, ignore_query=["utm_*", "ref"]),
        "/api/products/*": public(ttl=2),
        "/api/products/*/reviews": public(ttl=3),
        "/api/**": private(),
        "/café/*.txt": public(ttl=4),
    }
)


@pytest.mark.parametrize(
    ("path", "pattern"),
    [
        ("/", "/"),
        ("/static/a.css", "/static/**"),
        ("/static/", "/static/**"),
        ("/static", ""),
        ("/static/live/a", "/static/live/**"),
        ("/api/products", "/api/products"),
        ("/api/products/", "/api/products/*"),
        ("/api/products/7", "/api/products/*"),
        ("/api/products/7/reviews", "/api/products/*/reviews"),
        ("/api/products/7/x", "/api/**"),
        ("/apis", ""),
        ("/caf%C3%A9/a.txt", "/café/*.txt"),
        ("/caf%c3%a9/a.txt", ""),
        ("/other", ""),
        ("", ""),
        ("*", ""),
    ],
)
def test_most_specific_rule_wins(path: str, pattern: str) -> None:
    assert POLICY.find(path)[0] == pattern


@pytest.mark.parametrize(
    "path",
    [
        *("//static/a", "/static//a", "/static/./a", "/static/../a", "/static/..", "/static/%2e%2e/a"),
        *("/st%61tic/a", "/static/%2Fa", "/static/%5Ca", "/static\\a", "/static/a;b", "/static/%3Ba"),
        *(
            "/static/%0a",
            "/static/%00",
            "/static/a b",
            "/static/\u00e9",
            "/static/%",
            "/static/%4",
            "/static/%zz",
        ),
        *("/static/%25", "/static/a#b", "http://h/static/a", "/static/%e9", "/static/%7F"),
    ],
)
def test_path_that_is_written_in_an_unusual_way_has_no_rule(path: str) -> None:
    assert is_odd(path)
    assert POLICY.find(path)[0] == ""


@given(st.text(st.characters(codec="utf-8"), max_size=20))
def test_python_quotes_paths_as_caches_keep_them(text: str) -> None:
    from urllib.parse import quote

    plain = re.sub(r"[\x00-\x20\x7f\\;%/#.]", "", text)
    assert not is_odd("/" + quote(plain, safe="/:@!$&'()*+,=~"))
    re.compile(ODD_PATH)


@pytest.mark.parametrize(
    ("query", "kept"),
    [
        ("", ""),
        ("utm_source=a", ""),
        ("page=2&utm_source=a&utm_id=3&size=1", "page=2&size=1"),
        ("ref&reference=1", "reference=1"),
        ("&&page", "&&page"),
        ("UTM_source=a", "UTM_source=a"),
    ],
)
def test_ignored_parameters_are_no_part_of_the_key(query: str, kept: str) -> None:
    _, rule = POLICY.find("/api/products")
    assert filter_query(rule, query) == kept
    shown = f"?{kept}" if kept else ""
    assert cache_key(POLICY, Request("GET", "/api/products", query)) == f"/api/products{shown}|"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: private(ttl=1, tags=["a"]), "tags is for answers that are shared"),
        (lambda: private(ttl=1, browser_ttl=3), "browser_ttl is for answers that are shared"),
        (lambda: private().ab("hero", A=50, B=50), "experiments is for answers that are shared"),
        (lambda: public(ttl=1).ab("hero", A=50, B=40), "add up to 90"),
        (lambda: public(ttl=1).ab("hero", A=100, B=0), "whole numbers above 0"),
        (lambda: public(ttl=1).ab("he ro", A=100), "use letters"),
        (lambda: public(ttl=1).geo(XX="https://a.example"), "'XX' is no country"),
        (lambda: public(ttl=1).geo(CN="javascript:1"), "no address to redirect to"),
        (lambda: public(ttl=1).geo(CN='https://a.example/"; return 200'), "no address to redirect to"),
        (lambda: public(ttl=-1), "greater than or equal to 0"),
        (lambda: public(ttl=1, tags=["a b"]), "is no tag"),
        (lambda: public(ttl=1, vary=["*"]), "no request header"),
        (lambda: public(ttl=1, ignore_query=["a*b"]), "no name of a query parameter"),
        (lambda: public(ttl=1, ttll=1), "ttll"),
        (lambda: immutable(swr=1), "fresh for a year"),
        (lambda: EdgePolicy({"/a/*/c": no_store(), "/a/b/*": no_store()}), ""),
        (lambda: EdgePolicy({"/a/*b": no_store(), "/a/*c": no_store(), "/a/b*": no_store()}), ""),
        (lambda: EdgePolicy({"static": no_store()}), "'static'"),
        (lambda: EdgePolicy({"/a/**/b": no_store()}), "'/a/**/b'"),
        (lambda: EdgePolicy({'/a"; }': no_store()}), "write a path such as"),
        (lambda: EdgePolicy({"/": public(ttl=1).geo(CN="https://a.example")}), "country_header"),
        (lambda: EdgePolicy({}, tag_header="a b"), "no name of a header"),
    ],
)
def test_impossible_rule_is_refused_with_a_sentence(make: Callable[[], Any], words: str) -> None:
    if not words:
        make()
        return
    with pytest.raises(SettingsError, match=re.escape(words)) as refused:
        make()
    assert "\n" not in str(refused.value)


def test_overlapping_rules_of_equal_rank_are_refused() -> None:
    with pytest.raises(SettingsError, match="neither is more specific"):
        EdgePolicy({"/a/*/b*": no_store(), "/a/*/*c": no_store()})
    EdgePolicy({"/a/*/bd": no_store(), "/a/*/bc": no_store()})


@pytest.mark.parametrize(
    "manifest",
    [
        '{"src/a.ts": {"file": "assets/a-1f.js", "css": ["assets/a-2e.css"], "assets": ["assets/b-3d.png"]}}',
        '{"version": "1.1", "paths": {"a.js": "assets/a-1f.js", "a.css": "assets/a-2e.css"}, "hash": "x"}',
        '{"a.js": "/assets/a-1f.js", "a.css": "/assets/a-2e.css"}',
    ],
    ids=["Vite", "Django", "plain"],
)
def test_only_files_of_the_manifest_never_change(manifest: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest)
    policy = EdgePolicy({"/static/**": immutable(manifest=str(tmp_path / "manifest.json"))})
    for name in ("assets/a-1f.js", "assets/a-2e.css"):
        assert policy.find(f"/static/{name}")[1].shared_s == 31_536_000
    for name in ("assets/a-0.js", "a.js", "", "index.html"):
        assert policy.find(f"/static/{name}")[1].shared_s == 0
    with pytest.raises(SettingsError, match="build the files first"):
        EdgePolicy({"/static/**": immutable(manifest=str(tmp_path / "none.json"))})


def test_policy_of_a_file_is_the_one_of_the_settings(tmp_path: Path) -> None:
    file = tmp_path / "tenfold.toml"
    file.write_text('[edge.rules."/a/**"]\ncache = "public"\nttl = 5\ntags = ["x"]\n')
    assert load_policy(file).find("/a/b") == ("/a/**", Rule(cache="public", ttl=5, tags=("x",)))
    file.write_text('[edge.rules."/a/**"]\ncache = "private"\ntags = ["x"]\n')
    with pytest.raises(SettingsError, match=r"edge\.rules\./a/\*\*: tags is for answers that are shared"):
        load_policy(file)
    with pytest.raises(SettingsError, match="cannot be read"):
        load_policy(tmp_path / "none.toml")
