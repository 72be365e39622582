"""What a stack is about: the user's line, and the kind of library work above it.

Everything is decided by a code object's file and name, once for each, and kept: a sample looks at hundreds of
frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import CodeType, FrameType
from typing import Any

from tenfold.callsites import CallSites

CODES = 20_000  # code objects remembered
FOLDED = 60  # frames of a stack in the flame graph

Stack = Sequence[tuple[CodeType, FrameType]]

# Kind of work → parts of the file's path, and names of functions ("" for any).
_KINDS: tuple[tuple[str, tuple[tuple[str, str], ...]], ...] = (
    (
        "password hash",
        (
            ("/passlib/", ""),
            ("/bcrypt/", ""),
            ("/argon2/", ""),
            ("/pwdlib/", ""),
            ("/werkzeug/security", ""),
            ("/django/contrib/auth/hashers", ""),
        ),
    ),
    (
        "client set-up",
        (
            ("/ssl.py", "create_default_context"),
            ("/ssl.py", "load_verify_locations"),
            ("/ssl.py", "load_default_certs"),
            ("/sqlalchemy/engine/create.py", "create_engine"),
            ("/httpx/_config.py", "create_ssl_context"),
            ("/boto3/session.py", "client"),
            ("/botocore/session.py", "create_client"),
            ("/botocore/loaders.py", ""),
        ),
    ),
    (
        "serialisation",
        (
            ("/fastapi/routing.py", "serialize_response"),
            ("/fastapi/encoders.py", ""),
            ("/fastapi/_compat", ""),
            ("/pydantic/", ""),
            ("/rest_framework/", ""),
            ("/starlette/responses.py", "render"),
            ("/json/__init__.py", "dumps"),
            ("/json/encoder.py", ""),
            ("/jinja2/", ""),
            ("/django/template/", ""),
            ("/django/core/serializers/", ""),
            ("/flask/json/", ""),
            ("/marshmallow/", ""),
            ("/msgspec/", ""),
            ("/litestar/serialization", ""),
            ("<template>", ""),
        ),
    ),
    (
        "rows to objects",
        (
            ("/sqlalchemy/orm/loading.py", ""),
            ("/sqlalchemy/engine/result.py", ""),
            ("/sqlalchemy/engine/cursor.py", "fetchall"),
            ("/sqlalchemy/engine/cursor.py", "fetchmany"),
            ("/sqlalchemy/orm/state.py", ""),
            ("/sqlalchemy/orm/identity.py", ""),
            ("/django/db/models/query.py", "__iter__"),
            ("/django/db/models/base.py", "from_db"),
            ("/sqlalchemy/cyextension/", ""),
            ("/sqlalchemy/engine/_result", ""),
            ("/sqlalchemy/engine/_row", ""),
            ("/psycopg/cursor.py", "fetchall"),
        ),
    ),
    (
        "statement",
        (("/sqlalchemy/", ""), ("/django/db/", ""), ("/psycopg/", ""), ("/psycopg2/", ""), ("/asyncpg/", "")),
    ),
    (
        "instrumentation",
        (("/sentry_sdk/", ""), ("/opentelemetry/", ""), ("/prometheus_client/", ""), ("/ddtrace/", "")),
    ),
    ("middleware", (("/starlette/middleware/base.py", ""),)),
)

# State of a suspended coroutine → part of a file's path, and names of functions there (none: any).
_SUSPENDED: tuple[tuple[str, str, tuple[str, ...]], ...] = (
    ("sleep", "asyncio/tasks.py", ("sleep",)),
    ("sleep", "anyio/", ("sleep", "sleep_until", "sleep_forever")),
    ("lock", "asyncio/locks.py", ("acquire", "wait")),
    ("lock", "anyio/_core/_synchronization.py", ("acquire", "wait")),
    ("in thread", "", ("run_sync_in_worker_thread", "to_thread", "run_in_threadpool")),
    ("in thread", "asgiref/sync.py", ()),
    ("send", "asyncio/streams.py", ("drain",)),
    ("send", "/uvicorn/", ("drain", "send")),
)

_WAITERS = (
    ("/threading.py", ("wait", "acquire", "join", "_wait_for_tstate_lock")),
    ("/queue.py", ("get", "put")),
    ("/concurrent/futures/thread.py", ("_worker",)),
    ("/concurrent/futures/_base.py", ("result", "wait")),
    ("/sqlalchemy/util/queue.py", ("get",)),
)

# Pools whose waits are seen on the stack: part of a file's path, and names of functions there.
_POOLS = (
    ("/asyncpg/pool.py", ("acquire", "_acquire", "_acquire_impl")),
    ("/sqlalchemy/pool/impl.py", ("_do_get",)),
    ("/psycopg_pool/", ("getconn", "_getconn_unchecked_nowait", "wait")),
)
_BASE_HTTP_MIDDLEWARE = "starlette/middleware/base.py"
_OWN = "/tenfold/measure/probe/"


class _Code:
    """What is known of one code object."""

    __slots__ = ("is_own", "is_user", "kind", "name")

    def __init__(self, code: CodeType, path: str) -> None:
        file, function = code.co_filename.replace("\\", "/"), code.co_name
        self.is_user = bool(path)
        self.is_own = _OWN in file
        self.kind = "" if path else _kind(file, function)
        module = (path or file.rpartition("/site-packages/")[2].rpartition("/lib/")[2]).removesuffix(".py")
        module = module if path or "/" not in module else "/".join(module.split("/")[-3:])
        self.name = f"{module}:{function}".replace(";", ",")


class StackLabels:
    """Describe stacks. One thread uses it."""

    def __init__(self, sites: CallSites) -> None:
        self._sites = sites
        self._codes: dict[CodeType, _Code] = {}

    def describe(self, stack: Stack) -> tuple[str, str]:
        """Return the innermost user line of a stack, the innermost frame first, and the kind of work on it.

        The kind of the outermost library frame above that line counts: a statement that an object loads is
        serialisation's if the serialiser asked for it. Without a user line all frames count.
        """
        detail = ""
        for code, frame in stack:
            known = self._code(code)
            if known.is_user:
                return self._sites.find(frame).where, detail
            if known.kind and not known.is_own and (not detail or known.kind != "middleware"):
                detail = known.kind
        return "", detail

    def route_of(self, codes: Sequence[CodeType], recorder: Any) -> int:
        """Return the number of the route whose endpoint is on the stack; 0 for none."""
        endpoints: dict[CodeType, int] = recorder.endpoint_codes
        return next((endpoints[code] for code in reversed(codes) if code in endpoints), 0)

    def state_of(self, codes: Sequence[CodeType]) -> str:
        """Return the state of a suspended coroutine from the code of its chain, the outermost first."""
        innermost = codes[-12:]
        if any(code.co_name == "acquire_on_behalf_of" for code in innermost):
            return "thread"
        if any(map(is_pool, innermost)):
            return "pool"
        if any(code.co_name in ("__sleep0", "checkpoint") for code in innermost):
            return "loop"  # it only lets others run
        below = [code.co_name for code in codes if code.co_filename.endswith(_BASE_HTTP_MIDDLEWARE)]
        if below and below[-1] != "coro":
            return "child"  # its own task waits for the one that it started
        for code in reversed(innermost):
            for state, file, functions in _SUSPENDED:
                if file in code.co_filename and (not functions or code.co_name in functions):
                    return state
        return "other"

    def fold(self, codes: Sequence[CodeType]) -> str:
        """Return a stack as one line, the outermost function first, as flame graphs take it."""
        names: list[str] = []
        for code in reversed(codes[:FOLDED]):
            known = self._code(code)
            if not known.is_own and (not names or names[-1] != known.name):
                names.append(known.name)
        return ";".join(names)

    def _code(self, code: CodeType) -> _Code:
        known = self._codes.get(code)
        if known is None:
            if len(self._codes) >= CODES:
                self._codes.clear()
            known = self._codes[code] = _Code(code, self._sites.path(code.co_filename))
        return known


def is_pool(code: CodeType) -> bool:
    """Return whether a function takes a connection out of a pool that has no hooks."""
    return any(part in code.co_filename and code.co_name in names for part, names in _POOLS)


def is_waiter(code: CodeType) -> bool:
    """Return whether a thread with this innermost function waits for a lock, not for the interpreter."""
    return any(code.co_name in names and code.co_filename.endswith(file) for file, names in _WAITERS)


def _kind(file: str, function: str) -> str:
    for kind, places in _KINDS:
        if any(part in file and function.startswith(name) for part, name in places):
            return kind
    return ""
