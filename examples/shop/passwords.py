"""Password hashes: scrypt, as `scrypt$<log2 of the cost>$<salt>$<key>`, salt and key in hexadecimal."""

from __future__ import annotations

import hashlib
import hmac
import secrets

# 4 MiB and about 10 ms, so that logins are not the load of a measurement; use 2 ** 14 in production.
LOG2_COST = 12


def _key(password: str, salt: bytes, log2_cost: int) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, n=1 << log2_cost, r=8, p=1, dklen=32)


def hashed(password: str, *, salt: bytes | None = None) -> str:
    """Return the text to store for ``password``; with a new salt of 16 bytes unless one is given."""
    salt = secrets.token_bytes(16) if salt is None else salt
    return f"scrypt${LOG2_COST}${salt.hex()}${_key(password, salt, LOG2_COST).hex()}"


def matches(password: str, stored: str) -> bool:
    """Return whether ``stored`` is the hash of ``password``, compared in constant time."""
    _, log2_cost, salt, key = stored.split("$")
    return hmac.compare_digest(_key(password, bytes.fromhex(salt), int(log2_cost)), bytes.fromhex(key))
