"""Texts without the passwords in them: URLs and connection strings, for messages, reports and metrics. Pure.

A password that was not percent-encoded may hold any character, so nothing is taken apart here: all between
``://`` and the last ``@`` goes. More than the password may go with it, never less.
"""

from __future__ import annotations

import re

__all__ = ["has_password", "mask_host", "redact"]

_CREDENTIALS = re.compile(r"://.*@", re.DOTALL)
_PASSWORD = re.compile(
    r"(passw(?:or)?d\s*[=:]\s*)(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\s&]+)", re.IGNORECASE
)


def redact(text: str) -> str:
    """Return ``text`` with ``***`` for what stands before the host of a URL, and for ``password=…``."""
    return _PASSWORD.sub(r"\1***", _CREDENTIALS.sub("://***@", text))


def has_password(text: str) -> bool:
    """Return whether ``text`` may hold a password, by the same rules."""
    return redact(text) != text


def mask_host(url: str) -> str:
    """Return a URL with ``…`` for host, user and password, if it has these: ``postgresql://…:5433/shop``.

    The query goes too, and database 0 of a Redis.
    """
    scheme, _, rest = url.partition("://")
    if "@" not in rest:
        return url
    port_and_path = re.sub(r"^(\[[^]]*\]|[^:/?]*)", "", rest.rpartition("@")[2])
    return f"{scheme}://…{port_and_path.partition('?')[0].removesuffix('/0')}"
