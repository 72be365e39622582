from __future__ import annotations

import socket
from typing import Any

import pytest

from tenfold.errors import TargetError
from tenfold.measure.load.target import require_listening, require_loopback, without_credentials


def resolves_to(*addresses: str) -> Any:
    return lambda host, port: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in addresses]


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://[::1]:8000/", "https://127.9.9.9", "http://a:b@127.0.0.1"]
)
def test_loopback_target_is_accepted(url: str) -> None:
    require_loopback(url, owned=False)


@pytest.mark.parametrize(
    ("url", "addresses"),
    [
        ("http://shop.example", ["93.184.216.34"]),
        ("http://shop.example", ["127.0.0.1", "10.0.0.1"]),  # one loopback address is not enough
        ("http://10.1.2.3:80", ["10.1.2.3"]),
        ("http://0.0.0.0", ["0.0.0.0"]),
        ("http://shop.example", []),
    ],
)
def test_other_machine_is_refused_unless_owned(url: str, addresses: list[str]) -> None:
    with pytest.raises(TargetError, match="--i-own-this-target"):
        require_loopback(url, owned=False, resolve=resolves_to(*addresses))
    require_loopback(url, owned=True, resolve=resolves_to(*addresses))


def test_ipv4_mapped_loopback_is_loopback() -> None:
    require_loopback("http://six.example", owned=False, resolve=resolves_to("::ffff:127.0.0.1", "::1"))


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://127.0.0.1:nan", "file:///etc/passwd"]
)
@pytest.mark.parametrize("owned", [True, False])
def test_invalid_url_is_refused(url: str, owned: bool) -> None:
    with pytest.raises(TargetError, match="no URL of a service"):
        require_loopback(url, owned=owned)


def test_unresolvable_host_is_refused() -> None:
    def unknown(host: str, port: int) -> Any:
        raise socket.gaierror("no such host")

    with pytest.raises(TargetError, match="cannot be resolved"):
        require_loopback("http://nowhere.example", owned=False, resolve=unknown)


def test_password_is_not_in_messages() -> None:
    assert without_credentials("http://me:secret@127.0.0.1:1/") == "http://127.0.0.1:1/"
    with pytest.raises(TargetError) as caught:
        require_loopback("ftp://me:secret@127.0.0.1", owned=False)
    assert "secret" not in str(caught.value)


def test_port_without_listener_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TargetError, match="refuses connections; start the service"):
            require_listening(url)
        taken.listen()
        require_listening(url)
