"""Files that requests leave behind: changes in folders, and files that a process has open for writing."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tenfold.settings import Settings
from tenfold.verify.sessions.instances import _named_folders
from tenfold.verify.sessions.local_files import changed_files, changed_open_files, files_with
from tests.support.users import folder_with_a_closed_one
from tests.support.waiting import eventually

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows open modes")


def later(file: Path) -> int:
    """A time after the last change of ``file`` and before any other one."""
    probe = file.with_name(".clock")

    def moves() -> int:
        probe.write_text("")
        now = probe.stat().st_ctime_ns
        return now if now > file.stat().st_ctime_ns else 0

    return eventually(moves)


def test_new_and_changed_files_are_found(tmp_path: Path) -> None:
    for name in ("same", "other", ".hidden/kept", "__pycache__/a", "venv/pyvenv.cfg", "venv/b", "private/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    os.mkfifo(tmp_path / "pipe")
    private = tmp_path / "private"
    everything = changed_files([tmp_path], since_ns=0, without=private)
    assert everything == {tmp_path / "same", tmp_path / "other"}
    since_ns = later(tmp_path / "private" / "c")
    (tmp_path / "other").write_text("22")
    (tmp_path / "new").write_text("session 4711")
    found = changed_files([tmp_path], since_ns=since_ns, without=private) - {tmp_path / ".clock"}
    assert found == {tmp_path / "new", tmp_path / "other"}
    assert files_with(["4711"], found) == [tmp_path / "new"]
    assert files_with(["", "other"], found) == [tmp_path / "other"]
    assert files_with(["", "absent"], found) == []


@pytest.mark.control("files that requests leave behind are named")
@pytest.mark.parametrize("name", ["app.log", "app.log.1", "module.pyc", "logs/today"])
def test_logs_are_ignored(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    with file.open("w") as opened:
        opened.write("x")
        opened.flush()
        assert file not in changed_open_files([os.getpid()], since_ns=0)
    assert changed_files([tmp_path], since_ns=0) == set()


@pytest.mark.control("files that requests leave behind are named")
def test_file_that_is_deleted_again_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "upload").write_text("x")
    (tmp_path / "upload").unlink()
    assert changed_files([tmp_path], since_ns=0) == set()


@pytest.mark.guarantee("files that requests leave behind are named")
@linux
def test_file_that_stays_open_for_writing_is_found_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    with file.open("w") as opened:
        since_ns = later(file)
        assert file not in changed_open_files([os.getpid()], since_ns=since_ns)  # the control: not written
        opened.write("x")
        opened.flush()
        assert file in changed_open_files([os.getpid()], since_ns=since_ns)
    with file.open():
        assert file not in changed_open_files([os.getpid()], since_ns=0)  # the control: open for reading


def test_ended_process_has_no_open_files() -> None:
    assert changed_open_files([2**22 + 1], since_ns=time.time_ns()) == set()


def test_folders_of_other_users_are_passed_over() -> None:
    with folder_with_a_closed_one() as folder:
        (folder / "mine").write_text("4711")
        with pytest.raises(PermissionError):  # the control
            (folder / "closed" / "inner").is_dir()
        found = changed_files([folder, folder / "closed"], since_ns=0)
        assert found == {folder / "mine", folder / "unreadable"}
        assert files_with(["4711"], found) == [folder / "mine"]
        named = {"A": str(folder), "B": str(folder / "closed" / "inner"), "C": "/no/such/folder"}
        assert _named_folders(Settings.model_validate({"service": {"environment": named}})) == {folder}
