"""Purges tags in nginx, after the transaction that changed what they stand for."""

from __future__ import annotations

import http.client
import logging
import socket
import threading
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from tenfold.edge.rules import TAG
from tenfold.errors import SettingsError
from tenfold.process_thread import ProcessThread

__all__ = ["Purger"]

_LOG = logging.getLogger("tenfold.edge")
_MOST_TAGS, _TIMEOUT_S, _AGAIN_S = 1000, 2.0, 1.0


class Purger(ProcessThread):
    """Purges tags in every nginx of an edge; what one of them did not take is sent again until it does.

    The commit does not wait: an answer that is a moment old may still be served. When a process ends with
    purges that no nginx took, they are lost, and the lifetime of the rules bounds the harm.

    Args:
        targets: where the nginx listen for it, ``purge_listen``: ``unix:/path/purge.sock`` or
            ``http://10.0.0.7:8090``.

    Raises:
        SettingsError: a target is neither.
    """

    def __init__(self, *targets: str) -> None:
        super().__init__(name="tenfold-edge-purge")
        for target in targets:
            address = urlsplit(target)
            if not target.startswith("unix:/") and not (address.scheme == "http" and address.hostname):
                raise SettingsError(
                    f"{target!r} is no place to purge: write unix:/path/purge.sock or http://10.0.0.7:8090"
                )
        self._changed = threading.Condition()
        self._waiting: dict[str, set[str]] = {target: set() for target in targets}

    def after_commit(self, session: Any, *tags: str) -> None:
        """Purge tags once the session's transaction is committed, not after a rollback."""
        from tenfold.commits import after_commit, find_action, sync_session

        key = ("tenfold edge purge", id(self))
        before = find_action(sync_session(session), key)
        wanted = {*getattr(before, "tags", ()), *tags}

        def purge() -> None:
            self.purge(*wanted)

        purge.tags = wanted  # type: ignore[attr-defined]
        after_commit(session, purge, key=key)

    def purge(self, *tags: str) -> None:
        """Purge tags soon; ``*`` is everything.

        Raises:
            SettingsError: a tag is none that a rule can have.
        """
        for tag in tags:
            if tag != "*" and not TAG.fullmatch(tag):
                raise SettingsError(f"{tag!r} is no tag: use letters, digits, -, _, . and :, 64 at most")
        self.start()
        with self._changed:
            for waiting in self._waiting.values():
                waiting.update(tags)
                if len(waiting) > _MOST_TAGS:
                    waiting.clear()
                    waiting.add("*")
            self._changed.notify()

    def flush(self, *, within_s: float = 5.0) -> bool:
        """Wait until every nginx has taken what was purged so far; False when one has not."""
        with self._changed:
            return self._changed.wait_for(lambda: not any(self._waiting.values()), within_s)

    def _prepare(self) -> None:
        self._changed = threading.Condition()

    def _interrupt(self) -> None:
        with self._changed:
            self._changed.notify()

    def _run(self, stopping: threading.Event) -> None:
        away: list[str] = []
        while not stopping.is_set():
            with self._changed:
                self._changed.wait_for(lambda: stopping.is_set() or any(self._waiting.values()))
                taken = {target: tuple(tags) for target, tags in self._waiting.items() if tags}
            failed = [target for target, tags in taken.items() if not self._send(target, tags)]
            if failed and failed != away:
                _LOG.warning("%s did not take a purge; it is sent again", ", ".join(failed))
            away = failed
            if failed:
                stopping.wait(_AGAIN_S)

    def _send(self, target: str, tags: Sequence[str]) -> bool:
        try:
            status = _post(target, "/?" + "&".join(f"tag={quote(tag, safe='')}" for tag in tags))
        except (OSError, http.client.HTTPException):
            return False
        if status == 204:
            with self._changed:
                self._waiting[target].difference_update(tags)
                self._changed.notify_all()
        return status == 204


def _post(target: str, path: str) -> int:
    if target.startswith("unix:"):
        connection = http.client.HTTPConnection("localhost", timeout=_TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(_TIMEOUT_S)
        connection.sock.connect(target.removeprefix("unix:"))
    else:
        address = urlsplit(target)
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=_TIMEOUT_S)
    try:
        connection.request("POST", path, headers={"Content-Length": "0"})
        return connection.getresponse().status
    finally:
        connection.close()
