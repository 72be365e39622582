"""What a route does while the store of sessions does not answer. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from tenfold.errors import SettingsError

Policy = Literal["closed", "anonymous"]
Scope = Mapping[str, Any]
WhenUnavailable = Policy | Mapping[str, Policy] | Callable[[Scope], Policy]

POLICIES = ("closed", "anonymous")


def policy_of(when_unavailable: WhenUnavailable) -> Callable[[Scope], Policy]:
    """What to ask for each request; a mapping has path prefixes, the longest counts, "closed" is the rest.

    Raises:
        SettingsError: a policy that does not exist, or a prefix without a leading slash.
    """
    if callable(when_unavailable):
        return when_unavailable
    if isinstance(when_unavailable, str):
        _check(when_unavailable)
        only = when_unavailable
        return lambda scope: only
    for prefix, policy in when_unavailable.items():
        _check(policy)
        if not prefix.startswith("/"):
            raise SettingsError(f"when_unavailable has {prefix!r}: a path begins with a slash")
    ordered = sorted(when_unavailable.items(), key=lambda item: len(item[0]), reverse=True)
    return lambda scope: next(
        (policy for prefix, policy in ordered if _covers(prefix, scope["path"])), "closed"
    )


def _covers(prefix: str, path: str) -> bool:
    prefix = prefix.rstrip("/")
    return path == prefix or path.startswith(f"{prefix}/")


def _check(policy: str) -> None:
    if policy not in POLICIES:
        raise SettingsError(f"when_unavailable is {policy!r}: use closed or anonymous")
