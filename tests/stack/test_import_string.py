"""Import strings, checked without importing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tenfold.stack.import_string import is_import_string, missing_module


@pytest.mark.parametrize("text", ["app:app", "shop.app:app", "a.b.c:make.app", "größe:x"])
def test_valid_import_strings(text: str) -> None:
    assert is_import_string(text)


@pytest.mark.parametrize(
    "text",
    ["", "app", "app:", ":app", "a b:c", "a:b c", "a.:b", "1a:b", "a:b:c", "a/b.py:app", "a:b()", "a:b\n"],
)
def test_invalid_import_strings(text: str) -> None:
    assert not is_import_string(text)


def test_missing_module_is_found_without_importing(tmp_path: Path) -> None:
    package = tmp_path / "shop_of_test"
    package.mkdir()
    (package / "__init__.py").write_text("raise SystemExit('was run')\n")
    (package / "app.py").write_text("raise SystemExit('was run')\n")
    assert missing_module("shop_of_test.app:app", tmp_path) is None
    assert missing_module("shop_of_test.ap:app", tmp_path) == "shop_of_test.ap"
    assert missing_module("shop_of_tes.app:app", tmp_path) == "shop_of_tes"
    assert missing_module("json.decoder:x", tmp_path) is None
    assert missing_module("sys:x", tmp_path) is None
