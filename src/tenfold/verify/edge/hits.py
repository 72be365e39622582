"""A check of nginx's cache: most reads of public pages need no app."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.access_log import AccessLog, LogEntry
from tenfold.verify.kit.user_agent import UserAgent

HITS = "caches answer most reads"

_READS, _LEAST, _LOST = 400, 0.7, 0.03
_FROM_CACHE = frozenset(("HIT", "STALE", "UPDATING"))


def check_hit_ratio(stack: Stack, settings: Settings) -> Finding:
    """Send reads of ``verify.pages``, the first ones most often, and count those that nginx answers."""
    pages = settings.verify.pages
    if stack.access_log is None:
        raise TargetError("there is no access log of nginx: set stack.nginx = true")
    visitor, chance = UserAgent(stack.url), random.Random(1)  # noqa: S311 - no secret
    weights = [1 / (rank + 1) for rank in range(len(pages))]
    log = AccessLog(stack.access_log)
    for page in chance.choices(pages, weights, k=_READS):
        answer = visitor.request(f"GET {page}")
        if answer.status >= 400:
            raise TargetError(f"GET {page} answers {answer.status}: correct verify.pages")
    return judge_hits(log.read_new(quiet_s=0.2))


def judge_hits(entries: Sequence[LogEntry]) -> Finding:
    """The finding about the lines of nginx's log; pure.

    The best possible: of each page that is cached at all, one read that fetches it.
    """
    hits = sum(entry.cache in _FROM_CACHE for entry in entries)
    ratio = hits / max(len(entries), 1)
    cached = {entry.path for entry in entries if entry.cache in _FROM_CACHE}
    reads = sum(entry.path in cached for entry in entries)
    lost = reads - len(cached) - hits
    numbers = {"reads": len(entries), "hits": hits, "ratio": round(ratio, 3), "fetched_again": max(lost, 0)}
    claim = f"nginx answers {ratio:.0%} of {len(entries)} reads without the app"
    if ratio <= _LEAST:
        remedy = "write rules for these paths in [edge], as public with a ttl"
        return Finding(HITS, claim, Verdict.FAIL, numbers, remedy)
    if lost > _LOST * reads:
        remedy = "give them a longer ttl or swr, and purge by tags of what seldom changes"
        return Finding(
            HITS, f"{claim}, but fetches cached pages {lost} times again", Verdict.FAIL, numbers, remedy
        )
    return Finding(HITS, claim, Verdict.PASS, numbers)
