"""The service with the probe around it: the probe first, so that it sees the engines being made."""

import os
from pathlib import Path

from tenfold.measure.probe.probe import Probe


async def later(scope, receive, send):
    await app(scope, receive, send)


application = Probe(later, Path(os.environ["PROBE_ADDRESS"]), root=Path(__file__).parent, instance="app 1")

from app import app  # noqa: E402
