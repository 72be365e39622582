"""The session of one request: a mapping that remembers what was done to it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from tenfold.errors import SessionEndedError, SessionError, SessionStoreError, TenfoldError
from tenfold.sessions import tokens
from tenfold.sessions.backend import Device, Keeper, Kept, Missing
from tenfold.sessions.changes import Changes, Edit
from tenfold.sessions.record import check_size, decode_value, encode_quickly, encode_value

__all__ = ["Session"]

Phase = Literal["open", "answering", "answered"]
MOST_PRINCIPAL, MOST_DEVICE = 255, 200
CONTAINERS = (list, dict)  # what can be changed from within


class Session(MutableMapping[str, Any]):
    """What a client is known by between two requests; got with :func:`tenfold.sessions.current`.

    A mapping of text to JSON values. Changes, also those inside of lists and dicts that were handed out, are
    saved right before the answer starts, key by key: other keys keep what concurrent requests gave them, and
    the same key has the value of whoever saved last. For counters and the like, use :meth:`change`.

    Nothing is stored, and no cookie set, before something is written. One request owns it; not for use by
    several threads at a time.

    Attributes:
        phase, outbox, silent, failure: between it and the middleware.
    """

    __slots__ = (
        "_device", "_edits", "_ended", "_handle", "_keeper", "_kept", "_login", "_missing", "_secret",
        "_shown", "_values", "failure", "outbox", "phase", "silent",
    )  # fmt: skip

    def __init__(
        self,
        keeper: Keeper,
        found: Kept | Missing = Missing.UNKNOWN,
        *,
        silent: bool = False,
    ) -> None:
        self._keeper = keeper
        self._missing = found if isinstance(found, Missing) else None
        self._kept = None if isinstance(found, Missing) else found
        self._ended: list[Kept] = []
        self.phase: Phase = "open"
        self.silent = silent
        self.outbox: str | None = None
        self.failure: Exception | None = None  # why the last change or save was refused
        self._forget()

    def _forget(self) -> None:
        self._values: dict[str, Any] = {}  # what was handed out or set, decoded
        self._edits: dict[str, Edit] = {}
        self._shown: dict[str, bytes | msgspec.Raw | None] = {}  # what the edited keys are by now
        self._handle = self._secret = self._device = ""
        self._login: str | None = None

    def __repr__(self) -> str:
        """Without values: sessions end up in logs."""
        return f"<Session {self.handle or 'that nobody keeps'}, {len(self)} keys>"

    # ------------------------------------------------------------------ the mapping

    def __getitem__(self, key: str) -> Any:
        values = self._values
        if key in values:
            return values[key]
        raw = self._encoded(key)
        if raw is None:
            raise KeyError(key)
        value = values[key] = decode_value(raw)
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._check_open()
        if not isinstance(key, str):
            raise SessionError(f"keys of a session are text, not {type(key).__name__}: write str({key!r})")
        raw = encode_value(key, value)
        if not self._is_kept(key, raw):
            self._edit(key, Edit(True, raw), raw)
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        self._check_open()
        if self._encoded(key) is None:
            raise KeyError(key)
        self._edit(key, Edit(True, None), None)
        self._values.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        kept = self._kept.record.data if self._kept else {}
        yield from [key for key in kept if key not in self._shown]
        yield from [key for key, raw in self._shown.items() if raw is not None]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self._encoded(key) is not None

    def change(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Sets ``key`` to ``function`` of its value, or of ``default``; returns what it is now.

        Where other requests change the same key, the function is called again with the newest value, so it
        depends on nothing else: ``session.change("visits", lambda n: n + 1, 0)``.
        """
        self._check_open()
        self._notice(key)
        start = encode_value(key, default)
        edit = self._edits.get(key, Edit()).followed_by(function, start)
        kept = self._encoded(key)
        raw = encode_value(key, function(decode_value(start if kept is None else kept)))
        self._edit(key, edit, raw)
        value = self._values[key] = decode_value(raw)
        return value

    # ------------------------------------------------------------------ who it is

    @property
    def principal(self) -> str | None:
        """Who is logged in."""
        return self._login or (self._kept.record.principal if self._kept else None)

    @property
    def is_authenticated(self) -> bool:
        return self.principal is not None

    @property
    def handle(self) -> str | None:
        """Which session it is: safe to show and log, and the same until logout; None for one nobody keeps."""
        return self._kept.handle if self._kept else self._handle or None

    def login(self, principal: str, *, device: str = "") -> str:
        """Makes it the session of ``principal``, under a new token; returns that for clients without cookies.

        What an anonymous session holds stays; what another principal's holds does not. The absolute lifetime
        begins anew. ``device`` is the label in :meth:`devices`, cut to 200 characters. The token is good once
        the session is saved; empty for cookie-kept sessions, whose token is their content.
        """
        self._check_open()
        if not isinstance(principal, str) or not 0 < len(principal) <= MOST_PRINCIPAL:
            raise SessionError(f"login takes 1 to {MOST_PRINCIPAL} characters of text, such as str(user.id)")
        if self.principal not in (None, principal):
            self.logout()
        self._login, self._device = principal, device[:MOST_DEVICE]
        return self.rotate()

    def rotate(self) -> str:
        """A new token, for a change of privilege; the one before is worth nothing once this is saved."""
        self._check_open()
        if self._kept is None and not self._handle:
            self._handle = tokens.new_handle()
        self._secret = self._secret or tokens.new_secret()
        return self._keeper.token(self.handle or "", self._secret)

    def logout(self) -> None:
        """Ends the session for good, whatever other requests write late; what is set now begins another.

        It takes effect when the session is saved, also if the request fails.

        Raises:
            SessionStoreError: which session it is could not be read.
        """
        self._check_open()
        with self._failures():
            self._check_available()
        if self._kept is not None:
            self._ended.append(self._kept)
            self.outbox = ""
        self._kept = None
        self._forget()

    async def logout_everywhere(self) -> None:
        """Ends all sessions of the principal, this one too, at once."""
        if (principal := self.principal) is None:
            raise SessionError("logout_everywhere needs somebody who is logged in")
        with self._failures():
            await self._keeper.logout_everywhere(principal)
        self.logout()

    async def devices(self) -> list[Device]:
        """The principal's sessions, latest login first; empty when nobody is logged in."""
        if (principal := self.principal) is None:
            return []
        with self._failures():
            return await self._keeper.devices(principal, current=self.handle or "")

    async def revoke(self, handle: str) -> bool:
        """Ends one of the principal's sessions, named as in :meth:`devices`; False when it is not theirs."""
        if (principal := self.principal) is None:
            return False
        if handle == self.handle:
            self.logout()
            return True
        with self._failures():
            return await self._keeper.revoke_device(principal, handle)

    @property
    def is_available(self) -> bool:
        """False where the store did not answer, and the route goes on as if nobody were logged in."""
        return self._missing is not Missing.UNREAD

    # ------------------------------------------------------------------ saving

    @property
    def is_changed(self) -> bool:
        """Whether there is anything to save."""
        self._notice()
        return bool(self._edits or self._secret or self._ended)

    async def save(self) -> None:
        """Saves now; needed only after the answer, in background tasks and open WebSockets.

        Raises:
            SessionStoreError: it is unknown whether it was saved.
            SessionEndedError: the session was ended, or its token replaced, meanwhile.
            SessionSizeError: it would hold too much.
            SessionError: it would need a cookie, and the answer has gone.
        """
        if not self.is_changed:
            await self._refresh()
            return
        with self._failures():
            self._check_available()
            await self.save_ends()
            await self._save_changes()

    async def save_ends(self) -> None:
        """Only what logout ended: what is left to do for a request that failed."""
        while self._ended:
            await self._keeper.revoke(self._ended[-1])
            self._ended.pop()

    async def _save_changes(self) -> None:
        if self._edits or self._secret:
            self._check_deliverable()
            kept = await self._keeper.save(self._kept, self._changes())
            if kept.token and self.phase != "open":
                raise SessionError("a session kept in a cookie cannot change after the answer began")
            self._settle(kept)

    async def _refresh(self) -> None:
        if self._kept is None:
            return
        try:
            kept = await self._keeper.refresh(self._kept)
        except SessionStoreError:
            return  # nothing was promised, and the session was read
        if kept.token:
            if self.phase != "open":
                return
            self.outbox, kept.token = kept.token, ""
        self._kept = kept

    def _changes(self) -> Changes:
        if self._kept is None:
            self._handle = self._handle or tokens.new_handle()
            self._secret = self._secret or tokens.new_secret()
        return Changes(self._edits, self._handle, self._secret, self._login, self._device)

    def _check_deliverable(self) -> None:
        if self._missing is Missing.REPLACED and self._login is None:
            raise SessionEndedError(
                "another request of this client was given a new token: this one's changes were not kept, the "
                "client may try again with the new one"
            )
        begins = self._kept is None
        if self.phase != "open" and (begins or self._secret):
            raise SessionError(
                "a session cannot begin, or change its token, after the answer began: do it before"
            )
        if self.silent and begins and not self._secret:
            raise SessionError(
                "a client with bearer tokens learns of a session by the token that login() or rotate() "
                "returns: call one of them before something is written"
            )

    def _settle(self, kept: Kept) -> None:
        """What was written is now what is kept; lists and dicts that the request holds stay watched."""
        if kept.token:
            self.outbox, kept.token = kept.token, ""
        values = self._values
        self._kept, self._missing = kept, None
        self._forget()
        for key, value in values.items():
            raw = kept.record.data.get(key)
            if isinstance(value, CONTAINERS) and raw is not None and encode_quickly(value) == bytes(raw):
                self._values[key] = value

    # ------------------------------------------------------------------ edits

    def _encoded(self, key: str) -> bytes | msgspec.Raw | None:
        if key in self._shown:
            return self._shown[key]
        return self._kept.record.data.get(key) if self._kept else None

    def _is_kept(self, key: str, raw: bytes) -> bool:
        """Whether setting it would change nothing; what came from the cache may have changed elsewhere."""
        if self._kept is None or self._kept.cached or key in self._shown:
            return False
        kept = self._kept.record.data.get(key)
        return kept is not None and bytes(kept) == raw

    def _edit(self, key: str, edit: Edit, raw: bytes | msgspec.Raw | None) -> None:
        if raw is not None:
            data: dict[str, bytes | msgspec.Raw] = {key: raw}
            data |= {
                name: value for name in self if name != key and (value := self._encoded(name)) is not None
            }
            size = sum(len(name) + memoryview(value).nbytes + 4 for name, value in data.items())
            with self._failures():
                check_size(size, data, self._keeper.max_bytes)
        self._edits[key] = edit
        self._shown[key] = raw

    def _notice(self, *keys: str) -> None:
        """Finds lists and dicts that are not what they were when they were handed out."""
        for key in keys or tuple(self._values):
            value = self._values.get(key)
            if not isinstance(value, CONTAINERS):
                continue
            try:
                same = encode_quickly(value) == bytes(self._encoded(key) or b"")
            except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
                same = False
            if not same:
                raw = encode_value(key, value)
                self._edit(key, Edit(True, raw), raw)

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Remembers the cause for the middleware: an application may make a 500 of any exception."""
        try:
            yield
        except TenfoldError as error:
            self.failure = error
            raise

    def _check_open(self) -> None:
        if self.phase == "answering":
            raise SessionError("the answer has begun, and the session with it: change the session before")

    def _check_available(self) -> None:
        if not self.is_available:
            raise SessionStoreError(
                "the store of sessions does not answer, so nothing can be saved or ended: try again"
            )
