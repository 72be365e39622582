"""`tenfold render monitoring`: files that their readers accept, the same again the second time."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tenfold.cli import main
from tenfold.errors import SettingsError
from tenfold.monitoring.prometheus import render
from tenfold.monitoring.rules import alerts
from tenfold.monitoring.settings import MonitoringSettings


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("tenfold.toml").write_text(
        '[monitoring]\njob = "shop"\ntargets = ["10.0.0.5:8000"]\n[kubernetes]\nname = "shop"\n'
    )
    return tmp_path


def test_second_run_changes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "monitoring", "-o", "deploy"]) == 0
    first = capsys.readouterr().out
    assert first.count("written") == 6 and "availability  14.4× over 1h and 5m              52 s" in first
    assert main(["render", "monitoring", "-o", "deploy"]) == 0
    assert capsys.readouterr().out.count("unchanged") == 6
    (folder / "deploy/grafana/dashboard.json").write_text("{}")
    assert main(["render", "monitoring", "-o", "deploy"]) == 0
    assert capsys.readouterr().out.count("changed    ") == 1


def test_files_are_what_their_readers_expect(folder: Path) -> None:
    assert main(["render", "monitoring", "-o", "deploy"]) == 0
    if promtool := shutil.which("promtool"):
        for words in (["rules", "rules.yml"], ["config", "prometheus.yml"]):
            done = subprocess.run(
                [promtool, "check", *words], cwd=folder / "deploy/prometheus", capture_output=True
            )
            assert done.returncode == 0, done.stdout
    monitor, rule = yaml.safe_load_all((folder / "deploy/kubernetes/monitoring.yaml").read_text())
    assert (monitor["kind"], rule["kind"]) == ("PodMonitor", "PrometheusRule")
    assert monitor["spec"]["podMetricsEndpoints"][0]["port"] == "http"
    assert rule["spec"] == yaml.safe_load((folder / "deploy/prometheus/rules.yml").read_text())
    collector = yaml.safe_load((folder / "deploy/otel-collector.yaml").read_text())
    (scraped,) = collector["receivers"]["prometheus"]["config"]["scrape_configs"]
    assert scraped["static_configs"] == [{"targets": ["10.0.0.5:8000"]}]


def test_alerts_that_are_explained_are_inhibited() -> None:
    files = {str(file.path): file.text for file in render(MonitoringSettings(), slow_s=0.2)}
    found: dict[str, Any] = yaml.safe_load(files["prometheus/alertmanager.yml"])
    names = {alert.name for alert in alerts(MonitoringSettings())}
    receivers = {receiver["name"] for receiver in found["receivers"]}
    assert {
        found["route"]["receiver"],
        *(route["receiver"] for route in found["route"]["routes"]),
    } == receivers
    for rule in found["inhibit_rules"]:
        (source,), (target,) = rule["source_matchers"], rule["target_matchers"]
        assert source.split('"')[1] in names and set(target.split('"')[1].split("|")) <= names
        assert source.split('"')[1] not in target.split('"')[1].split("|")
    assert any('alertname="NoInstance"' in rule["source_matchers"] for rule in found["inhibit_rules"])


def test_json_has_files_and_detection_times(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "monitoring", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert "prometheus/rules.yml" in facts["files"] and len(facts["detection_s"]) == 6


def test_without_a_folder_the_files_are_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["render", "monitoring"]) == 0
    assert "# ---- prometheus/rules.yml" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("toml", "words", "says"),
    [
        ("[monitoring]\nlatency = 0.9\n", ["monitoring"], "could never fire; set it above 0.931"),
        ("[monitoring]\navailability = 2\n", ["monitoring"], "monitoring.availability"),
        ('[monitoring]\njob = "a\\"b"\n', ["monitoring"], "monitoring.job"),
        (
            '[monitoring]\ntargets = ["http://x"]\n',
            ["monitoring"],
            "'http://x' is no target: write host:port",
        ),
        ('[monitoring]\nrunbooks = "javascript:alert(1)"\n', ["monitoring"], "begin with https://"),
        ("", ["everything"], "no target 'everything': write one of monitoring"),
        ("", ["monitoring", "-o", "tenfold.toml"], "cannot be written: not a directory"),
    ],
)
def test_wrong_settings_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], toml: str, words: list[str], says: str
) -> None:
    Path("tenfold.toml").write_text(toml)
    assert main(["render", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and says in err and err.count("\n") == 1


def test_names_cannot_leave_their_place() -> None:
    for job in ('x"} or vector(1)', "a\nb", "", "x" * 62, "{{x}}"):
        with pytest.raises(ValueError, match="a name has letters"):
            MonitoringSettings(job=job)
    with pytest.raises(SettingsError):
        render(MonitoringSettings(availability=0.9), slow_s=0.2)
