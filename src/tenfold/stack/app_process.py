"""One app instance: an app server with the user's app in it, and tenfold's probe around that.

    .venv/bin/python /…/tenfold/stack/launch.py app_process 127.0.0.1 8000

The stack passes what to load in variables. They are removed from the environment before the app is imported,
so that an app which reads ``TENFOLD_…`` itself does not see them.
"""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tenfold.asgi import ASGIApp, Receive, Scope, Send
from tenfold.measure.probe.probe import Probe
from tenfold.measure.probe.wsgi import WsgiProbe
from tenfold.stack import app_servers
from tenfold.stack.import_string import exit_with_message, load

_VARIABLES = ("APP", "FACTORY", "FOLDER", "PROBE", "INSTANCE", "INTERFACE", "SERVER", "THREADS", "GRANIAN")


class DeferredApp:
    """An ASGI app that is set later: the probe has to be in place before the user's code is imported."""

    app: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the call on to the app."""
        await self.app(scope, receive, send)


def is_wsgi(app: Callable[..., Any]) -> bool:
    """Return whether an app takes WSGI's two arguments (PEP 3333), and not ASGI's three."""
    call = app if inspect.isroutine(app) else type(app).__call__
    try:
        takes = inspect.signature(call)
    except (TypeError, ValueError):  # a builtin
        return False
    own = () if inspect.isroutine(app) else (None,)
    return _binds(takes, *own, None, None) and not _binds(takes, *own, None, None, None)


def _binds(signature: inspect.Signature, *arguments: None) -> bool:
    try:
        signature.bind(*arguments)
    except TypeError:
        return False
    return True


def take_variables() -> dict[str, str]:
    """Remove the stack's variables from the environment; return them by their last part, in lower case."""
    return {name.lower(): os.environ.pop(f"_TENFOLD_{name}", "") for name in _VARIABLES}


def create_app(variables: dict[str, str]) -> tuple[str, Callable[..., Any]]:
    """Build the app that this instance serves, with the probe around it; return its interface too."""
    folder = Path(variables["folder"])
    deferred = DeferredApp()
    probe = Probe(deferred, Path(variables["probe"]), root=folder, instance=variables["instance"])
    app = _load_app(variables["app"], folder, factory=variables["factory"] == "1")
    interface = "wsgi" if is_wsgi(app) else "asgi"
    if variables["interface"] not in {interface, "auto"}:
        exit_with_message(
            f"{variables['app']} is {'a WSGI' if interface == 'wsgi' else 'an ASGI'} app: "
            f'set [service] interface = "{interface}" in tenfold.toml'
        )
    server = app_servers.choose(variables["server"], interface)
    threads = f", {variables['threads']} threads" if interface == "wsgi" else ""
    sys.stderr.write(f"serving by {server}{threads}\n")  # the stack reads it from the log
    if interface == "wsgi":
        return interface, WsgiProbe(app, probe)
    deferred.app = app
    return interface, probe


def _load_app(target: str, folder: Path, *, factory: bool) -> Any:
    app = load(target, folder, call=factory)
    if not callable(app):
        exit_with_message(
            f"{target} is a {type(app).__name__}, not an ASGI or WSGI app: "
            "name the app, or set [service] factory"
        )
    return app


def main(host: str, port: str) -> None:
    """Serve until a signal arrives, with one worker that is not restarted when it ends."""
    server = app_servers.choose(os.environ["_TENFOLD_SERVER"], os.environ["_TENFOLD_INTERFACE"])
    if server == "granian":
        _serve_by_granian(host, int(port))
        return
    variables = take_variables()
    interface, app = create_app(variables)
    server = app_servers.choose(variables["server"], interface)
    app_servers.serve(server, app, host, int(port), threads=int(variables["threads"]))


def _serve_by_granian(host: str, port: int) -> None:
    """Let granian's worker load the app. It needs the interface before: a wrong guess starts it again."""
    mark = Path(f"{os.environ['_TENFOLD_PROBE']}.{os.getpid()}")
    interface = os.environ["_TENFOLD_INTERFACE"]
    if is_guess := interface == "auto":
        os.environ["_TENFOLD_MARK"], interface = str(mark), "asgi"
    try:
        app_servers.serve_by_granian(
            interface, host, port, threads=int(os.environ["_TENFOLD_THREADS"]), load=_load_in_worker
        )
    finally:
        if is_guess and mark.exists():
            mark.unlink()
            del os.environ["_TENFOLD_MARK"]
            os.environ["_TENFOLD_INTERFACE"] = "wsgi"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - itself


def _load_in_worker(target: str) -> Callable[..., Any]:
    """Called by granian in its worker."""
    mark, variables = os.environ.pop("_TENFOLD_MARK", ""), take_variables()
    interface, app = create_app(variables)
    if mark and interface == "wsgi":
        Path(mark).touch()
        raise SystemExit(0)
    return app
