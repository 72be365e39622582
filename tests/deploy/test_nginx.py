"""nginx.conf is accepted by the newest nginx and an old one, and no value injects a directive."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.balancing.nginx import version
from tenfold.balancing.settings import BalancingSettings
from tenfold.balancing.upstream import METHODS, Node, Upstream
from tenfold.deploy.nginx import ACCESS_LOG, FrontDoor, render
from tenfold.errors import SettingsError
from tenfold.settings import Settings
from tenfold.stack.programs import find_nginx

NEW, DEBIAN = (1, 31, 3), (1, 22, 1)
OF_UPSTREAM = set(Upstream.__dataclass_fields__)


def text(nodes: tuple[Node, ...] = (Node(address="127.0.0.1:18081"),), **values: object) -> str:
    """Return the configuration with ``values`` of the upstream or the front door."""
    upstream = Upstream(nodes=nodes, **{name: values.pop(name) for name in OF_UPSTREAM & values.keys()})
    (file,) = render(
        FrontDoor(**{"listen": "127.0.0.1:18080", "version": NEW, "upstream": upstream, **values})
    )
    assert file.path == PurePosixPath("nginx.conf")
    return file.text


def nodes(*addresses: str, **values: object) -> tuple[Node, ...]:
    return tuple(Node(address=address, **values) for address in addresses)


def debian_nginx() -> Path | None:
    """Return Debian's nginx where .ci/run unpacked it, if it did."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    program = cache / "tenfold" / "debian-nginx" / "usr" / "sbin" / "nginx"
    return program if program.is_file() else None


@pytest.fixture(params=["new", "old"])
def nginx(request: pytest.FixtureRequest, requires_server: Callable) -> Path:
    """The newest installed nginx, and that of Debian stable."""
    if request.param == "old":
        return requires_server(debian_nginx(), "Debian's nginx")
    found = find_nginx(Settings())
    return requires_server(found and found.path, "nginx")


def version_of(nginx: Path) -> tuple[int, ...]:
    told = subprocess.run([nginx, "-v"], capture_output=True, text=True, check=True)
    return version(re.search(r"nginx/([\d.]+)", told.stderr)[1])


def accepted(nginx: Path, configuration: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "nginx.conf").write_text(configuration)
    command = [nginx, "-t", "-p", f"{folder}/", "-c", "nginx.conf", "-e", "stderr"]
    return subprocess.run(command, capture_output=True, text=True, check=False)


CASES: list[dict] = [
    {},
    {"nodes": nodes("127.0.0.1:1", "127.0.0.1:2", "[::1]:3", "localhost:4")},
    {"nodes": (*nodes("127.0.0.1:1", weight=5), *nodes("127.0.0.1:2", backup=True, down=True))},
    {"account": ("nobody", "root")},
    {"body_bytes": 1, "header_bytes": 1024, "connect_timeout_s": 0.1, "read_timeout_s": 0.1},
    {"connections": 128, "keepalive": 0, "max_fails": 0, "tries": 1, "client_idle_s": 0},
    {"server_names": ("shop.example", "*.shop.example", "127.0.0.1")},
    {"scheme": "https"},
    *({"listen": listen} for listen in ("18084", "*:18085", "[::1]:18086", "localhost:18087")),
    {"nodes": nodes("unix:/run/app.sock", "127.0.0.1:2"), "method": "sticky"},
    *({"method": method, "nodes": nodes("127.0.0.1:1", "127.0.0.1:2")} for method in METHODS),
    *(
        {"method": "hash", "hash_key": key}
        for key in ("uri", "client", "cookie:Id_1", "header:X-Tenant", "argument:q")
    ),
]


@pytest.mark.guarantee(
    "nginx.conf fits the nginx that reads it", pattern="balancing", under="the newest nginx, Debian's"
)
@pytest.mark.parametrize("values", CASES, ids=str)
def test_nginx_accepts_the_configuration(values: dict, nginx: Path, tmp_path: Path) -> None:
    told = accepted(nginx, text(**values, version=version_of(nginx)), tmp_path)
    assert told.returncode == 0, told.stderr
    assert not re.search(r"\[(emerg|alert|crit|error)\]", told.stderr)
    assert [line for line in told.stderr.splitlines() if "[warn]" in line and '"user"' not in line] == []


@pytest.mark.control("settings cannot inject into nginx.conf", "`nginx -t` itself refuses what is broken")
def test_the_control_nginx_refuses_a_broken_configuration(nginx: Path, tmp_path: Path) -> None:
    assert accepted(nginx, text().replace("proxy_pass", "proxy_past"), tmp_path).returncode != 0


@pytest.mark.control("nginx.conf fits the nginx that reads it", "the old one refuses the new one's")
def test_directives_unknown_to_an_old_nginx_are_left_out(requires_server: Callable, tmp_path: Path) -> None:
    old = requires_server(debian_nginx(), "Debian's nginx")
    if version_of(old) >= (1, 27, 4):
        pytest.skip("Debian's nginx is no longer old")
    for directive, values in (
        ("sticky", {"method": "sticky"}),
        ("keepalive_min_timeout", {}),
        ("keepalive 0", {"keepalive": 0}),
    ):
        assert directive in text(**values, version=NEW)
        assert directive not in text(**values, version=DEBIAN)
        assert accepted(old, text(**values, version=NEW), tmp_path).returncode != 0


