"""``tenfold tasks``: run the workers of a Celery app, look at its queues, and run again what failed."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import typer

from tenfold.cli.console import console, to_json
from tenfold.errors import SettingsError
from tenfold.redaction import redact

if TYPE_CHECKING:
    from tenfold.tasks.operations import DeadTask, QueueStatus, WorkerStatus

_ACTIONS = ("worker", "status", "dead", "audit")
_DEAD = ("list", "show", "replay", "discard")


def tasks(
    action: Annotated[str, typer.Argument(metavar="|".join(_ACTIONS), help="What to do.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[APP] [NAME]...",
            help="The Celery app, module:attribute (default: [tasks] app of tenfold.toml); worker: queues; "
            "dead: list, show, replay or discard, and ids.",
            show_default=False,
        ),
    ] = None,
    *,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    watch: Annotated[
        float, typer.Option(metavar="S", min=0, max=3600, help="status: look for so long, to see growth.")
    ] = 0.0,
    task: Annotated[str, typer.Option(metavar="NAME", help="dead: only this task.", show_default=False)] = "",
    every: Annotated[bool, typer.Option("--all", help="dead: all that failed, in place of ids.")] = False,
    health: Annotated[
        str,
        typer.Option(metavar="HOST:PORT", help="worker: serve /live and /ready there.", show_default=False),
    ] = "",
    hang_s: Annotated[
        float, typer.Option(metavar="S", min=2, help="worker: silent for so long, it is started again.")
    ] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Run the workers of a Celery app, look at its queues, run again what failed.

    worker starts one worker a queue. status exits with 1 when something is wrong. dead lists what failed for
    good. audit finds what loses or doubles tasks in any Celery app, and exits with 1 if it finds some.
    """
    if action not in _ACTIONS:
        raise SettingsError(f"no action {action[:40]!r}: write one of {', '.join(_ACTIONS)}")
    target, rest, folder = _find(action, names or [], settings)
    app = _load(target, folder)
    if action == "worker":
        from tenfold.tasks.worker import run_workers

        return run_workers(app, target, rest, health=health, hang_s=hang_s)
    if action == "audit":
        return _audit(app, target, rest, as_json)
    _check_ledger(app, target, action)
    if action == "status":
        return _status(app, rest, watch, as_json)
    return _dead(app, rest, task, every, as_json)


def _find(action: str, names: Sequence[str], file: Path | None) -> tuple[str, list[str], Path]:
    """The app's import string, given or of tenfold.toml, the other names, and the app's folder."""
    targets = list(names[:1]) if action == "audit" else [name for name in names if ":" in name]
    if len(targets) > 1:
        raise SettingsError(f"two apps are named, {targets[0]} and {targets[1]}: name one")
    rest = [name for name in names if name not in targets]
    if targets and file is None:
        return targets[0], rest, Path.cwd()
    from tenfold.settings import load

    declared = load(file)
    if not (target := targets[0] if targets else declared.tasks.app):
        raise SettingsError(
            "no Celery app is named: write module:attribute, as shop.tasks:celery, or set [tasks] app"
        )
    return target, rest, declared.app_folder


def _load(target: str, folder: Path) -> Any:
    """Import the app from a folder."""
    try:
        from celery import Celery
        from celery.app.utils import find_app
    except ImportError:
        raise SettingsError("Celery is not installed: pip install 'tenfold[tasks]'") from None
    sys.path.insert(0, str(folder))
    # For the workers, which are processes of their own.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    try:
        app = find_app(target)
    except Exception as error:  # the app's own, when its module is imported
        raise SettingsError(
            f"{target} cannot be loaded: {redact(f'{type(error).__name__}: {error}')}"
        ) from error
    if not isinstance(app, Celery):
        raise SettingsError(f"{target} is a {type(app).__name__}, not a Celery app: name the app")
    return app


def _check_ledger(app: Any, target: str, action: str) -> None:
    from tenfold.tasks.celery import LedgerCelery

    if not isinstance(app, LedgerCelery):
        raise SettingsError(
            f"{target} keeps no ledger, which {action} reads: make it by tenfold.tasks.create_celery"
        )


# ------------------------------------------------------------------ status


def _status(app: Any, rest: Sequence[str], watch_s: float, as_json: bool) -> int:
    from tenfold.tasks.operations import find_problems

    samples, workers = _sample(app, watch_s, quiet=as_json)
    if unknown := [name for name in rest if name not in {queue.name for queue in samples[-1]}]:
        raise SettingsError(f"no queue {unknown[0]}: there are {', '.join(q.name for q in samples[-1])}")
    if rest:
        samples = [[queue for queue in sample if queue.name in rest] for sample in samples]
        workers = [worker for worker in workers if set(worker.queues) & set(rest)]
    problems = find_problems(samples, workers, lost_after_s=app.settings.lost_after_s)
    if as_json:
        facts: Mapping[str, Any] = {
            "queues": [{**asdict(queue), "backlog": queue.backlog} for queue in samples[-1]],
            "workers": [asdict(worker) for worker in workers],
            "problems": problems,
        }
        typer.echo(to_json(facts))
    else:
        screen = console()
        screen.print(_queue_table(samples[-1]))
        for problem in problems:
            screen.print(f"✘ {problem}", soft_wrap=True)
        if not problems:
            screen.print("✔ nothing is wrong")
    return 1 if problems else 0


