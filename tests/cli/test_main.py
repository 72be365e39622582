"""The entry point: exit codes, help, and errors of one sentence on stderr."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tenfold
from tenfold import cli
from tenfold.cli import main
from tenfold.errors import StackError


@pytest.fixture(autouse=True)
def in_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tenfold", *arguments],
        env=os.environ | environ,
        capture_output=True,
        text=True,
        timeout=60,
    )


def commands() -> list[str]:
    return [name for name in cli.COMMANDS if Path(cli.__file__).with_name(f"{name}.py").exists()]


def test_version_option() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"tenfold {tenfold.__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_every_command(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    shown = capsys.readouterr().out
    assert [line.split()[0] for line in shown.partition("Commands:\n")[2].splitlines()[:-2]] == commands()


@pytest.mark.parametrize("command", commands())
def test_help_of_each_command_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert f"Example: tenfold {command}" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["doctr"], "tenfold: no such command 'doctr'"),
        (["doctor", "--jsn"], "tenfold: no such option: --jsn"),
        (["doctor", "extra"], "tenfold: got unexpected extra argument"),
        (
            ["doctor", "--settings", "tenfold.tml"],
            "tenfold: no file tenfold.tml; did you mean tenfold.toml?\n",
        ),
        (["doctor", "--settings"], "tenfold: option '--settings' requires an argument"),
        (["verify", "--only", "nothing"], "tenfold: no check nothing; tenfold verify --list shows all\n"),
    ],
)
def test_usage_error_is_one_sentence(
    arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tenfold.toml").touch()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(sentence)
    assert printed.err.count("\n") == 1


class Command:
    """Replaces doctor's work, to test main with a command that returns or raises ``result``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def __call__(self, result: Any) -> None:
        def examine(settings: object) -> Any:
            if isinstance(result, BaseException):
                raise result
            return result

        self.monkeypatch.setattr("tenfold.cli.doctor.inspect_tools", examine)


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Command:
    return Command(monkeypatch)


def test_tenfold_error_is_one_sentence(doctor: Command, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(StackError("nginx did not start: port 80 is taken; set stack.port."))
    assert main(["doctor"]) == 2
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == (
        "",
        "tenfold: nginx did not start: port 80 is taken; set stack.port.\n",
    )


@pytest.mark.parametrize("arguments", [["--traceback", "doctor"], ["doctor", "--traceback"]])
def test_traceback_option_shows_a_traceback(
    doctor: Command, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(StackError("nginx did not start"))
    assert main(arguments) == 2
    assert "in examine" in capsys.readouterr().err


def test_traceback_variable_shows_a_traceback(
    doctor: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(StackError("nginx did not start"))
    monkeypatch.setenv("TENFOLD_TRACEBACK", "1")
    assert main(["doctor"]) == 2
    assert "in examine" in capsys.readouterr().err


def test_unexpected_exception_asks_for_a_bug_report(
    doctor: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(ZeroDivisionError())
    assert main(["doctor"]) == 2
    printed = capsys.readouterr().err
    assert "in examine" in printed
    assert printed.endswith("tenfold: this is a bug in tenfold, please report it with the lines above\n")


def test_ctrl_c_exits_with_130_and_prints_nothing(
    doctor: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    doctor(KeyboardInterrupt())
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == ""


def test_ctrl_c_interrupts_a_running_command(tmp_path: Path) -> None:
    program = (
        "import sys, time, tenfold.cli.doctor as doctor\n"
        "def inspect_tools(settings):\n    print('here', flush=True)\n    time.sleep(60)\n"
        "doctor.inspect_tools = inspect_tools\n"
        "from tenfold.cli import main\nsys.exit(main(['doctor']))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, "")


def test_output_encodes_for_an_ascii_terminal() -> None:
    done = run("doctor", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode in {0, 1}
    assert "Machine" in done.stdout
    assert "Traceback" not in done.stderr


def test_closed_stdout_causes_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "tenfold", "doctor"], stdout=closed, stderr=subprocess.PIPE, timeout=60
        )
    assert b"Traceback" not in done.stderr
