"""Imports go down only, without cycles; files, folders and functions stay small."""

from __future__ import annotations

import ast
import graphlib
import json
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
MOST_LINES = 600
MOST_FILES = 25


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
        ("settings/__init__.py", "def late() -> None:\n    import tenfold.cli"),
        (
            "measure/settings.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tenfold.verify",
        ),
        ("settings/__init__.py", "import locust"),
        ("database/psycopg.py", "import tenfold.measure.trial"),
        ("utils.py", ""),  # a module in no layer
    ],
)
def test_the_control_upward_import_is_found(copy: Path, file: str, line: str) -> None:
    path = copy / "src" / "tenfold" / file
    path.write_text((path.read_text() if path.exists() else "") + f"\n{line}\n")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr


# ------------------------------------------------------------------ no cycles


def import_cycle(tree: Path) -> list[str]:
    """Return modules that import each other in a cycle, including imports in functions and for types only."""
    code = (
        "import json, grimp; g = grimp.build_graph('tenfold', cache_dir=None);"
        "print(json.dumps({m: sorted(g.find_modules_directly_imported_by(m)) for m in g.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(tree / "src")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    try:
        graphlib.TopologicalSorter(json.loads(done.stdout)).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def test_there_is_no_import_cycle() -> None:
    assert import_cycle(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "import tenfold.errors",
        "def late() -> None:\n    import tenfold.errors",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import tenfold.errors",
    ],
)
def test_the_control_import_cycle_is_found(copy: Path, line: str) -> None:
    (copy / "src" / "tenfold" / "fingerprint.py").write_text(line + "\n")
    errors = copy / "src" / "tenfold" / "errors.py"
    errors.write_text(errors.read_text() + "\nfrom tenfold import fingerprint\n")
    assert import_cycle(copy)


# ------------------------------------------------------------------ small files, folders and functions


def sources() -> list[Path]:
    folders = ("src", "tests", "examples", "benchmarks")
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def lines(file: Path) -> int:
    return len(file.read_text().splitlines())


def function_lengths(text: str) -> Iterator[int]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield (node.end_lineno or node.lineno) - node.lineno + 1


def test_files_are_short() -> None:
    assert {str(file.relative_to(ROOT)) for file in sources() if lines(file) >= MOST_LINES} == set()


def test_folders_are_small() -> None:
    folders = {file.parent for folder in (SOURCE, ROOT / "tests") for file in folder.rglob("*.py")}
    counts = {str(folder.relative_to(ROOT)): len(list(folder.glob("*.py"))) for folder in folders}
    assert {folder: count for folder, count in counts.items() if count > MOST_FILES} == {}


def test_functions_are_short() -> None:
    lengths = sorted(length for file in SOURCE.rglob("*.py") for length in function_lengths(file.read_text()))
    assert statistics.median(lengths) <= 10
    assert lengths[int(len(lengths) * 0.9)] < 30


def test_the_control_function_lengths_are_counted() -> None:
    assert list(function_lengths("def f():\n    x = 1\n    return x\nasync def g(): ...")) == [3, 1]


def test_vague_module_names_are_not_used() -> None:
    vague = {"utils", "util", "common", "base", "manager", "helper", "helpers", "misc"}
    names = {file.stem for file in sources()} | {file.parent.name for file in sources()}
    assert names & vague == set()
