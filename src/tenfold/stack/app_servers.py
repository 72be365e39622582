"""The app servers that may serve an instance: granian, uvicorn, hypercorn, gunicorn, waitress.

Each serves one app in one worker process and ends at SIGTERM. They are the service's own; granian is lent by
tenfold to a Python of the same version that has none.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from typing import Any

from tenfold.stack.import_string import exit_with_message

__all__ = ["BY_INTERFACE", "choose", "lend_granian", "serve", "serve_by_granian"]

BY_INTERFACE = {
    "asgi": ("granian", "uvicorn", "hypercorn"),
    "wsgi": ("granian", "gunicorn", "waitress"),
}  # in the order in which they are looked for


def choose(named: str, interface: str) -> str:
    """Return the server to use: the named one, or the first that is installed.

    Args:
        named: ``[service] server``; ``auto`` takes what there is.
        interface: ``asgi``, ``wsgi``, or ``auto`` as long as the app has not been imported.
    """
    known = BY_INTERFACE.get(interface) or tuple(dict.fromkeys(sum(BY_INTERFACE.values(), ())))
    if named != "auto":
        if named not in known:
            exit_with_message(
                f"{named} serves no {interface.upper()} app; "
                f"set [service] server to one of {', '.join(known)}"
            )
        known = (named,)
    for name in known:
        if importlib.util.find_spec(name) is not None:
            return name
    exit_with_message(
        f"{' or '.join(known)} is not installed in the service's Python ({sys.executable}); "
        f"install one there: pip install {known[0]}"
    )


class _LentPackages:
    """A finder for a few packages of tenfold's own environment; asked when all others have found nothing."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Find granian, and click, by which it is configured."""
        if name in {"granian", "click"} and path is None:
            return PathFinder.find_spec(name, [self._folder])
        return None


def lend_granian(lent: str) -> None:
    """Let the service's Python import tenfold's granian, if it is built for it and there is none.

    Args:
        lent: kind of Python and folder, as ``cpython-311:/…/site-packages``; empty lends nothing.
    """
    kind, _, folder = lent.partition(":")
    if folder and kind == sys.implementation.cache_tag and importlib.util.find_spec("granian") is None:
        sys.meta_path.append(_LentPackages(folder))


def serve_by_granian(
    interface: str, host: str, port: int, *, threads: int, load: Callable[[str], Callable[..., Any]]
) -> None:
    """Serve by granian, whose worker calls ``load``."""
    from granian.constants import Interfaces
    from granian.server import Server

    Server(
        "app",
        address=host,
        port=port,
        interface=Interfaces(interface),
        workers=1,
        respawn_failed_workers=False,
        blocking_threads=threads if interface == "wsgi" else None,
    ).serve(target_loader=load)


def serve(server: str, app: Callable[..., Any], host: str, port: int, *, threads: int) -> None:
    """Serve a loaded app in this process, or by one child of it.

    Args:
        server: any of them but granian.
        app: the app.
        host: an address to listen on.
        port: of TCP.
        threads: that run a WSGI app's requests.
    """
    if server == "uvicorn":
        _serve_by_uvicorn(app, host, port)
    elif server == "hypercorn":
        _serve_by_hypercorn(app, host, port)
    elif server == "gunicorn":
        _serve_by_gunicorn(app, host, port, threads)
    else:
        _serve_by_waitress(app, host, port, threads)


def _serve_by_uvicorn(app: Callable[..., Any], host: str, port: int) -> None:
    import uvicorn

    uvicorn.run(app, host=host, port=port, access_log=False, log_level="warning")


def _serve_by_hypercorn(app: Any, host: str, port: int) -> None:
    import asyncio
    import signal

    from hypercorn.asyncio import serve as serve_app
    from hypercorn.config import Config

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve_app(app, config, shutdown_trigger=stop.wait)

    config = Config()
    config.bind = [f"{host}:{port}"]
    asyncio.run(run())


def _serve_by_gunicorn(app: Callable[..., Any], host: str, port: int, threads: int) -> None:
    from gunicorn.app.base import BaseApplication

    class Application(BaseApplication):  # type: ignore[misc] # gunicorn has no types
        def load_config(self) -> None:
            kind = "gthread" if threads > 1 else "sync"
            chosen = {"bind": f"{host}:{port}", "workers": 1, "threads": threads, "worker_class": kind}
            for name, value in chosen.items():
                self.cfg.set(name, value)

        def load(self) -> Callable[..., Any]:
            return app

    Application().run()


def _serve_by_waitress(app: Callable[..., Any], host: str, port: int, threads: int) -> None:
    import waitress

    waitress.serve(app, host=host, port=port, threads=threads)
