"""nginx.conf: the front door before the app's instances. Pure: values in, files out.

All paths in it are relative to nginx's prefix (``nginx -p <folder>/``), so a folder's name needs no quoting.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath

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
    "upstream_connect_time": '"$upstream_connect_time"',
    "upstream_header_time": '"$upstream_header_time"',
    "upstream_response_time": '"$upstream_response_time"',
    "upstream_cache_status": '"$upstream_cache_status"',
}
"""The fields of a line: ``time`` is seconds since 1970, other times are seconds.

What comes from upstream is text: a retry makes it a list ("502, 200"), no upstream an empty string or "-".
The path is without its query, where secrets may be.
"""

_ADDRESS = re.compile(r"(\[[0-9a-f:]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?):([1-9]\d{0,4})")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontDoor:
    """Where nginx listens and what stands behind it.

    Attributes:
        listen: host and port.
        upstreams: host and port of each instance, at least one.
        account: user and group of the workers, for a master that runs as root.
        body_bytes: the largest request body; a larger one is answered with 413.
        connect_timeout_s: longest wait for a connection to an instance.
        read_timeout_s: longest silence of an instance or a client.
        connections: most connections at once, those to the instances included.

    Raises:
        SettingsError: a value could be read by nginx as something else than it is meant as.
    """

    listen: str
    upstreams: tuple[str, ...]
    account: tuple[str, str] | None = None
    body_bytes: int = 16 * 1024 * 1024
    connect_timeout_s: int = 2
    read_timeout_s: int = 60
    connections: int = 8192

    def __post_init__(self) -> None:
        """Refuse what could open a directive of its own."""
        if not self.upstreams:
            raise SettingsError("nginx needs at least one app instance behind it")
        for address in (self.listen, *self.upstreams):
            _require(_ADDRESS, address, "an address should look like 127.0.0.1:8000")
            if int(address.rpartition(":")[2]) > 65535:
                raise SettingsError(f"nginx: {address!r} has no port below 65536")
        for name in self.account or ():
            _require(_NAME, name, "a user or group should be a plain name")
        for number in (self.body_bytes, self.connect_timeout_s, self.read_timeout_s, self.connections):
            if type(number) is not int or number < 1:
                raise SettingsError(f"nginx: {number!r} should be a whole number above 0")


def _require(shape: re.Pattern[str], text: str, rule: str) -> None:
    if not shape.fullmatch(text):
        raise SettingsError(f"nginx: {text!r} cannot be written into nginx.conf: {rule}")


def render(door: FrontDoor) -> tuple[File, ...]:
    """The configuration for ``door``: one file, ``nginx.conf``."""
    return (File(PurePosixPath("nginx.conf"), "".join([_main(door), "http {\n", _http(door), "}\n"])),)


def _main(door: FrontDoor) -> str:
    user = f"user {' '.join(door.account)};\n" if door.account else ""
    return (
        f"{user}daemon off;\nworker_processes 1;\npid nginx.pid;\nerror_log stderr warn;\n"
        f"worker_rlimit_nofile {2 * door.connections};\n"
        f"events {{ worker_connections {door.connections}; }}\n"
    )


def _http(door: FrontDoor) -> str:
    temporary = "".join(
        f"    {kind}_temp_path temp_{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    fields = ",".join(f'"{name}":{value}' for name, value in ACCESS_LOG.items())
    servers = "".join(f"        server {address};\n" for address in door.upstreams)
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
    client_header_timeout {door.read_timeout_s}s;
    client_body_timeout {door.read_timeout_s}s;
    send_timeout {door.read_timeout_s}s;
    client_max_body_size {door.body_bytes};
    client_body_buffer_size 128k;
    large_client_header_buffers 4 16k;

    map $http_upgrade $connection_header {{
        default upgrade;
        ""      "";
    }}

    upstream app {{
{servers}        keepalive 64;
        keepalive_requests 1000000;
    }}

    server {{
        listen {door.listen} backlog=4096;
        server_name _;

        proxy_http_version 1.1;
        proxy_set_header Connection $connection_header;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Host $http_host;
        # The first hop knows best: what a client claims about itself is replaced, not continued.
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Host $http_host;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_set_header X-Real-IP $remote_addr;
        proxy_set_header X-Request-ID $request_id;
        proxy_connect_timeout {door.connect_timeout_s}s;
        proxy_read_timeout {door.read_timeout_s}s;
        proxy_send_timeout {door.read_timeout_s}s;
        proxy_buffer_size 16k;
        proxy_buffers 16 16k;
        proxy_busy_buffers_size 64k;

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
