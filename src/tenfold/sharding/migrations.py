"""The same migration on all shards: one first, then several at a time; what was interrupted is run again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import NamedTuple

from tenfold.errors import DirectoryError, SettingsError
from tenfold.redaction import redact
from tenfold.sharding.administration import DirectoryStore, connect

__all__ = ["Migrated", "migrate"]

_VERSION = "SELECT string_agg(version_num, ' ' ORDER BY version_num) FROM alembic_version"


class Migrated(NamedTuple):
    """What became of one shard: its revision by ``alembic_version``, or the last line of the command."""

    shard: str
    succeeded: bool
    said: str


def migrate(
    store: DirectoryStore,
    urls: Mapping[str, str],
    command: Sequence[str],
    *,
    variable: str = "DATABASE_URL",
    parallel: int = 4,
    timeout_s: float = 3600.0,
) -> Iterator[Migrated]:
    """Run ``command`` for each shard, with its URL in a variable; yield each outcome as soon as it is known.

    The first shard is the canary: if it fails, no other is touched. A shard that has the revision already is
    left as it is by Alembic, so that a repetition goes on where it was interrupted. Moves are kept out
    meanwhile.

    Raises:
        SettingsError: the command cannot be run.
        DirectoryConflictError: another migration, or a move, is running.
    """

    def run(name: str) -> Migrated:
        return _run(name, urls[name], command, variable=variable, timeout_s=timeout_s)

    with store.exclude_changes():
        canary, *others = urls
        yield (first := run(canary))
        if not first.succeeded:
            return
        with ThreadPoolExecutor(max(1, parallel)) as pool:
            for future in as_completed([pool.submit(run, name) for name in others]):
                yield future.result()


def _run(name: str, url: str, command: Sequence[str], *, variable: str, timeout_s: float) -> Migrated:
    try:
        done = subprocess.run(  # noqa: S603 - the user's own command, and no shell
            list(command),
            env={**os.environ, variable: url, "TENFOLD_SHARD": name},
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Migrated(name, False, f"did not end within {timeout_s:g} s")
    except OSError as error:
        raise SettingsError(f"{command[0]} cannot be run: {error.strerror or error}") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        return Migrated(name, False, redact(lines[-1])[:300])
    try:
        with connect(url, what=f"shard {name}") as connection:
            row = connection.execute(_VERSION).fetchone()
    except DirectoryError:  # no Alembic, or another table of its versions
        row = None
    return Migrated(name, True, (row and row[0]) or "")
