"""``tenfold shards``: the directory of shards, their tables, load and migrations."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tenfold.cli.console import console, to_json, verdict_table
from tenfold.errors import DirectoryError, SettingsError
from tenfold.types import Verdict

if TYPE_CHECKING:
    from tenfold.sharding.administration import DirectoryStore
    from tenfold.sharding.directory import Directory

_PARALLEL = 4


def shards(
    action: Annotated[
        str,
        typer.Argument(metavar="init|status|plan|check|assign|load|migrate", help="What to do."),
    ],
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[WORD]...",
            help="plan: names of new shards. check: TABLE=KEY. assign: KEY SHARD. migrate: a command.",
            show_default=False,
        ),
    ] = None,
    directory: Annotated[
        str, typer.Option(metavar="URL", help="Default: $SHARD_DIRECTORY_URL.", show_default=False)
    ] = "",
    key: Annotated[str, typer.Option(help="init: type of the keys: int, text, uuid, or text,int.")] = "int",
    by: Annotated[str, typer.Option(help="plan: what is evened out: buckets, rows or load.")] = "buckets",
    variable: Annotated[
        str, typer.Option(help="migrate: the variable in which the command gets a shard's URL.")
    ] = "DATABASE_URL",
    sql: Annotated[bool, typer.Option("--sql", help="check: print SQL that prepares the tables.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Create and show the directory of shards, check tables, plan for more shards, migrate them all.

    The shards' URLs are in $SHARD_URLS: one=postgresql://…,two=postgresql://…
    """
    from tenfold.sharding.administration import DirectoryStore, parse_shard_urls

    if action not in _ACTIONS:
        raise SettingsError(f"no action {action[:40]!r}: write one of {', '.join(_ACTIONS)}")
    urls = parse_shard_urls(os.environ.get("SHARD_URLS", ""))
    address = directory or os.environ.get("SHARD_DIRECTORY_URL", "")
    if action == "check" and not urls and (single := os.environ.get("DATABASE_URL")):
        urls, address = {"database": single}, address or single
    if not urls:
        raise SettingsError("no shards are named: set SHARD_URLS to one=postgresql://…,two=postgresql://…")
    if not address:
        raise SettingsError("no directory is named: write --directory URL, or set SHARD_DIRECTORY_URL")
    store = DirectoryStore(address)
    try:
        options = {"key": key, "by": by, "variable": variable, "sql": sql}
        return _ACTIONS[action](_Command(store, urls, words or [], as_json, options))
    finally:
        store.close()


@dataclass(frozen=True, slots=True)
class _Command:
    store: DirectoryStore
    urls: Mapping[str, str]
    words: list[str]
    as_json: bool
    options: Mapping[str, Any]

    def load(self) -> Directory:
        """The directory; each of its shards has to have a URL."""
        directory = self.store.load()
        if missing := directory.shard_epochs.keys() - self.urls.keys():
            raise SettingsError(f"the directory has a shard {min(missing)}: add its URL to SHARD_URLS")
        return directory

    def show(self, facts: Any, text: Callable[[], Any]) -> None:
        """Print facts as JSON, or what ``text`` makes of them."""
        if self.as_json:
            typer.echo(to_json(facts))
        else:
            console().print(text())


# ------------------------------------------------------------------ the directory


def _init(command: _Command) -> int:
    from tenfold.sharding.administration import create_shards
    from tenfold.sharding.keys import parse_key_types

    create_shards(command.store, command.urls, parse_key_types(command.options["key"]))
    return _status(command)


