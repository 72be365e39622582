"""Measurements in virtual time: a generator with histograms, and an observer without servers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
from benchmarks.support.virtual import Floats, VirtualGenerator

from tenfold.measure import measurement
from tenfold.measure.load import histogram
from tenfold.measure.observer import StackObserver
from tenfold.measure.report.report import Report
from tenfold.measure.settings import MeasureSettings, Objective
from tenfold.measure.trial import Endpoint, Trial, TrialRequest


class RecordingGenerator(VirtualGenerator):
    """A virtual generator whose trials carry their latencies, as those of the real one do."""

    _latencies: list[Floats]

    def run(self, request: TrialRequest, on_block: object = None) -> Trial:
        """Run a trial in virtual time, with one endpoint."""
        self._latencies = []
        trial = super().run(request)
        whole = np.concatenate(self._latencies) if self._latencies else np.empty(0)
        encoded = histogram.encode(whole * 1000)
        endpoint = Endpoint("GET /", len(whole), 0, 0, {"200": len(whole)}, encoded, encoded)
        return replace(
            trial, requests=len(whole), endpoints=(endpoint,), corrected=encoded, raw=encoded, users=10
        )

    def departures(self, due: Floats) -> Floats:
        """Record the latencies of these arrivals."""
        leave = super().departures(due)
        self._latencies.append(leave - due)
        return leave


class EmptyStack:
    """A stack without servers: the observer has nothing to sample."""

    url = "http://127.0.0.1:1"
    servers = ()
    app_folder = Path()
    database_url: str | None = None
    access_log = None

    def __init__(self, address: Path) -> None:
        self.probe_address = address


def measure(
    generator: VirtualGenerator,
    settings: MeasureSettings | None = None,
    *,
    inside: StackObserver | None = None,
) -> Report:
    """Measure the generator's service, on the generator's clock."""
    with mock.patch.object(measurement, "time", mock.Mock(monotonic=lambda: generator._now)):
        return measurement.Measurement(
            settings or MeasureSettings(),
            generator,  # type: ignore[arg-type]  # its on_block is not called
            service="virtual",
            target="virtual:",
            inside=inside,
        ).run()


def observer(address: Path) -> StackObserver:
    """An observer of an empty stack."""
    return StackObserver(EmptyStack(address), objective=Objective())  # type: ignore[arg-type]
