"""Fingerprints of SQL statements: the normalised text under which executions are counted together.

Not a parser: a few substitutions, modelled on pg_stat_statements and Percona's ``pt-fingerprint``. Values in
the text are replaced, so that a fingerprint may be shown in a report. Strings are read as PostgreSQL reads
them: a backslash escapes in ``E'…'`` only.
"""

from __future__ import annotations

import re

LIMIT = 1_000  # characters kept; longer statements are distinguished by their beginning only

# The token that begins first wins: a comment in a string is a string, a quote in a comment is a comment.
_TOKEN = re.compile(
    r"""(?P<comment>/\*.*?(?:\*/|\Z) | --[^\n]*)
      | \bE'(?:[^'\\]|''|\\.)*(?:'|\Z)         # E'it\'s'
      | (?:\b[NBXU]&?)?'(?:[^']|'')*(?:'|\Z)     # 'it''s', and an unterminated one
      | \$(\w*)\$.*?(?:\$\2\$|\Z)               # $tag$ text $tag$
      | %\(\w+\)s | %s | \$\d+ | \?             # placeholders of psycopg, asyncpg, sqlite
      | (?<![:\w]):\w+                          # :name, but not ::cast
      | (?<![\w."])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?\b   # numbers that are not part of a name
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_CASTS = re.compile(r"\?(?:::[\w. ]+?(?:\(\?(?:, ?\?)*\))?(?:\[\])?(?=[\s,)\];]|$))+")
_LIST = re.compile(r"\(\s*\?(?:\s*,\s*\?)*\s*\)")
_ROWS = re.compile(r"(\(\?\+\))(?:\s*,\s*\(\?\+\))+")
_SPACE = re.compile(r"\s+")


def fingerprint(sql: str, *, limit: int = LIMIT) -> str:
    """Return the statement without comments, values, casts of values, IN lists and VALUES lists.

    Args:
        sql: the text as the driver gets it, with placeholders of any style.
        limit: maximum length of the result, in characters.

    >>> fingerprint("SELECT a FROM t WHERE id IN (%(id_1)s::INTEGER, 7) AND name = 'x'")
    'SELECT a FROM t WHERE id IN (?+) AND name = ?'
    """
    # A statement of megabytes (a bulk insert with its values in the text) is cut before the substitutions.
    text = _TOKEN.sub(lambda token: " " if token["comment"] else "?", sql[: limit * 4])
    text = _SPACE.sub(" ", text).strip(" ;")
    text = _CASTS.sub("?", text)
    text = _LIST.sub("(?+)", text)
    text = _ROWS.sub(r"\1", text)
    return text[:limit]
