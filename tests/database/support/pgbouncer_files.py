"""A reader of PgBouncer's files, written from PgBouncer's grammar and independent of the renderer."""

from __future__ import annotations

import re

COMMENTS = (";", "#")
KEY = re.compile(r"[A-Za-z0-9_.*-]+")  # a bare one; what does not match is a syntax error
SPACE = " \t\r\n\v\f"
RESERVED = {"pgbouncer": "the console", "*": "any database"}


class UnreadableError(Exception):
    """PgBouncer would not start with this file, or would misread it."""


def read_ini(text: str) -> dict[str, list[tuple[str, str]]]:
    """The keys and values of each section, in order, a key that comes twice included."""
    found: dict[str, list[tuple[str, str]]] = {}
    entries: list[tuple[str, str]] | None = None
    for line in text.split("\n"):
        bare = line.strip(SPACE)
        if not bare or bare.startswith(COMMENTS):
            continue
        if bare.startswith("%"):
            raise UnreadableError(f"a directive: {bare}")
        if bare.startswith("["):
            entries = found.setdefault(bare.strip("[]"), [])
            continue
        key, equals, value = bare.partition("=")
        if entries is None or not equals or not KEY.fullmatch(key.rstrip(SPACE)):
            raise UnreadableError(f"no setting: {bare}")
        entries.append((key.rstrip(SPACE), value.strip(SPACE)))
    return found


def read_connection(text: str) -> list[tuple[str, str]]:
    """The parameters of a database: ``host=… dbname='…'``, where two quotes stand for one."""
    found, rest = [], text
    while rest:
        match = re.match(r"([a-z_]+)=(?:'((?:[^']|'')*)'|([^'\s]\S*))(?:\s+|\Z)", rest)
        if match is None:
            raise UnreadableError(f"no parameter: {rest}")
        name, quoted, bare = match.groups()
        found.append((name, bare if quoted is None else quoted.replace("''", "'")))
        rest = rest[match.end() :]
    return found


def read_databases(text: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """The databases that clients may name, with their parameters."""
    found = read_ini(text).get("databases", [])
    if not found:
        raise UnreadableError("no database")
    for name, _ in found:
        if name in RESERVED:
            raise UnreadableError(f"{name} is {RESERVED[name]}")
    return [(name, read_connection(value)) for name, value in found]


def read_users(text: str) -> list[tuple[str, str]]:
    """Names and passwords of userlist.txt, where two quotes stand for one and a line's rest is ignored."""
    found = []
    for line in text.split("\n"):
        if not line or line.startswith(COMMENTS):
            continue
        match = re.match(r'\s*"((?:[^"]|"")+)"\s+"((?:[^"]|"")+)"(?:\s.*)?\Z', line)
        if match is None:
            raise UnreadableError(f"no user: {line}")
        found.append((match[1].replace('""', '"'), match[2].replace('""', '"')))
    if not found:
        raise UnreadableError("no user")
    return found
