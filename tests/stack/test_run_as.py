"""Servers run as an unprivileged account under root, otherwise as the user that runs tenfold."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
import pytest

from tenfold.errors import DependencyError
from tenfold.stack import Stack
from tenfold.stack.run_as import closed_folder
from tests.stack.conftest import HERE, SOURCES, settings_for

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def test_closed_folder_returns_the_highest_closed_parent(tmp_path: Path) -> None:
    base = Path(tempfile.mkdtemp(prefix="c-"))
    base.chmod(0o755)
    deep = base / "a" / "b"
    deep.mkdir(parents=True)
    for folder in (deep.parent, deep):
        folder.chmod(0o755)
    assert closed_folder(deep / "program") is None
    deep.parent.chmod(0o700)
    assert closed_folder(deep / "program") == deep.parent


@as_root
def test_as_root_only_the_app_and_the_nginx_master_run_as_root(running: Stack) -> None:
    for server in running.servers:
        users = [psutil.Process(pid).uids().real for pid in server.pids()]
        if server.kind == "app":
            assert set(users) == {0}
        elif server.kind == "nginx":
            assert users[0] == 0
            assert all(users[1:])
        else:
            assert all(users)


@as_root
def test_as_root_program_below_a_closed_folder_is_refused_in_one_sentence() -> None:
    closed = Path(tempfile.mkdtemp(prefix="c-"))  # 0700
    shutil.copy("/bin/true", closed / "redis-server")
    with pytest.raises(DependencyError) as caught:
        Stack(settings_for("", database=False, redis_server=closed / "redis-server")).start()
    assert f"because {closed} is closed to other users: install tenfold outside of it" in str(caught.value)
    assert "\n" not in str(caught.value)


def interpreter_for_all() -> str | None:
    """Return a Python of this version that any user may run, if there is one."""
    for path in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        nobody = {"user": "nobody", "extra_groups": [], "cwd": "/"}
        try:
            subprocess.run([path, "-c", ""], check=True, capture_output=True, **nobody)
        except (OSError, subprocess.CalledProcessError):
            continue
        return path
    return None


SCRIPT = """
import json, os, sys
from pathlib import Path
from tenfold.settings import ServiceSettings, Settings, StackSettings
from tenfold.stack import Stack
settings = Settings(
    root=Path(sys.argv[1]), service=ServiceSettings(app="plain:app"), stack=StackSettings(replicas=1)
)
with Stack(settings) as stack:
    import urllib.request, psutil
    users = {psutil.Process(pid).uids().real for server in stack.servers for pid in server.pids()}
    answer = urllib.request.urlopen(stack.url).status
    parent = stack.probe_address.parent.parent
    mode = oct(parent.stat().st_mode & 0o777)
print(json.dumps({"users": list(users), "answer": answer, "mode": mode, "left": os.listdir(parent)}))
"""


@as_root
def test_ordinary_user_runs_the_whole_stack_as_themselves(tmp_path: Path) -> None:
    python = interpreter_for_all()
    if python is None:
        pytest.skip("no interpreter that user nobody may run")
    base = Path(tempfile.mkdtemp(prefix="u-"))
    base.chmod(0o777)
    shutil.copy(HERE / "plain.py", base)
    packages = [path for path in sys.path if path.endswith("site-packages")]
    environment = {
        "PATH": "/usr/bin:/bin",
        "TMPDIR": str(base),
        "PYTHONPATH": os.pathsep.join([str(SOURCES), *packages]),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    ran = subprocess.run(
        [python, "-c", SCRIPT, str(base)],
        user="nobody", group="nogroup", extra_groups=[], cwd=base, env=environment,
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout)
    assert told == {"users": [65534], "answer": 200, "mode": "0o700", "left": ["lock"]}
