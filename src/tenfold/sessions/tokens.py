"""What a client holds: ``<handle>.<secret>``, both issued by the server.

The handle says which session it is, for as long as that lives; it opens nothing and may be shown and logged.
The secret proves that the session is the client's. Only its digest is kept, so that neither a reader of the
store nor one of its logs can take a session over. A login replaces the secret and nothing else: one write to
one key, with no moment at which both tokens, or neither, are good.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets

HANDLE_CHARACTERS = 22  # 128 bits in Base64

_TOKEN = re.compile(r"([A-Za-z0-9_-]{22})\.([A-Za-z0-9_-]{43})").fullmatch


def new_handle() -> str:
    """128 bits of chance, URL-safe."""
    return secrets.token_urlsafe(16)


def new_secret() -> str:
    """256 bits of chance, URL-safe."""
    return secrets.token_urlsafe(32)


def split(token: str) -> tuple[str, str] | None:
    """Handle and secret; None for whatever this server cannot have issued."""
    match = _TOKEN(token)
    return match.group(1, 2) if match else None  # type: ignore[return-value]


def digest(secret: str) -> str:
    """What is kept of a secret: SHA-256. There is nothing to stretch in 256 bits of chance."""
    return hashlib.sha256(secret.encode()).hexdigest()


def is_same(one: str, other: str) -> bool:
    """Whether two digests are, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(), other.encode())


def group(principal: str) -> str:
    """The name under which a store lists a principal's sessions."""
    return hashlib.sha256(b"tenfold principal\0" + principal.encode()).hexdigest()
