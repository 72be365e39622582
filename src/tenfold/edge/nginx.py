"""nginx as the edge: its cache under a policy. Pure: values in, directives and files out.

An inner server stands between the cache and the app: there ``edge.js`` works out from the app's headers what
nginx's cache is to do, because the cache itself ignores Age, CDN-Cache-Control and more. docs/edge.md has
what stays inexact. It needs njs, and is tested with nginx 1.31 and njs 0.9.9.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.resources import files
from pathlib import PurePosixPath

from tenfold.edge.decision import COOKIE
from tenfold.edge.rules import ODD_PATH, EdgePolicy, Rule
from tenfold.types import File

__all__ = ["Edge", "EdgeFragment", "fragment"]

INNER = "unix:edge.sock"
"""Where the inner server listens, in nginx's folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A policy, and the size of nginx's cache for it.

    Attributes:
        disk_mb: on disk; what was not asked for the longest goes first.
        inactive_s: what was not asked for in so long goes, too.
        purge_listen: where ``POST /?tag=NAME`` purges. It asks for no password: never a public address.
    """

    policy: EdgePolicy
    disk_mb: int = 1024
    inactive_s: int = 86_400
    purge_listen: str = "unix:purge.sock"


@dataclass(frozen=True, slots=True)
class EdgeFragment:
    """The lines for ``http``, the server and its location, the inner server's location, and the files."""

    http: tuple[str, ...]
    server: tuple[str, ...]
    location: tuple[str, ...]
    inner: tuple[str, ...]
    files: tuple[File, ...]


def fragment(edge: Edge) -> EdgeFragment:
    """The directives for an edge in front of an upstream ``app``, where ``$public_host`` is set."""
    rules = edge.policy.rules
    texts = [{"ignore": rule.ignore_query, "tags": rule.tags} for _, _, rule in rules]
    return EdgeFragment(
        http=(*_http(edge), *_maps(edge.policy)),
        server=("proxy_set_header X-Variant $edge_variants;",),
        location=_location(edge.policy),
        inner=("js_header_filter edge.describe;", "proxy_pass_header Date;"),
        files=(
            File(PurePosixPath("edge.js"), files(__package__).joinpath("edge.js").read_text()),
            File(PurePosixPath("edge_rules.json"), json.dumps(texts)),
        ),
    )


def _http(edge: Edge) -> tuple[str, ...]:
    return (
        f"proxy_cache_path cache levels=1:2 keys_zone=edge:16m max_size={edge.disk_mb}m "
        f"inactive={edge.inactive_s}s use_temp_path=off;",
        "js_import edge from edge.js;",
        "js_preload_object edge_rules from edge_rules.json;",
        "js_shared_dict_zone zone=edge_versions:1m type=number;",
        "js_set $edge_key edge.key;",
        "js_set $edge_age_now edge.age;",
        f"upstream edge_inner {{ server {INNER} max_fails=0; keepalive 32; }}",
    )


