"""Hooks into Django: the route and view of each request, and every statement of its ORM.

``connection.execute_wrapper()`` would see one thread's connection only.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tenfold.measure.probe.hooks import Hooks, Text, always, first_argument
from tenfold.measure.probe.recorder import Recorder
from tenfold.measure.probe.wsgi import SCOPE


def _vendor(args: tuple[Any, ...]) -> str:
    """Return the database of a cursor, or of a connection."""
    return str(getattr(getattr(args[0], "db", args[0]), "vendor", ""))


_hooks = Hooks(_vendor)


def install(recorder: Recorder) -> None:
    """Record routes, and time executions, commits, rollbacks and new connections."""
    from django.core.handlers.base import BaseHandler
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.backends.utils import CursorWrapper

    _hooks.recorder = recorder
    for name in ("_execute", "_executemany"):
        _wrap(CursorWrapper, name, first_argument)
    _wrap(BaseDatabaseWrapper, "_commit", always("COMMIT"))
    _wrap(BaseDatabaseWrapper, "_rollback", always("ROLLBACK"))
    _wrap(BaseDatabaseWrapper, "connect", always("CONNECT"))
    resolve = BaseHandler.resolve_request
    if not hasattr(resolve, "_tenfold"):

        def resolve_request(handler: Any, request: Any) -> Any:
            match = resolve(handler, request)
            if recorder.is_on:
                _note_route(request)
            return match

        resolve_request._tenfold = True  # type: ignore[attr-defined]
        BaseHandler.resolve_request = resolve_request


def _wrap(owner: Any, name: str, text: Text) -> None:
    _hooks.wrap(owner, name, text, outermost=True)


def _note_route(request: Any) -> None:
    """Leave template and view where Starlette's router would, for the probe that is around the app."""
    match = request.resolver_match
    scope = getattr(request, "scope", None) or request.META.get(SCOPE)
    if match is not None and scope is not None:
        scope["route"] = SimpleNamespace(path=f"/{match.route}")
        scope["endpoint"] = handler_of(match.func, request.method)


def handler_of(view: Any, method: str) -> Any:
    """Return the function that answers: of a class-based view, or of a view set, its method."""
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    name = (getattr(view, "actions", None) or {}).get(method.lower(), method.lower())
    return getattr(kind, name, view) if kind is not None else view
