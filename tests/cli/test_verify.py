"""tenfold verify on a stack that stands in for the real one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tenfold.verify
from tenfold.cli import main, verify
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify import Check


def check_with(name: str, kind: Verdict, **options: Any) -> Check:
    def body(stack: Stack, settings: Settings) -> Finding:
        assert stack is not None
        return Finding(name, f"{name} was looked at", kind, **options)

    return Check(name, "measure", body)


PASS, FAIL, SKIP = (check_with(kind.value, kind) for kind in Verdict)


class Lifetime:
    started = stopped = 0


@pytest.fixture(autouse=True)
def lifetime(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Lifetime:
    times = Lifetime()

    @contextmanager
    def started(settings: Settings, *, quiet: bool) -> Iterator[object]:
        times.started += 1
        try:
            yield times
        finally:
            times.stopped += 1

    monkeypatch.setattr(verify, "_running_stack", started)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return times


def with_checks(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(tenfold.verify, "CHECKS", checks)


@pytest.mark.parametrize(
    ("checks", "code"),
    [((PASS,), 0), ((PASS, SKIP), 0), ((SKIP,), 0), ((PASS, FAIL), 1), ((FAIL, SKIP), 1)],
)
def test_exit_code_is_1_if_a_check_failed(
    monkeypatch: pytest.MonkeyPatch, lifetime: Lifetime, checks: tuple[Check, ...], code: int
) -> None:
    with_checks(monkeypatch, *checks)
    assert main(["verify"]) == code
    assert (lifetime.started, lifetime.stopped) == (1, 1)


def test_findings_fit_80_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    long = check_with("a failure with much to say", Verdict.FAIL, remedy="do " + "this and " * 20)
    with_checks(monkeypatch, PASS, SKIP, long)
    main(["verify"])
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == "✔ pass                       measure pass was looked at"
    assert lines[1].startswith("– skip")
    assert lines[2].startswith("✘ a failure with much to say")
    assert any("→ do this" in line for line in lines)
    assert lines[-1] == "3 checks: 1 ✔  1 ✘  1 –"
    assert max(map(len, lines)) <= 80


def test_json_option_prints_json_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_checks(monkeypatch, PASS, check_with("odd", Verdict.FAIL, numbers={"rate": math.nan, "lag": 3}))
    assert main(["verify", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert [check["verdict"] for check in facts["checks"]] == ["pass", "fail"]
    assert facts["checks"][1]["numbers"] == {"rate": None, "lag": 3}


def test_only_option_selects_checks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_checks(monkeypatch, PASS, FAIL)
    assert main(["verify", "--only", "pass"]) == 0
    assert "1 check: 1 ✔" in capsys.readouterr().out


def test_unknown_check_in_only_starts_no_stack(
    monkeypatch: pytest.MonkeyPatch, lifetime: Lifetime, capsys: pytest.CaptureFixture[str]
) -> None:
    with_checks(monkeypatch, PASS)
    assert main(["verify", "--only", "pas"]) == 2
    assert capsys.readouterr().err == "tenfold: no check pas; did you mean pass?\n"
    assert lifetime.started == 0


def test_list_option_starts_no_stack(lifetime: Lifetime, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--list"]) == 0
    assert "baseline established" in capsys.readouterr().out
    assert lifetime.started == 0


def test_ctrl_c_stops_the_stack(monkeypatch: pytest.MonkeyPatch, lifetime: Lifetime) -> None:
    with_checks(monkeypatch, PASS)

    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tenfold.verify, "run", interrupted)
    assert main(["verify"]) == 130
    assert (lifetime.started, lifetime.stopped) == (1, 1)
