"""tenfold simulate and tenfold autoscale lint: what they print, their exit codes, and what is refused."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from tenfold.cli import main
from tests.autoscaling.test_lint import GOOD


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "web.yaml").write_text(GOOD)
    return tmp_path


def test_simulate_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "web.yaml", "--capacity", "100", "--peak", "1000"]) == 0
    said = capsys.readouterr().out
    assert "web: 3 – 100 instances, cpu 70 %, memory 80 %" in said
    assert "One instance takes 100/s with 1000m of CPU, requests 600m" in said
    for name in ("web", "AWS target tracking", "by the hour", "always the peak", "oracle"):
        assert f"\n{name}" in said
    assert "✔ 0.00% of the requests are late" in said
    assert all(len(line) <= 80 for line in said.splitlines())


def test_late_requests_are_exit_code_1_with_the_change_that_mends_them(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    slow = GOOD.replace("value: 100, periodSeconds: 15", "value: 10, periodSeconds: 60")
    (folder / "slow.yaml").write_text(slow)
    arguments = ["simulate", "slow.yaml", "--capacity", "100", "--trace", "flash", "--days", "0.5"]
    assert main([*arguments, "--peak", "1500", "--explain", "--html", "page.html"]) == 1
    said = capsys.readouterr().out
    assert "of the requests are late. Enough, with the fewest hours:\n  minReplicas: " in said
    assert "scaleUp's rates allow" in said
    page = (folder / "page.html").read_text()
    assert page.count("<svg") == 3
    assert "<script" not in page


def test_json_has_the_changes_and_what_set_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "web.yaml", "--capacity", "100", "--peak", "1000", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["policies"][0]["name"] == "web"
    assert facts["changes"][0].keys() >= {"at_s", "from", "to", "metric", "asked", "limited"}


def test_settings_are_a_scaler_too(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tenfold.toml").write_text(
        "[autoscaling]\nmax_replicas = 30\ninstance_rps = 40\nprice_per_hour = 0.1\nmost_instances = 5\n"
    )
    main(["simulate", "--peak", "300"])
    said = capsys.readouterr().out
    assert "tenfold.toml: 3 – 30 instances, cpu 70 %, memory 80 %" in said
    assert "cost" in said
    assert "! the database's connections held instances back" in said


def test_standard_input_is_read(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(GOOD))
    assert main(["autoscale", "lint", "-"]) == 0
    assert "✔ nothing is wrong with 1 scaler" in capsys.readouterr().out


def test_lint_says_where_and_what_to_do(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "bad.yaml").write_text(GOOD.replace("cpu: 100m, ", ""))
    assert main(["autoscale", "lint", "bad.yaml"]) == 1
    said = capsys.readouterr().out
    assert "✘ Deployment web: container mesh requests no cpu" in said
    assert "  → write resources.requests.cpu for it" in said
    assert main(["autoscale", "lint", "bad.yaml", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"][0]["place"] == "Deployment web"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["simulate"], "it is not known what one instance takes"),
        (["simulate", "web.yaml", "--capacity", "-3"], "--capacity -3 is not above 0"),
        (["simulate", "web.yaml", "--capacity", "missing.json"], "no file missing.json"),
        (["simulate", "web.yaml", "--capacity", "web.yaml"], "is not a tenfold report"),
        (["simulate", "nothing.yaml"], "nothing.yaml cannot be read: No such file"),
        (
            ["simulate", "web.yaml", "--scaler", "api", "--capacity", "1"],
            "no scaler 'api' in web.yaml; it has web",
        ),
        (["simulate", "web.yaml", "--trace", "hourly", "--capacity", "1"], "no trace 'hourly'"),
        (["simulate", "web.yaml", "--capacity", "9", "--html", "no/x.html"], "no/x.html cannot be written"),
        (["autoscale", "lint"], "no file is named"),
        (["autoscale", "tune", "web.yaml"], "no action 'tune'"),
        (["autoscale", "lint", "web.yaml", "--kubernetes", "new"], "'new' is no version"),
        (["autoscale", "lint", "tenfold.toml"], "cannot be read"),
    ],
)
def test_wrong_usage_is_one_sentence(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1


def test_report_of_another_service_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    from tenfold.measure.report.report import CapacityReport, GroupReport, ObjectiveReport, Report, save

    capacity = CapacityReport(
        outcome="found", low=200.0, high=220.0, confidence=0.95, reason="", seconds=1, trials=1
    )

    def group(name: str, cores: float) -> GroupReport:
        return GroupReport(name=name, cpu_cores_mean=cores, cpu_cores_max=cores, rss_bytes_max=0)

    report = Report(
        tenfold="0", service="other:app", target="", started="", seconds=1, mode="open", inside=True,
        objective=ObjectiveReport(slow_ms=200, bad_share=0.05, achieved_share=0.95), machine={},
        capacity=capacity, resources=(group("app", 0.8), group("database", 0.6)),
    )  # fmt: skip
    save(report, folder / ".tenfold" / "report.json")
    (folder / "tenfold.toml").write_text('[service]\napp = "shop:app"\n[stack]\ninstances = 2\n')
    assert main(["simulate", "--peak", "100"]) == 2
    assert "is about other:app, not shop:app" in capsys.readouterr().err
    (folder / "tenfold.toml").write_text('[service]\napp = "other:app"\n[stack]\ninstances = 2\n')
    assert main(["simulate", "--peak", "100"]) == 0
    assert "One instance takes 100/s with 400m of CPU" in capsys.readouterr().out
    assert main(["size"]) == 0
    assert "  database CPU       15.0 cores  3 ms a request, 20% of it writes" in capsys.readouterr().out


def test_size_says_what_breaks_first(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tenfold.toml").write_text("[sizing]\nactive_share = 0.1\nthink_s = 10\npeak_factor = 2\n")
    assert main(["size", "--users", "1000000", "--capacity", "100"]) == 0
    said = capsys.readouterr().out
    assert "  request rate         20,000/s  1,000,000 × 10% active / 10 s × 2" in said
    assert "? database servers" in said
    assert "On the way from 100 users:" in said
    assert "the database's 100 connections are used up" in said
    assert all(len(line) <= 80 for line in said.splitlines())
    assert main(["size", "--capacity", "100", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["numbers"][0]["name"] == "request rate"


def test_size_without_a_capacity_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["size"]) == 2
    assert "it is not known what one instance takes" in capsys.readouterr().err


def test_manifests_are_rendered_from_the_settings(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    (folder / "tenfold.toml").write_text('[kubernetes]\nname = "shop"\nimage = "registry.example/shop:1"\n')
    assert main(["autoscale", "render"]) == 0
    (folder / "rendered.yaml").write_text(capsys.readouterr().out)
    assert main(["autoscale", "lint", "rendered.yaml"]) == 0
    (folder / "tenfold.toml").write_text("")
    assert main(["autoscale", "render"]) == 2
    assert "kubernetes.name is not set" in capsys.readouterr().err
