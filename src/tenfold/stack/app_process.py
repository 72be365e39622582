"""One app instance: granian serving the user's app, with tenfold's probe around it.

    python -P -m tenfold.stack.app_process 127.0.0.1 8000

granian's own command would put its idea of a root folder first on the path, before the standard library.

The stack says through variables what to load. They are taken out of the environment first, so that an app
which reads ``TENFOLD_…`` for itself does not meet them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tenfold.asgi import ASGIApp, Receive, Scope, Send
from tenfold.measure.probe.probe import Probe
from tenfold.stack.targets import leave, load


class Later:
    """An ASGI app that is known later: the probe has to be in place before the user's code is imported."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand over to the app."""
        await self.app(scope, receive, send)


def make() -> ASGIApp:
    """Build the app that this instance serves."""
    target = os.environ.pop("_TENFOLD_APP")
    folder = Path(os.environ.pop("_TENFOLD_FOLDER"))
    later = Later()
    probed = _probe(later, folder)
    later.app = _application(target, folder, factory=os.environ.pop("_TENFOLD_FACTORY") == "1")
    return probed


def _probe(app: ASGIApp, folder: Path) -> ASGIApp:
    address = Path(os.environ.pop("_TENFOLD_PROBE"))
    instance = os.environ.pop("_TENFOLD_INSTANCE")
    return Probe(app, address, root=folder, instance=instance)


def _application(target: str, folder: Path, *, factory: bool) -> ASGIApp:
    app = load(target, folder)
    if factory:
        app = app()
    if not callable(app):
        leave(f"{target} is a {type(app).__name__}, not an ASGI app: name the app, or set [service] factory")
    served: ASGIApp = app
    return served


def _load(target: str) -> ASGIApp:
    """Called by granian in its worker."""
    return make()


def main(host: str, port: str) -> None:
    """Serve until a signal comes; one worker, which is not started again when it ends."""
    from granian.constants import Interfaces
    from granian.server import Server

    server = Server(
        os.environ["_TENFOLD_APP"],
        address=host,
        port=int(port),
        interface=Interfaces.ASGI,
        workers=1,
        respawn_failed_workers=False,
    )
    server.serve(target_loader=_load)


if __name__ == "__main__":
    main(*sys.argv[1:])
