"""Guarantees are markers on tests: each has a section, a test that proves it and a negative control."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs.tools.guarantees import Guarantee, collect, guarantees_page
from docs.tools.site import ROOT

SENTENCE = "logout wins over every late write"
KEY = f'"{SENTENCE}", pattern="sessions", under="late writes"'
WRAPPED = KEY.replace(" every", ' "\n    "every')


@pytest.mark.guarantee(
    "every guarantee has a negative control",
    pattern="docs",
    control="a guarantee without one, in the same file",
)
@pytest.mark.parametrize("guarantee", collect(ROOT / "tests"), ids=lambda one: one.sentence)
def test_every_guarantee_has_a_control(guarantee: Guarantee) -> None:
    assert guarantee.problem == ""


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        (f"@pytest.mark.guarantee({KEY})\ndef test_a(): ...", "no test is marked as the control of"),
        ("@pytest.mark.control('a misspelt one')\ndef test_a(): ...", "only controls"),
        ("@pytest.mark.guarantee('a', control='b')\ndef test_a(): ...", "the pattern '' of 'a' is none of"),
        ("@pytest.mark.guarantee('a', pattern='x', control='b')\ndef test_a(): ...", "the pattern 'x'"),
        (f"@pytest.mark.guarantee({KEY}, control='the same test')\nasync def test_a(): ...", ""),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, source: str, problem: str) -> None:
    (tmp_path / "test_one.py").write_text(source)
    (one,) = collect(tmp_path)
    assert problem in one.problem and bool(problem) == bool(one.problem)


@pytest.mark.parametrize(
    "source",
    [
        f"pytestmark = pytest.mark.guarantee({KEY})",
        f"pytestmark = [pytest.mark.slow, pytest.mark.guarantee({KEY})]",
        f"@pytest.mark.guarantee({KEY})\nclass Test: ...",
        f"@pytest.mark.guarantee({KEY})\n@pytest.mark.parametrize('x', [1])\nasync def test_a(x): ...",
        f"@pytest.mark.parametrize('x', [param(1, marks=pytest.mark.guarantee({KEY}))])\ndef test(): ...",
        f"@pytest.mark.guarantee(\n    {WRAPPED},\n)\ndef test_a(): ...",
        f"class Test:\n    @pytest.mark.guarantee({KEY})\n    def test_a(self): ...",
    ],
)
def test_markers_are_found_wherever_they_stand(tmp_path: Path, source: str) -> None:
    (tmp_path / "test_one.py").write_text(source)
    (one,) = collect(tmp_path)
    assert (one.sentence, one.pattern, one.under) == (SENTENCE, "sessions", "late writes")


def test_table_has_proofs_and_controls_of_several_files(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text(f"@pytest.mark.guarantee({KEY})\ndef test_proof(): ...")
    (tmp_path / "test_two.py").write_text(
        f'@pytest.mark.guarantee("{SENTENCE}")\ndef test_also(): ...\n'
        f'@pytest.mark.control("{SENTENCE}", "without tombstones")\ndef test_without(): ...'
    )
    page = guarantees_page(collect(tmp_path))
    assert "## Sessions" in page
    assert (
        f"| {SENTENCE} | late writes | `test_one.py::test_proof`<br>`test_two.py::test_also` "
        "| `test_two.py::test_without`: without tombstones |" in page
    )


def test_arguments_that_are_not_literals_are_refused(tmp_path: Path) -> None:
    (tmp_path / "test_one.py").write_text("@pytest.mark.guarantee(NAME)\ndef test_a(): ...")
    with pytest.raises(ValueError, match="malformed"):
        collect(tmp_path)
