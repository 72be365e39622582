"""``tenfold measure``: measure the capacity of a service and find what limits it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.errors import SettingsError

if TYPE_CHECKING:
    from tenfold.cli.bar import Bar
    from tenfold.measure.load.generator import Generator
    from tenfold.measure.observer import StackObserver
    from tenfold.measure.report.comparison import Comparison
    from tenfold.measure.report.report import Report
    from tenfold.settings import Settings
    from tenfold.stack import Stack

EXAMPLE = "tenfold measure http://127.0.0.1:8000 --scenario locustfile.py --min-rps 50"
HOLDS, FAILS, UNDECIDED = 0, 1, 2
# The first logins may take this share of the budget, and no longer than this.
LOGIN_SHARE, MAX_LOGIN_S = 1 / 3, 30.0


def measure(
    target: Annotated[
        str | None,
        typer.Argument(metavar="[URL]", help="A running service. Default: start the stack of tenfold.toml."),
    ] = None,
    *,
    scenario: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The locustfile.", show_default=False)
    ] = None,
    p95_ms: Annotated[
        float | None, typer.Option(min=1, help="p95 latency of the objective, ms.", show_default=False)
    ] = None,
    budget_s: Annotated[
        float | None, typer.Option(min=10, max=3600, help="Longest search, seconds.", show_default=False)
    ] = None,
    min_rps: Annotated[
        float | None, typer.Option(min=0, help="Exit with 1 if the capacity is lower.", show_default=False)
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, max=20_000, help="Users to start with.", show_default=False)
    ] = None,
    spawn_rate: Annotated[
        float | None, typer.Option(min=0.1, max=1000, help="Most logins per second.", show_default=False)
    ] = None,
    max_users: Annotated[
        int | None, typer.Option(min=1, max=20_000, help="Most users at once.", show_default=False)
    ] = None,
    closed: Annotated[bool, typer.Option("--closed", help="Locust's own loop; claims no capacity.")] = False,
    duration_s: Annotated[
        float, typer.Option(min=1, max=3600, help="Length of a closed run, seconds.")
    ] = 30.0,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Seed of the arrival times.", show_default=False)
    ] = None,
    save: Annotated[
        str | None, typer.Option(metavar="NAME", help="Save the report as a baseline.", show_default=False)
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="NAME", help="Compare with a saved baseline.", show_default=False)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Path of the HTML report.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON only.")] = False,
    owned: Annotated[
        bool, typer.Option("--i-own-this-target", help="Allow a target on another machine.")
    ] = False,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
) -> int:
    """Measure the capacity of a service and find what limits it.

    Exits with 0 if there is a result and --min-rps holds, with 1 if it does not hold or the objective is
    missed at any rate, with 2 if there is no result.
    """
    from tenfold.cli.bar import Bar
    from tenfold.cli.signals import interrupt_on_signals
    from tenfold.measure.report import comparison, report
    from tenfold.settings import load

    options = {"scenario": scenario.resolve() if scenario else None, "budget_s": budget_s, "users": users}
    options |= {"spawn_rate": spawn_rate, "max_users": max_users, "seed": seed}
    declared = _override(load(settings), options, p95_ms)
    if target is None and not declared.service.app:
        raise SettingsError(
            "nothing to measure: give a URL, or set the app in tenfold.toml (tenfold init writes one)"
        )
    before = report.load(_baseline(declared, against)) if against else None
    baseline = _baseline(declared, save) if save else None
    with interrupt_on_signals(), Bar() as bar:
        found = _measure(declared, target, bar, owned=owned, closed_s=duration_s if closed else None)
    found, written = _write(found, declared, html)
    compared = comparison.compare(found, before, name=against) if before and against else None
    if as_json:
        typer.echo(_as_json(found, compared))
    else:
        _print(found, compared, written)
    if baseline:  # last: the result is printed even if it cannot be saved
        report.save(found, baseline)
    return exit_code(found, min_rps)


def _override(settings: Settings, options: Mapping[str, Any], p95_ms: float | None) -> Settings:
    """Return ``settings`` with the command line's values."""
    measure = settings.measure.model_copy(update={k: v for k, v in options.items() if v is not None})
    if p95_ms is not None:
        objective = measure.objective.model_copy(update={"slow_ms": p95_ms})
        measure = measure.model_copy(update={"objective": objective})
    return settings.model_copy(update={"measure": measure})


def _measure(
    settings: Settings, target: str | None, bar: Bar, *, owned: bool, closed_s: float | None
) -> Report:
    """Start the stack, if any, and the generator; measure; stop both."""
    from tenfold.measure.load.generator import Generator
    from tenfold.measure.load.target import require_loopback, without_credentials
    from tenfold.measure.observer import StackObserver
    from tenfold.measure.report.wording import objective
    from tenfold.measure.service_log import failed_logins_with_log

    scenario = settings.root / settings.measure.scenario
    with ExitStack() as running:
        inside: StackObserver | None = None
        stack: Stack | None = None
        service = settings.service.app
        if target is None:
            stack = running.enter_context(_stack(settings, bar))
            target = stack.url
            inside = running.enter_context(
                StackObserver(stack, objective=settings.measure.objective, may_create_index=True)
            )
            running.enter_context(failed_logins_with_log(stack))
        else:
            require_loopback(target, owned=owned)
            service = without_credentials(target)
        generator = running.enter_context(
            Generator(scenario, target, settings=settings.measure, owned=owned, cwd=settings.root)
        )
        bar.say(f"\nMeasuring {service}   {objective(settings.measure.objective)}")
        return _run(settings, generator, service, target, inside, bar, closed_s, stack)


