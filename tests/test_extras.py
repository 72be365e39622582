"""Each extra brings all that its modules load: whoever installs one needs no other."""

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

# What each extra is for. What loads a test runner is for those who have one.
FOR = {
    "measure": ("tenfold.measure", "tenfold.cli", "tenfold.metrics"),
    "redis": ("tenfold.sessions.stores.redis", "tenfold.overload.redis"),
    "hashing": ("tenfold.hashing",),
    "encryption": ("tenfold.signing", "tenfold.sessions.cookie"),
    "database": (
        "tenfold.database",
        "tenfold.positions",
        "tenfold.deadlines",
        "tenfold.sessions.stores.sqlalchemy",
    ),
    "stack": ("tenfold.stack",),
}
NOT = {"tenfold.database.pytest", "tenfold.cli.__main__"}

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
        getattr(sys.modules[module], name)  # some are loaded when they are asked for
"""


def closure(requirements: list[str]) -> set[str]:
    """The distributions that pip would install for these."""
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
    """The names under which everything else is imported that is installed here."""
    return {
        package
        for package, owners in metadata.packages_distributions().items()
        if not (distributions | {"tenfold"}) & {canonicalize_name(owner) for owner in owners}
    }


def modules(names: tuple[str, ...]) -> list[str]:
    """All modules of tenfold below one of these names."""
    every = [found.name for found in pkgutil.walk_packages(tenfold.__path__, "tenfold.")]
    return [
        one for one in every if one not in NOT and any(f"{one}.".startswith(f"{name}.") for name in names)
    ]


def alone(extra: str, brought: list[str]) -> subprocess.CompletedProcess[str]:
    """Load what ``extra`` is for where nothing is installed but what was ``brought``."""
    absent = others(closure(brought))
    command = [sys.executable, "-c", ALONE, ",".join(absent), ",".join(modules(FOR[extra]))]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("extra", FOR)
def test_an_extra_is_enough(extra: str) -> None:
    done = alone(extra, [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]])
    assert done.returncode == 0, done.stderr


def test_the_control_what_an_extra_forgets_is_missed() -> None:
    brought = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["database"]]
    forgotten = [line.replace("sqlalchemy[asyncio]", "sqlalchemy") for line in brought]
    assert forgotten != brought
    assert "greenlet" in alone("database", forgotten).stderr


def test_every_extra_is_looked_at() -> None:
    assert FOR.keys() == PROJECT["optional-dependencies"].keys() - {"all", "bench", "demo", "dev", "docs"}
