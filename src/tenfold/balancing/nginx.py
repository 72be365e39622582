"""nginx directives of an upstream, for a given version of nginx. Pure: values in, text out.

Versions, from nginx's change log: ``random two`` since 1.15.1, ``keepalive_timeout`` of an upstream since
1.15.3, ``$upstream_bytes_sent`` since 1.15.8, ``keepalive_min_timeout`` since 1.27.4, ``sticky`` outside of
the commercial edition since 1.29.6. HTTP/1.1 and 32 idle connections a location are the default since 1.29.7;
they are written out, so that an older nginx does the same.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenfold.balancing.upstream import Node, Upstream
from tenfold.errors import SettingsError

OLDEST = (1, 15, 8)
KEEPALIVE_MIN_TIMEOUT = (1, 27, 4)
STICKY = (1, 29, 6)
KEEPALIVE_BY_DEFAULT = (1, 29, 7)
COOKIE = "tenfold_route"
"""The cookie that keeps a client at its instance where the method is "sticky"."""

_VARIABLES = {"cookie": "$cookie_", "header": "$http_", "argument": "$arg_"}


@dataclass(frozen=True, slots=True)
class Fragment:
    """The lines of an upstream for nginx.conf: those in ``http``, and those in ``server``."""

    http: tuple[str, ...]
    server: tuple[str, ...]


def version(text: str) -> tuple[int, ...]:
    """Parse a version: "1.22.1" is (1, 22, 1).

    Raises:
        SettingsError: ``text`` is no version.
    """
    try:
        return tuple(int(part) for part in text.split("."))
    except ValueError:
        raise SettingsError(f"nginx: {text!r} is no version of nginx, which looks like 1.30.0") from None


def milliseconds(seconds: float) -> str:
    """A duration as nginx reads it."""
    return f"{max(1, round(seconds * 1000))}ms"


def fragment(upstream: Upstream, *, nginx: tuple[int, ...], name: str = "app") -> Fragment:
    """The ``upstream`` block called ``name``, its maps, and the directives that pass requests to it.

    Raises:
        SettingsError: this version of nginx lacks something that the upstream needs.
    """
    if nginx < OLDEST:
        shown = ".".join(map(str, nginx))
        raise SettingsError(f"nginx {shown} is too old to balance with: install 1.15.8 or newer")
    maps, method, server = _method(upstream, nginx)
    block = (
        f"upstream {name} {{",
        f"    zone {name} 256k;",
        *(f"    {line}" for line in method),
        *(f"    {_server(node, upstream)}" for node in upstream.nodes),
        *(f"    {line}" for line in _keepalive(upstream, nginx)),
        "}",
    )
    return Fragment((*maps, *block), (*_proxy_directives(upstream), *server))


def _server(node: Node, upstream: Upstream) -> str:
    parameters = [f"max_fails={upstream.max_fails}", f"fail_timeout={upstream.fail_timeout_s}s"]
    if node.weight != 1:
        parameters.insert(0, f"weight={node.weight}")
    parameters += ["backup"] * node.backup + ["down"] * node.down
    return f"server {node.address} {' '.join(parameters)};"


def _keepalive(upstream: Upstream, nginx: tuple[int, ...]) -> tuple[str, ...]:
    if not upstream.keepalive:  # an older nginx refuses the number 0, a newer one keeps 32 by default
        return ("keepalive 0;",) if nginx >= KEEPALIVE_BY_DEFAULT else ()
    idle = milliseconds(upstream.keepalive_idle_s)
    return (f"keepalive {upstream.keepalive};", "keepalive_requests 1000000;", f"keepalive_timeout {idle};")


def _method(
    upstream: Upstream, nginx: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """The lines of a method: before the block, in it, and in the server."""
    if upstream.method == "sticky":
        return _sticky(upstream, nginx)
    if upstream.method == "hash":
        maps, key = _key(upstream.hash_key)
        return maps, (f"hash {key} consistent;",), ()
    directive = {
        "round_robin": (),
        "least_conn": ("least_conn;",),
        "random_two": ("random two least_conn;",),
        "ip_hash": ("ip_hash;",),
    }[upstream.method]
    return (), directive, ()


def _key(key: str) -> tuple[tuple[str, ...], str]:
    if key in ("uri", "client"):
        return (), {"uri": "$uri", "client": "$remote_addr"}[key]
    kind, _, name = key.partition(":")
    variable = _VARIABLES[kind] + (name.replace("-", "_").lower() if kind == "header" else name)
    # Requests without the key would all hash alike, and one instance would get every one of them.
    return _map("$balancing_key", variable, empty="$remote_addr", otherwise=variable), "$balancing_key"


def _sticky(
    upstream: Upstream, nginx: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    if nginx >= STICKY:
        return (), ("least_conn;", f"sticky cookie {COOKIE} path=/ httponly samesite=lax;"), ()
    if any(node.backup for node in upstream.nodes):
        raise SettingsError(
            f"nginx {'.'.join(map(str, nginx))} knows no sticky clients with backup servers: "
            "install 1.29.6 or newer, or set balancing.backups = 0"
        )
    cookie = f"$cookie_{COOKIE}"
    given = f'"{COOKIE}=$request_id; Path=/; HttpOnly; SameSite=Lax"'
    maps = (
        *_map("$balancing_key", cookie, empty="$request_id", otherwise=cookie),
        *_map("$balancing_cookie", cookie, empty=given, otherwise='""'),
    )
    return maps, ("hash $balancing_key consistent;",), ("add_header Set-Cookie $balancing_cookie always;",)


def _map(name: str, variable: str, *, empty: str, otherwise: str) -> tuple[str, ...]:
    return (f"map {variable} {name} {{", f'    ""      {empty};', f"    default {otherwise};", "}")


def _proxy_directives(upstream: Upstream) -> tuple[str, ...]:
    """The directives that pass a request to a node, and after a failure to the next one.

    A second node gets it after an error or a timeout, not after an answer; a request that is not idempotent
    only while nothing of it was sent, which is nginx's rule without ``non_idempotent``. A request whose
    answer timed out is not passed on: ``proxy_next_upstream_timeout`` is over by then.
    """
    connect, read = upstream.connect_timeout_s, upstream.read_timeout_s
    return (
        "proxy_next_upstream error timeout;",
        f"proxy_next_upstream_tries {upstream.tries};",
        f"proxy_next_upstream_timeout {milliseconds(min(upstream.tries * connect, read))};",
        f"proxy_connect_timeout {milliseconds(connect)};",
        f"proxy_read_timeout {milliseconds(read)};",
        f"proxy_send_timeout {milliseconds(read)};",
        # The time at which the headers were read; the body comes later. Deadlines count from here.
        'set $balancing_start "t=$msec";',
        "proxy_set_header X-Request-Start $balancing_start;",
        f'proxy_set_header X-Request-Timeout "{read:g}";',
    )
