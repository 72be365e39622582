"""The lab of planted causes: small services, each with causes of random strength, and its remedied twin."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CONSEQUENCES = ("no_recovery",)  # reported beside a cause
SERVICES = Path(__file__).parent / "services"
LIMIT_S = 120


@dataclass(frozen=True)
class Planted:
    """One service with a cause.

    ``causes``: the causes that the report may name first; all of ``causes`` have to be named for several.
    ``strength``: name of a variable → the lowest and the highest value that a seed may choose.
    """

    name: str
    app: str
    causes: tuple[str, ...]
    strength: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    remote: tuple[float, float, int] | None = None  # least and most seconds of a call, calls at once
    remedied: Mapping[str, str] = field(default_factory=dict)
    lines: bool = True  # the report has to name the line
    twin: bool = True  # it has one whose capacity is higher

    def settings(self, seed: int) -> dict[str, str]:
        """Return the variables of a seed."""
        chance = random.Random(f"{self.name} {seed}")
        found = {"LAB_CAUSE": self.name}
        for name, (low, high) in self.strength.items():
            value = chance.uniform(low, high)
            found[name] = f"{value:.4f}" if high < 2 else str(round(value))
        if self.remote is not None:
            found["remote_s"] = f"{chance.uniform(*self.remote[:2]):.3f}"
        return found

    def planted_lines(self) -> list[str]:
        """Return the lines that are marked as the cause."""
        module = self.app.partition(":")[0]
        found = []
        for number, line in enumerate((SERVICES / f"{module}.py").read_text().splitlines(), 1):
            _, _, names = line.partition("# CAUSE ")
            if self.name in names.replace("of the next line:", "").split():
                found.append(f"{module}.py:{number + ('next line' in names)}")
        return found


SYNC, ASYNC, FLASK, DJANGO, STARLETTE = (
    "fastapi_sync:app", "fastapi_async:app", "flask_app:app", "django_app:app", "starlette_app:app",
)  # fmt: skip

LAB: tuple[Planted, ...] = (
    Planted("n_plus_one", SYNC, ("n_plus_one",), {"LAB_N": (12, 40)}),
    Planted("missing_index", SYNC, ("missing_index",), {"LAB_ROWS": (150_000, 300_000), "LAB_POOL": (4, 15)},
            remedied={"LAB_INDEX": "1"}),
    Planted("connect", SYNC, ("connect",)),
    Planted("row_lock", SYNC, ("row_lock",), {"LAB_SECONDS": (0.01, 0.04), "LAB_POOL": (6, 20)}),
    Planted("row_lock_idle", SYNC, ("row_lock",), {"LAB_POOL": (6, 20)}, remote=(0.01, 0.04, 500)),
    Planted("threads_wait", SYNC, ("threads",), {}, remote=(0.08, 0.15, 500)),
    Planted("held_during_call", SYNC, ("held_during_call",), {"LAB_POOL": (4, 8)}, remote=(0.05, 0.12, 500)),
    Planted("second_connection", SYNC, ("deadlock",), {"LAB_POOL": (4, 8)}),
    Planted("commits", SYNC, ("commit",), {"LAB_N": (3, 4)}),
    Planted("gil", SYNC, ("gil",)),
    Planted("two_database", SYNC, ("missing_index", "n_plus_one"), {"LAB_N": (6, 10),
            "LAB_ROWS": (60_000, 90_000)}, remedied={"LAB_INDEX": "1"}),
    Planted("two_held", SYNC, ("held_during_call", "missing_index"), {"LAB_POOL": (2, 2),
            "LAB_ROWS": (100_000, 130_000)}, remote=(0.01, 0.015, 500), remedied={"LAB_INDEX": "1"}),
    Planted("two_cpu", ASYNC, ("password_hash", "plain_cpu"), {"LAB_N": (20_000, 50_000)}),
    Planted("two_blocking", ASYNC, ("blocking_call",), {"LAB_SECONDS": (0.01, 0.02)},
            remote=(0.008, 0.015, 500)),
    Planted("blocking_call", ASYNC, ("blocking_call",), {}, remote=(0.01, 0.05, 500)),
    Planted("blocking_sleep", ASYNC, ("blocking_call",), {"LAB_SECONDS": (0.01, 0.04)}),
    Planted("password_hash", ASYNC, ("password_hash",), {"LAB_N": (20_000, 80_000)}),
    Planted("serialisation", ASYNC, ("serialisation",), {"LAB_N": (1500, 4000)}, lines=False),
    Planted("over_fetching", ASYNC, ("over_fetching",), {"LAB_N": (4_000, 15_000)}),
    Planted("n_plus_one_async", ASYNC, ("n_plus_one",), {"LAB_N": (12, 30)}),
    Planted("client_per_request", ASYNC, ("client_per_request",), {}, remote=(0.005, 0.02, 500)),
    Planted("lock", ASYNC, ("lock",), {"LAB_SECONDS": (0.01, 0.03)}),
    Planted("remote_limit", ASYNC, ("external_service",), {}, remote=(0.01, 0.03, 1)),
    Planted("held_async", ASYNC, ("held_during_call",), {"LAB_POOL": (4, 8)}, remote=(0.05, 0.12, 500)),
    Planted("asyncpg_pool", ASYNC, ("held_during_call",), {"LAB_POOL": (4, 8)}, remote=(0.05, 0.12, 500)),
    Planted("memory", ASYNC, ("memory_growth",), {"LAB_N": (10, 40)}, twin=False),
    Planted("plain_cpu", ASYNC, ("plain_cpu",), {"LAB_N": (30_000, 120_000)}),
    Planted("flask_cpu", FLASK, ("plain_cpu",), {"LAB_N": (30_000, 120_000)}),
    Planted("flask_threads", FLASK, ("threads",), {}, remote=(0.03, 0.08, 500)),
    Planted("flask_n_plus_one", FLASK, ("n_plus_one",), {"LAB_N": (12, 40)}),
    Planted("django_n_plus_one", DJANGO, ("n_plus_one",), {"LAB_N": (15, 40)}),
    Planted("middleware_sleep", STARLETTE, ("blocking_call",), {"LAB_SECONDS": (0.01, 0.03)}),
    Planted("semaphore", STARLETTE, ("lock",), {"LAB_SECONDS": (0.02, 0.05)}),
    Planted("healthy_cpu", ASYNC, (), {"LAB_N": (1500, 4000)}),
    Planted("healthy_fast", ASYNC, ()),
    Planted("healthy_cache", ASYNC, ()),
)  # fmt: skip


def run(planted: Planted, seed: int, *, remedied: bool = False, budget_s: float = 40.0) -> dict[str, Any]:
    """Measure a service; return ``tenfold measure``'s report, or ``{"error": …}``."""
    environment = planted.settings(seed)
    if remedied:
        environment |= {"LAB_REMEDIED": "1", **planted.remedied}
    with tempfile.TemporaryDirectory(prefix="tenfold-lab-") as name:
        folder = Path(name)
        for source in SERVICES.glob("*.py"):
            shutil.copy(source, folder)
        remote = None
        if (seconds := environment.pop("remote_s", None)) and planted.remote is not None:
            remote = subprocess.Popen(
                [sys.executable, str(Path(__file__).parent / "remote.py"), seconds, str(planted.remote[2])],
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            assert remote.stdout is not None
            environment["LAB_REMOTE"] = f"http://127.0.0.1:{remote.stdout.readline().strip()}/"
        try:
            _write_settings(folder, planted, environment)
            code, printed, said = _measure(folder, budget_s)
        finally:
            if remote is not None:
                remote.kill()
                remote.wait()
    if code not in (0, 1):
        return {"error": said[-2000:], **(json.loads(printed) if printed else {})}
    return dict(json.loads(printed))


def _measure(folder: Path, budget_s: float) -> tuple[int, str, str]:
    """Run ``tenfold measure``; one that does not end is interrupted, so that it stops what it started."""
    command = [sys.executable, "-m", "tenfold", "measure", "--json", "--budget-s", str(budget_s)]
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3] / "src")},
    )  # fmt: skip
    try:
        printed, said = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=30)
    return process.returncode, printed, said