def _status(command: _Command) -> int:
    from tenfold.sharding.administration import connect
    from tenfold.sharding.keys import BUCKETS

    directory = command.load()
    rows: list[tuple[Verdict, list[str]]] = []
    facts: dict[str, Any] = {"version": directory.version, "key": ",".join(directory.key_types), "shards": {}}
    for name, epoch in directory.shard_epochs.items():
        try:
            with connect(command.urls[name], what=f"shard {name}") as connection:
                ((known, size), *_) = connection.execute(
                    "SELECT epoch, pg_database_size(current_database()) FROM tenfold.shard"
                ).fetchall()
            said = "" if known == epoch else f"knows epoch {known}, not {epoch}: run tenfold shards init"
        except DirectoryError as error:
            size, said = 0, str(error)
        buckets = directory.buckets_of(name)
        tenants = sum(number >= BUCKETS for number in buckets)
        facts["shards"][name] = {"buckets": len(buckets), "tenants": tenants, "bytes": size, "problem": said}
        verdict = Verdict.FAIL if said else Verdict.PASS
        share = f"{(len(buckets) - tenants) / BUCKETS:.1%} of keys"
        rows.append((verdict, [name, share, f"{size / 1e6:,.0f} MB", said or _count(tenants, "own tenant")]))
    command.show(facts, lambda: verdict_table(rows, widths=(16, 16, 12, 0)))
    return 1 if any(verdict is Verdict.FAIL for verdict, _ in rows) else 0


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}" if number else ""


def _assign(command: _Command) -> int:
    from tenfold.sharding.administration import assign_tenant
    from tenfold.sharding.keys import parse_key

    if len(command.words) != 2:
        raise SettingsError("assign takes a key and a shard: tenfold shards assign 4711 shard4")
    key, shard = command.words
    directory = command.load()
    if shard not in directory.shard_epochs:
        raise SettingsError(
            f"no shard {shard[:40]} in the directory: it has {', '.join(directory.shard_epochs)}"
        )
    parsed = parse_key(key, directory.key_types)
    place = assign_tenant(command.store, command.urls, parsed, shard).place(parsed)
    facts = {"key": key, "bucket": place.bucket, "shard": place.shard}
    command.show(facts, lambda: f"✔ {key} has bucket {place.bucket} on {place.shard} for itself")
    return 0


def _plan(command: _Command) -> int:
    from tenfold.sharding.directory import Plan, plan_shards

    directory = command.load()
    weights = _weights(command, directory)
    plan = plan_shards(directory.add_shards(command.words) if command.words else directory, weights)
    peaks = Plan.peak(plan.before), Plan.peak(plan.after)
    facts = {
        "moves": [move._asdict() for move in plan.moves],
        "before": plan.before,
        "after": plan.after,
        "peak_before": peaks[0],
        "peak_after": peaks[1],
    }

    def text() -> str:
        unit = command.options["by"]
        lines = [f"{'shard':<20}{unit + ' before':>16}{'after':>16}"]
        lines += [
            f"{name[:19]:<20}{plan.before[name]:>16,.0f}{plan.after[name]:>16,.0f}" for name in plan.before
        ]
        lines.append(f"{'peak to average':<20}{peaks[0]:>16.2f}{peaks[1]:>16.2f}")
        moved = sum((weights or {}).get(move.bucket, 1.0) for move in plan.moves)
        more = "" if unit == "buckets" else f" with {moved:,.0f} {unit}"
        return "\n".join([*lines, f"{len(plan.moves)} buckets{more} would move; nothing was changed."])

    command.show(facts, text)
    return 0


def _weights(command: _Command, directory: Directory) -> dict[int, float] | None:
    by = command.options["by"]
    if by == "buckets":
        return None
    found: dict[int, float] = {}
    if by == "load":
        for bucket, _, _, seconds in command.store.read_load():
            found[bucket] = found.get(bucket, 0.0) + seconds
    elif by == "rows":
        from tenfold.sharding.audit import count_rows

        for name in directory.shard_epochs:
            for bucket, count in count_rows(command.urls[name], name).items():
                found[bucket] = found.get(bucket, 0.0) + count
    else:
        raise SettingsError(f"plan cannot even out {by[:20]!r}: write buckets, rows or load")
    if not found:
        raise SettingsError(f"there are no {by} to even out yet: plan by buckets")
    return found


