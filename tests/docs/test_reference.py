"""The generated pages name everything that there is to set, to watch and to import."""

from __future__ import annotations

from pathlib import Path

import pytest
from docs.tools.reference import api_pages, metrics_page, settings_page
from docs.tools.site import ROOT, generated
from pydantic import BaseModel, Field

from tenfold import schema
from tenfold.metrics import METRICS, Metric
from tenfold.settings import Settings


@pytest.mark.guarantee(
    "the settings reference names every key, with its variable",
    pattern="docs",
    control="a key that is left out is missed, in the same file",
)
def test_settings_page_names_every_key_and_variable() -> None:
    assert missing_keys(settings_page(Settings), Settings) == []


def test_key_that_is_left_out_is_missed() -> None:
    class More(Settings):
        more: bool = False

    assert missing_keys(settings_page(Settings), More) == [("more",)]


def missing_keys(page: str, model: type[BaseModel]) -> list[schema.KeyPath]:
    keys = [path for path in schema.keys(model) if not schema.is_table(schema.annotation(model, path))]
    assert keys
    return [path for path in keys if not all(text in page for text in _cells(path))]


def _cells(path: schema.KeyPath) -> tuple[str, str]:
    return f"| `{path[-1]}` |", f"`TENFOLD_{'__'.join(path).upper()}`"


def test_setting_has_type_limits_default_and_description() -> None:
    class Table(BaseModel):
        """The table."""

        share: float = Field(0.5, gt=0, le=1, description="a | b", examples=[0.2])
        names: tuple[str, ...] = Field((), description="a list")
        folder: Path | None = Field(None, description="a path, or nothing")

    class Model(BaseModel):
        table: Table = Table()

    page = settings_page(Model)
    assert "## [table]\n\nThe table." in page
    assert (
        "| `share` | float, > 0, ≤ 1 | `0.5` | a \\| b<br>for example `0.2`<br>`TENFOLD_TABLE__SHARE` |"
        in page
    )
    assert "| `names` | list of string | `[]` |" in page
    assert "| `folder` | path | – |" in page


def test_metrics_page_names_every_metric_with_its_labels() -> None:
    page = metrics_page(METRICS)
    assert all(f"| `{one.name}` | {one.kind} |" in page for one in METRICS)
    assert all(f"`{label}`" in page for one in METRICS for label in one.labels)


def test_metric_that_is_left_out_is_missed() -> None:
    other = Metric("tenfold_other_total", "counter", (), "Anything.")
    assert other.name not in metrics_page(METRICS) and other.name in metrics_page([*METRICS, other])


def test_api_has_one_page_for_each_package() -> None:
    pages = api_pages(["tenfold.sessions.store", "tenfold.sessions", "tenfold.signing"])
    assert pages == {
        "sessions": "# sessions\n\n::: tenfold.sessions\n\n::: tenfold.sessions.store\n",
        "signing": "# signing\n\n::: tenfold.signing\n",
    }


def test_every_page_is_generated() -> None:
    pages = generated(ROOT)
    assert {"docs/reference/settings.md", "docs/reference/metrics.md", "docs/api/sessions.md"} <= pages.keys()