def _write_settings(folder: Path, planted: Planted, environment: Mapping[str, str]) -> None:
    database = planted.app != STARLETTE
    lines = ["[service]", f'app = "{planted.app}"', 'ready_path = "/health/ready"']
    lines += ['prepare = "database:load"'] if database else []
    lines += ["[service.environment]", *(['DATABASE_URL = "{database_url}"'] if database else [])]
    lines += [f'{key} = "{value}"' for key, value in environment.items()]
    lines += ["[stack]", f"database = {'true' if database else 'false'}", "redis = false"]
    lines += ["nginx = false", "instances = 1"]
    lines += ["[measure]", 'scenario = "locustfile.py"', "overload_s = 0"]
    (folder / "tenfold.toml").write_text("\n".join(lines) + "\n")
    path = planted.name
    (folder / "locustfile.py").write_text(
        "from locust import FastHttpUser, task\n\n\nclass Visitor(FastHttpUser):\n    @task\n"
        f'    def visit(self):\n        self.client.get("/{path}")\n'
    )


@dataclass(frozen=True)
class Judgement:
    """A report beside what was planted."""

    first: bool  # a planted cause is named first, and all planted causes are named
    line: bool  # one of them with its line
    false_alarms: tuple[str, ...]


def judge(planted: Planted, report: Mapping[str, Any]) -> Judgement:
    """Compare a report with what was planted."""
    found = [(one["cause"], one["where"] or "") for one in report.get("bottlenecks", [])]
    names = [cause for cause, _ in found]
    lines = planted.planted_lines()
    return Judgement(
        first=names[:1] == [] if not planted.causes else _is_first(planted, names),
        line=not planted.causes
        or not planted.lines
        or any(
            cause in planted.causes and any(_is_near(where, one) for one in lines) for cause, where in found
        ),
        false_alarms=tuple(name for name in names if name not in (*planted.causes, *CONSEQUENCES)),
    )


def _is_first(planted: Planted, names: Sequence[str]) -> bool:
    return bool(names) and names[0] in planted.causes and set(planted.causes) <= set(names)


def _is_near(where: str, planted: str) -> bool:
    """Return whether two places are one statement: it may span lines."""
    file, _, number = where.rpartition(":")
    other, _, line = planted.rpartition(":")
    return file == other and number.isdigit() and abs(int(number) - int(line)) <= 2
