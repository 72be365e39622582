"""The site does not build with a broken link, and loads nothing from other hosts."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from docs.tools.site import ROOT, assemble, broken, build_site

GOOD = "[the other](other.md#here)"
LINKS = {
    GOOD: "",
    "[gone](gone.md)": "page does not exist",
    "[nowhere](other.md#nowhere)": "anchor does not exist",
    "[unknown][tenfold.Unknown]": "unresolved autoref",
    "::: tenfold.Unknown": "Could not collect 'tenfold.Unknown'",
}


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A configuration like the site's, and one page to link to."""
    if not os.environ.get("CI"):
        pytest.importorskip("zensical", reason="the docs extra is not installed; make docs installs it")
    config = (ROOT / "docs" / "zensical.toml").read_text()
    (tmp_path / "zensical.toml").write_text(re.sub(r"^nav = \[.*?^\]", "", config, flags=re.M | re.S))
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "other.md").write_text("# Other\n\n## Here\n")
    return tmp_path


@pytest.mark.guarantee(
    "a broken link or reference fails the build of the documentation",
    pattern="docs",
    under="pages, headings and names that are not there",
    control="the link that is right, in the same table",
)
@pytest.mark.parametrize(("link", "problem"), LINKS.items())
def test_broken_link_fails_the_build(site: Path, link: str, problem: str) -> None:
    (site / "pages" / "index.md").write_text(f"# Page\n\n{link}\n")
    said = build_site(site / "zensical.toml")
    assert problem in said and bool(said) == bool(problem)


@pytest.mark.parametrize(
    ("html", "problem"),
    [
        ('<img src="a.png"> <a href="#x"> <a href="/a.png?x"> <a href="https://x.test">', ""),
        ('<img src="gone.png">', "refers to gone.png, which does not exist"),
        ('<source srcset="gone.svg">', "refers to gone.svg"),
        ('<a href="sub/gone.md">', "refers to sub/gone.md"),
        ('<link href="https://fonts.test/a.css">', "loads https://fonts.test/a.css"),
        ('<script src="//cdn.test/a.js"></script>', "loads //cdn.test/a.js"),
    ],
)
def test_missing_files_and_other_hosts_are_found(tmp_path: Path, html: str, problem: str) -> None:
    (tmp_path / "a.png").touch()
    (tmp_path / "index.html").write_text(html)
    found = list(broken(tmp_path))
    assert len(found) == bool(problem) and all(problem in one for one in found)


def test_pages_are_assembled_as_they_lie_in_the_repository(tmp_path: Path) -> None:
    config = assemble(ROOT, tmp_path).read_text()
    assert (tmp_path / "pages" / "index.md").read_text() == (ROOT / "README.md").read_text()
    assert '{ "sessions" = "docs/api/sessions.md" }' in config
    named = re.findall(r'"([\w/]+\.md)"', config)
    assert len(named) > 20 and all((tmp_path / "pages" / name).is_file() for name in named)
    assert not (tmp_path / "pages" / "docs" / "tools").exists()
