"""The service with the probe around it, as ``tenfold up`` puts it there."""

import os
from pathlib import Path

from tenfold.measure.probe import Probe


async def application(scope, receive, send):
    await probe(scope, receive, send)


def _app():
    from app import app

    return app


probe = Probe(_app(), Path(os.environ["PROBE_ADDRESS"]), root=Path(__file__).parent, instance="app 1")
