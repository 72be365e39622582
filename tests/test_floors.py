"""Imports go down only, files stay small, and the guards notice when they do not."""

from __future__ import annotations

import ast
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tenfold"
MOST_LINES = 400


def lint(tree: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(SOURCE, tmp_path / "src" / "tenfold", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_go_down_only() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("errors.py", "import tenfold.settings"),
        ("metrics.py", "from tenfold.measure.settings import Objective"),
        ("settings.py", "def late() -> None:\n    import tenfold.cli"),
        (
            "measure/settings.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tenfold.verify",
        ),
        ("settings.py", "import locust"),
        ("utils.py", ""),  # a module that stands on no floor
    ],
)
def test_the_control_an_import_that_goes_up_is_found(copy: Path, file: str, line: str) -> None:
    path = copy / "src" / "tenfold" / file
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr


# ------------------------------------------------------------------ small files, small functions


def sources() -> list[Path]:
    folders = ("src", "examples", "benchmarks")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def function_lengths(text: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    assert {str(file.relative_to(ROOT)) for file in sources() if lines(file) >= MOST_LINES} == set()


def test_functions_are_short() -> None:
    lengths = sorted(length for file in SOURCE.rglob("*.py") for length in function_lengths(file.read_text()))
    assert statistics.median(lengths) <= 10
    assert lengths[int(len(lengths) * 0.9)] < 30


def test_the_control_lengths_are_counted() -> None:
    assert list(function_lengths("def f():\n    x = 1\n    return x\nasync def g(): ...")) == [3, 1]


def test_names_that_say_nothing_are_not_used() -> None:
    vague = {"utils", "util", "common", "base", "manager", "helper", "helpers", "misc"}
    names = {file.stem for file in sources()} | {file.parent.name for file in sources()}
    assert names & vague == set()
