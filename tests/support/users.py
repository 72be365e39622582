"""What another user's folder looks like to an ordinary user."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NOBODY = 65534


@contextmanager
def folder_with_a_closed_one() -> Iterator[Path]:
    """Yield a folder with ``closed/``, which this process cannot enter meanwhile, also when it is root."""
    folder = Path(tempfile.mkdtemp(prefix="tenfold-closed-"))
    closed = folder / "closed"
    (closed / "inner").mkdir(parents=True)
    (closed / "inner" / "file").write_text("x")
    (folder / "unreadable").write_text("x")
    folder.chmod(0o777)
    (folder / "unreadable").chmod(0)
    closed.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield folder
    finally:
        if user == 0:
            os.seteuid(0)
        closed.chmod(0o700)
        shutil.rmtree(folder)
