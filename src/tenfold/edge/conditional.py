"""Conditional requests: which of 200, 304 and 412 an answer is (RFC 9110, section 13.2.2). Pure."""

from __future__ import annotations

from collections.abc import Mapping

from tenfold.edge.cache_control import parse_date, split_tags

__all__ = ["KEPT", "evaluate", "weaken"]

KEPT = frozenset(
    b"access-control-allow-credentials access-control-allow-origin access-control-expose-headers age "
    b"cache-control cache-tag cdn-cache-control content-location date etag expires link set-cookie "
    b"surrogate-key vary x-request-id".split()
)
"""Headers of an answer that a 304 in its place has, too (RFC 9110, section 15.4.5)."""


def evaluate(
    method: str, headers: Mapping[str, str], *, etag: str = "", last_modified: str = "", exists: bool = True
) -> int | None:
    """Evaluate the preconditions of a request; return 304, 412, or None: answer it.

    Args:
        method: of the request.
        headers: of the request, names in lower case.
        etag: of what would be sent, with its quotes; empty without one.
        last_modified: its date; empty without one.
        exists: False when nothing is there yet, as before a PUT.
    """
    is_read = method in ("GET", "HEAD")
    if (wanted := headers.get("if-match")) is not None:
        if not _matches_strongly(wanted, etag, exists=exists):
            return 412
    elif (date := parse_date(headers.get("if-unmodified-since", ""))) is not None and last_modified:
        modified = parse_date(last_modified)
        if modified is not None and modified > date:
            return 412
    if (known := headers.get("if-none-match")) is not None:
        if _matches_weakly(known, etag, exists=exists):
            return 304 if is_read else 412
    elif is_read and last_modified and (date := parse_date(headers.get("if-modified-since", ""))) is not None:
        modified = parse_date(last_modified)
        if modified is not None and modified <= date:
            return 304
    return None


def _matches_strongly(wanted: str, etag: str, *, exists: bool) -> bool:
    tags = split_tags(wanted)
    if tags == ["*"]:
        return exists
    return bool(etag) and not etag.startswith("W/") and etag in tags


def _matches_weakly(known: str, etag: str, *, exists: bool) -> bool:
    tags = split_tags(known)
    if tags == ["*"]:
        return exists
    return bool(etag) and etag.removeprefix("W/") in (tag.removeprefix("W/") for tag in tags)


def weaken(etag: str) -> str:
    """The weak form of an entity tag."""
    return etag if etag.startswith("W/") else f"W/{etag}"
