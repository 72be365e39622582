"""nginx.conf: nginx as the front door of the app instances. Pure: values in, files out.

All paths in it are relative to nginx's prefix (``nginx -p <folder>/``), so a folder's name needs no quoting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from tenfold.balancing.nginx import KEEPALIVE_MIN_TIMEOUT, Fragment, fragment, milliseconds
from tenfold.balancing.upstream import (
    Upstream,
    is_host_name,
    require_listen,
    require_number,
    require_seconds,
)
from tenfold.edge import nginx as edge_nginx
from tenfold.edge.nginx import Edge, EdgeFragment
from tenfold.errors import SettingsError
from tenfold.types import File

ACCESS_LOG = {
    "time": "$msec",
    "id": '"$request_id"',
    "method": '"$request_method"',
    "path": '"$uri"',
    "status": "$status",
    "bytes": "$bytes_sent",
    "request_time": "$request_time",
    "upstream_addr": '"$upstream_addr"',
    "upstream_status": '"$upstream_status"',
    "upstream_bytes_sent": '"$upstream_bytes_sent"',
    "upstream_connect_time": '"$upstream_connect_time"',
    "upstream_header_time": '"$upstream_header_time"',
    "upstream_response_time": '"$upstream_response_time"',
    "upstream_cache_status": '"$upstream_cache_status"',
}
"""The fields of a line: ``time`` is seconds since 1970, other times are seconds.

Upstream fields are text: a list after a retry ("502, 200"), an empty string or "-" without an upstream.
The path is logged without its query, which may hold secrets.
"""

UNTRUSTED_HEADERS = (
    "Forwarded",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Forwarded-Ssl",
    "X-Original-Host",
    "X-Original-URL",
    "X-Rewrite-URL",
)
"""Headers by which apps learn of an outer proxy, and which this one does not set: clients' are removed."""

NO_HOST = "_"
"""The server's name in nginx, and so its ``$host`` where a request names none and any name is accepted."""

REQUEST_PORT = (1, 29, 3)
"""The first nginx with ``$request_port`` and ``$is_request_port``."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """An nginx that listens on one address and passes requests to one upstream.

    Attributes:
        listen: host and port, ``80`` or ``*:80`` for all of IPv4, or ``unix:/path``.
        upstream: the app's instances.
        version: of the nginx that will read it; options that it lacks are refused or written in another way.
        account: user and group of the workers, for a master that runs as root.
        server_names: names to answer for; requests for any other get 421. Empty: all names.
        body_bytes: the largest request body; a larger one is answered with 413.
        header_bytes: the longest request line (beyond: 414) and header (beyond: 431), in four buffers.
        connections: most connections at once, including those to the instances.
        drain_timeout_s: how long old workers may finish their requests after a reload.
        client_idle_s: how long a client's idle connection outlives a reload; 0 closes it at once.
        scheme: what the app gets as X-Forwarded-Proto: "https" behind a balancer that ends TLS. Empty: the
            scheme of the connection to this nginx.
        edge: a cache in front of the app, and its policy.

    Raises:
        SettingsError: nginx could read a value as something else, such as a directive.
    """

    listen: str
    upstream: Upstream
    version: tuple[int, ...]
    account: tuple[str, str] | None = None
    server_names: tuple[str, ...] = ()
    body_bytes: int = 16 * 1024 * 1024
    header_bytes: int = 16 * 1024
    connections: int = 8192
    drain_timeout_s: float = 60.0
    client_idle_s: float = 5.0
    scheme: Literal["", "http", "https"] = ""
    edge: Edge | None = None

    def __post_init__(self) -> None:
        """Refuse values that could inject a directive."""
        require_listen(self.listen)
        for name in self.account or ():
            if not _NAME.fullmatch(name):
                raise SettingsError(
                    f"nginx: {name!r} cannot be written into nginx.conf: "
                    "a user or group should be a plain name"
                )
        for name in self.server_names:
            if not is_host_name(name):
                raise SettingsError(f"nginx: {name!r} is no name of a server, such as shop.example")
        if self.scheme not in ("", "http", "https"):
            raise SettingsError(f"nginx: the scheme {self.scheme!r} should be http, https or empty")
        for number in (self.body_bytes, self.header_bytes, self.connections):
            require_number(number)
        require_seconds(self.drain_timeout_s)
        if self.client_idle_s:
            require_seconds(self.client_idle_s)


def render(door: FrontDoor) -> tuple[File, ...]:
    """Return the configuration for ``door``: one file, ``nginx.conf``.

    Raises:
        SettingsError: the version of nginx lacks an option.
    """
    app = fragment(door.upstream, nginx=door.version)
    edge = edge_nginx.fragment(door.edge) if door.edge else None
    inner = _inner_servers(door, app, edge) if edge else ""
    http = _indent(edge.http, 4) if edge else ""
    text = "".join(
        [
            _main(door),
            "http {\n",
            _http(door, app),
            http,
            _server(door, app, edge),
            inner,
            _unknown_names(door),
            "}\n",
        ]
    )
    return (File(PurePosixPath("nginx.conf"), text), *(edge.files if edge else ()))


def _main(door: FrontDoor) -> str:
    user = f"user {' '.join(door.account)};\n" if door.account else ""
    return (
        f"{user}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr warn;\n"
        f"worker_rlimit_nofile {2 * door.connections};\n"
        f"worker_shutdown_timeout {milliseconds(door.drain_timeout_s)};\n"
        f"events {{ worker_connections {door.connections}; }}\n"
    )


def _indent(lines: Iterable[str], depth: int) -> str:
    return "".join(f"{' ' * depth}{line}\n" for line in lines)


def _keepalive_min_timeout(door: FrontDoor) -> tuple[str, ...]:
    """Close idle connections later than at the reload: a request that is just being sent would fail."""
    if not door.client_idle_s or door.version < KEEPALIVE_MIN_TIMEOUT:
        return ()
    return (f"keepalive_min_timeout {milliseconds(door.client_idle_s)};",)


def _http(door: FrontDoor, app: Fragment) -> str:
    temporary = "".join(
        f"    {kind}_temp_path temp_{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    fields = ",".join(f'"{name}":{value}' for name, value in ACCESS_LOG.items())
    read_timeout = milliseconds(door.upstream.read_timeout_s)
    return f"""\
    default_type application/octet-stream;
    server_tokens off;
    tcp_nodelay on;
    reset_timedout_connection on;

    log_format tenfold escape=json '{{{fields}}}';
    access_log access.log tenfold;
{temporary}
    # Load generators keep their connections: do not make them reconnect.
    keepalive_timeout 75s;
    keepalive_requests 1000000;
{_indent(_keepalive_min_timeout(door), 4)}\
    client_header_timeout {read_timeout};
    client_body_timeout {read_timeout};
    send_timeout {read_timeout};
    client_max_body_size {door.body_bytes};
    client_body_buffer_size 128k;
    large_client_header_buffers 4 {door.header_bytes};

    map $http_upgrade $connection_header {{
        default upgrade;
        ""      "";
    }}

