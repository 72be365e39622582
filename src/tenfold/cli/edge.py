"""``tenfold edge``: which rule a path has and what each cache does with it; attacks on caches; purges."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from tenfold.cli.console import to_json
from tenfold.errors import SettingsError
from tenfold.settings import load

if TYPE_CHECKING:
    from tenfold.settings import Settings

_ACTIONS = ("explain", "attack", "purge")


def edge(
    action: Annotated[str, typer.Argument(metavar="|".join(_ACTIONS), help="What to do.")],
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME]...",
            help="explain: paths; attack: the service's address and public paths; purge: tags, * is all.",
            show_default=False,
        ),
    ] = None,
    *,
    settings: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Default: ./tenfold.toml.", show_default=False)
    ] = None,
    target: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="purge: nginx's purge_listen; default: $EDGE_PURGE_URL.",
            show_default=False,
        ),
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the same facts as JSON only.")] = False,
) -> int:
    """Say which rule a path has and what caches do with it, attack the caches of a service, purge tags.

    attack signs in as [verify] says, and exits with 1 when it finds something.
    """
    if action not in _ACTIONS:
        raise SettingsError(f"no action {action[:40]!r}: write one of {', '.join(_ACTIONS)}")
    if not names:
        examples = {"explain": "/api/products", "attack": "http://127.0.0.1:8080", "purge": "catalogue"}
        raise SettingsError(f"nothing to {action} is named: tenfold edge {action} {examples[action]}")
    if action == "purge":
        return _purge(target or os.environ.get("EDGE_PURGE_URL", ""), names)
    known = load(settings)
    if action == "attack":
        return _attack(known, names, as_json=as_json)
    facts = {path: explain(known, path) for path in names}
    if as_json:
        typer.echo(to_json(facts))
    else:
        typer.echo("\n\n".join(_shown(one) for one in facts.values()))
    return 0


def explain(settings: Settings, url: str) -> dict[str, Any]:
    """The rule of a path, the headers of its answers, and what browsers, nginx and CDNs do with them."""
    from tenfold.edge.decision import Answer, Request, cache_key, describe, may_store
    from tenfold.edge.rules import is_odd

    parts, policy = urlsplit(url), settings.edge.policy()
    path = parts.path or "/"
    request = Request("GET", path, parts.query)
    pattern, rule = policy.find(path)
    headers = describe(rule, request, Answer(200), tag_header=policy.tag_header)
    headers = {name: value for name, value in headers.items() if value}
    storage = may_store(request, Answer(200, headers))
    why = "the path is written in an unusual way" if is_odd(path) else "no rule matches: private, not stored"
    return {
        "path": path,
        "rule": pattern or why,
        "cache": rule.cache,
        "headers": {name.title(): value for name, value in headers.items()},
        "browser_s": rule.browser_s if rule.is_shared else rule.ttl,
        "shared_s": storage.lifetime_s,
        "stale_s": storage.swr_s,
        "key": cache_key(policy, request) if storage.is_stored else "",
        "refused": storage.reason,
        "experiments": {name: dict(parts) for name, parts in rule.experiments.items()},
        "countries": dict(rule.countries),
    }


def _shown(facts: dict[str, Any]) -> str:
    lines = [("path", facts["path"]), ("rule", f"{facts['rule']}   {facts['cache']}")]
    lines += [("header", f"{name}: {value}") for name, value in facts["headers"].items()]
    lines.append(("browser", f"{facts['browser_s']} s" if facts["browser_s"] else "asks again each time"))
    if facts["refused"]:
        lines.append(("nginx, CDN", f"store nothing: {facts['refused']}"))
    else:
        stale = f", then {facts['stale_s']} s while they ask again" if facts["stale_s"] else ""
        lines += [("nginx, CDN", f"{facts['shared_s']} s{stale}"), ("key", facts["key"])]
    lines += [("A/B test", f"{name} {parts}") for name, parts in facts["experiments"].items()]
    lines += [("redirect", f"{country} → {where}") for country, where in facts["countries"].items()]
    return "\n".join(f"{name:<11}{value}" for name, value in lines)


def _attack(settings: Settings, names: list[str], *, as_json: bool) -> int:
    from tenfold.verify.edge.attack import Attack, path_of

    url, known = names[0].rstrip("/"), settings.verify
    if urlsplit(url).scheme != "http":
        raise SettingsError(f"{url!r} is no address to attack: write it as http://127.0.0.1:8080")
    personal = [path_of(line) for line in (known.whoami, known.read) if line.startswith("GET ")]
    attack = Attack(url, known, pages=names[1:] or known.pages, personal=personal)
    problems = attack.run()
    if as_json:
        typer.echo(to_json({"requests": attack.requests, "problems": problems}))
        return 1 if problems else 0
    for problem in problems:
        typer.echo(f"✘ {problem}")
    if not known.login:
        typer.echo("! without verify.login only a stranger attacks: set it to try users, too")
    typer.echo(f"{'✘' if problems else '✔'} {attack.requests} requests found {len(problems) or 'nothing'}")
    return 1 if problems else 0


def _purge(target: str, tags: list[str]) -> int:
    from tenfold.edge.purge import Purger
    from tenfold.errors import TargetError

    if not target:
        raise SettingsError("no nginx is named: write --target unix:/path/purge.sock, or set EDGE_PURGE_URL")
    purger = Purger(target)
    purger.purge(*tags)
    is_taken = purger.flush()
    purger.stop()
    if not is_taken:
        raise TargetError(f"{target} did not take the purge: is nginx up, and is this its purge_listen?")
    typer.echo(f"✔ purged {', '.join(tags)}")
    return 0
