"""The host, port and scheme that apps are told, on real nginx of both ages: links are built from them."""

from __future__ import annotations

import re
import shutil
import socket
import socketserver
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tenfold.balancing.upstream import Node, Upstream
from tenfold.deploy.nginx import UNTRUSTED_HEADERS, FrontDoor
from tenfold.settings import Settings
from tenfold.stack.programs import Program, find_nginx
from tests.balancing.support.instances import Instance, RunningNginx, nginx_before
from tests.deploy.test_nginx import debian_nginx, version_of

NAMES = ("shop.example", "*.tenant.example")


@pytest.fixture(scope="module", params=["new", "old"])
def nginx(request: pytest.FixtureRequest, requires_server: Callable) -> Program:
    if request.param == "new":
        return requires_server(find_nginx(Settings()), "nginx")
    path = requires_server(debian_nginx(), "Debian's nginx")
    return Program(path, ".".join(map(str, version_of(path))), "Debian")


@pytest.fixture(scope="module")
def app() -> Iterator[Instance]:
    app = Instance("app")
    yield app
    app.end()


@pytest.fixture(scope="module")
def named(nginx: Program, app: Instance, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningNginx]:
    """An nginx that answers for ``NAMES`` only."""
    folder = tmp_path_factory.mktemp("named")
    with nginx_before(nginx, folder, (Node(address=app.address),), server_names=NAMES) as front:
        yield front


@pytest.fixture(scope="module")
def nameless(
    nginx: Program, app: Instance, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningNginx]:
    """An nginx that answers for any name."""
    folder = tmp_path_factory.mktemp("nameless")
    with nginx_before(nginx, folder, (Node(address=app.address),)) as front:
        yield front


def send(front: RunningNginx, app: Instance, *lines: str) -> tuple[int, dict[str, str]]:
    """Send these lines as one request; return the status and the headers that the app was sent."""
    app.requests.clear()
    with socket.create_connection(("127.0.0.1", front.port), timeout=10) as connection:
        text = "\r\n".join([*lines, "Connection: close", "", ""])
        connection.sendall(text.encode("latin-1"))
        answer = b""
        while part := connection.recv(65536):
            answer += part
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0
    return status, app.requests[0][2] if app.requests else {}


REQUESTS = [
    # request line, Host headers, what the app is told
    ("GET / HTTP/1.1", ["shop.example"], "shop.example"),
    ("GET / HTTP/1.1", ["shop.example:8443"], "shop.example:8443"),
    ("GET / HTTP/1.1", ["SHOP.example.:8443"], "shop.example:8443"),
    ("GET / HTTP/1.0", ["shop.example:8443"], "shop.example:8443"),
    ("GET / HTTP/1.1", ["one.tenant.example:81"], "one.tenant.example:81"),
    ("GET http://shop.example/reset HTTP/1.1", ["evil.example"], "shop.example"),
    ("GET http://shop.example/reset HTTP/1.1", ["evil.example:666"], "shop.example"),
    ("GET http://shop.example:8443/reset HTTP/1.1", ["evil.example:666"], "shop.example:8443"),
    ("GET http://shop.example:8443 HTTP/1.1", ["shop.example"], "shop.example:8443"),
    ("GET http://shop.example:8443?q=http://a:1/ HTTP/1.1", ["a"], "shop.example:8443"),
    ("GET http://shop.example?q=http://evil:666/ HTTP/1.1", ["evil:666"], "shop.example"),
    ("GET /?q=http://evil:666/ HTTP/1.1", ["shop.example:80"], "shop.example:80"),
    ("GET https://shop.example/reset HTTP/1.0", [], "shop.example"),
]


@pytest.mark.guarantee(
    "the host that apps build links from is one of server_names",
    pattern="balancing",
    under="absolute request targets, several and missing Host headers, forwarding headers of clients",
)
@pytest.mark.parametrize(("line", "hosts", "told"), REQUESTS)
def test_app_is_told_the_host_that_was_checked(
    named: RunningNginx, app: Instance, line: str, hosts: list[str], told: str
) -> None:
    status, headers = send(named, app, line, *(f"Host: {host}" for host in hosts))
    assert status == 200
    assert (headers["host"], headers["x-forwarded-host"]) == (told, told)


@pytest.mark.control("the host that apps build links from is one of server_names", "with $http_host")
def test_the_control_with_http_host_the_client_chooses(nginx: Program, app: Instance, tmp_path: Path) -> None:
    def rewrite(text: str) -> str:
        return re.sub(r"(Host) \$public_host", r"\1 $http_host", text)

    front = nginx_before(nginx, tmp_path, (Node(address=app.address),), server_names=NAMES, rewrite=rewrite)
    with front as poisoned:
        _, headers = send(poisoned, app, "GET http://shop.example/ HTTP/1.1", "Host: evil.example")
    assert headers["host"] == headers["x-forwarded-host"] == "evil.example"


@pytest.mark.parametrize(
    "lines",
    [
        ("GET / HTTP/1.1", "Host: evil.example"),
        ("GET http://evil.example/ HTTP/1.1", "Host: shop.example"),
        ("GET / HTTP/1.1",),
        ("GET / HTTP/1.0",),
        ("GET / HTTP/1.1", "Host:"),
        ("GET / HTTP/1.1", "Host: _"),
        ("GET / HTTP/1.1", "Host: shop.example@evil.example"),
        ("GET / HTTP/1.1", "Host: shop.example/evil.example"),
        ("GET http://evil.example@shop.example/ HTTP/1.1", "Host: shop.example"),
    ],
    ids=str,
)
def test_other_hosts_are_refused(named: RunningNginx, app: Instance, lines: tuple[str, ...]) -> None:
    status, headers = send(named, app, *lines)
    assert status in (400, 421)
    assert not headers


