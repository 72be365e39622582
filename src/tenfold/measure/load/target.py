"""Checks of a target before it is loaded: it is on this machine or owned, and it listens."""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import SplitResult, urlsplit

from tenfold.errors import TargetError

Resolve = Callable[[str, int], Sequence[Any]]
FLAG = "--i-own-this-target"


def require_loopback(url: str, *, owned: bool, resolve: Resolve | None = None) -> None:
    """Refuse a target that is not on this machine, unless the user says that it is theirs.

    Args:
        url: ``http://`` or ``https://``, with a host.
        owned: the user says that the target may be loaded; then only the form of the URL is checked.
        resolve: maps host and port to addresses; :func:`socket.getaddrinfo` by default.

    Raises:
        TargetError: for another scheme, no host, a host that does not resolve, or one address that is not
            loopback. The name is resolved again when requests are sent; what a name server answers then is
            outside this check.
    """
    parts = _split(url)
    if owned:
        return
    port = parts.port or (443 if parts.scheme == "https" else 80)
    host = parts.hostname or ""
    try:
        found = (resolve or _getaddrinfo)(host, port)
    except OSError as error:
        raise TargetError(f"the host {host} of the target cannot be resolved; check the URL") from error
    foreign = [str(entry[4][0]) for entry in found if not _is_loopback(str(entry[4][0]))]
    if foreign or not found:
        where = f" ({foreign[0]})" if foreign and foreign[0] != host else ""
        raise TargetError(
            f"{host}{where} is not this machine; add {FLAG} when the service is yours to put under load"
        )


def require_listening(url: str, *, timeout_s: float = 5.0) -> None:
    """Connect once and close the connection.

    Raises:
        TargetError: nothing accepts the connection in time.
    """
    parts = _split(url)
    address = (parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    try:
        socket.create_connection(address, timeout=timeout_s).close()
    except OSError as error:
        why = (
            "refuses connections"
            if isinstance(error, ConnectionRefusedError)
            else f"does not answer ({error})"
        )
        raise TargetError(
            f"{without_credentials(url)} {why}; start the service, or give the address where it listens"
        ) from error


def without_credentials(url: str) -> str:
    """The URL without user name and password."""
    return re.sub(r"(^[a-z]+://)?.*@", r"\1", url, flags=re.DOTALL)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        at_behind_host = "@" in parts.path + parts.query + parts.fragment
    except ValueError:
        is_url = at_behind_host = False
    if at_behind_host:  # a password with a slash in it would pass as host, port and path
        raise TargetError(
            "the URL of the service has an @ behind its host; write a password's signs as %40, %2F"
        )
    if not is_url:
        raise TargetError(f"{url.rpartition('@')[2]!r} is no URL of a service; write http://host:port")
    return parts


def _getaddrinfo(host: str, port: int) -> Sequence[Any]:
    return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address.partition("%")[0])
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback
