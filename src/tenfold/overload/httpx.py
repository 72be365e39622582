"""Deadlines for outgoing calls with httpx: they end with the request that makes them.

    httpx.Client(event_hooks={"request": [propagate_deadline]})
    httpx.AsyncClient(event_hooks={"request": [propagate_deadline_async]})

httpx bounds each step (connecting, a read, a write, the wait for a pooled connection) and not their sum: a
server that sends a byte now and then keeps a sync call alive. An async call ends with its handler, which is
cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tenfold.deadlines import check_deadline, remaining_s

if TYPE_CHECKING:
    import httpx

__all__ = ["propagate_deadline", "propagate_deadline_async"]


def propagate_deadline(request: httpx.Request) -> None:
    """Shorten the timeouts of a request to the time left, and send it along as ``X-Request-Timeout``.

    Raises:
        DeadlineExceededError: no time is left; the request is not sent.
    """
    left_s = remaining_s()
    if left_s is None:
        return
    check_deadline()
    asked = request.extensions.get("timeout", {})
    limits = {step: asked.get(step) for step in ("connect", "read", "write", "pool")}
    request.extensions["timeout"] = {
        step: left_s if seconds is None else min(seconds, left_s) for step, seconds in limits.items()
    }
    request.headers["x-request-timeout"] = f"{left_s:.3f}"


async def propagate_deadline_async(request: httpx.Request) -> None:
    """Do the same for ``httpx.AsyncClient``."""
    propagate_deadline(request)
