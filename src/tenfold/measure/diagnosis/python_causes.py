"""What uses Python's time on the CPU, of all samples that want it. Pure.

Each kind of cause takes its samples away from those that are left for the next.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from tenfold.measure.diagnosis.bottleneck import Bottleneck, found, with_share
from tenfold.measure.diagnosis.facts import Facts, SampleKey, Sums
from tenfold.measure.diagnosis.statement_causes import (
    COMMITS,
    SHARE,
    STATEMENT_KINDS,
    STATEMENT_SHOWN,
    commits,
    commits_per_request,
    connects,
    fetched,
    is_large,
    keys_of,
    large_results,
    loops,
    n_plus_one,
)

SERIALISATION = 0.3
NEIGHBOURS = 4  # lines: as near to each other they are one loop

_HASH = re.compile(
    r"pbkdf2|bcrypt|scrypt|argon2|hash_password|verify_password|check_password|hashpw", re.IGNORECASE
)


class _Kind(NamedTuple):
    """Library work that is a cause of its own."""

    cause: str
    least: float
    title: str
    remedy: str


_KINDS: Mapping[str, _Kind] = {
    "password hash": _Kind(
        "password_hash",
        SHARE,
        "{route} computes a password hash",
        "hash in a thread (asyncio.to_thread, or a def endpoint): it releases the interpreter; limit logins",
    ),
    "client set-up": _Kind(
        "client_per_request",
        SHARE,
        "{route} sets up a client for each request",
        "create the client (or engine) once, at start-up, and share it between requests",
    ),
    "serialisation": _Kind(
        "serialisation",
        SERIALISATION,
        "{route} serialises its response",
        "answer with fewer objects (pages, fewer fields), or cache the serialised response",
    ),
    "instrumentation": _Kind(
        "instrumentation",
        SHARE,
        "instrumentation takes CPU in {route}",
        "sample fewer requests, or switch off what is not read",
    ),
    "middleware": _Kind(
        "middleware",
        SHARE,
        "BaseHTTPMiddleware takes CPU in {route}",
        "write the middleware as a plain ASGI class",
    ),
}

_Found = Iterator[tuple[Bottleneck, list[SampleKey]]]


def find_python_causes(facts: Facts) -> Iterator[Bottleneck]:
    """Yield what uses the CPU of the app's processes."""
    left = cpu_seconds(facts)
    total = left.total
    if not any(left.values()):
        return
    for kind in (_background, _of_connects, _of_loops, _of_large_results, _of_commits, _of_kinds):
        for cause, keys in kind(facts, left, total):
            yield cause
            for key in keys:
                left.pop(key, None)
    yield from _plain_lines(facts, left, total)


def cpu_seconds(facts: Facts) -> Sums[SampleKey]:
    """Return CPU seconds by sample; by the number of samples where the system does not tell CPU times."""
    samples = [one for one in facts.limit.evidence.samples if one.state == "run"]
    exact = any(one.cpu_s for one in samples)
    sums: Sums[SampleKey] = Sums()
    for one in samples:
        key = SampleKey(one.route, one.line, one.detail, one.place)
        sums[key] += one.cpu_s if exact else one.seconds
    return sums


def _background(facts: Facts, cpu: Sums[SampleKey], total: float) -> _Found:
    """Threads of the app that carry no request and compute."""
    lines: Sums[str] = Sums()
    for key, seconds in cpu.items():
        if not key.route and key.line and key.place == "thread":
            lines[key.line] += seconds
    for line, near in clusters(lines):
        share = sum(lines[one] for one in near) / total
        if share >= SHARE:
            yield (
                found(
                    "gil",
                    "Threads",
                    "a background thread of the app computes",
                    share=share,
                    where=line,
                    evidence=("it takes the interpreter from the requests of its process",),
                    remedy="compute in another process: a thread takes its time from the requests",
                ),
                [key for key in cpu if not key.route and key.line in near],
            )


def _of_connects(facts: Facts, cpu: Sums[SampleKey], total: float) -> _Found:
    mine = _keys_on_lines_of(facts, cpu, "CONNECT")
    share = sum(cpu[key] for key in mine) / total
    if share >= SHARE:
        for one in connects(facts.limit):
            yield with_share(one, share), mine


