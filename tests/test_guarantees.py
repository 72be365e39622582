"""docs/guarantees.md names existing tests: renaming or deleting one cannot leave a promise unproven."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
ROWS = [
    line
    for line in (TESTS.parent / "docs" / "guarantees.md").read_text().splitlines()
    if line.startswith("| ") and not line.startswith("| promise")
]
NAMED = re.compile(r"`(?P<file>[\w/]+\.py)?(?:…)?(?:::)?(?P<test>test_\w+)?`")


def references(row: str) -> list[tuple[str, str]]:
    """Return (file, test) for each reference in a row; ``…`` repeats the file before it."""
    found, file = [], ""
    for match in NAMED.finditer(row):
        file = match["file"] or file
        if match["file"] or match["test"]:
            found.append((file, match["test"] or ""))
    return found


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_guarantee_names_existing_tests(row: str) -> None:
    assert references(row)
    for file, test in references(row):
        assert (TESTS / file).is_file(), file
        if test:
            assert f"def {test}(" in (TESTS / file).read_text(), f"{file}::{test}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_every_guarantee_has_a_control(row: str) -> None:
    assert row.split("|")[-2].strip(" –")


def test_the_control_missing_test_is_found() -> None:
    with pytest.raises(AssertionError, match="test_that_does_not_exist"):
        test_every_guarantee_names_existing_tests(
            "| x | y | `test_guarantees.py::test_that_does_not_exist` | – |"
        )


def test_the_control_missing_negative_control_is_found() -> None:
    with pytest.raises(AssertionError):
        test_every_guarantee_has_a_control(
            "| x | y | `test_guarantees.py::test_the_control_missing_test_is_found` | – |"
        )
