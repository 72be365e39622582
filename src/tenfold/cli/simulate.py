"""``tenfold simulate``: a trace of request rates through a scaler, before it runs in production."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.console import to_json
from tenfold.cli.instance import Capacity, find_instance
from tenfold.cli.simulation_page import Simulation, render
from tenfold.errors import SettingsError
from tenfold.settings import load

if TYPE_CHECKING:
    from tenfold.autoscaling.manifests import Scaler
    from tenfold.settings import Settings

ALLOWED = 0.001
_SHOWN = 40


def simulate(
    manifests: Annotated[
        str,
        typer.Argument(
            metavar="[FILE]",
            help="YAML with a scaler, - for standard input. Default: [autoscaling] of tenfold.toml.",
            show_default=False,
        ),
    ] = "",
    *,
    trace: Annotated[
        str, typer.Option(help="daily, weekly, flash, viral; or a CSV or Prometheus' JSON of rates.")
    ] = "daily",
    peak: Annotated[
        float, typer.Option(help="Highest rate of a made-up trace, requests/s.", show_default=False)
    ] = 0.0,
    days: Annotated[float, typer.Option(help="Days of a made-up trace.")] = 1.0,
    capacity: Capacity = "",
    scaler: Annotated[
        str, typer.Option(metavar="NAME", help="Which of several scalers.", show_default=False)
    ] = "",
    rate_metric: Annotated[
        str, typer.Option(metavar="NAME", help="The metric that is the request rate.", show_default=False)
    ] = "",
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    explain: Annotated[bool, typer.Option("--explain", help="Show what set each number.")] = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write pictures.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Send request rates through a scaler and compare it with others.

    Exits with 1 when more than 0.1 % of the requests are late. Service start, nodes, connections and prices
    are keys of [autoscaling].
    """
    known = load(settings)
    found = _run(known, manifests, trace, peak, days, capacity, scaler, rate_metric)
    if html is not None:
        try:
            html.write_text(render(found))
        except OSError as error:
            raise SettingsError(f"{html} cannot be written: {error.strerror}") from None
    if as_json:
        typer.echo(to_json(_facts(found)))
    else:
        typer.echo("\n".join(_table(found)))
        if explain:
            typer.echo("\n".join(_explanation(found)))
        if html is not None:
            typer.echo(f"Pictures: {html}")
    return 1 if found.outcomes[0].late_share > ALLOWED else 0


def _run(
    settings: Settings, file: str, trace: str, peak: float, days: float, capacity: str, name: str, metric: str
) -> Simulation:
    from tenfold.autoscaling import policies
    from tenfold.autoscaling.simulation import simulate as send

    scaler, cpu_request, notes = _scaler(settings, file, name)
    service = find_instance(settings, capacity, cpu_request=cpu_request).service
    each = policies.target_rate(scaler, service)
    rates, shown = _rates(trace, peak or 0.6 * scaler.hpa.max_replicas * each, days)
    least, most = max(scaler.hpa.min_replicas, 1), scaler.hpa.max_replicas
    contenders = {
        scaler.name: policies.hpa_policy(scaler, service, rate_metric=metric),
        "AWS target tracking": policies.target_tracking(each, least=least, most=most),
        "by the hour": policies.scheduled(rates, each, least=least, most=most),
        "always the peak": policies.static_peak(rates, each),
        "oracle": policies.oracle(rates, each, service, least=least, most=most),
    }
    start = policies.first_number(scaler, rates, service)
    outcomes = []
    for contender, policy in contenders.items():
        _progress(f"simulating {contender}")
        outcomes.append(send(contender, rates, service, policy, start=start))
    remedy = None
    if outcomes[0].late_share > ALLOWED:
        change = policies.cheapest_change(
            scaler, rates, service, allowed=ALLOWED, rate_metric=metric, report=_progress
        )
        remedy = (change[0], change[2]) if change else None
    _progress("")
    if outcomes[0].capped_s:
        notes.append(
            f"the database's connections held instances back for {outcomes[0].capped_s / 60:,.0f} minutes: "
            "pool them, or raise max_connections"
        )
    reach_s = policies.seconds_to_reach(scaler, most)
    price = settings.autoscaling.price_per_hour
    return Simulation(scaler, service, shown, rates, outcomes, price, reach_s, remedy, notes)


