"""The next start ends what a killed owner left, and leaves the stack of a running owner alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tenfold.stack import Stack, cleanup, workdir
from tenfold.stack.processes import MARK, SessionLeader
from tests.stack.conftest import HERE, SOURCES, lives, python, small
from tests.support.waiting import eventually

ROOT = HERE.parents[2]


@contextmanager
def owner(*what: str) -> Iterator[tuple[subprocess.Popen[str], dict]]:
    paths = [str(SOURCES), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with python("-m", "tests.stack.support.owner", *what, cwd=ROOT, env=environment) as process:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        try:
            yield process, json.loads(line)
        finally:
            process.terminate() if process.poll() is None else None
            process.kill()


@pytest.mark.guarantee("the next start cleans up", pattern="stack", under="kill -9 of the owner")
def test_next_start_ends_and_removes_the_stack_of_a_killed_owner() -> None:
    with owner("database") as (process, told):
        process.kill()
        process.wait()
        assert all(lives(pid) for pid in told["pids"])  # the damage: servers without an owner
        with Stack(small("")):
            assert not [pid for pid in told["pids"] if lives(pid)]
            assert not Path(told["folder"]).exists()


@pytest.mark.guarantee("the next start cleans up")
def test_next_start_ends_orphans_whose_leaders_were_killed_too() -> None:
    with owner() as (process, told):
        process.kill()
        process.wait()
        mains = [pid for pid in told["pids"] if os.getsid(pid) == pid]
        for pid in mains:
            psutil.Process(pid).kill()
        orphans = [pid for pid in told["pids"] if pid not in mains]
        assert all(lives(pid) for pid in orphans)
        assert len(orphans) >= 2  # granian's worker and nginx's
        with Stack(small("")):
            assert not [pid for pid in orphans if lives(pid)]
            assert not Path(told["folder"]).exists()


@pytest.mark.control("the next start cleans up")
def test_stack_of_a_running_owner_is_left_alone() -> None:
    with owner() as (process, told):
        with Stack(small("")):
            pass
        assert all(lives(pid) for pid in told["pids"])
        assert urllib.request.urlopen(told["url"], timeout=5).status == 200
        process.kill()
        process.wait()
        with Stack(small("")):
            assert not [pid for pid in told["pids"] if lives(pid)]


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that no stack has started, leader of a session of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    )
    yield process
    process.kill()
    process.wait()


def dead_stack(*entries: cleanup.RegisteredProgram) -> Path:
    """Make the folder of a stack whose owner is gone."""
    folder = Path(tempfile.mkdtemp(dir=workdir.parent_folder()))
    gone = SessionLeader(os.getpid(), "another process that once had this pid")
    cleanup.write_registry(folder, cleanup.ProcessRegistry(owner=gone, entries=entries))
    return folder


@pytest.mark.control("the next start cleans up")
def test_process_with_a_recycled_pid_is_left_alone(stranger: subprocess.Popen[bytes]) -> None:
    entry = cleanup.RegisteredProgram(
        "redis", SessionLeader(stranger.pid, "when another process had this pid"), 15
    )
    folder = dead_stack(entry)
    cleanup.clean_up(workdir.parent_folder())
    assert not folder.exists()
    assert stranger.poll() is None
    # The control: with the right start time in the registry it is ended.
    dead_stack(cleanup.RegisteredProgram("redis", SessionLeader.of(stranger.pid), 15))
    cleanup.clean_up(workdir.parent_folder())
    assert eventually(lambda: stranger.poll() is not None)


def test_unregistered_process_is_found_by_its_mark() -> None:
    """The owner may be killed between a start and its entry in the registry."""
    folder = dead_stack()
    command = [sys.executable, "-c", "input()"]
    marked, other = (
        subprocess.Popen(
            command, stdin=subprocess.PIPE, start_new_session=True, env={**os.environ, MARK: mark}
        )
        for mark in (str(folder), f"{folder}x")
    )
    try:
        cleanup.clean_up(workdir.parent_folder())
        assert eventually(lambda: marked.poll() is not None)
        assert other.poll() is None
    finally:
        for process in (marked, other):
            process.kill()
            process.wait()


def test_foreign_process_inside_the_folder_is_left_alone() -> None:
    folder = dead_stack()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, cwd=folder) as visitor:
        cleanup.clean_up(workdir.parent_folder())
        assert not folder.exists()
        assert visitor.poll() is None
        visitor.kill()


def test_folder_without_a_registry_is_removed() -> None:
    folder = Path(tempfile.mkdtemp(dir=workdir.parent_folder()))
    (folder / "half").mkdir()
    assert cleanup.clean_up(workdir.parent_folder()) == [folder]
    assert not folder.exists()


def test_symbolic_link_in_the_parent_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    link = workdir.parent_folder() / "link"
    link.symlink_to(tmp_path)
    try:
        cleanup.clean_up(workdir.parent_folder())
        assert (tmp_path / "precious").exists()
    finally:
        link.unlink()
