"""The parent folder of all stacks: private to its user, one start at a time."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tenfold.errors import StackError
from tenfold.stack import workdir


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a parent folder that does not exist yet."""
    folder = Path(tempfile.mkdtemp(prefix="e-"))
    folder.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder / f"tenfold-{os.geteuid()}"


def test_parent_folder_is_private(elsewhere: Path) -> None:
    assert workdir.parent_folder() == elsewhere
    assert elsewhere.stat().st_mode & 0o777 == 0o700
    assert workdir.parent_folder() == elsewhere


def test_symbolic_link_as_parent_folder_is_refused(elsewhere: Path, tmp_path: Path) -> None:
    elsewhere.symlink_to(tmp_path)
    with pytest.raises(StackError, match="not a folder of yours alone"):
        workdir.parent_folder()


def test_parent_folder_writable_by_others_is_refused(elsewhere: Path) -> None:
    elsewhere.mkdir()
    elsewhere.chmod(0o777)
    with pytest.raises(StackError, match="not a folder of yours alone"):
        workdir.parent_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_parent_folder_of_another_user_is_refused(elsewhere: Path) -> None:
    elsewhere.mkdir(mode=0o700)
    os.chown(elsewhere, 65534, 65534)
    with pytest.raises(StackError, match="not a folder of yours alone"):
        workdir.parent_folder()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root starts PostgreSQL as another user")
def test_as_root_closed_temporary_folder_is_refused(elsewhere: Path) -> None:
    elsewhere.parent.chmod(0o700)
    with pytest.raises(StackError, match=r"is closed to other users.*set TMPDIR=/tmp"):
        workdir.create_workdir()


def test_path_too_long_for_unix_sockets_is_refused(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = elsewhere.parent / ("d" * 80)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with pytest.raises(StackError, match="too long a path"):
        workdir.create_workdir()


def test_lock_excludes_other_starts_and_is_released_when_its_holder_is_killed(elsewhere: Path) -> None:
    parent = workdir.parent_folder()
    hold = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(flush=True); input()"
    command = [sys.executable, "-c", hold, str(parent / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with (
            pytest.raises(StackError, match="another start has held"),
            workdir.lock_parent(parent, timeout_s=0.2),
        ):
            pass
        holder.kill()
        with workdir.lock_parent(parent, timeout_s=5):
            pass
