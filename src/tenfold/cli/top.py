"""``tenfold top``: what the running service does now."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tenfold.cli.console import console, to_json
from tenfold.errors import SettingsError, TargetError
from tenfold.settings import load

if TYPE_CHECKING:
    from tenfold.monitoring.top import Look, Summary

_TIMEOUT_S = 3.0
_MOST_BYTES = 16 * 1024 * 1024


def top(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HOST:PORT]...",
            help="Instances; default: those of the running tenfold up, else [monitoring] targets.",
            show_default=False,
        ),
    ] = None,
    every: Annotated[
        float, typer.Option(min=0.2, max=60, metavar="S", help="Seconds between two looks.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Look twice, print, and end.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --once: print the same facts as JSON.")
    ] = False,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
) -> int:
    """Show rates, durations, pools, replicas, queues and the limiter of a running service, from /metrics.

    Ctrl-C ends it.
    """
    if as_json and not once:
        raise SettingsError("--json prints one look: write --once --json")
    addresses = targets or _running_instances() or list(load(settings).monitoring.targets)
    summaries = _watch(addresses, every)
    if once:
        found = next(summaries)
        if as_json:
            typer.echo(to_json(asdict(found)))
        else:
            console().print(text(found))
        return 0
    from rich.live import Live

    with Live("…", console=console(), screen=True, auto_refresh=False) as screen:
        for found in summaries:
            screen.update(text(found), refresh=True)
    return 0


def _running_instances() -> list[str]:
    """The instances of the stack that this user has started last."""
    from tenfold.stack.workdir import running_instances

    return running_instances()


def _watch(addresses: Sequence[str], every: float) -> Iterator[Summary]:
    from tenfold.monitoring.top import summarize

    before = _look(addresses)
    while True:
        time.sleep(every)
        after = _look(addresses)
        yield summarize(before, after)
        before = after


def _look(addresses: Sequence[str]) -> Look:
    """Ask all instances at once.

    Raises:
        TargetError: none of them answers.
    """
    from tenfold.monitoring.top import Look, parse_metrics

    found, errors = {}, []
    with ThreadPoolExecutor(min(16, len(addresses))) as pool:
        for address, answer in zip(addresses, pool.map(_fetch, addresses), strict=True):
            try:
                found[address] = parse_metrics(answer)
            except ValueError:
                errors.append(
                    answer if answer.startswith(address) else f"{address}/metrics is no text of metrics"
                )
    if not found:
        raise TargetError(f"no instance can be watched: {errors[0]}")
    return Look(time.monotonic(), found)


def _fetch(address: str) -> str:
    """The text of /metrics; of one that does not answer a sentence, which is no metrics."""
    url = f"http://{address}/metrics"
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            return str(answer.read(_MOST_BYTES).decode(errors="replace"))
    except urllib.error.HTTPError as error:
        hint = ": add MetricsEndpoint to the app" if error.code == 404 else ""
        return f"{address}/metrics answers {error.code}{hint}"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"{address} does not answer ({getattr(error, 'reason', error)})"


# ------------------------------------------------------------------ text


def text(found: Summary) -> str:
    """The summary for a terminal of 80 columns."""
    failed = "–" if found.failed is None else f"{found.failed:.1%}"
    lines = [
        f"{found.rate:,.1f} requests/s   failed {failed}   p50 {_ms(found.p50)}   p95 {_ms(found.p95)}   "
        f"{found.instances} instance{'s' if found.instances != 1 else ''}"
    ]
    if process := found.process:
        lines.append(
            f"cpu {process['cpu']:.2f} cores a worker   event loop {_ms(process['loop_lag_s'])} late   "
            f"threads {process['threads_busy']:.0f} of {process['threads_max']:.0f}"
        )
    if limiter := found.limiter:
        lines.append(
            f"limiter {limiter['in_flight']:.0f} of {limiter['limit']:.0f} in flight, "
            f"{limiter['refused']:.1f}/s refused"
        )
    if found.hit_ratio is not None:
        lines.append(f"query cache {found.hit_ratio:.1%} hits")
    lines += _block(
        "route",
        ("requests/s", "p95"),
        {name: (f"{one['rate']:,.1f}", _ms(one["p95"])) for name, one in found.routes.items()},
    )
    lines += _block(
        "pool",
        ("in use", "waiting"),
        {
            name: (f"{one['used']:.0f} of {one['most']:.0f}", f"{one['waiting']:.0f}")
            for name, one in found.pools.items()
        },
    )
    lines += _block(
        "replica",
        ("behind", "reads"),
        {
            name: (_ms(one["lag_s"]), "yes" if one["serving"] else "no")
            for name, one in found.replicas.items()
        },
    )
    lines += _block(
        "queue",
        ("waiting", "oldest", "running", "dead"),
        {
            name: (
                f"{one['waiting']:.0f}",
                f"{one['oldest_s']:.0f} s",
                f"{one['running']:.0f}",
                f"{one['dead']:.0f}",
            )
            for name, one in found.queues.items()
        },
    )
    return "\n".join(lines)


def _block(title: str, columns: Sequence[str], rows: dict[str, Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = ["", f"{title:<40}" + "".join(f"{column:>10}" for column in columns)]
    return lines + [
        f"{_cut(name):<40}" + "".join(f"{cell:>10}" for cell in cells) for name, cells in rows.items()
    ]


def _cut(name: str) -> str:
    clean = "".join(letter if letter.isprintable() else "?" for letter in name) or "–"
    return clean if len(clean) <= 39 else f"…{clean[-38:]}"


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1000:.0f} ms"
