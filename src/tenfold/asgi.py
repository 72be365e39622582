"""ASGI vocabulary that all middlewares share: types, plain answers, path prefixes, route templates.

ASGI 3.0 (https://asgi.readthedocs.io/en/latest/specs/www.html).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, TypeVar

__all__ = [
    "ASGIApp",
    "Header",
    "Message",
    "Receive",
    "Scope",
    "Send",
    "ends_answer",
    "is_below",
    "longest_prefix",
    "mount_path",
    "path_in_app",
    "plain_answer",
    "prefix_matcher",
    "route_template",
    "send_answer",
]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]
Value = TypeVar("Value")

PLAIN_TEXT = "text/plain; charset=utf-8"
_PARTS = frozenset(("http.response.body", "http.response.zerocopysend", "websocket.http.response.body"))


def plain_answer(
    status: int,
    body: bytes,
    *,
    content_type: str = PLAIN_TEXT,
    headers: Iterable[Header] = (),
    kind: str = "http.response",
) -> tuple[Message, Message]:
    """Build the two messages of a short answer that no cache may store.

    Args:
        status: of HTTP.
        body: sent whole; its length is announced.
        headers: sent after Content-Type, Content-Length and Cache-Control.
        kind: ``"websocket.http.response"`` refuses a WebSocket where the server has that extension.
    """
    first = [
        (b"content-type", content_type.encode()),
        (b"content-length", b"%d" % len(body)),
        (b"cache-control", b"no-store"),
    ]
    start = {"type": f"{kind}.start", "status": status, "headers": [*first, *headers]}
    return start, {"type": f"{kind}.body", "body": body}


async def send_answer(
    send: Send,
    status: int,
    body: bytes,
    *,
    content_type: str = PLAIN_TEXT,
    headers: Iterable[Header] = (),
    kind: str = "http.response",
    head_only: bool = False,
) -> None:
    """Send a short answer; ``head_only`` leaves the body out, as an answer to HEAD wants it."""
    start, rest = plain_answer(status, body, content_type=content_type, headers=headers, kind=kind)
    await send(start)
    await send({**rest, "body": b""} if head_only else rest)


def ends_answer(message: Mapping[str, Any]) -> bool:
    """Return whether a server needs no further body after this message.

    Besides the last ``http.response.body`` these are ``http.response.pathsend``, by which Starlette sends
    files where the server has that extension (granian), and the last part of ``http.response.zerocopysend``.
    Trailers come after the body's end, and their last message ends the answer once more.
    """
    kind = message["type"]
    if kind in _PARTS:
        return not message.get("more_body", False)
    return kind == "http.response.pathsend" or (
        kind == "http.response.trailers" and not message.get("more_trailers", False)
    )


def path_in_app(scope: Mapping[str, Any]) -> str:
    """Return the path without the ``root_path`` under which a server or a mount has put the app.

    As ``starlette._utils.get_route_path``: ``path`` has the prefix in it by the specification (uvicorn), and
    has not behind a proxy that removed it (granian).
    """
    path: str = scope["path"]
    root = str(scope.get("root_path") or "").rstrip("/")
    return (path[len(root) :] or "/") if root and is_below(path, (root,)) else path


def is_below(path: str, prefixes: Iterable[str]) -> bool:
    """Whether a path is one of ``prefixes`` or lies below it: ``/api`` covers ``/api/x``, not ``/apis``."""
    for prefix in prefixes:
        plain = prefix.rstrip("/")
        if path.startswith(plain) and (len(path) == len(plain) or path[len(plain)] == "/"):
            return True
    return False


def prefix_matcher(prefixes: Iterable[str]) -> Callable[[str], bool]:
    """Prepare :func:`is_below` for many paths and the same prefixes."""
    exact = frozenset(prefix.rstrip("/") for prefix in prefixes)
    below = tuple(prefix + "/" for prefix in exact)
    return lambda path: path in exact or path.startswith(below)


def longest_prefix(values: Mapping[str, Value], *, otherwise: Value) -> Callable[[str], Value]:
    """Look up a path's value by the longest of the prefixes that cover it."""
    longest_first = sorted(values.items(), key=lambda item: -len(item[0]))

    def find(path: str) -> Value:
        return next((value for prefix, value in longest_first if is_below(path, (prefix,))), otherwise)

    return find


def mount_path(scope: Mapping[str, Any], mounted_at: str) -> str:
    """Return the part of ``root_path`` that routers have added; see :func:`route_template` for arguments.

    What the app itself puts in front of it (``FastAPI(root_path=…)``) belongs to its server, not to a mount.
    """
    root = str(scope.get("root_path") or "")
    if not root:
        return ""
    own = str(scope.get("app_root_path") or getattr(scope.get("app"), "root_path", None) or "")
    known = [prefix.rstrip("/") for prefix in (mounted_at, own)]
    return root[max((len(prefix) for prefix in known if is_below(root, (prefix,))), default=0) :]


def route_template(scope: Mapping[str, Any], mounted_at: str) -> str | None:
    """The template of the route that took a request (``/orders/{id}``), or None where there is none.

    Known once a router has run: Starlette and FastAPI leave the route in the scope. A router that FastAPI
    included knows its prefix only in FastAPI's own entry, and the prefix of a mounted app has moved to
    ``root_path``, with values in place of its parameters.

    Args:
        scope: after the app was called.
        mounted_at: ``root_path`` before.
    """
    route = scope.get("route")
    context = scope.get("fastapi") or {}
    included = context.get("effective_route_context") if isinstance(context, Mapping) else None
    if included is not None and getattr(included, "original_route", None) is route:
        route = included
    template = getattr(route, "path_format", None) or getattr(route, "path", None)
    if not isinstance(template, str):
        return None
    mount = mount_path(scope, mounted_at)
    if not mount:
        return template or "/"
    names = {str(value): f"{{{name}}}" for name, value in scope.get("path_params", {}).items()}
    mount = "/".join(names.get(part, part) for part in mount.split("/"))
    if mount.endswith(template.removesuffix("/{path}") or "/"):  # the route is the mount: static files, say
        return f"{mount}/{{path}}"
    return mount + template or "/"