def _scaler(settings: Settings, file: str, name: str) -> tuple[Scaler, int, list[str]]:
    """The scaler, what its pods request of CPU, and what to say about it."""
    from tenfold.autoscaling.manifests import read_manifests

    if not file:
        return settings.autoscaling.scaler(), 0, []
    manifests = read_manifests(read_text(file))
    chosen = [one for one in manifests.scalers if name in ("", one.name)]
    if not chosen:
        if manifests.problems and not name:
            raise SettingsError(": ".join(manifests.problems[0]))
        have = ", ".join(one.name for one in manifests.scalers) or "none"
        wanted = f" {name!r}" if name else ""
        raise SettingsError(f"there is no scaler{wanted} in {file}; it has {have}")
    if len(chosen) > 1:
        names = ", ".join(one.name for one in chosen)
        raise SettingsError(f"there are several scalers in {file}: write --scaler with one of {names}")
    looks_at = next((one for one in chosen[0].metrics if one.name == "cpu"), None)
    if looks_at is None:
        return chosen[0], 0, []
    workload = manifests.workload_of(chosen[0])
    if workload is None:
        assumed = settings.autoscaling.cpu_request
        return chosen[0], 0, [f"{file} has no target: pods are assumed to request {assumed}m of CPU"]
    request = workload.request("cpu", looks_at.container)
    if request is None:
        raise SettingsError(
            f"a container of {workload.kind} {workload.name} requests no cpu: there is no utilization to "
            "scale by; see tenfold autoscale lint"
        )
    return chosen[0], request, []


def _rates(trace: str, peak: float, days: float) -> tuple[list[float], str]:
    """The rates, and what they are."""
    from tenfold.autoscaling.traces import GENERATED, STEP_S, generate_trace, read_trace

    if trace in GENERATED:
        return generate_trace(
            trace, peak=peak, days=days
        ), f"{trace}, {days:g} day{'s' if days > 1 else ''}, peak {peak:,.0f}/s"
    if not Path(trace).is_file():
        raise SettingsError(f"no trace {trace[:60]!r}: write a file, or one of {', '.join(GENERATED)}")
    rates = read_trace(read_text(trace))
    length = len(rates) * STEP_S / 3600
    return rates, f"{Path(trace).name}, {length:,.1f} hours, peak {max(rates):,.0f}/s"


