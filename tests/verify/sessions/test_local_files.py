"""Files that requests leave behind: changes in folders, and files that a process has open for writing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tenfold.verify.sessions.local_files import changed_files, files_with, open_files, snapshot

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows open modes")


def test_new_and_changed_files_are_found(tmp_path: Path) -> None:
    for name in ("same", "other", ".hidden/kept", "__pycache__/a", "venv/pyvenv.cfg", "venv/b", "private/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    os.mkfifo(tmp_path / "pipe")
    private = tmp_path / "private"
    before = snapshot([tmp_path], without=private)
    assert set(before) == {tmp_path / "same", tmp_path / "other"}
    (tmp_path / "other").write_text("22")
    (tmp_path / "new").write_text("session 4711")
    found = changed_files(before, snapshot([tmp_path], without=private))
    assert found == [tmp_path / "new", tmp_path / "other"]
    assert files_with(["4711"], found) == [tmp_path / "new"]
    assert files_with(["", "other"], found) == [tmp_path / "other"]
    assert files_with(["", "absent"], found) == []


@pytest.mark.parametrize("name", ["app.log", "app.log.1", "module.pyc", "logs/today"])
def test_logs_are_ignored(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    with file.open("w") as opened:
        opened.write("x")
        opened.flush()
        assert file not in open_files([os.getpid()])
    assert snapshot([tmp_path]) == {}


def test_file_that_is_deleted_again_is_ignored(tmp_path: Path) -> None:
    before = snapshot([tmp_path])
    (tmp_path / "upload").write_text("x")
    (tmp_path / "upload").unlink()
    assert changed_files(before, snapshot([tmp_path])) == []


@linux
def test_file_that_stays_open_for_writing_is_found_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    with file.open("w") as opened:
        before = open_files([os.getpid()])
        assert file in before
        assert changed_files(before, open_files([os.getpid()])) == []
        opened.write("x")
        opened.flush()
        assert file in changed_files(before, open_files([os.getpid()]))
    with file.open():
        assert file not in open_files([os.getpid()])  # the control: open for reading


def test_process_that_has_ended_has_no_open_files() -> None:
    assert open_files([2**22 + 1]) == {}