def test_options_that_the_version_cannot_express_are_refused() -> None:
    backed = (*nodes("127.0.0.1:1"), *nodes("127.0.0.1:2", backup=True))
    assert "sticky" in text(nodes=backed, method="sticky", version=NEW)
    with pytest.raises(SettingsError, match=r"nginx 1\.22\.1 knows no sticky clients with backup servers"):
        text(nodes=backed, method="sticky", version=DEBIAN)
    with pytest.raises(SettingsError, match=r"nginx 1\.14\.0 is too old"):
        text(version=(1, 14, 0))
    with pytest.raises(SettingsError, match="'abc' is no version"):
        version("abc")


@pytest.mark.parametrize(
    "values",
    [
        {"listen": "127.0.0.1:80; include /etc/passwd"},
        {"listen": "127.0.0.1"},
        {"listen": "127.0.0.1:99999"},
        {"listen": "99999"},
        {"listen": "0"},
        {"listen": "*"},
        {"listen": "80; include /etc/passwd"},
        {"nodes": ()},
        {"account": ("nobody; load_module x", "nogroup")},
        {"account": ("nobody", "a b")},
        {"body_bytes": "1; evil on"},
        {"body_bytes": 0},
        {"read_timeout_s": True},
        {"read_timeout_s": float("inf")},
        {"connect_timeout_s": float("nan")},
        {"connect_timeout_s": "1s; evil on"},
        {"max_fails": "1 backup"},
        {"keepalive": -1},
        {"drain_timeout_s": 0},
        {"method": "least_conn; evil on"},
        {"method": "hash", "hash_key": "$uri"},
        {"method": "hash", "hash_key": "cookie:a;b"},
        {"method": "hash", "nodes": (*nodes("127.0.0.1:1"), *nodes("127.0.0.1:2", backup=True))},
        {"nodes": nodes("127.0.0.1:1", backup=True)},
        {"server_names": ("shop.example; evil on",)},
        {"server_names": ("~^(.*)$",)},
        {"scheme": "$http_x_forwarded_proto"},
        {"scheme": "ftp"},
    ],
    ids=str,
)
def test_invalid_values_are_refused(values: dict) -> None:
    with pytest.raises(SettingsError, match="nginx"):
        text(**values)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:1;}",
        "127.0.0.1:1\nserver evil:80",
        "unix:/tmp/a;b",
        "unix:relative",
        "unix:/",
        "unix:/a b",
        "unix:/a:/b",
        "$host:80",
        "127.0.0.1:٨٠",
    ],
)
def test_invalid_addresses_are_refused(address: str) -> None:
    with pytest.raises(SettingsError, match="nginx"):
        Node(address=address)


HOSTILE: dict[str, Callable[[str], dict]] = {
    "listen": lambda evil: {"listen": evil},
    "node": lambda evil: {"nodes": nodes(evil)},
    "user": lambda evil: {"account": (evil, "nogroup")},
    "name": lambda evil: {"server_names": (evil,)},
    "cookie": lambda evil: {"method": "hash", "hash_key": f"cookie:{evil}"},
    "header": lambda evil: {"method": "hash", "hash_key": f"header:{evil}"},
    "key": lambda evil: {"method": "hash", "hash_key": evil},
}
PLAIN = {
    "listen": "127.0.0.1:1",
    "node": "127.0.0.1:1",
    "user": "nobody",
    "name": "shop.example",
    "cookie": "a",
    "header": "a",
    "key": "uri",
}


@pytest.mark.guarantee("settings cannot inject into nginx.conf", pattern="stack", under="hostile values")
@given(
    st.sampled_from(sorted(HOSTILE)),
    st.text(max_size=40) | st.from_regex(r"[a-z0-9.:*-]{1,12}[;{}$\n #\"'\\]?[a-z ;]{0,9}", fullmatch=True),
)
def test_no_value_injects_a_directive(where: str, evil: str) -> None:
    try:
        rendered = text(**HOSTILE[where](evil))
    except SettingsError:
        return
    assert evil.isascii()
    assert not re.search(r"[\s;{}#$'\"\\]", evil)
    assert len(rendered.splitlines()) == len(text(**HOSTILE[where](PLAIN[where])).splitlines())


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["name", "cookie", "header"]),
    st.from_regex(r"(\*\.)?[a-zA-Z0-9._-]{1,20}", fullmatch=True),
)
def test_accepted_values_are_accepted_by_nginx(
    requires_server: Callable, tmp_path: Path, where: str, name: str
) -> None:
    found = requires_server(find_nginx(Settings()), "nginx")
    try:
        rendered = text(**HOSTILE[where](name))
    except SettingsError:
        return
    told = accepted(found.path, rendered, tmp_path)
    assert told.returncode == 0, told.stderr


@given(st.sampled_from(["name", "cookie", "header"]), st.text(max_size=20))
def test_settings_refuse_the_same_values(where: str, evil: str) -> None:
    values = HOSTILE[where](evil)
    try:
        text(**values)
    except SettingsError:
        with pytest.raises(ValueError):
            BalancingSettings(**values)
    else:
        BalancingSettings(**values)


def test_access_log_has_upstream_times_and_no_query_strings() -> None:
    assert {
        "upstream_connect_time",
        "upstream_header_time",
        "upstream_response_time",
        "upstream_status",
        "upstream_addr",
        "upstream_cache_status",
    } <= ACCESS_LOG.keys()
    assert "escape=json" in text()
    assert "$request_uri" not in text()  # a query may hold secrets
    assert "$args" not in text()


def test_metrics_location_allows_loopback_only() -> None:
    section = re.search(r"location = /metrics \{(.*?)\}", text(), re.S)[1]
    assert [line.strip() for line in section.split(";")][:3] == ["allow 127.0.0.1", "allow ::1", "deny all"]
