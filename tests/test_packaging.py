"""The wheel holds the package and nothing else, and every version that is needed is pinned."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PINNED = {
    name: (ROOT / name).read_text().splitlines() for name in ("requirements.txt", "requirements-docs.txt")
}
PINS = [line for lines in PINNED.values() for line in lines]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built from a copy, because setuptools writes into the tree that it builds."""
    copy = tmp_path_factory.mktemp("wheel") / "tree"
    kept_out = shutil.ignore_patterns(
        ".git", ".venv", "__pycache__", ".*_cache", "build", "*.egg-info", ".tenfold"
    )
    shutil.copytree(ROOT, copy, ignore=kept_out)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"],
        cwd=copy,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (file,) = (copy / "dist").glob("*.whl")
    return zipfile.ZipFile(file)


def test_every_file_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    source = ROOT / "src"
    files = {
        str(file.relative_to(source))
        for file in (source / "tenfold").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert files - set(wheel.namelist()) == set(), "name them in [tool.setuptools.package-data]"
    assert "tenfold/py.typed" in wheel.namelist()


def test_nothing_else_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert {re.sub(r"-.*\.dist-info", "-dist-info", folder) for folder in folders} == {
        "tenfold",
        "tenfold-dist-info",
    }


def test_what_the_wheel_says_of_itself(wheel: zipfile.ZipFile) -> None:
    (name,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    text = wheel.read(name).decode()
    assert "License-Expression: MIT" in text
    (scripts,) = [name for name in wheel.namelist() if name.endswith("/entry_points.txt")]
    assert "tenfold = tenfold.cli:main" in wheel.read(scripts).decode()


# ------------------------------------------------------------------ pins


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def needed() -> list[Requirement]:
    extras = project()["optional-dependencies"].values()
    texts = [*project()["dependencies"], *(text for extra in extras for text in extra)]
    return [requirement for requirement in map(Requirement, texts) if requirement.name != "tenfold"]


def pins() -> dict[str, Requirement]:
    texts = [line for line in PINS if line and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


@pytest.mark.parametrize("requirement", needed(), ids=str)
def test_every_dependency_is_pinned_within_its_range(requirement: Requirement) -> None:
    pin = pins()[canonicalize_name(requirement.name)]
    (exact,) = pin.specifier
    assert exact.operator == "=="
    assert requirement.specifier.contains(exact.version)
    assert str(pin.marker or "") == str(requirement.marker or "")


def test_pins_are_exact_and_name_no_place() -> None:
    for line in PINS:
        assert line.startswith("#") or re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.!+]+(; .+)?", line), line
    text = "\n".join([*PINS, (ROOT / "pyproject.toml").read_text()])
    assert not re.search(r"https?://|git\+|file:|--(extra-)?index-url|--find-links|--hash", text)


def test_pins_are_sorted_once_each() -> None:
    names = [
        [line.partition("==")[0].lower() for line in lines if not line.startswith("#")]
        for lines in PINNED.values()
    ]
    assert names == [sorted(set(one)) for one in names]
    assert not set.intersection(*map(set, names))


def test_all_brings_every_extra_of_the_runtime() -> None:
    extras = project()["optional-dependencies"]
    (all_,) = map(Requirement, extras["all"])
    assert all_.extras == set(extras) - {"all", "bench", "demo", "dev", "docs"}
