"""Cache-Control, Age, dates and lists of entity tags, read as RFC 9110 and 9111 say. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import format_datetime

__all__ = ["format_date", "parse_date", "parse_directives", "parse_seconds", "parse_targeted", "split_tags"]

MOST_S = 2_147_483_648  # RFC 9111, section 1.2.2
_DIRECTIVE = re.compile(r"[,\s]*([!#$%&'*+.^_`|~0-9A-Za-z-]+)(?:=(\"(?:[^\"\\]|\\.)*\"|[^,\s]*))?[^,]*")
_DAY, _MONTH = r"(?P<day>[ \d]\d)", r"(?P<month>[A-Z][a-z]{2})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_WEEKDAY = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_DATES = tuple(  # RFC 9110, section 5.6.7; not by strptime, which knows the locale's names
    re.compile(form, re.ASCII)
    for form in (
        rf"{_WEEKDAY}, {_DAY} {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, {_DAY}-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"{_WEEKDAY} {_MONTH} {_DAY} {_TIME} (?P<year>\d{{4}})",
    )
)
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_TAG = re.compile(r'\s*,*\s*((?:W/)?"[\x21\x23-\x7e\x80-\xff]*"|\*)\s*(?=,|$)')


def parse_directives(text: str) -> dict[str, str]:
    """Directives by name in lower case; of one that stands there twice the first.

    A quoted value loses its quotes; a directive without a value has "".
    """
    found: dict[str, str] = {}
    for match in _DIRECTIVE.finditer(text):
        value = match[2] or ""
        if value[:1] == '"':
            value = value[1:-1] if len(value) > 1 and value[-1] == '"' else "invalid"
        found.setdefault(match[1].lower(), value)
    return found


# A dictionary of RFC 8941 whose durations are integers.
_ITEM = (
    r'(?:-?[0-9]{1,15}(?:\.[0-9]{1,3})?|"(?:[^"\\]|\\["\\])*"|\?[01]|'
    r"[A-Za-z*][!#$%&'*+.^_`|~0-9A-Za-z:/-]*)"
)
_NAME = r"[a-z*][a-z0-9_.*-]*"
_MEMBER = rf"{_NAME}(?:={_ITEM})?(?:;[ ]*{_NAME}(?:={_ITEM})?)*"
_DICTIONARY = re.compile(rf" *{_MEMBER}(?:[ \t]*,[ \t]*{_MEMBER})* *")
_NO_DURATION = re.compile(
    r"(?:^|[ ,\t])(?:max-age|s-maxage|stale-while-revalidate|stale-if-error)"
    r"(?:=(?![0-9]+(?:[ ,;\t]|$))|(?=[ ,;\t]|$))"
)


def parse_targeted(text: str) -> dict[str, str]:
    """Directives of CDN-Cache-Control (RFC 9213); none of one that is no structured field."""
    if not _DICTIONARY.fullmatch(text) or _NO_DURATION.search(text):
        return {}
    return parse_directives(text)


def parse_seconds(text: str | None) -> int | None:
    """Whole seconds, MOST_S at most; None for anything else."""
    if text is None or not re.fullmatch(r"[0-9]+", text):
        return None
    return min(int(text[:12]), MOST_S) if len(text) <= 12 else MOST_S


def parse_date(text: str) -> float | None:
    """Seconds since 1970 of an HTTP date in any of its three forms; None for anything else."""
    match = next(filter(None, (form.fullmatch(text) for form in _DATES)), None)
    if match is None or match["month"] not in _MONTHS:
        return None
    year = int(match["year"])
    if len(match["year"]) == 2:
        year += 2000 if year < 69 else 1900
    day, hour, minute, second = (int(match[name]) for name in ("day", "hour", "minute", "second"))
    month = _MONTHS.index(match["month"]) + 1
    try:
        return datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp()
    except (ValueError, OverflowError):
        return None


def format_date(seconds: float) -> str:
    """An HTTP date."""
    return format_datetime(datetime.fromtimestamp(int(seconds), UTC), usegmt=True)


def split_tags(text: str) -> list[str]:
    """The entity tags of a list, with their quotes, or ``*``; none of what follows a mistake."""
    found, at = [], 0
    while match := _TAG.match(text, at):
        found.append(match[1])
        at = match.end()
    return found


def join(directives: Mapping[str, str | int | None]) -> str:
    """Directives as text: None for one without a value, an empty text leaves it out."""
    return ", ".join(
        name if value is None else f"{name}={value}" for name, value in directives.items() if value != ""
    )


def has_token(text: str, token: str) -> bool:
    """Whether a comma-separated list has a token, in any case; ``token`` is in lower case."""
    return any(token == part.strip().lower() for part in text.split(","))
