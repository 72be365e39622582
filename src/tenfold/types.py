"""The values and protocols that the folders hand to each other. No logic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Protocol


@dataclass(frozen=True, slots=True)
class File:
    """A rendered configuration: a relative path and its text."""

    path: PurePosixPath
    text: str


class Verdict(StrEnum):
    """How a check ended."""

    PASS = "pass"  # noqa: S105 - a verdict, not a password
    FAIL = "fail"
    SKIP = "skip"


@dataclass(frozen=True, slots=True)
class Finding:
    """A check's claim with its numbers and its verdict."""

    check: str
    claim: str
    verdict: Verdict
    numbers: Mapping[str, float | int | str] = field(default_factory=dict)
    remedy: str = ""


class Server(Protocol):
    """One running server of a stack: a process group, never a single pid."""

    @property
    def kind(self) -> str:
        """What it is: ``app``, ``primary``, ``replica``, ``redis``, ``nginx``."""

    @property
    def name(self) -> str:
        """Which one of its kind: ``app 2``, ``replica 1``; the kind itself when there is one."""

    @property
    def url(self) -> str:
        """Where it listens, password included; printing it is the caller's decision."""

    @property
    def admin_url(self) -> str:
        """A database as its superuser, password included; ``url`` for servers that know no such thing."""

    @property
    def log(self) -> Path:
        """What the server wrote to stdout and stderr."""

    def pids(self) -> tuple[int, ...]:
        """The living processes of its group, the leader first; empty when it ended."""


class Stack(Protocol):
    """The running servers of a service, as the instrument and the checks see them."""

    @property
    def url(self) -> str:
        """The front door: nginx, or the only instance where there is no nginx."""

    @property
    def servers(self) -> Sequence[Server]:
        """Every running server, in the order in which they were started."""

    @property
    def app_folder(self) -> Path:
        """Where the service's own code lives: call sites are shown relative to it."""

    @property
    def database_url(self) -> str | None:
        """The primary, as its owner (``postgresql://``), or None without a database."""

    @property
    def probe_address(self) -> Path:
        """The Unix socket on which the app's probes look for a collector."""

    @property
    def access_log(self) -> Path | None:
        """nginx's JSON access log, or None without nginx."""

    def restart(self, server: Server) -> None:
        """Start a server of this stack again, on the same port; one that runs is ended first."""

    def replace(self, server: Server) -> object:
        """Replace an app instance without failing a request: out of nginx, drained, ended, started, in."""