def _stack(settings: Settings, bar: Bar) -> Any:
    """Start the stack of tenfold.toml, and show its parts and the time it took."""
    from contextlib import contextmanager

    from tenfold.stack import Stack

    @contextmanager
    def running_stack() -> Any:
        begun = time.monotonic()
        bar.step("starting the stack")
        with Stack(settings, log=lambda line: bar.step(f"starting the stack: {line}")) as stack:
            parts = " · ".join(dict.fromkeys(server.about for server in stack.servers if server.about))
            bar.done("stack", parts, time.monotonic() - begun)
            yield stack

    return running_stack()


def _run(
    settings: Settings,
    generator: Generator,
    service: str,
    target: str,
    inside: StackObserver | None,
    bar: Bar,
    closed_s: float | None,
    stack: Stack | None,
) -> Report:
    from tenfold.measure.closed_loop import measure_closed_loop
    from tenfold.measure.measurement import Measurement

    declared = settings.measure
    if closed_s is not None:
        return measure_closed_loop(
            generator, declared, service=service, target=target, duration_s=closed_s, progress=bar.show
        )
    bar.step(f"logging in {declared.users} users")
    begun = time.monotonic()
    generator.start_users(declared.users, timeout_s=min(MAX_LOGIN_S, LOGIN_SHARE * declared.budget_s))
    logins_s = time.monotonic() - begun
    bar.step("measuring the generator's maximum rate")
    ceiling = generator.calibrate()
    measurement = Measurement(
        declared,
        generator,
        service=service,
        target=target,
        inside=inside,
        ceiling=ceiling,
        restart=None if stack is None else partial(_restart, stack, generator, declared.users),
        progress=bar.show,
    )
    return measurement.run(spent_s=logins_s)


def _restart(stack: Stack, generator: Generator, users: int) -> None:
    """Start every app instance again, and log the users in: the service may not know them any more."""
    for server in stack.servers:
        if server.kind == "app":
            stack.restart(server)
    generator.restart_users(users)


def _baseline(settings: Settings, name: str) -> Path:
    if not name.replace("-", "").replace("_", "").replace(".", "").isalnum() or name.startswith("."):
        raise SettingsError(f"{name!r} is not a name for a baseline; use letters, digits, - _ and .")
    return settings.root / ".tenfold" / "baselines" / f"{name}.json"


def _write(report: Report, settings: Settings, html: Path | None) -> tuple[Report, tuple[Path, ...]]:
    """Write report.html and report.json; return the report with what could not be written, and the paths."""
    from dataclasses import replace

    from tenfold.measure.optional_steps import OptionalSteps
    from tenfold.measure.report.html import render
    from tenfold.measure.report.report import save, write_atomically

    folder = settings.root / ".tenfold"
    page, data = (html or folder / "report.html").absolute(), folder / "report.json"
    steps = OptionalSteps()

    def write_page() -> bool:
        write_atomically(page, render(report).encode())
        return True

    def write_data() -> bool:
        save(report, data)
        return True

    written = []
    if steps.run(f"{page.name} is not written", write_page, otherwise=False):
        written.append(_relative(page))
    report = replace(report, not_measured=(*report.not_measured, *steps.failures))
    if steps.run(f"{data.name} is not written", write_data, otherwise=False):
        written.append(_relative(data))
    return replace(report, not_measured=(*report.not_measured, *steps.failures)), tuple(written)


def _relative(path: Path) -> Path:
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def _as_json(report: Report, compared: Comparison | None) -> str:
    import msgspec

    facts = msgspec.to_builtins(report)
    facts["against"] = msgspec.to_builtins(compared) if compared else None
    return msgspec.json.format(msgspec.json.encode(facts), indent=2).decode()


def _print(report: Report, compared: Comparison | None, written: Sequence[Path]) -> None:
    from tenfold.cli.report_text import report_lines

    typer.echo("")
    for line in report_lines(report):
        typer.echo(line)
    if compared:
        typer.echo(f"\nCompared    {compared.sentence}")
    if written:
        names = {".html": "Report", ".json": "Data"}
        typer.echo("\n" + "     ".join(f"{names.get(path.suffix, 'Report')}: {path}" for path in written))


def exit_code(report: Report, min_rps: float | None) -> int:
    """Return the exit code: 0 holds, 1 does not hold, 2 unknown.

    A required rate inside the interval is unknown.
    """
    capacity = report.capacity
    if report.mode == "closed":
        return HOLDS if min_rps is None else UNDECIDED
    if capacity is None or capacity.outcome == "undecided":
        return UNDECIDED
    if capacity.outcome == "below":
        return FAILS
    if min_rps is None:
        return HOLDS if not report.interrupted else UNDECIDED
    scale = capacity.requests_per_arrival
    if capacity.low is not None and capacity.low * scale >= min_rps:
        return HOLDS
    if capacity.high is not None and capacity.high * scale < min_rps:
        return FAILS
    return UNDECIDED
