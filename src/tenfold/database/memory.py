"""What the current context has seen: a request, a task, a thread. Every transaction that ends moves it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

from tenfold.database.freshness import FreshnessLimits
from tenfold.database.member import Cluster
from tenfold.database.seen import Seen, TokenSigner
from tenfold.positions import Token

if TYPE_CHECKING:
    from tenfold.database.sqlalchemy.lease import Lease

__all__ = ["Memory"]

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
