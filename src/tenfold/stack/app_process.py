"""One app instance: granian serving the user's app, with tenfold's probe around it.

    python -P -m tenfold.stack.app_process 127.0.0.1 8000

granian's own command would put its root folder first on the path, before the standard library.

The stack passes what to load in variables. They are removed from the environment first, so that an app which
reads ``TENFOLD_…`` itself does not see them.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tenfold.asgi import ASGIApp, Receive, Scope, Send
from tenfold.measure.probe.probe import Probe
from tenfold.stack.import_string import exit_with_message, load


class DeferredApp:
    """An ASGI app that is set later: the probe has to be in place before the user's code is imported."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on to the app."""
        await self.app(scope, receive, send)


def create_app() -> ASGIApp:
    """Build the app that this instance serves."""
    target = os.environ.pop("_TENFOLD_APP")
    folder = Path(os.environ.pop("_TENFOLD_FOLDER"))
    deferred = DeferredApp()
    probe = _create_probe(deferred, folder)
    deferred.app = _load_app(target, folder, factory=os.environ.pop("_TENFOLD_FACTORY") == "1")
    return probe


def _create_probe(app: ASGIApp, folder: Path) -> ASGIApp:
    address = Path(os.environ.pop("_TENFOLD_PROBE"))
    instance = os.environ.pop("_TENFOLD_INSTANCE")
    return Probe(app, address, root=folder, instance=instance)


def _load_app(target: str, folder: Path, *, factory: bool) -> ASGIApp:
    app = load(target, folder)
    if factory:
        app = app()
    if not callable(app):
        exit_with_message(
            f"{target} is a {type(app).__name__}, not an ASGI app: name the app, or set [service] factory"
        )
    served: ASGIApp = app
    return served


def _load(target: str) -> ASGIApp:
    """Called by granian in its worker."""
    return create_app()


def main(host: str, port: str) -> None:
    """Serve until a signal arrives, with one worker that is not restarted when it ends."""
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
