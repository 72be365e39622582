"""What is said about an answer, and what a shared cache does with it: pure functions of request and answer.

:func:`describe` turns a rule into headers, which the middleware sends. :func:`may_store` is what a shared
cache makes of headers, by RFC 9111; nginx computes the same in ``edge.js``. :func:`cache_key` and
:func:`choose_variants` are the same in the middleware, in nginx and at the edge.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tenfold.edge.cache_control import (
    MOST_S,
    has_token,
    join,
    parse_date,
    parse_directives,
    parse_seconds,
    parse_targeted,
)
from tenfold.edge.rules import NOTHING_SAID, EdgePolicy, Rule

__all__ = ["Answer", "Request", "Storage", "cache_key", "choose_variants", "describe", "may_store", "murmur2"]

DESCRIBED = frozenset((200, 203, 204, 206, 300, 301, 304, 308))
"""Statuses that a rule is about; others are not stored unless the app says so itself."""

NOT_STORED = "private, no-store"
COOKIE = "__Host-edge-visitor"
"""The cookie that keeps a visitor's variants: a random id."""


@dataclass(frozen=True, slots=True)
class Request:
    """Of a request what a cache looks at; names of headers in lower case."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """Of an answer what a cache looks at; values of one name are joined by commas, names are lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Storage:
    """What a shared cache does with an answer.

    Attributes:
        lifetime_s: seconds for which it answers with it; 0: it does not store it.
        swr_s: seconds after that in which it may answer while it asks again.
        error_s: seconds after that in which it may answer when the app fails.
        reason: why it is not stored.
    """

    lifetime_s: int = 0
    swr_s: int = 0
    error_s: int = 0
    reason: str = ""

    @property
    def is_stored(self) -> bool:
        """Whether it is stored."""
        return self.lifetime_s > 0


# ------------------------------------------------------------------ what is said


def describe(
    rule: Rule, request: Request, answer: Answer, *, tag_header: str = "Cache-Tag"
) -> dict[str, str]:
    """The headers that an answer gets: Cache-Control; CDN-Cache-Control, Vary and tags where a rule has some.

    An empty one is taken away.

    What the app says itself wins where it is stricter: ``no-store``, ``private``, ``no-cache``, shorter
    lifetimes, ``must-revalidate``. Answers that set cookies are never shared. Errors are not stored unless
    the app says so. Answers to other methods than GET and HEAD are left as they are.
    """
    own = parse_directives(answer.headers.get("cache-control", ""))
    aimed = parse_targeted(answer.headers.get("cdn-cache-control", ""))
    if request.method not in ("GET", "HEAD"):
        return {} if own else {"cache-control": "no-store"}
    vary = {"vary": merged} if (merged := _merge_vary(answer.headers.get("vary", ""), rule.vary)) else {}
    if rule is NOTHING_SAID or rule.cache == "no-store":
        return {"cache-control": NOT_STORED, **vary}
    if {"no-store", "private", "no-cache"} & own.keys() and not (
        rule.cache == "private" and own.keys() == {"private"}
    ):
        return vary  # as the app says
    if answer.status not in DESCRIBED:
        return vary if own else {"cache-control": "no-store", **vary}
    if rule.is_shared and "set-cookie" in answer.headers:
        return {"cache-control": NOT_STORED, **vary}
    if rule.is_shared and "authorization" in request.headers and not rule.authorization:
        return {"cache-control": NOT_STORED, **vary}
    if rule.is_shared and {"no-store", "private", "no-cache"} & aimed.keys():
        return vary | _lifetimes(rule, own) | {"cdn-cache-control": answer.headers["cdn-cache-control"]}
    headers = vary | {"cdn-cache-control": ""} | _lifetimes(rule, own)
    if rule.tags:
        headers[tag_header.lower()] = _SEPARATORS.get(tag_header.lower(), ",").join(rule.tags)
    return headers


_SEPARATORS = {"surrogate-key": " "}


def _lifetimes(rule: Rule, own: Mapping[str, str]) -> dict[str, str]:
    """Cache-Control of a rule; what the app says shortens it."""
    said = parse_seconds(own.get("max-age"))
    browser_s = _least(rule.browser_s if rule.is_shared else rule.ttl, said)
    kept: dict[str, str | int | None] = {
        name: None for name in ("must-revalidate", "proxy-revalidate", "no-transform") if name in own
    }
    revalidates = not kept.keys().isdisjoint({"must-revalidate", "proxy-revalidate"})
    swr: str | int = "" if revalidates or not rule.swr else rule.swr
    error: str | int = "" if revalidates or not rule.stale_if_error else rule.stale_if_error
    stale: dict[str, str | int | None] = {"stale-while-revalidate": swr, "stale-if-error": error}
    if not rule.is_shared:
        return {"cache-control": join({"private": None, "max-age": browser_s, **kept, **stale})}
    shared_s = _least(rule.shared_s, said, parse_seconds(own.get("s-maxage")))
    if rule.cache == "immutable":
        kept["immutable"] = None if not own else ""
    if shared_s == browser_s:
        return {"cache-control": join({"public": None, "max-age": browser_s, **kept, **stale})}
    # s-maxage forbids answering with what is stale, so that swr needs RFC 9213.
    lines = {"cache-control": join({"public": None, "max-age": browser_s, "s-maxage": shared_s, **kept})}
    if swr or error:
        lines["cdn-cache-control"] = join({"max-age": shared_s, **stale})
    return lines


