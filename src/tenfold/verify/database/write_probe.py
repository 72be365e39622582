"""Somebody who writes through a service and knows whether its reads show it: shared by the checks."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING

from tenfold.database.replay_pause import wait_for_replicas
from tenfold.errors import TargetError
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.kit.useragent import Answer, UserAgent

if TYPE_CHECKING:
    from tenfold.database.settings import DatabaseSettings

Enter = Callable[[], UserAgent]
"""Comes in as a new visitor, signed in where the service knows users."""

_VALUE = "{value}"
_EXAMPLES = {"read": "GET /api/orders", "write": "POST /api/orders"}


@dataclass(slots=True)
class Shown:
    """Which texts show the last write: those with its value, or without values those not shown before."""

    named: bool
    value: str = ""
    _older: set[bytes] = field(default_factory=set)
    _latest: set[bytes] = field(default_factory=set)

    def wrote(self, value: str) -> None:
        """From now on what was shown is old."""
        self.value = value
        self._older |= self._latest
        self._latest = set()

    def by(self, text: str) -> bool:
        """Whether this text shows the last write."""
        if self.named:
            return self.value in text
        digest = sha256(text.encode()).digest()
        if digest in self._older:
            return False
        self._latest.add(digest)
        return True


@dataclass(frozen=True, slots=True)
class Witness:
    """A visitor who writes and reads; others may read what was written, see :meth:`sees`."""

    settings: DatabaseSettings
    agent: UserAgent
    shown: Shown

    def write(self) -> None:
        """Write something new.

        Raises:
            TargetError: the service did not take it.
        """
        value = secrets.token_hex(8)
        line = self.settings.write
        answer = self.agent.ask(line, body=self.settings.write_body, values={"value": value})
        if not answer.ok:
            raise TargetError(f"{line} answers {answer.status}: {_look(answer.status, 'write')}")
        self.shown.wrote(value)

    def sees(self, reader: UserAgent | None = None) -> bool:
        """Whether the declared read shows the last write, to its writer or to another reader.

        Raises:
            TargetError: it is not answered with 2xx.
        """
        return self.shown.by(asked(self.settings, reader or self.agent).text)

    def confirm(self, stack: Stack) -> None:
        """Return when the last write is seen with every replica up to date.

        Raises:
            TargetError: it is not even then, so that it was not the replicas that hid it.
        """
        settled(stack)
        if not self.sees():
            raise TargetError(
                f"{self.settings.read} does not show what {self.settings.write} wrote, although every "
                f"replica has it: correct database.read, or let database.write_body hold {_VALUE}"
            )


def asked(settings: DatabaseSettings, reader: UserAgent) -> Answer:
    """The answer of the declared read.

    Raises:
        TargetError: it is none, or no 2xx.
    """
    answer = reader.ask(settings.read)
    if not answer.ok:
        raise TargetError(f"{settings.read} answers {answer.status}: {_look(answer.status, 'read')}")
    return answer


def undeclared(check: str, settings: DatabaseSettings, *keys: str) -> Finding | None:
    """The finding of a check that needs requests which are not declared; None when all are."""
    missing = [key for key in keys if not getattr(settings, key)]
    if not missing:
        return None
    names = " and ".join(f"database.{key}" for key in missing)
    claim = f"{names} {'is' if len(missing) == 1 else 'are'} not set"
    remedy = f'set database.{missing[0]}, for example {missing[0]} = "{_EXAMPLES[missing[0]]}"'
    return Finding(check, claim, Verdict.SKIP, remedy=remedy)


def witness(stack: Stack, settings: DatabaseSettings, enter: Enter) -> Witness:
    """Somebody whose reads show their writes once the replicas have them; the rest is for the checks.

    Raises:
        TargetError: a request is not answered, or what ``read`` answers does not show what ``write`` wrote.
    """
    named = _VALUE in settings.write + settings.write_body
    made = Witness(settings, enter(), Shown(named))
    first = asked(settings, made.agent).text
    if not named and asked(settings, made.agent).text != first:
        raise TargetError(
            f"{settings.read} answers differently each time: let database.write_body hold {_VALUE}, which "
            "it shows"
        )
    made.shown.by(first)
    made.write()
    made.confirm(stack)
    return made


def settled(stack: Stack) -> None:
    """Return when every replica has what the primary has.

    Raises:
        TargetError: one does not within 30 s.
    """
    wait_for_replicas(primary(stack).admin_url, [server.admin_url for server in replicas(stack)])


def primary(stack: Stack) -> Server:
    """The server that takes writes."""
    return next(server for server in stack.servers if server.kind == "primary")


def replicas(stack: Stack) -> list[Server]:
    """Its replicas, in their order."""
    return [server for server in stack.servers if server.kind == "replica"]


def _look(status: int, key: str) -> str:
    if status == 429:
        return "let the stack's instances allow more requests"
    return "see the log of the app" if status >= 500 else f"correct database.{key}"
