"""The README's pictures, from the report of the last ``make demo``: ``python -m docs.tools.pictures``.

Two screenshots of ``report.html``, light and dark, by headless Chromium, and one SVG of what the terminal
showed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from xml.sax.saxutils import escape

from docs.tools.site import ROOT

from tenfold.cli.summary import lines
from tenfold.measure.report.report import Report, load
from tenfold.measure.report.wording import objective

DEMO = ROOT / "examples" / ".tenfold"
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT, SCALE = 920, 740, 1.25  # as sharp as LARGEST_BYTES allows
LARGEST_BYTES = 150_000
DARK = "(prefers-color-scheme: dark)"
CHROMIUM = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--hide-scrollbars"),
    *(f"--window-size={WIDTH},{HEIGHT}", f"--force-device-scale-factor={SCALE}"),
]

# One character of a line, and the distance of two lines, in a 13 px monospaced font.
COLUMN, LINE, MARGIN = 7.8, 19, 16
STYLE = f"""
  text {{ font: 13px ui-monospace, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #1c2127 }}
  rect {{ fill: #f6f7f9; stroke: #dfe3e8 }} .strong {{ font-weight: 700 }} .good {{ fill: #047857 }}
  @media {DARK} {{
    text {{ fill: #e7eaee }} rect {{ fill: #14171b; stroke: #2c333b }} .good {{ fill: #3fce9c }}
  }}"""


def terminal(report: Report) -> list[str]:
    """What ``make demo`` left on the terminal."""
    head = f"Measuring {report.service}   {objective(report.objective)}"
    return ["$ make demo", "", head, "", *lines(report)]


def svg(text: Iterable[str]) -> str:
    """Lines of text as a picture that follows the reader's colour scheme and loads nothing."""
    rows = list(text)
    width, height = 80 * COLUMN + 2 * MARGIN, len(rows) * LINE + 2 * MARGIN
    body = [_row(line, MARGIN + (at + 0.75) * LINE) for at, line in enumerate(rows) if line]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}">',
            f"<style>{STYLE}\n</style>",
            f'<rect x=".5" y=".5" width="{width - 1:g}" height="{height - 1:g}" rx="8"/>',
            *body,
            "</svg>\n",
        ]
    )


def _row(line: str, y: float) -> str:
    """One line; its length is fixed, so that columns stay aligned in every font."""
    start = len(line) - len(line.lstrip())
    shown = escape(line.strip())
    kind = "good" if shown.startswith("→") else "strong" if start == 0 and "  " not in shown else ""
    x, length = MARGIN + start * COLUMN, len(line.strip()) * COLUMN
    return (
        f'<text class="{kind}" x="{x:g}" y="{y:g}" textLength="{length:g}" '
        f'lengthAdjust="spacingAndGlyphs" xml:space="preserve">{shown}</text>'
    )


def screenshot(page: str, picture: Path, *, dark: bool) -> None:
    """Take the top of an HTML page; the colour scheme is chosen in a copy, not by the browser's flags."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, "report.html")
        copy.write_text(page.replace(DARK, "all" if dark else "not all"))
        command = [*CHROMIUM, f"--user-data-dir={folder}/profile", f"--screenshot={picture}", copy.as_uri()]
        subprocess.run(["chromium", *command], check=True, capture_output=True, timeout=60)


def main() -> int:
    """Write the pictures; the exit code is 1 when something is missing or too large."""
    if not shutil.which("chromium"):
        print("the pictures need Chromium: apt-get install chromium", file=sys.stderr)
        return 1
    if not (DEMO / "report.json").is_file():
        print(f"no report in {DEMO}; make demo writes it", file=sys.stderr)
        return 1
    PICTURES.mkdir(exist_ok=True)
    (PICTURES / "demo.svg").write_text(svg(terminal(load(DEMO / "report.json"))))
    page = (DEMO / "report.html").read_text()
    for name, dark in {"report-light.png": False, "report-dark.png": True}.items():
        screenshot(page, PICTURES / name, dark=dark)
    large = [file.name for file in PICTURES.iterdir() if file.stat().st_size > LARGEST_BYTES]
    if large:
        print(f"larger than {LARGEST_BYTES:,} bytes: {', '.join(large)}", file=sys.stderr)
    return 1 if large else 0


if __name__ == "__main__":
    sys.exit(main())