def _least(value: int, *others: int | None) -> int:
    return min([value, *(other for other in others if other is not None)])


def _merge_vary(own: str, more: Sequence[str]) -> str:
    """Vary with the rule's headers; empty when nothing is added."""
    names = [name.strip() for name in own.split(",") if name.strip()]
    known = {name.lower() for name in names}
    added = [name for name in more if name.lower() not in known]
    return ", ".join([*names, *added]) if added and "*" not in known else ""


# ------------------------------------------------------------------ what a shared cache does


def may_store(
    request: Request, answer: Answer, *, now: float | None = None, authorization: bool = False
) -> Storage:
    """What a shared cache does with an answer, by its headers alone (RFC 9111, sections 3 and 4.2).

    Stricter than the RFC: without a lifetime nothing is stored (no heuristics), nor is what has to be asked
    for first (``no-cache``), what sets cookies, and what was asked for with Authorization.
    """
    headers = answer.headers
    targeted = parse_targeted(headers.get("cdn-cache-control", ""))
    directives = targeted or parse_directives(headers.get("cache-control", ""))
    vary = headers.get("vary", "")
    for refused, reason in (
        (request.method not in ("GET", "HEAD"), f"the method is {request.method}"),
        ("authorization" in request.headers and not authorization, "the request has Authorization"),
        (answer.status in (206, 304) or answer.status < 200, f"the status is {answer.status}"),
        ("set-cookie" in headers, "it sets a cookie"),
        (has_token(vary, "*"), "Vary is *"),
        *((name in directives, f"Cache-Control has {name}") for name in ("no-store", "private", "no-cache")),
    ):
        if refused:
            return Storage(reason=reason)
    lifetime = _freshness(directives, headers, is_targeted=bool(targeted))
    if lifetime is None:
        return Storage(reason="it has no lifetime")
    left = lifetime - _age(headers, time.time() if now is None else now)
    if left <= 0:
        return Storage(reason="its lifetime is over")
    strict = {"must-revalidate", "proxy-revalidate"} | (set() if targeted else {"s-maxage"})
    if strict & directives.keys():
        return Storage(left)
    swr, error = (
        parse_seconds(directives.get(name)) or 0 for name in ("stale-while-revalidate", "stale-if-error")
    )
    return Storage(left, swr, error)


def _freshness(directives: Mapping[str, str], headers: Mapping[str, str], *, is_targeted: bool) -> int | None:
    """Seconds of RFC 9111, section 4.2.1."""
    for name in ("s-maxage", "max-age"):
        if name in directives:
            return parse_seconds(directives[name]) or 0
    if is_targeted or "expires" not in headers:
        return None
    expires, date = parse_date(headers["expires"]), parse_date(headers.get("date", ""))
    if expires is None:
        return 0
    return min(int(expires - (time.time() if date is None else date)), MOST_S)


def _age(headers: Mapping[str, str], now: float) -> int:
    """Seconds since the origin made it (RFC 9111, section 4.2.3)."""
    first = headers.get("age", "").partition(",")[0].strip()
    date = parse_date(headers.get("date", ""))
    apparent = 0 if date is None else max(int(now - date), 0)
    return max(apparent, parse_seconds(first) or 0)


# ------------------------------------------------------------------ keys and variants


def cache_key(policy: EdgePolicy, request: Request, variants: Mapping[str, str] | None = None) -> str:
    """Path, query without ignored parameters, and variants of the visitor."""
    _, rule = policy.find(request.path)
    query = filter_query(rule, request.query)
    shown = ",".join(f"{name}={value}" for name, value in sorted((variants or {}).items()))
    return f"{request.path}{'?' + query if query else ''}|{shown}"


def filter_query(rule: Rule, query: str) -> str:
    """The query without the parameters that the rule ignores; the others as they are, in their order."""
    if not rule.ignore_query or not query:
        return query
    return "&".join(part for part in query.split("&") if not rule.ignores(part.partition("=")[0]))


def choose_variants(rule: Rule, visitor: str) -> dict[str, str]:
    """The variant of each of the rule's A/B tests for a visitor, as nginx's split_clients chooses it."""
    return {
        name: _split(murmur2(f"{name}.{visitor}".encode()), percentages)
        for name, percentages in rule.experiments.items()
    }


def _split(hashed: int, percentages: Mapping[str, int]) -> str:
    """The part of 2**32 in which a hash lies; nginx sums whole hundredths of a percent."""
    limit = 0
    for name, percentage in percentages.items():
        limit += percentage * 100 * 0xFFFFFFFF // 10_000
        if hashed < limit:
            return name
    return name


def murmur2(data: bytes, seed: int = 0) -> int:
    """MurmurHash2, 32 bits, by Austin Appleby: the hash of nginx's split_clients."""
    length, mask, multiplier = len(data), 0xFFFFFFFF, 0x5BD1E995
    hashed = seed ^ length
    whole = length - length % 4
    for at in range(0, whole, 4):
        part = int.from_bytes(data[at : at + 4], "little") * multiplier & mask
        part = (part ^ part >> 24) * multiplier & mask
        hashed = (hashed * multiplier & mask) ^ part
    if length % 4:
        hashed = (hashed ^ int.from_bytes(data[whole:], "little")) * multiplier & mask
    hashed = (hashed ^ hashed >> 13) * multiplier & mask
    return hashed ^ hashed >> 15
