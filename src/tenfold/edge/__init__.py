"""One HTTP cache policy for browsers, the app, nginx and CDNs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tenfold.edge.middleware import EdgeMiddleware, precondition
    from tenfold.edge.purge import Purger
    from tenfold.edge.rules import EdgePolicy, Rule, immutable, no_store, private, public
    from tenfold.edge.settings import load_policy

__all__ = [
    "EdgeMiddleware",
    "EdgePolicy",
    "Purger",
    "Rule",
    "immutable",
    "load_policy",
    "no_store",
    "precondition",
    "private",
    "public",
]

_HOMES = dict.fromkeys(("EdgePolicy", "Rule", "immutable", "no_store", "private", "public"), "rules")
_HOMES |= {"Purger": "purge", "load_policy": "settings"}
_HOMES |= dict.fromkeys(("EdgeMiddleware", "precondition"), "middleware")


def __getattr__(name: str) -> Any:
    # Lazy: each piece loads only the library it is about.
    if name in _HOMES:
        return getattr(import_module(f"tenfold.edge.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