def read_text(file: str) -> str:
    """The text of a file, or of standard input for ``-``.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise SettingsError(f"{file} cannot be read: {reason}") from None


def _progress(what: str) -> None:
    if sys.stderr.isatty():
        typer.echo(f"\r\x1b[K{what}", nl=False, err=True)


# ------------------------------------------------------------------ output


def describe(scaler: Scaler) -> str:
    """The scaler in a line."""
    parts = [
        f"{one.name[:24]} {one.target} %"
        if one.kind == "Utilization"
        else f"{one.name[:24]} {one.target / 1000:g}"
        for one in scaler.metrics
    ]
    return (
        f"{scaler.name}: {scaler.hpa.min_replicas} – {scaler.hpa.max_replicas} instances, {', '.join(parts)}"
    )


def _table(found: Simulation) -> list[str]:
    service, best = found.service, found.outcomes[-1].replica_hours or 1.0
    lines = [
        describe(found.scaler),
        f"One instance takes {service.instance_rps:,.4g}/s with {service.cpu}m of CPU, requests "
        f"{service.cpu_request}m, is ready in {service.start_s:g} s",
        f"Trace: {found.trace}",
        "",
        f"{'':<22}{'late':>9}{'hours':>11}{'× oracle':>10}{'changes':>9}{'recovery':>10}"
        + (f"{'cost':>9}" if found.price else ""),
    ]
    for one in found.outcomes:
        recovery = f"{one.recovery_s:,.0f} s" if one.recovery_s else "–"
        lines.append(
            f"{one.name[:21]:<22}{one.late_share:>9.2%}{one.replica_hours:>11,.0f}"
            f"{one.replica_hours / best:>10.2f}{len(one.changes):>9,}{recovery:>10}"
            + (f"{one.replica_hours * found.price:>9,.0f}" if found.price else "")
        )
    late = found.outcomes[0].late_share
    lines.append("")
    if late <= ALLOWED:
        lines.append(f"✔ {late:.2%} of the requests are late: at most {ALLOWED:.1%} may be")
    elif found.remedy is None:
        lines.append(f"✘ {late:.2%} of the requests are late: no single key mends it; see --explain")
    else:
        change, outcome = found.remedy
        lines.append(f"✘ {late:.2%} of the requests are late. Enough, with the fewest hours:")
        lines.append(f"  {change}   → {outcome.late_share:.2%} late, {outcome.replica_hours:,.0f} hours")
    reach = "never" if math.isinf(found.reach_s) else f"{found.reach_s:,.0f} s"
    least = max(found.scaler.hpa.min_replicas, 1)
    lines.append(f"  From {least} to {found.scaler.hpa.max_replicas} under any load: {reach}")
    lines += [f"! {note}" for note in found.notes]
    return lines


_WORDS = {
    "ScaleUpLimit": "scaleUp's rates",
    "ScaleDownLimit": "scaleDown's rates",
    "TooManyReplicas": "maxReplicas",
    "TooFewReplicas": "minReplicas",
}


def _explanation(found: Simulation) -> list[str]:
    """What set each number, from the first late step on; the first changes without one."""
    changes, lates = found.outcomes[0].changes, found.outcomes[0].lates
    first = next((step for step, late in enumerate(lates) if late), 0) * 15.0
    shown = [one for one in changes if one.at >= first - 300][:_SHOWN]
    lines = ["", f"{'time':>10}{'rate':>12}{'from':>6}{'to':>6}   set by"]
    for one in shown:
        decision, why = one.decision, "a schedule"
        if decision is not None:
            why = f"{decision.metric or 'bounds'} asked for {decision.asked}"
            if decision.is_limited:
                why += f", {_WORDS.get(decision.limited, decision.limited)} allow {decision.replicas}"
            elif decision.asked is not None and decision.asked != decision.replicas:
                why += ", the stabilization window held it back"
        day, rest = divmod(one.at, 86_400)
        clock = f"{int(day)}d {int(rest // 3600):02}:{int(rest // 60 % 60):02}:{int(rest % 60):02}"
        lines.append(f"{clock:>12}{one.rate:>10,.0f}{one.before:>6}{one.after:>6}   {why}"[:100])
    if len(changes) > len(shown):
        lines.append(f"{len(shown)} of {len(changes):,} changes; --json has all")
    return lines


def _facts(found: Simulation) -> dict[str, Any]:
    return {
        "scaler": describe(found.scaler),
        "instance_rps": found.service.instance_rps,
        "trace": found.trace,
        "seconds_to_most": found.reach_s,
        "policies": [
            {
                "name": one.name,
                "late_share": one.late_share,
                "replica_hours": one.replica_hours,
                "cost": one.replica_hours * found.price if found.price else None,
                "changes": len(one.changes),
                "recovery_s": one.recovery_s,
            }
            for one in found.outcomes
        ],
        "changes": [
            {
                "at_s": one.at,
                "from": one.before,
                "to": one.after,
                "rate": one.rate,
                "metric": one.decision.metric if one.decision else "",
                "asked": one.decision.asked if one.decision else None,
                "limited": one.decision.limited if one.decision else "",
                "able": one.decision.able if one.decision else "",
            }
            for one in found.outcomes[0].changes
        ],
        "remedy": found.remedy and {"change": found.remedy[0], "late_share": found.remedy[1].late_share},
        "notes": list(found.notes),
    }
