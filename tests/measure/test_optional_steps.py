"""Every part of a measurement after the search may fail: the capacity is kept, and the reason is reported."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from benchmarks.capacity import exponential
from benchmarks.support.virtual import Service

import tenfold.measure
from tenfold.cli.measure import _write
from tenfold.errors import MeasurementError
from tenfold.measure import measurement, observer, overload
from tenfold.measure.diagnosis import diagnose
from tenfold.measure.machine.machine_speed import SpeedGauge
from tenfold.measure.machine.resources import ResourceSampler
from tenfold.measure.optional_steps import OptionalSteps
from tenfold.measure.probe.collector import Collector
from tenfold.measure.report import html, report, summary
from tenfold.measure.settings import MeasureSettings
from tenfold.settings import Settings
from tests.measure.support.virtual_measurement import RecordingGenerator, measure
from tests.measure.support.virtual_measurement import observer as empty_observer


@dataclass(frozen=True)
class Fault:
    """A function that raises, and the step of the report that names it."""

    owner: object
    name: str
    step: str


FAULTS = [
    Fault(Collector, "reset", "the start of a trial's records"),
    Fault(Collector, "cut", "the end of a trial's records"),
    Fault(observer, "_evidence", "the probes' records"),
    Fault(Collector, "sql_examples", "query plans"),
    Fault(ResourceSampler, "series", "CPU and memory"),
    Fault(observer.Resources, "during", "the trials' samples"),
    Fault(observer, "explain", "query plans"),
    Fault(observer.StackObserver, "_facts", "the windows"),
    Fault(diagnose, "_hanging", "unfinished requests"),
    Fault(diagnose, "find_limit", "the limit"),
    Fault(diagnose, "find_causes", "its causes"),
    Fault(diagnose, "_machine", "memory and disk"),
    Fault(diagnose, "missing_indexes", "what is present"),
    Fault(observer, "_parts", "parts of a request"),
    Fault(observer, "find_growth", "growth of memory"),
    Fault(observer.StackObserver, "leaks", "memory"),
    Fault(observer.StackObserver, "trace_memory", "lines that keep memory"),
    Fault(observer, "_groups", "CPU by servers"),
    Fault(observer, "_series", "CPU over time"),
    Fault(observer.StackObserver, "diagnose", "what stops it"),
    Fault(overload, "overload_requests", "overload"),
    Fault(overload, "overload_report", "overload"),
    Fault(summary, "near_capacity", "trials near the capacity"),
    Fault(summary, "endpoints", "endpoints"),
    Fault(summary, "latency", "latencies"),
    Fault(summary, "latency", "raw latencies"),
    Fault(summary, "errors", "errors"),
    Fault(measurement, "machine", "the machine"),
    Fault(measurement, "notices", "notices"),
    Fault(observer.StackObserver, "last_error", "the service's log"),
    Fault(observer, "read_queues", "queues of tasks"),
]


def fail(*args: Any, **kwargs: Any) -> Any:
    raise KeyError("Plans")


def measure_inside(address: Path) -> report.Report:
    service = Service(1, exponential(0.01))
    with empty_observer(address) as inside:
        inside._stack.database_url = "postgresql://127.0.0.1:1/none"  # type: ignore[misc]
        return measure(RecordingGenerator(service, seed=1), MeasureSettings(budget_s=40), inside=inside)


@pytest.mark.guarantee(
    "an optional step that fails never loses the capacity",
    pattern="measure",
    under="an exception in any step after the search",
)
@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.name}: {fault.step}")
def test_failed_step_is_reported_and_the_capacity_kept(
    fault: Fault, address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.owner is summary and fault.name == "latency":
        fail_in_the_report(monkeypatch)
    else:
        monkeypatch.setattr(fault.owner, fault.name, fail)
    if fault.name == "read_queues":
        monkeypatch.setattr(observer.StackObserver, "_has", lambda self, kinds: kinds == ["workers"])
    if fault.name == "trace_memory":
        monkeypatch.setattr(observer.StackObserver, "leaks", lambda self: True)
    if fault.name == "last_error":
        monkeypatch.setattr(measurement, "names_failure", lambda messages: True)
    found = measure_inside(address)
    assert found.capacity is not None and found.capacity.outcome == "found"
    (line,) = [line for line in found.not_measured if line.startswith(f"{fault.step}: ")]
    assert line.startswith(f"{fault.step}: KeyError 'Plans' at test_optional_steps.py:")


def fail_in_the_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the percentiles of all trials together fail; those of single trials are part of the search."""
    monkeypatch.setattr(
        summary, "latency", lambda encoded: None if isinstance(encoded, list) else fail(encoded)
    )
    monkeypatch.setattr(summary, "endpoints", lambda trials: ())


@pytest.mark.control(
    "an optional step that fails never loses the capacity",
    "without the isolation the exception ends the measurement",
)
def test_the_control_exception_ends_a_measurement_without_isolation(
    address: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OptionalSteps, "run", lambda self, step, do, *, otherwise: do())
    monkeypatch.setattr(observer, "explain", fail)
    with pytest.raises(KeyError):
        measure_inside(address)


def test_every_optional_step_is_made_to_fail_here() -> None:
    steps = {
        name for path in Path(tenfold.measure.__file__).parent.rglob("*.py") for name in step_names(path)
    }
    assert steps == {fault.step for fault in FAULTS} | {"leftovers"}  # of an index proof: test_explain.py


def step_names(path: Path) -> Iterator[str]:
    """Yield the names of the steps in a module: the first argument of each call of ``run`` with a default."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and any(word.arg == "otherwise" for word in node.keywords):
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield name.value


def test_generator_that_fails_in_the_overload_probe_keeps_the_capacity() -> None:
    class Failing(RecordingGenerator):
        def run(self, request: Any, on_block: object = None) -> Any:
            if request.purpose == "overload":
                raise MeasurementError("the generator ended; start it again")
            return super().run(request)

    found = measure(Failing(Service(1, exponential(0.01)), seed=1))
    assert found.capacity is not None and found.capacity.outcome == "found"
    assert found.overload is None
    assert "overload: the generator ended; start it again" in found.not_measured


def test_speed_that_cannot_be_timed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SpeedGauge, "_run", lambda self: None)
    found = measure(RecordingGenerator(Service(1, exponential(0.01)), seed=1))
    assert found.machine["speed, slowest over fastest"] == "not measured"


@pytest.mark.parametrize(("owner", "name", "left"), [(html, "render", ".json"), (report, "save", ".html")])
def test_file_that_cannot_be_written_is_reported(
    owner: object, name: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, fail)
    whole = measure(RecordingGenerator(Service(1, exponential(0.01)), seed=1))
    found, written = _write(whole, Settings(root=tmp_path), None)
    assert [path.suffix for path in written] == [left]
    assert "is not written: KeyError 'Plans'" in found.not_measured[-1]
    assert found.capacity == whole.capacity
