"""The unprivileged account for servers when tenfold runs as root: PostgreSQL refuses to be root."""

from __future__ import annotations

import grp
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from tenfold.errors import DependencyError


@dataclass(frozen=True, slots=True)
class Account:
    """An unprivileged user and its group."""

    name: str
    uid: int
    group: str
    gid: int


def unprivileged_account() -> Account | None:
    """Return the account for servers: None unless this process is root, else ``postgres`` or ``nobody``.

    Raises:
        DependencyError: this process is root and the system has neither user.
    """
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(name, user.pw_uid, grp.getgrgid(user.pw_gid).gr_name, user.pw_gid)
    raise DependencyError(
        "PostgreSQL does not run as root and there is no user postgres or nobody to run it as: "
        "create one (useradd --system postgres) or run tenfold as an ordinary user"
    )


def closed_folder(path: Path) -> Path | None:
    """Return the highest folder above ``path`` that users other than its owner cannot enter, or None."""
    for folder in reversed(path.resolve().parents):
        try:
            if not folder.stat().st_mode & 0o001:
                return folder
        except OSError:
            return folder
    return None
