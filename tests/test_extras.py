"""Each extra installs everything that its modules import."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tenfold

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

# The modules of each extra; NOT are those that need a test runner, or what the service brings.
MODULES = {
    "measure": ("tenfold.measure", "tenfold.cli", "tenfold.metrics"),
    "redis": ("tenfold.redis_pool", "tenfold.sessions.stores.redis", "tenfold.overload.redis"),
    "caching": ("tenfold.caching", "tenfold.commits"),
    "encryption": ("tenfold.signing", "tenfold.sessions.cookie_sessions"),
    "database": (
        "tenfold.database",
        "tenfold.positions",
        "tenfold.sharding",
        "tenfold.deadlines",
        "tenfold.sessions.stores.sqlalchemy",
    ),
    "tasks": ("tenfold.tasks",),
    "flower": ("tenfold.tasks",),
    "stack": ("tenfold.stack",),
    "autoscaling": ("tenfold.autoscaling",),
    "monitoring": ("tenfold.monitoring", "tenfold.metrics"),
    "aws": ("tenfold.autoscaling.aws",),
}
NOT = {"tenfold.database.pytest", "tenfold.cli.__main__", "tenfold.tasks.fastapi"}

ALONE = """
import importlib, sys

absent, modules = set(sys.argv[1].split(",")), sys.argv[2].split(",")

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for module in modules:
    for name in getattr(importlib.import_module(module), "__all__", ()):
        getattr(sys.modules[module], name)  # lazy exports
"""


def closure(requirements: list[str]) -> set[str]:
    """Return the distributions that pip would install for these."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [(Requirement(line), frozenset[str]()) for line in requirements]
    while waiting:
        requirement, wanted_by = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in wanted_by or {""}):
            continue
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in found:
            found.add(key)
            waiting += [(Requirement(line), key[1]) for line in metadata.requires(key[0]) or ()]
    return {name for name, _ in found}


def others(distributions: set[str]) -> set[str]:
    """Return the import names of all other installed distributions."""
    return {
        package
        for package, owners in metadata.packages_distributions().items()
        if not (distributions | {"tenfold"}) & {canonicalize_name(owner) for owner in owners}
    }


def modules(names: tuple[str, ...]) -> list[str]:
    """Return all modules of tenfold below one of these names."""
    every = [found.name for found in pkgutil.walk_packages(tenfold.__path__, "tenfold.")]
    return [
        one for one in every if one not in NOT and any(f"{one}.".startswith(f"{name}.") for name in names)
    ]


def alone(extra: str, installed: list[str]) -> subprocess.CompletedProcess[str]:
    """Import the modules of ``extra`` with only the ``installed`` requirements."""
    absent = others(closure(installed))
    command = [sys.executable, "-c", ALONE, ",".join(absent), ",".join(modules(MODULES[extra]))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.guarantee(
    "an extra installs everything that its modules import", pattern="stack", under="nothing else is installed"
)
@pytest.mark.parametrize("extra", MODULES)
def test_extra_is_sufficient_for_its_modules(extra: str) -> None:
    done = alone(extra, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]])
    assert done.returncode == 0, done.stderr


@pytest.mark.control("an extra installs everything that its modules import")
def test_the_control_missing_dependency_is_found() -> None:
    installed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["database"]]
    forgotten = [line.replace("sqlalchemy[asyncio]", "sqlalchemy") for line in installed]
    assert forgotten != installed
    assert "greenlet" in alone("database", forgotten).stderr


def test_every_extra_is_tested() -> None:
    assert MODULES.keys() == PROJECT["optional-dependencies"].keys() - {"all", "bench", "demo", "dev", "docs"}
