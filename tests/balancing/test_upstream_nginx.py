"""Rendered upstreams on a real nginx with small instances."""

from __future__ import annotations

import http.client
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tenfold.balancing.nginx import COOKIE
from tenfold.balancing.upstream import Node
from tenfold.settings import Settings
from tenfold.stack.programs import Program, find_nginx
from tests.balancing.support.instances import Instance, RunningNginx, nginx_before


@pytest.fixture(scope="module")
def nginx(requires_server: Callable) -> Program:
    return requires_server(find_nginx(Settings()), "nginx")


@pytest.fixture
def instances() -> Iterator[list[Instance]]:
    made = [Instance(name) for name in "abcd"]
    yield made
    for instance in made:
        instance.end()


def nodes(instances: list[Instance], **values: object) -> tuple[Node, ...]:
    return tuple(Node(address=instance.address, **values) for instance in instances)


def test_weights_are_followed(nginx: Program, instances: list[Instance], tmp_path: Path) -> None:
    a, b = instances[:2]
    weighted = (Node(address=a.address, weight=3), Node(address=b.address))
    with nginx_before(nginx, tmp_path, weighted, method="round_robin") as front:
        assert Counter(front.instance_for() for _ in range(40)) == {"a": 30, "b": 10}


@pytest.mark.guarantee(
    "backups get requests only when all others are down",
    pattern="balancing",
    under="instances that end one after the other",
    control="the same test, with one of the others left",
)
def test_backup_is_used_only_when_the_others_are_down(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    a, b, c = instances[:3]
    with nginx_before(nginx, tmp_path, (*nodes([a, b]), *nodes([c], backup=True))) as front:
        assert {front.instance_for() for _ in range(20)} == {"a", "b"}
        a.end()
        assert {front.instance_for() for _ in range(20)} == {"b"}
        b.end()
        assert {front.instance_for() for _ in range(20)} == {"c"}
    assert len(c.requests) == 20


def test_node_that_is_down_gets_nothing(nginx: Program, instances: list[Instance], tmp_path: Path) -> None:
    a, b = instances[:2]
    with nginx_before(nginx, tmp_path, (*nodes([a]), *nodes([b], down=True))) as front:
        assert {front.instance_for() for _ in range(20)} == {"a"}


def breaking(instances: list[Instance]) -> tuple[Node, ...]:
    """The first takes each request and breaks the connection without an answer."""
    instances[0].behave = lambda handler: False
    return nodes(instances[:2])


@pytest.mark.guarantee("no idempotent request fails, no other runs twice")
@pytest.mark.control("a request whose answer timed out is not retried", "a broken connection is")
@pytest.mark.parametrize(("method", "times"), [("GET", 2), ("POST", 1)])
def test_only_idempotent_requests_are_retried(
    nginx: Program, instances: list[Instance], tmp_path: Path, method: str, times: int
) -> None:
    with nginx_before(nginx, tmp_path, breaking(instances), method="round_robin") as front:
        status, _, _ = front.request("/order", method=method, body=b"one" if method == "POST" else None)
    assert status == (200 if method == "GET" else 502)
    assert len(instances[0].requests) + len(instances[1].requests) == times


@pytest.mark.control("no idempotent request fails, no other runs twice")
def test_the_control_with_non_idempotent_a_post_is_sent_twice(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    def add_non_idempotent(text: str) -> str:
        return text.replace(
            "proxy_next_upstream error timeout", "proxy_next_upstream error timeout non_idempotent"
        )

    with nginx_before(
        nginx, tmp_path, breaking(instances), method="round_robin", rewrite=add_non_idempotent
    ) as front:
        assert front.request("/order", method="POST", body=b"one")[0] == 200
    assert [len(instance.requests) for instance in instances[:2]] == [1, 1]


def test_post_that_no_instance_received_is_passed_on(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    a, b = instances[:2]
    with nginx_before(nginx, tmp_path, nodes([a, b]), method="round_robin") as front:
        a.end()
        answers = [front.request("/order", method="POST", body=b"one") for _ in range(10)]
    assert {(status, name) for status, _, name in answers} == {(200, "b")}


@pytest.mark.guarantee(
    "a request whose answer timed out is not retried",
    pattern="balancing",
    under="an instance that is too slow",
)
def test_request_with_a_slow_answer_is_not_retried(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    instances[0].behave = lambda handler: bool(time.sleep(1)) or True
    with nginx_before(
        nginx, tmp_path, nodes(instances[:2]), method="round_robin", read_timeout_s=0.2
    ) as front:
        assert front.request()[0] == 504
    assert [len(instance.requests) for instance in instances[:2]] == [1, 0]


KEYS = [f"/product/{number}" for number in range(80)]


def moved_keys(
    nginx: Program, folder: Path, instances: list[Instance], **options: object
) -> tuple[set[str], set[str]]:
    """Keys that were elsewhere when the last instance went: its own, and those of the others."""
    found: list[dict[str, str]] = []
    for there in (instances, instances[:-1]):
        with nginx_before(nginx, folder, nodes(there), method="hash", **options) as front:
            found.append({key: front.instance_for(key) for key in KEYS})
    before, after = found
    gone = {key for key in KEYS if before[key] == instances[-1].name}
    return gone, {key for key in KEYS if before[key] != after[key]} - gone


@pytest.mark.guarantee("hashed keys stay where they are", pattern="balancing", under="an instance goes")
def test_keys_stay_when_an_instance_goes(nginx: Program, instances: list[Instance], tmp_path: Path) -> None:
    gone, others = moved_keys(nginx, tmp_path, instances)
    assert gone
    assert others == set()


@pytest.mark.control("hashed keys stay where they are")
def test_the_control_without_consistent_keys_move(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    _, others = moved_keys(nginx, tmp_path, instances, rewrite=lambda text: text.replace(" consistent;", ";"))
    assert len(others) > len(KEYS) / 4


@pytest.mark.parametrize(
    ("key", "requests"),
    [
        ("header:X-Tenant", [{"X_Tenant": f"t{number}"} for number in range(20)]),
        ("cookie:who", [{"Cookie": f"who={number}"} for number in range(20)]),
        ("argument:q", [{"path": f"/?q={number}"} for number in range(20)]),
    ],
)
def test_requests_are_hashed_by_their_key(
    nginx: Program, instances: list[Instance], tmp_path: Path, key: str, requests: list[dict]
) -> None:
    with nginx_before(nginx, tmp_path, nodes(instances), method="hash", hash_key=key) as front:
        first = [front.instance_for(**request) for request in requests]
        assert len(set(first)) > 1
        assert [front.instance_for(**request) for request in requests] == first
        assert (
            len({front.instance_for(f"/{number}") for number in range(20)}) == 1
        )  # without one: by the client


@pytest.mark.guarantee(
    "a sticky client stays, and finds a new place", pattern="balancing", under="its instance goes"
)
@pytest.mark.parametrize("version", [None, (1, 22, 1)], ids=["now", "as nginx 1.22 gets it"])
def test_sticky_keeps_a_client_and_finds_it_a_new_place(
    nginx: Program, instances: list[Instance], tmp_path: Path, version: tuple[int, ...] | None
) -> None:
    def client(front: RunningNginx) -> tuple[str, str]:
        status, headers, name = front.request()
        cookie = headers["set-cookie"]
        assert status == 200
        assert cookie.startswith(f"{COOKIE}=")
        assert {"httponly", "samesite=lax"} <= {part.strip().lower() for part in cookie.split(";")}
        return name, cookie.partition(";")[0]

    with nginx_before(nginx, tmp_path, nodes(instances), method="sticky", version=version) as front:
        clients = [client(front) for _ in range(20)]
        assert len({name for name, _ in clients}) > 1
        for name, cookie in clients:
            assert {front.instance_for(Cookie=cookie) for _ in range(3)} == {name}
        next(instance for instance in instances if instance.name == clients[0][0]).end()
        assert front.instance_for(Cookie=clients[0][1]) != clients[0][0]
        assert all(
            front.instance_for(Cookie=cookie) == name for name, cookie in clients if name != clients[0][0]
        )


@pytest.mark.control("a sticky client stays, and finds a new place")
def test_the_control_without_sticky_a_client_changes_instances(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    with nginx_before(nginx, tmp_path, nodes(instances), method="round_robin") as front:
        assert len({front.instance_for(Cookie=f"{COOKIE}=one") for _ in range(8)}) == 4


def test_size_limits(nginx: Program, instances: list[Instance], tmp_path: Path) -> None:
    limits = {"body_bytes": 1000, "header_bytes": 2048}
    with nginx_before(nginx, tmp_path, nodes(instances), **limits) as front:
        assert front.request(method="POST", body=b"x" * 1000)[0] == 200
        assert front.request(method="POST", body=b"x" * 1001)[0] == 413
        assert front.request(X_Long="x" * 1900)[0] == 200
        assert front.request(X_Long="x" * 3000)[0] == 431
        assert front.request(**{f"X_{number}": "x" * 1900 for number in range(6)})[0] == 431
        assert front.request("/" + "x" * 3000)[0] == 414
    assert sum(len(instance.requests) for instance in instances) == 2


@pytest.mark.guarantee(
    "what a client claims about itself is replaced",
    pattern="balancing",
    under="forged X-Forwarded-… and X-Request-…",
)
def test_forwarding_headers_of_a_client_are_replaced(
    nginx: Program, instances: list[Instance], tmp_path: Path
) -> None:
    lies = {
        "X_Forwarded_For": "6.6.6.6",
        "X_Forwarded_Proto": "https",
        "X_Forwarded_Host": "evil.example",
        "X_Real_IP": "6.6.6.6",
        "X_Request_ID": "mine",
        "X_Request_Start": "t=0.001",
        "X_Request_Timeout": "86400",
        "Forwarded": "for=6.6.6.6",
    }
    with nginx_before(nginx, tmp_path, nodes(instances[:1]), read_timeout_s=12.5) as front:
        sent_at = time.time()
        assert front.instance_for(Host="shop.example", **lies) == "a"
    headers = instances[0].requests[0][2]
    assert headers["host"] == headers["x-forwarded-host"] == "shop.example"
    assert headers["x-forwarded-for"] == headers["x-real-ip"] == "127.0.0.1"
    assert headers["x-forwarded-proto"] == "http"
    assert len(headers["x-request-id"]) == 32
    assert headers["x-request-timeout"] == "12.5"
    assert abs(float(headers["x-request-start"].removeprefix("t=")) - sent_at) < 5
    assert "forwarded" not in headers


@pytest.mark.control("what a client claims about itself is replaced")
def test_the_control_past_nginx_they_arrive(instances: list[Instance]) -> None:
    host, _, port = instances[0].address.partition(":")
    client = http.client.HTTPConnection(host, int(port), timeout=10)
    client.request("GET", "/", headers={"X-Forwarded-For": "6.6.6.6", "Forwarded": "for=6.6.6.6"})
    assert client.getresponse().status == 200
    client.close()
    headers = instances[0].requests[0][2]
    assert (headers["x-forwarded-for"], headers["forwarded"]) == ("6.6.6.6", "for=6.6.6.6")


@pytest.mark.parametrize("client_idle_s", [5, 0])
def test_idle_connection_survives_a_reload(
    nginx: Program, instances: list[Instance], tmp_path: Path, client_idle_s: float
) -> None:
    with nginx_before(nginx, tmp_path, nodes(instances[:1]), client_idle_s=client_idle_s) as front:
        client = http.client.HTTPConnection("127.0.0.1", front.port, timeout=10)
        client.request("GET", "/")
        client.getresponse().read()
        front.reload()
        if client_idle_s:
            client.request("POST", "/order", b"one")
            answer = client.getresponse()
            assert (answer.status, answer.getheader("connection")) == (200, "close")
        else:  # the control: a request that is sent now is lost
            assert client.sock.recv(1) == b""
        client.close()


def test_other_host_names_are_refused(nginx: Program, instances: list[Instance], tmp_path: Path) -> None:
    names = ("shop.example", "*.shop.example")
    with nginx_before(nginx, tmp_path, nodes(instances[:1]), server_names=names) as front:
        assert front.instance_for(Host="shop.example") == front.instance_for(Host="www.shop.example") == "a"
        assert front.request(Host="evil.example")[0] == 421
    assert len(instances[0].requests) == 2


@pytest.mark.parametrize(("keepalive", "connections"), [(32, 1), (0, 20)])
def test_connections_to_instances_are_reused(
    nginx: Program, instances: list[Instance], tmp_path: Path, keepalive: int, connections: int
) -> None:
    with nginx_before(nginx, tmp_path, nodes(instances[:1]), keepalive=keepalive) as front:
        for _ in range(20):
            front.instance_for()
    assert len(instances[0].connections) == connections
