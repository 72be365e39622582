"""What a stack has started, on disk, so that somebody else can clean up after a killed owner."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from tenfold.stack.processes import Leader

NAME = "ledger.json"


class Entry(msgspec.Struct, frozen=True):
    """One started program: the leader of its session, and the signal that ends it."""

    name: str
    leader: Leader
    signal: int


class Ledger(msgspec.Struct, frozen=True):
    """The owner of a stack and everything that it started."""

    owner: Leader
    programs: tuple[str, ...] = ()  # real paths of the servers' executables
    entries: tuple[Entry, ...] = ()


def write(folder: Path, ledger: Ledger) -> None:
    """Replace the ledger of ``folder`` in one step: a reader sees the old one or the new one."""
    draft = folder / f"{NAME}.new"
    draft.write_bytes(msgspec.json.encode(ledger))
    os.replace(draft, folder / NAME)  # noqa: PTH105 - Path.replace hides that this is the atomic one


def read(folder: Path) -> Ledger | None:
    """The ledger of ``folder``; None when there is none, or none that can be read."""
    try:
        return msgspec.json.decode((folder / NAME).read_bytes(), type=Ledger)
    except (OSError, msgspec.MsgspecError):
        return None
