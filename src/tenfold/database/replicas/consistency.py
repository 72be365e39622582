"""What one visitor has seen so far, and its signed form, which travels in a cookie, a header or a task."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from typing import TYPE_CHECKING

from tenfold.database.replicas.freshness import FreshnessLimits
from tenfold.database.replicas.servers import Cluster
from tenfold.errors import PositionError, SignatureError
from tenfold.positions import Token, merged, renewed
from tenfold.signing import Signer

if TYPE_CHECKING:
    from tenfold.database.replicas.checkout import Lease


__all__ = ["Memory", "Seen", "TokenSigner"]


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


# What the current context has seen: a request, a task, a thread. Every transaction that ends moves it.
_log = logging.getLogger("tenfold.database")
_PINS = (
    "this database has no log positions: after a write, reads go to the primary for {:g} s, and a replica "
    "that is later than that shows old data"
)
_NO_KEYS = (
    "a token of another instance came in, and this router has no keys to read it: give every instance the "
    "same keys, or its visitors are sent to the primary"
)


class Memory:
    """Holds a :class:`Seen` for each context.

    Without one, say in a script, a write starts one that lasts as long as the thread or task: what was
    written is seen from then on. What was *read* is remembered in contexts that somebody opened.
    """

    def __init__(
        self,
        *,
        keys: Sequence[str | bytes] | str | bytes | None,
        cluster: Cluster,
        limits: FreshnessLimits,
    ) -> None:
        self._signer = TokenSigner(keys)
        self._cluster, self._limits = cluster, limits
        self._current: ContextVar[Seen | None] = ContextVar("tenfold_seen", default=None)
        self._told: set[str] = set()

    def token(self) -> Token | None:
        """What this context has seen."""
        seen = self._current.get()
        return seen.token if seen else None

    def signed(self, token: Token | None) -> str | None:
        """As text to carry; None when nothing was seen."""
        return self._signer.encode(token) if token else None

    @contextmanager
    def opened(self, text: str | None) -> Iterator[Seen]:
        """A context for a block, that has seen what ``text`` says."""
        held = self._signer.decode(text) if text else None
        if text and held is None and not self._signer.shared:
            self._tell(_NO_KEYS)
            held = self._unsure()
        seen = Seen(held, reads=self._limits.monotonic)
        mark = self._current.set(seen)
        try:
            yield seen
        finally:
            self._current.reset(mark)

    def after_read(self, lease: Lease, _: bool) -> None:
        """A read session's transaction is over: what may it have shown?"""
        seen = self._current.get()
        if seen is None or not seen.reads or not self._cluster.positions:
            return
        token = self._seen_by(lease)
        if token and lease.server.primary:
            seen.renew(token, wrote=False)
        elif token:
            seen.read(token)

    def after_write(self, lease: Lease, committed: bool) -> None:
        """A transaction on the primary is over. The position is asked for on the same connection.

        Also after one that wrote nothing: it has shown the newest state. So nobody needs to know what wrote,
        which only the server does (a function may, in a SELECT).
        """
        seen = self._current.get()
        # When the connection was lost, it may have been during COMMIT.
        wrote = committed or lease.lost
        if not wrote and (seen is None or not seen.reads or not self._cluster.positions):
            return
        token = self._seen_by(lease) if self._cluster.positions else None
        if token is None and wrote:
            if self._cluster.replicated:
                self._tell(_PINS.format(self._limits.pin_s))
            token = self._pin()
        if token:
            self._here().renew(token, wrote=wrote)

    def _here(self) -> Seen:
        if (seen := self._current.get()) is None:
            self._current.set(seen := Seen(reads=False))
        return seen

    def _seen_by(self, lease: Lease) -> Token | None:
        return self._unsure() if lease.lost else lease.seen(expires_at=self._expiry())

    def _unsure(self) -> Token:
        return Token.unsure(expires_at=self._expiry()) if self._cluster.positions else self._pin()

    def _pin(self) -> Token:
        """A time in the place of a position."""
        return Token(0, 0, int(time.time() * 1000), self._expiry())

    def _expiry(self) -> int:
        return int(time.time() + self._limits.token_s)

    def _tell(self, what: str) -> None:
        """Once: this is about how the service is set up, and does not change with the next request."""
        if what not in self._told:
            self._told.add(what)
            _log.warning("%s", what)