def test_second_host_header_is_not_believed(named: RunningNginx, app: Instance) -> None:
    status, headers = send(named, app, "GET / HTTP/1.1", "Host: shop.example", "Host: evil.example:6")
    assert status == 400 or headers["host"] == "shop.example"


@pytest.mark.parametrize("line", ["GET / HTTP/1.0", "GET / HTTP/1.1"])
def test_request_without_host_is_for_the_address_it_was_sent_to(
    nameless: RunningNginx, app: Instance, line: str
) -> None:
    status, headers = send(nameless, app, line)
    if line.endswith("1.1"):  # RFC 9112 section 3.2: it has to have one
        assert status == 400
    else:
        assert status == 200
        assert headers["host"] == headers["x-forwarded-host"] == f"127.0.0.1:{nameless.port}"


def test_any_name_and_port_is_passed_on_where_no_name_is_set(nameless: RunningNginx, app: Instance) -> None:
    for host in ("evil.example:81", "127.0.0.1:82", "localhost", "[::1]", "[::1]:83"):
        assert send(nameless, app, "GET / HTTP/1.1", f"Host: {host}")[1]["host"] == host


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(["", "http://", "https://", "HTTP://", "ftp://", "//"]),
    st.lists(st.sampled_from(["shop.example", "evil.example", ":1", ":", "@", "/", "?", " ", "#", "x"])),
    st.lists(st.sampled_from(["shop.example", "evil.example", ":1", ":", "@", "/", "\t", ",", "x"])),
)
def test_no_request_makes_the_app_believe_another_host(
    named: RunningNginx, app: Instance, scheme: str, target: list[str], host: list[str]
) -> None:
    line = f"GET {scheme or '/'}{''.join(target)} HTTP/1.1"
    _, headers = send(named, app, line, f"Host: {''.join(host)}")
    if headers:
        assert re.fullmatch(r"shop\.example(:1*)?", headers["host"])
        assert headers["x-forwarded-host"] == headers["host"]


def test_forwarding_headers_of_clients_are_replaced(named: RunningNginx, app: Instance) -> None:
    names = {
        *(name.lower() for name in UNTRUSTED_HEADERS),
        *("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip", "x-request-id"),
        *("x-request-start", "x-request-timeout"),
    }
    lines = [f"{spelled}: evil" for name in names for spelled in (name, name.replace("-", "_"))]
    status, headers = send(named, app, "GET / HTTP/1.1", "Host: shop.example", *lines)
    assert status == 200
    assert [name for name, value in headers.items() if value == "evil"] == []


@pytest.mark.parametrize(("scheme", "told"), [("", "http"), ("https", "https")])
def test_scheme_of_a_balancer_in_front_is_told(
    nginx: Program, app: Instance, tmp_path: Path, scheme: str, told: str
) -> None:
    with nginx_before(nginx, tmp_path, (Node(address=app.address),), scheme=scheme) as front:
        _, headers = send(front, app, "GET / HTTP/1.1", "Host: a", "X-Forwarded-Proto: evil")
    assert headers["x-forwarded-proto"] == told


class _UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


class _Echo(socketserver.StreamRequestHandler):
    """Answers with the Host header."""

    def handle(self) -> None:
        lines = iter(self.rfile.readline, b"\r\n")
        host = next(line.split()[1] for line in lines if line.lower().startswith(b"host:"))
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(host), host))


def test_nginx_listens_on_and_passes_to_unix_sockets(nginx: Program) -> None:
    folder = Path(tempfile.mkdtemp(prefix="tenfold-u-"))  # short: a socket's path has 107 characters

    def listen_on_a_socket(text: str) -> str:
        added = FrontDoor(listen=f"unix:{folder}/front.sock", version=(1, 22, 1), upstream=upstream).listen
        return re.sub(r"(listen 127\.0\.0\.1:\d+)", rf"\1; listen {added}", text)

    upstream = Upstream(nodes=(Node(address=f"unix:{folder}/app.sock"),))
    with _UnixServer(f"{folder}/app.sock", _Echo) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        with nginx_before(nginx, folder, upstream.nodes, rewrite=listen_on_a_socket):
            transport = httpx.HTTPTransport(uds=f"{folder}/front.sock")
            with httpx.Client(transport=transport) as client:
                answer = client.get("http://shop.example:81/")
        server.shutdown()
    shutil.rmtree(folder)
    assert (answer.status_code, answer.text) == (200, "shop.example:81")


def test_address_of_ipv6_is_told_in_brackets(nginx: Program, app: Instance, tmp_path: Path) -> None:
    if not Path("/proc/net/if_inet6").exists() or not Path("/proc/net/if_inet6").read_text():
        pytest.skip("this machine has no IPv6")

    def listen_on_ipv6(text: str) -> str:
        return re.sub(r"listen 127\.0\.0\.1:(\d+)", r"listen 127.0.0.1:\1; listen [::1]:\1", text)

    with nginx_before(nginx, tmp_path, (Node(address=app.address),), rewrite=listen_on_ipv6) as front:
        app.requests.clear()
        with socket.create_connection(("::1", front.port), timeout=10) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")
    assert app.requests[0][2]["host"] == f"[::1]:{front.port}"
