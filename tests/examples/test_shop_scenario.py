"""The locustfile runs in plain Locust, and `tenfold.toml` names existing files."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

from tenfold.settings import Settings
from tests.examples.support import shop_service
from tests.examples.support.shop_service import EXAMPLES, VARIANTS, Variant

LOCUSTFILE = EXAMPLES / "shop" / "locustfile.py"


def test_locustfile_runs_without_failures_in_plain_locust(service_url: str, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "locust", "--locustfile", LOCUSTFILE, "--host", service_url, "--headless",
        "--users", "8", "--spawn-rate", "8", "--run-time", "4s", "--json",
        "--only-summary", "--loglevel", "ERROR",
    ]  # fmt: skip
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    counted = {f"{entry['method']} {entry['name']}": entry for entry in json.loads(run.stdout)}
    assert not any(entry["num_failures"] for entry in counted.values())
    assert counted["POST /login"]["num_requests"] == 8
    assert counted["GET /api/products"]["num_requests"] > 0
    assert set(counted) <= {
        "POST /login", "GET /api/products", "GET /api/products/{id}", "POST /api/orders", "GET /api/orders",
    }  # fmt: skip


SCENARIO = """
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("locustfile", sys.argv[1])
scenario = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scenario)
print(json.dumps([task.__name__ for task in scenario.Shopper.tasks]))
"""


def python(code: str, *arguments: str | Path) -> str:
    """Return the output of ``code`` in another process: gevent and the engines stay out of this one."""
    env = shop_service.environment("postgresql://user@127.0.0.1:1/nothing")
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return run.stdout


def test_task_weights() -> None:
    assert Counter(json.loads(python(SCENARIO, LOCUSTFILE))) == {"products": 3, "product": 2, "order": 1}


def test_settings_name_existing_files_and_callables() -> None:
    settings = Settings.model_validate(tomllib.loads((EXAMPLES / "tenfold.toml").read_text()))
    assert Variant(app=settings.service.app, prepare=settings.service.prepare) in VARIANTS.values()
    assert (EXAMPLES / settings.measure.scenario).is_file()
    for target in (settings.service.app, settings.service.prepare):
        module, _, name = target.partition(":")
        assert python(f"import {module}; print(callable({module}.{name}))") == "True\n"
