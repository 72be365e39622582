"""What an answer that depends on a session says to caches. Pure."""

from __future__ import annotations

from collections.abc import Iterable

Header = tuple[bytes, bytes]


def for_caches(headers: Iterable[Header], *, varies: bytes, delivery: Header | None) -> list[Header]:
    """The headers of an answer for which the session was read.

    ``Vary`` names the header that carried the token. Without a word of the application on caching, the answer
    is private to the client. With a token in it, it is stored nowhere, whatever the application said: the
    strictest of several directives counts (RFC 9111 section 4.2.1).
    """
    result = list(headers)
    vary, said = _values(result, b"vary"), _values(result, b"cache-control")
    if varies.lower() not in vary and b"*" not in vary:
        result.append((b"vary", varies))
    if delivery is not None:
        result.append(delivery)
        if b"no-store" not in said:
            result.append((b"cache-control", b"no-store"))
    elif not said:
        result.append((b"cache-control", b"private"))
    return result


def _values(headers: Iterable[Header], name: bytes) -> list[bytes]:
    lines = [value for key, value in headers if key.lower() == name]
    return [item.strip().lower() for line in lines for item in line.split(b",")] if lines else []