def quoted(text: str) -> str:
    """A text as one parameter in nginx.conf."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _map(source: str, name: str, lines: list[tuple[str, str]]) -> tuple[str, ...]:
    return (f"map {source} ${name} {{", *(f"    {found} {value};" for found, value in lines), "}")


def _maps(policy: EdgePolicy) -> tuple[str, ...]:
    rules = [(number, expression, rule) for number, (_, expression, rule) in enumerate(policy.rules)]
    shared = [(number, rule) for number, _, rule in rules if rule.is_shared]
    open_to_all = "|".join(str(number) for number, rule in shared if rule.authorization)
    cached = [(quoted(r"~^[0-9]+\|(GET|HEAD)\|$"), "edge")]
    if open_to_all:
        cached.append((quoted(rf"~^({open_to_all})\|(GET|HEAD)\|a$"), "edge"))
    return (
        *_map("$request_uri", "edge_path", [(quoted("~^(?<edge_raw_path>[^?]*)"), "$edge_raw_path")]),
        *_map(
            "$edge_path",
            "edge_rule",
            [
                ("default", '""'),
                (quoted(f"~{ODD_PATH}"), '""'),
                *(
                    (quoted(f"~{expression}"), str(number) if rule.is_shared else '""')
                    for number, expression, rule in rules
                ),
            ],
        ),
        *_map("$http_authorization", "edge_authorization", [("default", "a"), ('""', '""')]),
        *_map("$http_upgrade", "edge_upgrade", [("default", "u"), ('""', '""')]),
        *_map("$http_accept", "edge_stream", [("default", '""'), (quoted("~*text/event-stream"), "s")]),
        *_map(
            quoted("$edge_rule|$request_method|$edge_authorization$edge_upgrade$edge_stream"),
            "edge_zone",
            [("default", "off"), *cached],
        ),
        *_map(
            quoted("$edge_rule|$edge_upgrade$edge_stream"),
            "edge_target",
            [("default", "app"), (quoted(r"~^[0-9]+\|$"), "edge_inner")],
        ),
        *_map("$edge_key", "edge_has_no_key", [("default", '""'), ('""', "1")]),
        *_variants(shared),
        *_redirects(policy, shared),
        *_map(
            "$upstream_cache_status",
            "edge_age",
            [
                ("default", "$upstream_http_age"),
                *((status, "$edge_age_now") for status in ("HIT", "STALE", "UPDATING")),
            ],
        ),
        # RFC 9211.
        *_map(
            "$upstream_http_x_edge_stored",
            "edge_is_stored",
            [("default", quoted("; stored")), ('""', '""')],
        ),
        *_map(
            "$upstream_cache_status",
            "edge_cache_status",
            [
                ("default", '""'),
                *((status, quoted("tenfold; hit")) for status in ("HIT", "STALE", "UPDATING")),
                ("MISS", quoted("tenfold; fwd=uri-miss$edge_is_stored")),
                ("EXPIRED", quoted("tenfold; fwd=stale$edge_is_stored")),
                ("REVALIDATED", quoted("tenfold; fwd=stale; fwd-status=304; stored")),
                ("BYPASS", quoted("tenfold; fwd=bypass")),
            ],
        ),
        *_map(
            "$upstream_http_x_edge_cache_control",
            "edge_said",
            [("default", "$upstream_http_x_edge_cache_control"), ('""', "$upstream_http_cache_control")],
        ),
        *_map(
            quoted("$edge_redirect$upstream_http_x_edge_stored|$upstream_http_x_edge_cache_control"),
            "edge_cache_control",
            [
                ("default", "$edge_said"),
                (quoted(r"~^[0-9]+ [0-9]+\|$"), '""'),
                (quoted("~^http"), '"private, no-store"'),
            ],
        ),
        # The inner server logs what reaches the app.
        *_map(
            quoted("$edge_target|$upstream_cache_status|$edge_redirect"),
            "edge_is_logged",
            [("default", "0"), (quoted("~^app|HIT|STALE|UPDATING|http"), "1")],
        ),
    )


def _variants(shared: list[tuple[int, Rule]]) -> tuple[str, ...]:
    """Maps for A/B tests: the visitor's id, the variants, the cookie that is set."""
    lines: list[str] = []
    texts: list[tuple[str, str]] = []
    split: dict[str, str] = {}
    for number, rule in shared:
        parts = []
        for name, percentages in sorted(rule.experiments.items()):
            identity = json.dumps([name, percentages])
            if identity not in split:
                split[identity] = f"edge_ab_{len(split)}"
                *most, last = percentages
                shares = [f"    {percentages[one]}% {quoted(one)};" for one in most]
                lines += [
                    f"split_clients {quoted(f'{name}.$edge_visitor')} ${split[identity]} {{",
                    *shares,
                    f"    * {quoted(last)};",
                    "}",
                ]
            parts.append(f"{name}=${{{split[identity]}}}")
        if parts:
            texts.append((str(number), quoted(",".join(parts))))
    known = rf"~(?:^|;\s*){COOKIE}=(?<edge_id>[0-9a-f]{{32}})(?:;|$)"
    cookie = f"{COOKIE}=$request_id; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age=7776000"
    return (
        *_map("$http_cookie", "edge_known", [("default", '""'), (quoted(known), "$edge_id")]),
        *_map("$edge_known", "edge_visitor", [("default", "$edge_known"), ('""', "$request_id")]),
        *lines,
        *_map("$edge_rule", "edge_variants", [("default", '""'), *texts]),
        *_map(
            quoted("$edge_variants|$edge_known"),
            "edge_cookie",
            [("default", '""'), (quoted(r"~^[^|]+\|$"), quoted(cookie))],
        ),
    )


def _redirects(policy: EdgePolicy, shared: list[tuple[int, Rule]]) -> tuple[str, ...]:
    lines = [
        (quoted(f"{number}|{country}"), quoted(url))
        for number, rule in shared
        for country, url in rule.countries.items()
    ]
    header = re.sub(r"[^a-z0-9]", "_", policy.country_header)
    source = f"$edge_rule|$http_{header}" if lines else "$edge_rule|"
    return _map(quoted(source), "edge_redirect", [("default", '""'), *lines])


def _location(policy: EdgePolicy) -> tuple[str, ...]:
    country = any(rule.countries for _, _, rule in policy.rules)
    return (
        *(("if ($edge_redirect) {", "    return 302 $edge_redirect;", "}") if country else ()),
        "access_log access.log tenfold if=$edge_is_logged;",
        "proxy_cache $edge_zone;",
        "proxy_cache_key $edge_key;",
        # Without a key, because edge.js failed, all answers would be one.
        "proxy_cache_bypass $edge_has_no_key;",
        "proxy_no_cache $edge_has_no_key;",
        "proxy_cache_lock on;",
        "proxy_cache_lock_age 10s;",
        "proxy_cache_lock_timeout 10s;",
        "proxy_cache_revalidate on;",
        "proxy_cache_background_update on;",
        "proxy_pass_header Date;",
        "proxy_hide_header Cache-Control;",
        "proxy_hide_header X-Edge-Cache-Control;",
        "proxy_hide_header X-Edge-Stored;",
        "proxy_hide_header Age;",
        "add_header Cache-Control $edge_cache_control always;",
        "add_header Age $edge_age always;",
        "add_header Cache-Status $edge_cache_status always;",
        "add_header Set-Cookie $edge_cookie always;",
        "proxy_pass http://$edge_target;",
    )
