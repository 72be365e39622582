"""Imports the user's app in the service's own Python and describes it: its interface, routes, app servers.

    .venv/bin/python /…/tenfold/stack/launch.py describe shop.app:app /path/of/the/app 0 /tmp/description.json

Routes are GETs that need nothing: no parameter, and no credentials as far as the app declares them.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tenfold.stack.app_process import is_wsgi
from tenfold.stack.app_servers import BY_INTERFACE
from tenfold.stack.import_string import load

_MOST = 200
_DULL = re.compile(r"/(docs|redoc|openapi\.json|static|admin|health|healthz|metrics|ping|favicon)\b.*")


def main(target: str, folder: str, factory: str, output: str) -> None:
    """Write the description of an app as JSON to a file."""
    app = load(target, Path(folder), call=factory == "1")
    interface = "wsgi" if is_wsgi(app) else "asgi"
    try:
        routes = list(dict.fromkeys(list_routes(app)))[:_MOST]
    except Exception:  # a framework of another version: the app works all the same
        routes = []
    description = {
        "interface": interface,
        "framework": _framework(app),
        "routes": [path for path in routes if not _DULL.fullmatch(path)] or routes,
        "servers": [name for name in BY_INTERFACE[interface] if importlib.util.find_spec(name)],
        "python": ".".join(map(str, sys.version_info[:2])),
    }
    Path(output).write_text(json.dumps(description), encoding="utf-8")


def _framework(app: Any) -> str:
    names = [cls.__module__.partition(".")[0] for cls in type(app).__mro__]
    known = ("fastapi", "django", "flask", "quart", "litestar", "starlette")
    return next((name for name in known if name in names), names[0])


def list_routes(app: Any) -> Iterator[str]:
    """Yield the paths of an app's GETs that need nothing."""
    if "django" in sys.modules and type(app).__module__.startswith("django."):
        yield from _django_routes()
    elif hasattr(app, "url_map"):  # Flask and Quart
        for rule in app.url_map.iter_rules():
            if "GET" in (rule.methods or ()) and not rule.arguments:
                yield rule.rule
    elif callable(getattr(app, "openapi", None)):  # FastAPI
        yield from _openapi_routes(app.openapi())
    else:
        yield from _starlette_routes(getattr(app, "routes", None) or (), "")


def _openapi_routes(document: Any) -> Iterator[str]:
    everywhere = document.get("security")
    for path, operations in document["paths"].items():
        get = operations.get("get")
        if get is None or "{" in path or get.get("security", everywhere):
            continue
        if not any(one.get("required") for one in get.get("parameters", ())):
            yield path


def _starlette_routes(routes: Any, prefix: str) -> Iterator[str]:
    for route in routes:
        path = prefix + str(getattr(route, "path", ""))
        if "{" in path:
            continue
        if inner := getattr(route, "routes", None):
            yield from _starlette_routes(inner, path)
        elif "GET" in (getattr(route, "methods", None) or getattr(route, "http_methods", None) or ()):
            yield path


def _django_routes() -> Iterator[str]:
    from django.urls import get_resolver

    def walk(patterns: Any, prefix: str) -> Iterator[str]:
        for pattern in patterns:
            text = str(pattern.pattern)
            if hasattr(pattern.pattern, "_regex") or text.startswith("^"):
                text = text.removeprefix("^").removesuffix("$").removesuffix(r"\Z").replace("\\.", ".")
            if re.search(r"[<>()\[\]*+?\\|]", text) or text.startswith("admin/"):
                continue
            if hasattr(pattern, "url_patterns"):
                yield from walk(pattern.url_patterns, prefix + text)
            elif _allows_get(pattern.callback):
                yield prefix + text

    yield from walk(get_resolver().url_patterns, "/")


def _allows_get(view: Any) -> bool:
    kind = getattr(view, "view_class", None) or getattr(view, "cls", None)
    actions = getattr(view, "actions", None)
    return "get" in actions if actions else kind is None or hasattr(kind, "get")
