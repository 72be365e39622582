"""What one visitor has seen so far, and its signed form, which travels in a cookie, a header or a task."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

from tenfold.errors import PositionError, SignatureError
from tenfold.positions import Token, merged, renewed
from tenfold.signing import Signer

__all__ = ["Seen", "TokenSigner"]

_PURPOSE = "seen position"
_LONGEST = 25


class Seen:
    """The token of a request, a task or a thread; shared by all that run in its context. Thread-safe.

    Attributes:
        reads: whether what was read counts, besides what was written.
        wrote: whether something was committed, rather than only read.
        changed: whether it was moved since it began.
    """

    __slots__ = ("_lock", "_token", "changed", "reads", "wrote")

    def __init__(self, token: Token | None = None, *, reads: bool = True) -> None:
        self._lock = threading.Lock()
        self._token = token
        self.reads = reads
        self.changed = self.wrote = False

    @property
    def token(self) -> Token | None:
        """What was seen; None when it was nothing, or so long ago that every replica has it."""
        token = self._token
        return None if token is None or token.expires_at <= time.time() else token

    def begin(self, token: Token) -> None:
        """Somebody comes who has seen ``token``."""
        with self._lock:
            self._token = merged(self._token, token)

    def read(self, token: Token) -> None:
        """A state up to ``token`` was read on a replica."""
        self._set(token, of_primary=False)

    def renew(self, token: Token, *, wrote: bool) -> None:
        """The primary was read or written at ``token``."""
        self.wrote = self.wrote or wrote
        self._set(token, of_primary=True)

    def _set(self, token: Token, *, of_primary: bool) -> None:
        with self._lock:
            held = self._token
            found = renewed(held, token) if of_primary else merged(held, token)
            if not _only_later(held, found):
                self._token, self.changed = found, True


def _only_later(held: Token | None, found: Token | None) -> bool:
    """That only the expiry moved is not worth a cookie until half of the time is over."""
    if held is None or found is None or held != replace(found, expires_at=held.expires_at):
        return False
    now = time.time()
    return held.expires_at - now > (found.expires_at - now) / 2


class TokenSigner:
    """Tokens as short signed text.

    Args:
        keys: those of :class:`tenfold.signing.Signer`. None makes one that ends with this process: tokens of
            other processes cannot be read then, and whoever brings one is sent to the primary.
    """

    def __init__(self, keys: Sequence[str | bytes] | str | bytes | None) -> None:
        self.shared = keys is not None
        self._signer = Signer([secrets.token_bytes(32)] if keys is None else keys, max_bytes=_LONGEST)

    def encode(self, token: Token) -> str:
        """62 characters of URL-safe text."""
        return self._signer.sign(token.pack(), purpose=_PURPOSE)

    def decode(self, text: str) -> Token | None:
        """The token, or None: it is not one of ours."""
        try:
            return Token.unpack(self._signer.verify(text, purpose=_PURPOSE))
        except (PositionError, SignatureError):
            return None
