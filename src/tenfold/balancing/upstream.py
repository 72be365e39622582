"""Nodes behind a balancer, as values. Pure; :mod:`tenfold.balancing.nginx` renders them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tenfold.errors import SettingsError

METHODS = ("least_conn", "round_robin", "random_two", "ip_hash", "hash", "sticky")
WITHOUT_BACKUP = ("random_two", "ip_hash", "hash")
"""Methods for which nginx refuses backup servers."""

_ADDRESS = re.compile(r"(\[[0-9a-f:]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?):([1-9]\d{0,4})", re.ASCII)
_SOCKET = re.compile(r"unix:(/[A-Za-z0-9._-]+)+", re.ASCII)
_ANY_HOST = re.compile(r"(?:\*:)?([1-9]\d{0,4})", re.ASCII)
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST = re.compile(rf"(\*\.)?{_LABEL}(\.{_LABEL})*", re.ASCII)
_KEY = re.compile(r"uri|client|(?P<kind>cookie|header|argument):(?P<name>[A-Za-z0-9_-]{1,64})", re.ASCII)


def require_address(address: str) -> None:
    """Refuse an address that is neither host and port nor a Unix socket: nginx could read it as more.

    Raises:
        SettingsError: it is neither.
    """
    if _SOCKET.fullmatch(address):
        return
    if not _ADDRESS.fullmatch(address):
        raise SettingsError(
            f"nginx: {address!r} cannot be written into nginx.conf: "
            "an address should look like 127.0.0.1:8000 or unix:/run/app.sock"
        )
    if int(address.rpartition(":")[2]) > 65535:
        raise SettingsError(f"nginx: {address!r} has no port below 65536")


def require_listen(address: str) -> None:
    """Refuse what nginx cannot listen on; besides addresses that is a port of all interfaces, ``80``.

    Raises:
        SettingsError: it is neither an address nor a port.
    """
    port = _ANY_HOST.fullmatch(address)
    require_address(f"0.0.0.0:{port[1]}" if port else address)


def is_host_name(name: str) -> bool:
    """Return whether ``name`` is a host name, possibly with a leading ``*.``."""
    return len(name) <= 253 and _HOST.fullmatch(name) is not None


def is_hash_key(key: str) -> bool:
    """Return whether requests can be hashed by ``key``."""
    found = _KEY.fullmatch(key)
    # nginx has no dash in the name of a variable; a header's becomes an underscore.
    return found is not None and not (found["kind"] in ("cookie", "argument") and "-" in found["name"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One instance behind the balancer.

    Attributes:
        address: host and port, or ``unix:/path``.
        weight: its share in relation to the others'.
        backup: gets requests only when every other node is down.
        down: gets none; it keeps its place, so that hashes to the others stay.
    """

    address: str
    weight: int = 1
    backup: bool = False
    down: bool = False

    def __post_init__(self) -> None:
        """Refuse values that could open a directive of their own."""
        require_address(self.address)
        if type(self.weight) is not int or not 1 <= self.weight <= 1000:
            raise SettingsError(
                f"nginx: the weight of {self.address} should be a whole number from 1 to 1000"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upstream:
    """The nodes, and the method by which requests are distributed among them.

    Attributes:
        nodes: at least one.
        method: one of :data:`METHODS`.
        hash_key: the key of "hash": ``uri``, ``client``, or the NAME of a ``cookie:``, ``header:`` or
            ``argument:``.
        max_fails: failures within ``fail_timeout_s`` after which a node is left alone as long; 0 is never.
        fail_timeout_s: whole seconds.
        keepalive: idle connections to the nodes that each worker keeps.
        keepalive_idle_s: how long it keeps one, seconds; less than the nodes do.
        tries: nodes that one request is sent to, at most. A request that is not idempotent is passed on
            only while nothing of it was sent.
        connect_timeout_s: longest wait for a connection, seconds.
        read_timeout_s: longest silence of a node, seconds.

    Raises:
        SettingsError: nginx could read a value as something else.
    """

    nodes: tuple[Node, ...]
    method: str = "least_conn"
    hash_key: str = "uri"
    max_fails: int = 3
    fail_timeout_s: int = 5
    keepalive: int = 32
    keepalive_idle_s: float = 4.0
    tries: int = 3
    connect_timeout_s: float = 5.0
    read_timeout_s: float = 30.0

    def __post_init__(self) -> None:
        """Refuse values that do not fit together, or could open a directive of their own."""
        if not self.nodes:
            raise SettingsError("nginx needs at least one app instance behind it")
        if self.method not in METHODS:
            raise SettingsError(f"nginx: method {self.method!r} should be one of {', '.join(METHODS)}")
        if not is_hash_key(self.hash_key):
            raise SettingsError(f"nginx: requests cannot be hashed by {self.hash_key!r}")
        if self.method in WITHOUT_BACKUP and any(node.backup for node in self.nodes):
            raise SettingsError(f"nginx: method {self.method} knows no backup servers")
        if all(node.backup for node in self.nodes):
            raise SettingsError("nginx: all instances are backups, so that there is nothing to back up")
        for number in (self.max_fails, self.keepalive):
            require_number(number, least=0)
        for number in (self.fail_timeout_s, self.tries):
            require_number(number)
        for seconds in (self.keepalive_idle_s, self.connect_timeout_s, self.read_timeout_s):
            require_seconds(seconds)


def require_number(number: int, *, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if type(number) is not int or number < least:
        raise SettingsError(f"nginx: {number!r} should be a whole number, at least {least}")


def require_seconds(seconds: float) -> None:
    """Refuse anything but a duration of at least a millisecond."""
    if type(seconds) not in (int, float) or not 0.001 <= seconds < math.inf:
        raise SettingsError(f"nginx: {seconds!r} should be a number of seconds above 0")
