"""nginx.conf: the front door before the app's instances. Pure: values in, files out.

All paths in it are relative to nginx's prefix (``nginx -p <folder>/``), so a folder's name needs no quoting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath

from tenfold.balancing.nginx import KEEPALIVE_MIN_TIMEOUT, Fragment, fragment, milliseconds
from tenfold.balancing.upstream import (
    Upstream,
    is_host_name,
    require_address,
    require_number,
    require_seconds,
)
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

What comes from upstream is text: a retry makes it a list ("502, 200"), no upstream an empty string or "-".
The path is without its query, where secrets may be.
"""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """Where nginx listens and what stands behind it.

    Attributes:
        listen: host and port.
        upstream: the app's instances.
        version: of the nginx that will read it; an option that it lacks is refused or written in another way.
        account: user and group of the workers, for a master that runs as root.
        server_names: names that are answered; requests for any other get 421. Empty answers all.
        body_bytes: the largest request body; a larger one is answered with 413.
        header_bytes: the longest request line, else 414, and the longest header, else 431; four of them fit.
        connections: most connections at once, those to the instances included.
        drain_timeout_s: after a reload, how long old workers may finish their requests.
        client_idle_s: how long a client's idle connection outlives a reload; 0 closes it at once.

    Raises:
        SettingsError: a value could be read by nginx as something else than it is meant as.
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

    def __post_init__(self) -> None:
        """Refuse what could open a directive of its own."""
        require_address(self.listen)
        for name in self.account or ():
            if not _NAME.fullmatch(name):
                raise SettingsError(
                    f"nginx: {name!r} cannot be written into nginx.conf: "
                    "a user or group should be a plain name"
                )
        for name in self.server_names:
            if not is_host_name(name):
                raise SettingsError(f"nginx: {name!r} is no name of a server, such as shop.example")
        for number in (self.body_bytes, self.header_bytes, self.connections):
            require_number(number)
        require_seconds(self.drain_timeout_s)
        if self.client_idle_s:
            require_seconds(self.client_idle_s)


def render(door: FrontDoor) -> tuple[File, ...]:
    """The configuration for ``door``: one file, ``nginx.conf``.

    Raises:
        SettingsError: the version of nginx lacks what is asked for.
    """
    app = fragment(door.upstream, nginx=door.version)
    text = "".join([_main(door), "http {\n", _http(door, app), _server(door, app), _others(door), "}\n"])
    return (File(PurePosixPath("nginx.conf"), text),)


def _main(door: FrontDoor) -> str:
    user = f"user {' '.join(door.account)};\n" if door.account else ""
    return (
        f"{user}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr warn;\n"
        f"worker_rlimit_nofile {2 * door.connections};\n"
        f"worker_shutdown_timeout {milliseconds(door.drain_timeout_s)};\n"
        f"events {{ worker_connections {door.connections}; }}\n"
    )


def _indented(lines: Iterable[str], depth: int) -> str:
    return "".join(f"{' ' * depth}{line}\n" for line in lines)


def _idle(door: FrontDoor) -> tuple[str, ...]:
    """A connection that is closed at a reload while a client writes on it is a failed request."""
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
    # A load generator keeps its connections: do not make it reconnect.
    keepalive_timeout 75s;
    keepalive_requests 1000000;
{_indented(_idle(door), 4)}\
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

{_indented(app.http, 4)}"""


def _server(door: FrontDoor, app: Fragment) -> str:
    return f"""
    server {{
        listen {door.listen} backlog=4096;
        server_name {" ".join(door.server_names) or "_"};

        proxy_http_version 1.1;
        proxy_set_header Connection $connection_header;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Host $http_host;
        # The first hop knows best: what a client claims about itself is replaced, not continued.
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header Forwarded "";
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header X-Request-ID $request_id;
{_indented(app.server, 8)}\
        proxy_buffer_size 16k;
        proxy_buffers 16 16k;
        proxy_busy_buffers_size 64k;

        # nginx's own number for headers that are too large, and the one that clients know.
        error_page 494 =431 @too_large;
        location @too_large {{
            return 431;
        }}

        location / {{
            proxy_pass http://app;
        }}

        location = /metrics {{
            allow 127.0.0.1;
            allow ::1;
            deny all;
            proxy_pass http://app;
        }}
    }}
"""


def _others(door: FrontDoor) -> str:
    """Whoever asks for a name that is not ours: a link made from such a Host header leads elsewhere."""
    if not door.server_names:
        return ""
    return f"""
    server {{
        listen {door.listen} default_server;
        server_name "";
        return 421;
    }}
"""
