"""``tenfold verify``: run the checklist against the stack of tenfold.toml."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.console import GLYPHS, console, to_json, verdict_table
from tenfold.types import Verdict

if TYPE_CHECKING:
    from tenfold.settings import Settings
    from tenfold.types import Stack
    from tenfold.verify import Check, Outcome


def verify(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A check or a pattern; may be repeated.", show_default=False),
    ] = None,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print the findings as JSON only.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the checks without running them.")] = False,
) -> int:
    """Run the checks of every pattern against the stack.

    Exits with 0 if none failed and with 1 if one did. A skipped check says what it needs.
    """
    from tenfold.cli.signals import interrupt_on_signals
    from tenfold.settings import load
    from tenfold.verify import CHECKS, select

    checks = select(CHECKS, only or ())
    if list_:
        for check in checks:
            typer.echo(f"{check.pattern:12} {check.name}")
        return 0
    declared = load(settings)
    with interrupt_on_signals(), _running_stack(declared, quiet=as_json_) as stack:
        outcomes = _run(checks, stack, declared, quiet=as_json_)
    if as_json_:
        typer.echo(to_json(facts(outcomes)))
    return 1 if any(outcome.finding.verdict is Verdict.FAIL for outcome in outcomes) else 0


@contextmanager
def _running_stack(settings: Settings, *, quiet: bool) -> Iterator[Stack]:
    from tenfold.stack import Stack as LocalStack

    with ExitStack() as running:
        with nullcontext() if quiet else console(stderr=True).status("Starting the stack"):
            stack = running.enter_context(LocalStack(settings))
        yield stack


def _run(checks: Sequence[Check], stack: Stack, settings: Settings, *, quiet: bool) -> list[Outcome]:
    from tenfold.verify import run

    outcomes = []
    screen = console()
    widths = [max((len(text) for text in column), default=0) for column in zip(*_titles(checks), strict=True)]
    for outcome in run(checks, stack, settings):
        outcomes.append(outcome)
        if not quiet:
            _show(screen, outcome, widths)
    if not quiet:
        screen.print(_summary(outcomes))
    return outcomes


def _titles(checks: Sequence[Check]) -> list[tuple[str, str]]:
    return [(check.name, check.pattern) for check in checks] or [("", "")]


def _show(screen: Any, outcome: Outcome, widths: Sequence[int]) -> None:
    from rich.padding import Padding
    from rich.text import Text

    finding = outcome.finding
    cells = (outcome.check.name, outcome.check.pattern, finding.claim)
    screen.print(verdict_table([(finding.verdict, cells)], widths=(*widths, 0)))
    if finding.remedy and finding.verdict is not Verdict.PASS:
        screen.print(Padding(Text(f"→ {finding.remedy}"), (0, 0, 0, 4)))


def _summary(outcomes: Sequence[Outcome]) -> str:
    verdicts = [outcome.finding.verdict for outcome in outcomes]
    counts = (f"{verdicts.count(verdict)} {GLYPHS[verdict]}" for verdict in Verdict if verdict in verdicts)
    return f"{len(outcomes)} {'check' if len(outcomes) == 1 else 'checks'}: {'  '.join(counts)}"


def facts(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Return the findings for ``--json``."""
    return {
        "ok": all(outcome.finding.verdict is not Verdict.FAIL for outcome in outcomes),
        "checks": [
            {
                "check": outcome.check.name,
                "pattern": outcome.check.pattern,
                "verdict": outcome.finding.verdict.value,
                "claim": outcome.finding.claim,
                "numbers": dict(outcome.finding.numbers),
                "remedy": outcome.finding.remedy,
                "seconds": round(outcome.seconds, 3),
            }
            for outcome in outcomes
        ],
    }
