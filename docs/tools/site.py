"""Assemble the pages and build the site: ``python -m docs.tools.site``, or ``make docs``.

The pages lie below ``build/docs`` as they lie in the repository, so that the links between them are the same.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from docs.tools.guarantees import collect, guarantees_page
from docs.tools.reference import api_pages, metrics_page, settings_page

ROOT = Path(__file__).parents[2]
BUILD = ROOT / "build" / "docs"
SITE = ROOT / "site"


def generated(root: Path) -> dict[str, str]:
    """The pages that no file holds, by their path.

    Raises:
        ValueError: a guarantee has no control, or something else is missing.
    """
    from tests.test_exports import MODULES, PACKAGES

    from tenfold.metrics import METRICS
    from tenfold.settings import Settings

    guarantees = collect(root / "tests")
    problems = [one.problem for one in guarantees if one.problem]
    if problems:
        raise ValueError("\n".join(problems))
    return {
        "docs/reference/settings.md": settings_page(Settings),
        "docs/reference/metrics.md": metrics_page(METRICS),
        "docs/reference/guarantees.md": guarantees_page(guarantees),
        **{f"docs/api/{name}.md": text for name, text in api_pages({**PACKAGES, **MODULES}).items()},
    }


def assemble(root: Path, build: Path) -> Path:
    """Write every page and the configuration below ``build``; returns the path of the configuration."""
    shutil.rmtree(build, ignore_errors=True)
    pages = build / "pages"
    shutil.copytree(root / "docs", pages / "docs", ignore=shutil.ignore_patterns("tools", "*.toml"))
    for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(root / name, pages / name)
    shutil.copy(root / "README.md", pages / "index.md")
    texts = generated(root)
    for name, text in texts.items():
        (pages / name).parent.mkdir(parents=True, exist_ok=True)
        (pages / name).write_text(text)
    config = (root / "docs" / "zensical.toml").read_text()
    api = ", ".join(f'{{ "{Path(name).stem}" = "{name}" }}' for name in texts if name.startswith("docs/api/"))
    (build / "zensical.toml").write_text(config.replace('"API" = []', f'"API" = [{api}]'))
    return build / "zensical.toml"


def build_site(config: Path) -> str:
    """Run Zensical in strict mode; returns what is wrong, empty when nothing is."""
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean", "--config-file", str(config)]
    ran = subprocess.run(command, check=False, capture_output=True, text=True, cwd=config.parent)
    said = re.sub(r"\x1b\[[\d;]*m", "", ran.stdout + ran.stderr)
    return said if ran.returncode else ""


def broken(site: Path) -> Iterator[str]:
    """What Zensical does not look at: links of the navigation, pictures, and what comes from other hosts."""
    for file in sorted(site.rglob("*.html")):
        for tag, url in _References(file.read_text()).found:
            split = urlsplit(url)
            if split.scheme or split.netloc:
                if tag != "a":
                    yield f"{file.relative_to(site)} loads {url}"
                continue
            folder = site if split.path.startswith("/") else file.parent
            if not (folder / unquote(split.path).lstrip("/")).exists():
                yield f"{file.relative_to(site)} refers to {url}, which does not exist"


class _References(HTMLParser):
    """Every ``href`` and ``src`` of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [(tag, value) for name, value in attrs if name in ("href", "src", "srcset") and value]


def main() -> int:
    """Build ``site/``; the exit code is 1 when anything is missing."""
    shutil.rmtree(SITE, ignore_errors=True)
    try:
        problem = build_site(assemble(ROOT, BUILD))
    except ValueError as error:
        problem = str(error)
    if not problem:
        shutil.move(BUILD / "site", SITE)
        problem = "\n".join(broken(SITE))
    if problem:
        print(problem, file=sys.stderr)
        return 1
    print("✔ site/index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