{_indent(_public_host(door), 4)}\
{_indent(app.http, 4)}"""


def _public_host(door: FrontDoor) -> tuple[str, ...]:
    """Return the maps that set ``$public_host``: host and port for which the request was accepted.

    ``$http_host`` would let a client choose it: of ``GET http://shop.example/`` with ``Host: evil.example``
    nginx checks shop.example against its names (RFC 9112 section 3.2.2). ``$host`` is what it checked, but
    without the port. A request of HTTP/1.0 without a host is for the address that it was sent to.
    """
    maps = [
        "map $server_addr $server_host {",
        "    default $server_addr;",
        '    "~:"    "[$server_addr]";',
        "}",
    ]
    port = "$is_request_port$request_port"
    if door.version < REQUEST_PORT:  # its digits, from the same place as nginx took the host from
        port = "$authority_port"
        maps += [
            "map $http_host $header_port {",
            '    default "";',
            r'    "~(?<digits>:[0-9]+)$" $digits;',
            "}",
            "map $request $authority_port {",
            "    default $header_port;",
            r'    "~^\S+ +[^:/?# ]+://[^/?# ]*?(?<line_digits>:[0-9]+)?([/?# ]|$)" $line_digits;',
            "}",
        ]
    return (
        *maps,
        "map $host $public_host {",
        f'    default "$host{port}";',
        f'    "{NO_HOST}"     "$server_host:$server_port";',
        "}",
    )


def _inner_servers(door: FrontDoor, app: Fragment, edge: EdgeFragment) -> str:
    """Return the server between the cache and the app, and the one that purges."""
    assert door.edge
    fields = {**ACCESS_LOG, "id": '"$http_x_request_id"'}
    log_format = ",".join(f'"{name}":{value}' for name, value in fields.items())
    return f"""
    log_format tenfold_inner escape=json '{{{log_format}}}';
    server {{
        listen {edge_nginx.INNER};
        access_log access.log tenfold_inner;

        proxy_http_version 1.1;
        proxy_set_header Connection $connection_header;
        proxy_set_header Host $http_host;
{_indent(app.server, 8)}\
        proxy_buffer_size 16k;
        proxy_buffers 16 16k;
        proxy_busy_buffers_size 64k;

        location / {{
{_indent(edge.inner, 12)}\
            proxy_pass http://app;
        }}
    }}

    server {{
        listen {door.edge.purge_listen};
        access_log off;
        location / {{
            js_content edge.purge;
        }}
    }}
"""


def _server(door: FrontDoor, app: Fragment, edge: EdgeFragment | None) -> str:
    passing = edge.location if edge else ("proxy_pass http://app;",)
    return f"""
    server {{
        listen {door.listen} backlog=4096;
        server_name {" ".join(door.server_names) or NO_HOST};

        proxy_http_version 1.1;
        proxy_set_header Connection $connection_header;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Host $public_host;
        # nginx is the first hop: forwarding headers of clients are overwritten, not extended.
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Host $public_host;
        proxy_set_header X-Forwarded-Proto {door.scheme or "$scheme"};
{_indent((f'proxy_set_header {name} "";' for name in UNTRUSTED_HEADERS), 8)}\
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header X-Request-ID $request_id;
{_indent(edge.server if edge else (), 8)}\
{_indent(app.server, 8)}\
        proxy_buffer_size 16k;
        proxy_buffers 16 16k;
        proxy_busy_buffers_size 64k;

        # 494 is nginx's own status for headers that are too large; clients know 431.
        error_page 494 =431 @too_large;
        location @too_large {{
            return 431;
        }}

        location / {{
{_indent(passing, 12)}\
        }}

        location = /metrics {{
            allow 127.0.0.1;
            allow ::1;
            deny all;
            proxy_pass http://app;
        }}
    }}
"""


def _unknown_names(door: FrontDoor) -> str:
    """Return a server that refuses other Host names: links built from such a header would lead elsewhere."""
    if not door.server_names:
        return ""
    return f"""
    server {{
        listen {door.listen} default_server;
        server_name "";
        return 421;
    }}
"""
