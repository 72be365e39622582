"""tenfold edge: which rule a path has, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tenfold.cli import main

SETTINGS = """
[edge]
country_header = "CF-IPCountry"

[edge.rules."/api/products"]
cache = "public"
ttl = 300
swr = 60
tags = ["catalogue"]
ignore_query = ["utm_*"]

[edge.rules."/"]
cache = "public"
ttl = 60
experiments = { hero = { A = 50, B = 50 } }
countries = { CN = "https://cn.example.com" }
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "tenfold.toml").write_text(SETTINGS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("EDGE_PURGE_URL", raising=False)
    return tmp_path


def test_explain_says_what_each_cache_does(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["edge", "explain", "/api/products?utm_source=mail&page=2", "/"]) == 0
    said = capsys.readouterr().out
    assert "rule       /api/products   public" in said
    assert "Cdn-Cache-Control: max-age=300, stale-while-revalidate=60" in said
    assert "nginx, CDN 300 s, then 60 s while they ask again" in said
    assert "key        /api/products?page=2|" in said
    assert "A/B test   hero {'A': 50, 'B': 50}" in said
    assert "redirect   CN → https://cn.example.com" in said
    assert all(len(line) <= 80 for line in said.splitlines())


@pytest.mark.parametrize(
    ("path", "words"), [("/other", "no rule matches"), ("/api//products", "written in an unusual way")]
)
def test_explain_says_why_nothing_is_stored(
    path: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edge", "explain", path, "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out).values()
    assert words in facts["rule"]
    assert facts["headers"] == {"Cache-Control": "private, no-store"}
    assert facts["shared_s"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["explain"], "tenfold edge explain /api/products"),
        (["look", "/"], "no action 'look': write one of explain, attack, purge"),
        (["attack", "shop"], "no address to attack"),
        (["attack", "http://127.0.0.1:1", "/"], "is not answered"),
        (["purge", "a"], "set EDGE_PURGE_URL"),
        (["purge", "a", "--target", "nowhere"], "no place to purge"),
        (["purge", "a", "--target", "unix:/none/purge.sock"], "did not take the purge"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["edge", *arguments]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_rule_that_is_impossible_is_named_by_its_path(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "tenfold.toml").write_text('[edge.rules."/me"]\ncache = "private"\ntags = ["a"]\n')
    assert main(["edge", "explain", "/me"]) == 2
    assert "edge.rules./me is a table; tags is for answers that are shared" in capsys.readouterr().err
