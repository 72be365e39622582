"""What a process writes to disk is seen, by its open files and by what changed; what is no state is not."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tenfold.verify.sessions.local_files import Watch, changed, holding, snapshot

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows open files")


def written_while(body: Callable[[], None], *, passed: Path | None = None) -> list[Path]:
    with Watch([os.getpid()], passed=[passed] if passed else []) as watch:
        body()
    return watch.written()


@contextmanager
def again_and_again(body: Callable[[], None]) -> Iterator[None]:
    """As requests do: shortly, but often."""
    over = threading.Event()

    def repeat() -> None:
        while not over.is_set():
            body()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@linux
def test_a_file_that_is_written_again_and_again_is_seen(tmp_path: Path) -> None:
    file = tmp_path / "kept"
    watch = Watch([os.getpid()])
    with watch, again_and_again(lambda: file.write_text("x")):
        deadline = time.monotonic() + 10
        while file not in watch.written() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert file in watch.written()
    assert watch.processes == 1


@linux
def test_what_is_open_but_not_written_is_left_out(tmp_path: Path) -> None:
    with (tmp_path / "kept").open("w") as file:
        assert tmp_path / "kept" not in written_while(lambda: time.sleep(0.05))

        def write() -> None:
            file.write("x")
            file.flush()

        assert tmp_path / "kept" in written_while(write)


@linux
@pytest.mark.parametrize("name", ["app.log", "app.log.1", "module.pyc", "logs/today"])
def test_logs_are_no_state(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)

    def write() -> None:
        with file.open("w") as opened:
            opened.write("x")
            time.sleep(0.05)

    assert file not in written_while(write)


@linux
def test_what_is_gone_afterwards_ties_nobody_to_an_instance(tmp_path: Path) -> None:
    def upload() -> None:
        with tempfile.NamedTemporaryFile(dir=tmp_path) as file:
            file.write(b"x")
            file.flush()
            time.sleep(0.05)

    assert [file for file in written_while(upload) if file.is_relative_to(tmp_path)] == []


@linux
def test_a_folder_can_be_passed_over(tmp_path: Path) -> None:
    def write() -> None:
        with (tmp_path / "kept").open("w") as opened:
            opened.write("x")
            time.sleep(0.05)

    assert tmp_path / "kept" in written_while(write)
    (tmp_path / "kept").unlink()
    assert tmp_path / "kept" not in written_while(write, passed=tmp_path)


def test_what_changed_between_two_snapshots(tmp_path: Path) -> None:
    for name in ("same", "other", ".hidden/kept", "__pycache__/a", "venv/pyvenv.cfg", "venv/b", "private/c"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
    os.mkfifo(tmp_path / "pipe")
    private = tmp_path / "private"
    before = snapshot([tmp_path], passed=private)
    assert set(before) == {tmp_path / "same", tmp_path / "other"}
    (tmp_path / "other").write_text("22")
    (tmp_path / "new").write_text("session 4711")
    found = changed(before, snapshot([tmp_path], passed=private))
    assert found == [tmp_path / "new", tmp_path / "other"]
    assert holding(found, ["4711"]) == [tmp_path / "new"]
    assert holding(found, ["", "nobody"]) == []
