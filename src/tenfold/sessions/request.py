"""``current``: the session of a request, in any framework that shows its ASGI scope."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from tenfold.errors import SessionError
from tenfold.sessions.middleware import KEY, Visit
from tenfold.sessions.session import Session

__all__ = ["current"]


class Current:
    """``session = await current(request)``, ``Depends(current)`` in FastAPI, ``current.blocking(request)``.

    Takes a scope, or anything with a ``.scope``: a Request or a WebSocket. The first call of a request loads
    the session, in one round trip; every other gets the same object. As a dependency it serves sync endpoints
    too; elsewhere those call :meth:`blocking`.

    Raises:
        SessionStoreError: the store does not answer; unhandled, it becomes what the route's policy says.
        SessionError: SessionMiddleware is not around the application.
    """

    async def __call__(self, connection: Any) -> Session:
        scope: Mapping[str, Any] = getattr(connection, "scope", connection)
        visit = scope.get(KEY)
        if not isinstance(visit, Visit):
            raise SessionError("this request has no session: put SessionMiddleware around the application")
        return await visit.load() if visit.session is None else visit.session

    def blocking(self, connection: Any) -> Session:
        """The same from a sync endpoint, that is: in a worker thread of Starlette or anyio."""
        from anyio import from_thread

        return from_thread.run(self.__call__, connection)

    @property
    def __signature__(self) -> inspect.Signature:
        """What FastAPI reads to see what to pass; Starlette is imported by whoever has it, not by us."""
        from starlette.requests import HTTPConnection

        parameter = inspect.Parameter(
            "connection", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=HTTPConnection
        )
        return inspect.Signature([parameter], return_annotation=Session)


current = Current()
