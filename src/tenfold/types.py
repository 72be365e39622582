"""Values and protocols that several packages share. No logic."""

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
    """The result of a check."""

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
        """``app``, ``primary``, ``replica``, ``redis`` or ``nginx``."""

    @property
    def name(self) -> str:
        """A name that is unique in the stack: ``app 2``, ``replica 1``; the kind where there is only one."""

    @property
    def url(self) -> str:
        """Its address, password included: the caller decides whether to print it."""

    @property
    def admin_url(self) -> str:
        """A database's address as its superuser, password included; ``url`` for other servers."""

    @property
    def log(self) -> Path:
        """The file with its stdout and stderr."""

    def pids(self) -> tuple[int, ...]:
        """The running processes of its group, the leader first; empty when it has ended."""


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
        """The folder of the service's code: call sites are shown relative to it."""

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
        """Start a server of this stack again, on the same port; one that runs is stopped first."""

    def replace(self, server: Server) -> object:
        """Replace an app instance without failing a request."""

    def scale(self, count: int) -> object:
        """Start or end app instances without failing a request."""
