"""Signed and encrypted values that clients or stores hold, with expiry, purposes and key rotation.

    signer = Signer([new_key, former_key])
    token = signer.sign(b"42", purpose="unsubscribe", expires_s=3600)
    signer.verify(token, purpose="unsubscribe")  # b"42"

The first key signs and seals, every key verifies and opens. To rotate, put a new key *behind* the present one
until every instance knows it, then in front; remove the former one when everything it signed has expired.

Not itsdangerous: its tokens are 17 characters longer (80 for 20 bytes with an expiry, 63 here), it has no
key ids, so a removed key looks like tampering, and it accepts several spellings of one signature.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import math
import secrets
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from tenfold.errors import DependencyError, SettingsError, SignatureError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

__all__ = ["Sealer", "Signer", "generate_key"]

KEY_BYTES = 32
_MIN_DISTINCT_BYTES = 8  # 32 random bytes have fewer distinct ones once in 10^30 times

_ID = 4
_FOREVER, _UNTIL = b"\x01", b"\x02"  # the first byte of a token: its format
_EXPIRY = 6  # milliseconds since 1970, enough for 8,900 years
_MAC = 16  # 128 bits, half of SHA-256: the least that RFC 2104 section 5 recommends

_SEALED = b"\x01"
_NONCE, _TAG = 12, 16

_INVALID = "the {} is not one that these keys made for this use, or it was changed: ask for a new one"
_UNKNOWN_KEY = "the {} names a key that is not here: keep a former key until everything it made has expired"
_EXPIRED = "the {} has expired: ask for a new one"
_TOO_LONG = "the {} has {:,} bytes, more than the limit of {:,}: keep less in it"


def generate_key() -> str:
    """A new key: 256 random bits as 43 characters of URL-safe text, for an environment variable."""
    return secrets.token_urlsafe(KEY_BYTES)


class Signer:
    """Signs short values that clients carry, as URL-safe text (HMAC-SHA-256, truncated to 128 bits).

    A token is 28 characters longer than its payload in Base64, 36 with an expiry. Its holder can read it: use
    a :class:`Sealer` for secrets. Use from any thread.

    Args:
        keys: each at least 32 random bytes (as UTF-8 where it is text); the first signs.
        max_bytes: the longest payload; longer tokens are refused unread.
        clock: seconds since 1970.

    Raises:
        SettingsError: there is no key, or one that is short or a repetition.
    """

    def __init__(
        self,
        keys: Sequence[str | bytes] | str | bytes,
        *,
        max_bytes: int = 4096,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._roots = _roots(keys)
        self._id = next(iter(self._roots))
        self._max_bytes = max_bytes
        self._longest = math.ceil((1 + _ID + _EXPIRY + max_bytes + _MAC) * 4 / 3)
        self._clock = clock

    def sign(self, payload: bytes, *, purpose: str, expires_s: float | None = None) -> str:
        """Return a token with ``payload``, which :meth:`verify` accepts for the same ``purpose``.

        Raises:
            SignatureError: the payload is longer than ``max_bytes``.
        """
        if len(payload) > self._max_bytes:
            raise SignatureError(_TOO_LONG.format("value to sign", len(payload), self._max_bytes))
        if expires_s is None:
            body = _FOREVER + self._id + payload
        else:
            at = math.ceil((self._clock() + expires_s) * 1000)
            body = _UNTIL + self._id + at.to_bytes(_EXPIRY, "big") + payload
        return _encode(body + _mac(self._roots[self._id], purpose, body))

    def verify(self, token: str, *, purpose: str) -> bytes:
        """Return the payload of a token.

        Raises:
            SignatureError: it has expired, its key is unknown, or it was not signed for this purpose.
        """
        raw = self._decode(token)
        body, mac = raw[:-_MAC], raw[-_MAC:]
        if (root := self._roots.get(body[1 : 1 + _ID])) is None:
            raise SignatureError(_UNKNOWN_KEY.format("signed value"))
        if not hmac.compare_digest(mac, _mac(root, purpose, body)):
            raise SignatureError(_INVALID.format("signed value"))
        payload = body[1 + _ID :]
        if body[:1] == _FOREVER:
            return payload
        if self._clock() * 1000 >= int.from_bytes(payload[:_EXPIRY], "big"):
            raise SignatureError(_EXPIRED.format("signed value"))
        return payload[_EXPIRY:]

    def _decode(self, token: str) -> bytes:
        """Decode a token; refuse any other spelling that Base64 decodes to the same bytes."""
        if len(token) > self._longest:
            raise SignatureError(_INVALID.format("signed value"))
        try:
            raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        except (binascii.Error, ValueError):
            raise SignatureError(_INVALID.format("signed value")) from None
        least = 1 + _ID + (_EXPIRY if raw[:1] == _UNTIL else 0) + _MAC
        if raw[:1] not in (_FOREVER, _UNTIL) or len(raw) < least or _encode(raw) != token:
            raise SignatureError(_INVALID.format("signed value"))
        return raw


class Sealer:
    """Encrypts values that others can then neither read, change nor move (AES-256-GCM-SIV, RFC 8452).

    Nonces are random. SIV, because a session store soon writes more often than plain AES-GCM allows with
    random nonces (2^32 times a key): a repeated nonce reveals here only that two values are equal. A sealed
    value is 33 bytes longer than its data. Use from any thread.

    Args:
        keys: each at least 32 random bytes (as UTF-8 where it is text); the first seals.
        purpose: names the use of these values; a sealer of another purpose cannot open them.
        max_bytes: the longest data.

    Raises:
        SettingsError: there is no key, or one that is short or a repetition.
        DependencyError: cryptography is missing, or its OpenSSL is older than 3.2.
    """

    def __init__(
        self, keys: Sequence[str | bytes] | str | bytes, *, purpose: str, max_bytes: int = 1_048_576
    ) -> None:
        cipher = _cipher()
        info = b"tenfold seal 1\0" + purpose.encode()
        self._ciphers = {id: cipher(_expand(root, info)) for id, root in _roots(keys).items()}
        self._id = next(iter(self._ciphers))
        self._max_bytes = max_bytes

    def seal(self, data: bytes, context: bytes = b"") -> bytes:
        """Encrypt ``data``; it opens only with the same ``context``: its place, say a row's key.

        Raises:
            SignatureError: the data are longer than ``max_bytes``.
        """
        if len(data) > self._max_bytes:
            raise SignatureError(_TOO_LONG.format("value to seal", len(data), self._max_bytes))
        head, nonce = _SEALED + self._id, secrets.token_bytes(_NONCE)
        return head + nonce + self._ciphers[self._id].encrypt(nonce, data, head + context)

    def open(self, sealed: bytes, context: bytes = b"") -> bytes:
        """Return the data of a sealed value.

        Raises:
            SignatureError: its key is unknown, or it was not sealed for this purpose and context.
        """
        from cryptography.exceptions import InvalidTag

        head, nonce, secret = (
            sealed[: 1 + _ID],
            sealed[1 + _ID : 1 + _ID + _NONCE],
            sealed[1 + _ID + _NONCE :],
        )
        if head[:1] != _SEALED or not _TAG <= len(secret) <= self._max_bytes + _TAG:
            raise SignatureError(_INVALID.format("sealed value"))
        if (cipher := self._ciphers.get(head[1:])) is None:
            raise SignatureError(_UNKNOWN_KEY.format("sealed value"))
        try:
            return cipher.decrypt(nonce, secret, head + context)
        except InvalidTag:
            raise SignatureError(_INVALID.format("sealed value")) from None


def _cipher() -> type[AESGCMSIV]:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
    except ImportError:
        raise DependencyError("encryption needs cryptography: pip install 'tenfold[encryption]'") from None
    try:
        AESGCMSIV(bytes(KEY_BYTES))
    except UnsupportedAlgorithm:
        raise DependencyError(
            "this cryptography is built on an OpenSSL without AES-GCM-SIV: install its wheel, or OpenSSL 3.2"
        ) from None
    return AESGCMSIV


def _roots(keys: Sequence[str | bytes] | str | bytes) -> dict[bytes, bytes]:
    """Derived keys by key id, the first key first (HKDF-Extract, RFC 5869 section 2.2)."""
    keys = [keys] if isinstance(keys, str | bytes) else list(keys)
    if not keys:
        raise SettingsError("there is no key: make one with tenfold.signing.generate_key()")
    roots: dict[bytes, bytes] = {}
    for number, key in enumerate(keys, 1):
        root = hmac.digest(b"tenfold", _key_material(key, number), "sha256")
        roots.setdefault(_expand(root, b"tenfold key id")[:_ID], root)
    return roots


def _key_material(key: str | bytes, number: int) -> bytes:
    # Surrogates are bytes of an environment variable that are not UTF-8.
    material = key.encode(errors="surrogateescape") if isinstance(key, str) else bytes(key)
    if len(material) < KEY_BYTES or len(set(material)) < _MIN_DISTINCT_BYTES:
        raise SettingsError(
            f"key {number} is not {KEY_BYTES} random bytes or more: make one with "
            "tenfold.signing.generate_key()"
        )
    return material


def _expand(root: bytes, info: bytes) -> bytes:
    """The first, and here only, block of HKDF-Expand (RFC 5869 section 2.3)."""
    return hmac.digest(root, info + b"\x01", "sha256")


def _mac(root: bytes, purpose: str, body: bytes) -> bytes:
    return hmac.digest(_expand(root, b"tenfold sign 1\0" + purpose.encode()), body, "sha256")[:_MAC]


def _encode(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