def _sample(app: Any, watch_s: float, *, quiet: bool) -> tuple[list[list[QueueStatus]], list[WorkerStatus]]:
    """Read the status once, or each second for so long; the workers are those of the last time."""
    from tenfold.tasks.operations import read_status

    samples: list[list[QueueStatus]] = []
    deadline = time.monotonic() + watch_s
    shown = watch_s and not quiet
    with console(stderr=True).status(f"Watching for {watch_s:g} s") if shown else nullcontext():
        while True:
            queues, workers = read_status(app)
            samples.append(queues)
            if time.monotonic() >= deadline:
                return samples, workers
            time.sleep(max(0.0, min(1.0, deadline - time.monotonic())))


def _queue_table(queues: Sequence[QueueStatus]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("queue", overflow="fold", ratio=1)
    for title in ("waiting", "oldest", "running", "retrying", "dead", "in 5 min", "p95 wait", "p95 run"):
        table.add_column(title, justify="right", no_wrap=True)
    for queue in queues:
        table.add_row(
            queue.name,
            f"{queue.backlog:,}",
            _seconds(queue.oldest_s or None),
            f"{queue.running} of {queue.processes}",
            f"{queue.retrying:,}",
            f"{queue.dead:,}",
            f"{queue.done:,}",
            _seconds(queue.wait_p95_s),
            _seconds(queue.run_p95_s),
        )
    return table


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    for limit, divisor, unit in ((0.9995, 0.001, "ms"), (99.5, 1, "s"), (5970, 60, "min")):
        if value < limit:
            return f"{value / divisor:.{0 if value / divisor >= 9.95 else 1}f} {unit}"
    return f"{value / 3600:.0f} h"


# ------------------------------------------------------------------ dead


def _dead(app: Any, rest: Sequence[str], task: str, every: bool, as_json: bool) -> int:
    from tenfold.tasks import operations

    what, *texts = rest or ["list"]
    if what not in _DEAD:
        raise SettingsError(f"dead has no {what[:40]!r}: write one of {', '.join(_DEAD)}")
    ids = [_id(text) for text in texts] or None
    chosen: dict[str, Any] = {"ids": ids, "task": task or None}
    if what in ("list", "show"):
        if what == "show" and not ids:
            raise SettingsError("no task is named: write its id, from tenfold tasks dead list")
        found = operations.list_dead(app, **chosen)
        if as_json:
            typer.echo(to_json({"dead": [_facts(one) for one in found]}))
        elif what == "show":
            for one in found:
                _show(one)
        else:
            _print_dead(found)
        return 0
    if not (ids or task or every):
        raise SettingsError(f"nothing is chosen: write ids, --task NAME, or --all, after dead {what}")
    count = (operations.replay if what == "replay" else operations.discard)(app, **chosen)
    done = "enqueued again" if what == "replay" else "discarded"
    typer.echo(to_json({what: count}) if as_json else f"✔ {count:,} task{'' if count == 1 else 's'} {done}")
    return 0


def _id(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise SettingsError(f"{text[:60]!r} is no id of a task: see tenfold tasks dead list") from None


def _facts(one: DeadTask) -> dict[str, Any]:
    return {**asdict(one), "id": str(one.id), "failed_at": one.failed_at.isoformat()}


def _print_dead(found: Sequence[DeadTask]) -> None:
    if not found:
        typer.echo("✔ no task has failed for good")
        return
    screen = console()
    for one in found:
        when = one.failed_at.astimezone().strftime("%Y-%m-%d %H:%M:%S")
        screen.print(f"{one.id}  {when}  {one.task}", soft_wrap=True)
        screen.print(f"  {_last_line(one.error)[:200]}", soft_wrap=True, style="dim")
    screen.print("tenfold tasks dead show|replay|discard ID")


def _show(one: DeadTask) -> None:
    rows = {
        "task": one.task,
        "id": one.id,
        "key": one.key or "–",
        "queue": one.queue,
        "arguments": one.arguments,
        "attempts": one.attempts,
        "failed": f"{one.failed_at.astimezone():%Y-%m-%d %H:%M:%S %Z}",
        "owner": one.owner or "–",
    }
    typer.echo("\n".join(f"{name:<11}{value}" for name, value in rows.items()))
    typer.echo(f"\n{one.error.rstrip()}\n")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2]


# ------------------------------------------------------------------ audit


def _audit(app: Any, target: str, rest: Sequence[str], as_json: bool) -> int:
    from tenfold.tasks.audit import audit

    if rest:
        raise SettingsError(f"audit takes the app only, not {rest[0]}")
    found = audit(app)
    if as_json:
        typer.echo(to_json({"findings": [asdict(one) for one in found]}))
    elif not found:
        typer.echo(f"✔ nothing in {target} loses or doubles tasks")
    else:
        screen = console()
        for one in found:
            screen.print(f"✘ {one.rule}: {one.reason}", soft_wrap=True)
            screen.print(f"  → {one.remedy}", soft_wrap=True)
    return 1 if found else 0