def _load(command: _Command) -> int:
    from tenfold.sharding.load import summarize_load

    directory, rows = command.load(), command.store.read_load()
    found = summarize_load(directory, rows)
    sizes = _tenant_rows(command, directory, found.tenants, {key: bucket for bucket, key, *_ in rows})
    facts = {
        name: getattr(found, name) for name in ("sessions", "shards", "buckets", "tenants", "peak", "finding")
    }

    def text() -> str:
        if not found.sessions:
            return "No process has counted a session in the last ten minutes."
        lines = [
            f"{name:<20}{share:>7.1%}  {'█' * round(40 * share)}" for name, share in found.shards.items()
        ]
        lines += ["", f"{'heaviest tenants':<20}{'load':>7}{'rows':>12}"]
        lines += [
            f"{key.partition(':')[2][:19]:<20}{share:>7.1%}{sizes[key]:>12,}"
            for key, share in found.tenants.items()
        ]
        return "\n".join(
            [*lines, "", found.finding or f"even enough: {found.peak:.2f} times the mean at most"]
        )

    command.show({**facts, "rows": sizes}, text)
    return 1 if found.finding else 0


def _tenant_rows(
    command: _Command, directory: Directory, tenants: Iterable[str], buckets: Mapping[str, int]
) -> dict[str, int]:
    """The rows of the heaviest tenants in all sharded tables."""
    from tenfold.sharding.administration import count_rows_of

    found = {}
    for key in tenants:
        shard = directory.buckets[buckets[key]].shard
        found[key] = count_rows_of(command.urls[shard], shard, buckets[key], key)
    return found


# ------------------------------------------------------------------ tables and migrations


def _check(command: _Command) -> int:
    from tenfold.sharding.audit import audit_tables, preparing_statements, primary_key, registered_tables

    given = _tables(command.words)
    found = []
    for name, url in command.urls.items():
        tables = given or registered_tables(url, name)
        if not tables:
            raise SettingsError(f"{name} has no sharded table: name some, such as orders=user_id")
        if command.options["sql"]:
            statements = (
                preparing_statements(one, tables[one], primary_key(url, name, one)) for one in tables
            )
            typer.echo("\n".join(f"{line};" for lines in statements for line in lines))
            return 0
        found += [(name, problem) for problem in audit_tables(url, name, tables)]
    facts = {"problems": [{"shard": name, **problem._asdict()} for name, problem in found]}
    rows = [
        (
            Verdict.FAIL,
            [problem.table if len(command.urls) == 1 else f"{name} {problem.table}", _sentence(problem)],
        )
        for name, problem in found
    ]
    command.show(
        facts, lambda: verdict_table(rows, widths=(16, 0)) if rows else "✔ every table can be sharded"
    )
    return 1 if found else 0


def _sentence(problem: Any) -> str:
    return f"{problem.problem} → {problem.remedy}"


def _tables(words: Iterable[str]) -> dict[str, tuple[str, ...]]:
    found = {}
    for word in words:
        table, equals, key = word.partition("=")
        if not table or not equals or not all(key.split(",")):
            raise SettingsError(f"{word[:40]!r} names no table and key: write orders=user_id")
        found[table] = tuple(key.split(","))
    return found


def _migrate(command: _Command) -> int:
    from tenfold.sharding.migrations import migrate

    command.load()
    words = command.words or ["alembic", "upgrade", "head"]
    done = []
    outcomes = migrate(
        command.store, command.urls, words, variable=command.options["variable"], parallel=_PARALLEL
    )
    for one in outcomes:
        done.append(one)
        if not command.as_json:
            verdict = Verdict.PASS if one.succeeded else Verdict.FAIL
            console().print(verdict_table([(verdict, [one.shard, one.said])], widths=(16, 0)))
    left = [name for name in command.urls if name not in {one.shard for one in done}]
    if command.as_json:
        typer.echo(to_json({"shards": [one._asdict() for one in done], "untouched": left}))
    elif left:
        console().print(f"The canary {done[0].shard} failed: {', '.join(left)} were not touched.")
    elif len(revisions := {one.said for one in done if one.succeeded}) > 1:
        console().print(f"The shards are at different revisions: {', '.join(sorted(revisions))}.")
    return 0 if not left and all(one.succeeded for one in done) else 1


_ACTIONS = {
    "init": _init,
    "status": _status,
    "plan": _plan,
    "check": _check,
    "assign": _assign,
    "load": _load,
    "migrate": _migrate,
}
