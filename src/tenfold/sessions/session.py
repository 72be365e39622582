"""The session of one request: a mapping that records its own changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, Literal

import msgspec

from tenfold.errors import SessionEndedError, SessionError, SessionStoreError, TenfoldError
from tenfold.reads import PERSONAL
from tenfold.sessions.backend import Device, MissingSession, SessionBackend, StoredSession
from tenfold.sessions.record import (
    Changes,
    Edit,
    check_size,
    decode_value,
    encode_unchecked,
    encode_value,
    new_handle,
    new_secret,
    require_text,
)

__all__ = ["Session"]

Phase = Literal["open", "responding", "responded"]
MAX_PRINCIPAL, MAX_DEVICE = 255, 200
MUTABLE = (list, dict)


class Session(MutableMapping[str, Any]):
    """A client's session; get it with :func:`tenfold.sessions.current`.

    A mapping of text to JSON values. Changes, also those inside of lists and dicts that it returned, are
    saved right before the response starts, key by key: other keys keep what concurrent requests wrote, and
    for the same key the last save wins. For counters and the like, use :meth:`change`.

    Nothing is stored, and no cookie set, before the first write. It belongs to one request; do not use it
    from several threads at a time.

    Attributes:
        phase, pending_token, app_delivers_token, failure: shared with the middleware.
    """

    __slots__ = (
        "_backend", "_device", "_edits", "_encoded_edits", "_handle", "_logged_out", "_login", "_missing",
        "_secret", "_stored", "_values", "app_delivers_token", "failure", "pending_token", "phase",
    )  # fmt: skip

    def __init__(
        self,
        backend: SessionBackend,
        found: StoredSession | MissingSession = MissingSession.UNKNOWN,
        *,
        app_delivers_token: bool = False,
    ) -> None:
        self._backend = backend
        self._missing = found if isinstance(found, MissingSession) else None
        self._stored = None if isinstance(found, MissingSession) else found
        self._logged_out: list[StoredSession] = []
        self.phase: Phase = "open"
        self.app_delivers_token = app_delivers_token
        self.pending_token: str | None = None  # to be sent with the response; empty: to be deleted
        self.failure: Exception | None = None  # why the last change or save was refused
        self._reset()

    def _reset(self) -> None:
        self._values: dict[str, Any] = {}  # values that were returned or set, decoded
        self._edits: dict[str, Edit] = {}
        self._encoded_edits: dict[str, bytes | msgspec.Raw | None] = {}  # present values of edited keys
        self._handle = self._secret = self._device = ""
        self._login: str | None = None

    def __repr__(self) -> str:
        """Without values: sessions end up in logs."""
        return f"<Session {self.handle or '(not stored)'}, {len(self)} keys>"

    # ------------------------------------------------------------------ the mapping

    def __getitem__(self, key: str) -> Any:
        PERSONAL.add("session")
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
        require_text("a key", key)
        raw = encode_value(key, value)
        if not self._is_stored(key, raw):
            self._edit(key, Edit(True, raw), raw)
        self._values[key] = value

    def __delitem__(self, key: str) -> None:
        self._check_open()
        if self._encoded(key) is None:
            raise KeyError(key)
        self._edit(key, Edit(True, None), None)
        self._values.pop(key, None)

    def __iter__(self) -> Iterator[str]:
        PERSONAL.add("session")
        stored = self._stored.record.data if self._stored else {}
        yield from [key for key in stored if key not in self._encoded_edits]
        yield from [key for key, raw in self._encoded_edits.items() if raw is not None]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, key: object) -> bool:
        PERSONAL.add("session")
        return isinstance(key, str) and self._encoded(key) is not None

    def change(self, key: str, function: Callable[[Any], Any], default: Any = None) -> Any:
        """Set ``key`` to ``function`` of its value, or of ``default``; return the new value.

        Where other requests change the same key, the function is called again with the newest value, so it
        must depend on nothing else: ``session.change("visits", lambda n: n + 1, 0)``.
        """
        self._check_open()
        require_text("a key", key)
        self._detect_mutations(key)
        start = encode_value(key, default)
        edit = self._edits.get(key, Edit()).then(function, start)
        present = self._encoded(key)
        raw = encode_value(key, function(decode_value(start if present is None else present)))
        self._edit(key, edit, raw)
        value = self._values[key] = decode_value(raw)
        return value

    # ------------------------------------------------------------------ login and logout

    @property
    def principal(self) -> str | None:
        """The id that was passed to :meth:`login`; None without a login."""
        PERSONAL.add("session's principal")
        return self._login or (self._stored.record.principal if self._stored else None)

    @property
    def is_authenticated(self) -> bool:
        return self.principal is not None

    @property
    def handle(self) -> str | None:
        """The session's name: safe to show and log, the same until logout; None if it is not stored."""
        return self._stored.handle if self._stored else self._handle or None

    def login(self, principal: str, *, device: str = "") -> str:
        """Make it the session of ``principal``, under a new token; return that for clients without cookies.

        The data of an anonymous session stay; those of another principal do not. The absolute lifetime
        starts anew. ``device`` is the label in :meth:`devices`, cut to 200 characters. The token is valid
        once the session is saved; it is empty for cookie sessions, whose token is their content.
        """
        self._check_open()
        if not isinstance(principal, str) or not 0 < len(principal) <= MAX_PRINCIPAL:
            raise SessionError(f"login takes 1 to {MAX_PRINCIPAL} characters of text, such as str(user.id)")
        require_text("a principal", principal)
        if self.principal not in (None, principal):
            self.logout()
        label = device[:MAX_DEVICE].encode(errors="replace").decode()  # of a client's making
        self._login, self._device = principal, label
        return self.rotate()

    def rotate(self) -> str:
        """Issue a new token, for a change of privilege; the former one is invalid once this is saved."""
        self._check_open()
        if self._stored is None and not self._handle:
            self._handle = new_handle()
        self._secret = self._secret or new_secret()
        return self._backend.token(self.handle or "", self._secret)

    def logout(self) -> None:
        """End the session for good, whatever late requests write; what is set from now on is a new session.

        Takes effect when the session is saved, also if the request fails.

        Raises:
            SessionStoreError: the session could not be loaded, so it cannot be ended.
        """
        self._check_open()
        with self._recorded_failures():
            self._check_available()
        if self._stored is not None:
            self._logged_out.append(self._stored)
            self.pending_token = ""
        self._stored = None
        self._reset()

    async def logout_everywhere(self) -> None:
        """End all sessions of the principal, including this one, at once."""
        if (principal := self.principal) is None:
            raise SessionError("logout_everywhere needs a session that is logged in")
        with self._recorded_failures():
            await self._backend.logout_everywhere(principal)
        self.logout()

    async def devices(self) -> list[Device]:
        """Return the principal's sessions, latest login first; empty without a login."""
        if (principal := self.principal) is None:
            return []
        with self._recorded_failures():
            return await self._backend.devices(principal, current=self.handle or "")

    async def revoke(self, handle: str) -> bool:
        """End one of the principal's sessions, named as in :meth:`devices`; False if it is not theirs."""
        if (principal := self.principal) is None:
            return False
        if handle == self.handle:
            self.logout()
            return True
        with self._recorded_failures():
            return await self._backend.revoke_device(principal, handle)

    @property
    def is_available(self) -> bool:
        """False if the store did not answer, and the route continues as anonymous."""
        return self._missing is not MissingSession.UNAVAILABLE

    # ------------------------------------------------------------------ saving

    @property
    def is_changed(self) -> bool:
        """Return whether there is anything to save."""
        self._detect_mutations()
        return bool(self._edits or self._secret or self._logged_out)

    async def save(self) -> None:
        """Save now; needed only after the response, in background tasks and open WebSockets.

        Raises:
            SessionStoreError: it is unknown whether it was saved.
            SessionEndedError: the session was ended, or its token replaced, meanwhile.
            SessionSizeError: it would be too large.
            SessionError: it would need a cookie, and the response has been sent.
        """
        if not self.is_changed:
            await self._refresh()
            return
        with self._recorded_failures():
            self._check_available()
            await self.save_logouts()
            await self._save_changes()

    async def save_logouts(self) -> None:
        """End the sessions that were logged out; the only thing that a failed request saves."""
        while self._logged_out:
            await self._backend.revoke(self._logged_out[-1])
            self._logged_out.pop()

    async def _save_changes(self) -> None:
        if self._edits or self._secret:
            self._check_deliverable()
            stored = await self._backend.save(self._stored, self._changes())
            if stored.new_token and self.phase != "open":
                raise SessionError("a session kept in a cookie cannot change after the response began")
            self._adopt(stored)

    async def _refresh(self) -> None:
        if self._stored is None:
            return
        try:
            stored = await self._backend.refresh(self._stored)
        except SessionStoreError:
            return  # the session was loaded, and nothing else was promised
        if stored.new_token:
            if self.phase != "open":
                return
            self.pending_token, stored.new_token = stored.new_token, ""
        self._stored = stored

    def _changes(self) -> Changes:
        if self._stored is None:
            self._handle = self._handle or new_handle()
            self._secret = self._secret or new_secret()
        return Changes(self._edits, self._handle, self._secret, self._login, self._device)

    def _check_deliverable(self) -> None:
        if self._missing is MissingSession.REPLACED and self._login is None:
            raise SessionEndedError(
                "another request of this client was given a new token: this one's changes were not saved, "
                "the client may try again with the new one"
            )
        is_new = self._stored is None
        if self.phase != "open" and (is_new or self._secret):
            raise SessionError(
                "a session cannot begin, or change its token, after the response began: do it before"
            )
        if self.app_delivers_token and is_new and not self._secret:
            raise SessionError(
                "a client with bearer tokens learns of a session by the token that login() or rotate() "
                "returns: call one of them before something is written"
            )

    def _adopt(self, stored: StoredSession) -> None:
        """Start from the saved session; lists and dicts that the request holds stay watched."""
        if stored.new_token:
            self.pending_token, stored.new_token = stored.new_token, ""
        values = self._values
        self._stored, self._missing = stored, None
        self._reset()
        for key, value in values.items():
            raw = stored.record.data.get(key)
            if isinstance(value, MUTABLE) and raw is not None and encode_unchecked(value) == bytes(raw):
                self._values[key] = value

    # ------------------------------------------------------------------ edits

    def _encoded(self, key: str) -> bytes | msgspec.Raw | None:
        if key in self._encoded_edits:
            return self._encoded_edits[key]
        return self._stored.record.data.get(key) if self._stored else None

    def _is_stored(self, key: str, raw: bytes) -> bool:
        """Return whether setting it changes nothing; a cached value may have changed elsewhere."""
        if self._stored is None or self._stored.cached or key in self._encoded_edits:
            return False
        stored = self._stored.record.data.get(key)
        return stored is not None and bytes(stored) == raw

    def _edit(self, key: str, edit: Edit, raw: bytes | msgspec.Raw | None) -> None:
        if raw is not None:
            data: dict[str, bytes | msgspec.Raw] = {key: raw}
            data |= {
                name: value for name in self if name != key and (value := self._encoded(name)) is not None
            }
            size = sum(len(name) + memoryview(value).nbytes + 4 for name, value in data.items())
            with self._recorded_failures():
                check_size(size, data, self._backend.max_bytes)
        self._edits[key] = edit
        self._encoded_edits[key] = raw

    def _detect_mutations(self, *keys: str) -> None:
        """Turn lists and dicts that were changed since they were returned into edits."""
        for key in keys or tuple(self._values):
            value = self._values.get(key)
            if not isinstance(value, MUTABLE):
                continue
            try:
                same = encode_unchecked(value) == bytes(self._encoded(key) or b"")
            except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError):
                same = False
            if not same:
                raw = encode_value(key, value)
                self._edit(key, Edit(True, raw), raw)

    @contextmanager
    def _recorded_failures(self) -> Iterator[None]:
        """Record the cause for the middleware: an application may turn any exception into a 500."""
        try:
            yield
        except TenfoldError as error:
            self.failure = error
            raise

    def _check_open(self) -> None:
        if self.phase == "responding":
            raise SessionError("the response has begun, and the session with it: change the session before")

    def _check_available(self) -> None:
        if not self.is_available:
            raise SessionStoreError(
                "the store of sessions does not answer, so nothing can be saved or ended: try again"
            )