def _of_commits(facts: Facts, cpu: Sums[SampleKey], total: float) -> _Found:
    mine = _keys_on_lines_of(facts, cpu, "COMMIT")
    share = sum(cpu[key] for key in mine) / total
    if share >= SHARE and commits_per_request(facts.limit) >= COMMITS:
        for one in commits(facts.limit):
            yield with_share(one, share), mine


def _keys_on_lines_of(facts: Facts, cpu: Sums[SampleKey], round_trip: str) -> list[SampleKey]:
    sites = {use.site for use in facts.limit.statements if use.fingerprint == round_trip and use.site}
    return [key for key in cpu if key.line in sites]


def _of_loops(facts: Facts, cpu: Sums[SampleKey], total: float) -> _Found:
    """A statement in a loop costs Python as well: building it, and making objects of its rows."""
    for uses in loops(facts.limit):
        mine = keys_of(uses, cpu)
        cause = n_plus_one(facts.limit, uses, sum(cpu[key] for key in mine) / total)
        if is_large(cause):
            yield cause, mine


def _of_large_results(facts: Facts, cpu: Sums[SampleKey], total: float) -> _Found:
    for use in large_results(facts.limit):
        mine = [
            key
            for key in cpu
            if (use.site and key.line == use.site)
            or (key.route == use.route and key.detail in STATEMENT_KINDS)
        ]
        share = sum(cpu[key] for key in mine) / total
        if share >= SHARE:
            yield fetched(facts.limit, use, share), mine


def _of_kinds(facts: Facts, cpu: Sums[SampleKey], total: float) -> _Found:
    """Kinds of library work: serialisation, password hashes, clients that are made for each request."""
    kinds: dict[str, list[SampleKey]] = defaultdict(list)
    for key in cpu:
        is_hash = _HASH.search(facts.sources.get(key.line, ""))
        kinds["password hash" if is_hash else key.detail].append(key)
    for name, kind in _KINDS.items():
        mine = kinds.get(name, [])
        share = sum(cpu[key] for key in mine) / total
        if share < kind.least:
            continue
        routes: Sums[str] = Sums()
        lines: Sums[str] = Sums()
        for key in mine:
            if key.route:
                routes[key.route] += cpu[key]
            if key.line:
                lines[key.line] += cpu[key]
        route = routes.largest("")
        size = facts.limit.response_bytes(route) / 1000
        yield (
            found(
                kind.cause,
                "CPU",
                kind.title.format(route=route or "the app"),
                share=share,
                where=lines.largest("") or facts.limit.endpoint(route),
                evidence=(f"a response has {size:,.1f} kB on average",) if name == "serialisation" else (),
                remedy=kind.remedy,
            ),
            mine,
        )


def _plain_lines(facts: Facts, cpu: Sums[SampleKey], total: float) -> Iterator[Bottleneck]:
    lines: Sums[str] = Sums()
    for key, seconds in cpu.items():
        if key.line and key.detail not in STATEMENT_KINDS:
            lines[key.line] += seconds
    for line, near in clusters(lines):
        share = sum(lines[one] for one in near) / total
        if share < SHARE:
            continue
        route = max((key for key in cpu if key.line in near), key=lambda key: cpu[key]).route
        source = facts.sources.get(line, "").strip()
        yield found(
            "plain_cpu",
            "CPU",
            f"{route or 'the app'} computes",
            share=share,
            where=line,
            evidence=(source[:STATEMENT_SHOWN],) if source else (),
            remedy="make this cheaper, cache its result, or compute it in a background task",
        )


def clusters(lines: Mapping[str, float]) -> Iterator[tuple[str, set[str]]]:
    """Yield groups of neighbouring lines of one file with their heaviest line, the heaviest line first."""
    left: Callable[[str], float] = lines.__getitem__
    remaining = set(lines)
    while remaining:
        heaviest = max(sorted(remaining), key=left)
        file, number = _split(heaviest)
        near = {
            one for one in remaining if _split(one)[0] == file and abs(_split(one)[1] - number) <= NEIGHBOURS
        }
        yield heaviest, near
        remaining -= near


def _split(line: str) -> tuple[str, int]:
    file, _, number = line.rpartition(":")
    return file, int(number) if number.isdigit() else 0
