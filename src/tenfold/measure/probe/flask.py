"""Hooks into Flask: the URL rule and the view function of each request."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tenfold.measure.probe.recorder import Recorder
from tenfold.measure.probe.wsgi import SCOPE

_installed = False


def install(recorder: Recorder) -> None:
    """Record the rule as soon as Flask has matched it."""
    global _installed  # noqa: PLW0603 - Flask's signals are of the process
    from flask import request, request_started

    if _installed:
        return
    _installed = True

    def note_route(app: Any, **more: Any) -> None:
        scope, rule = request.environ.get(SCOPE), request.url_rule
        if scope is not None and rule is not None:
            scope["route"] = SimpleNamespace(path=rule.rule)
            scope["endpoint"] = _view(app.view_functions.get(rule.endpoint), request.method)

    request_started.connect(note_route, weak=False)


def _view(function: Any, method: str) -> Any:
    """Return the function that answers: of a ``MethodView``, its method."""
    kind = getattr(function, "view_class", None)
    return getattr(kind, method.lower(), function) if kind is not None else function
