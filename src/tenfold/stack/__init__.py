"""Real servers on this machine: ``with Stack(settings) as stack``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.stack.stack import Stack

__all__ = ["Stack"]


def __getattr__(name: str) -> Any:
    # Lazy: every app instance imports tenfold.stack.app_process and must not load what starts servers.
    if name == "Stack":
        from tenfold.stack.stack import Stack

        return Stack
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
