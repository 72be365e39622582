"""A user agent with a login: what a browser or an app does with a session, and what a thief would."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tenfold.errors import TargetError
from tenfold.verify.kit.useragent import Answer, UserAgent

if TYPE_CHECKING:
    from tenfold.settings.verify import SessionsSettings


@dataclass(slots=True)
class Visitor(UserAgent):
    """Somebody who can do what the settings declare: sign in and out, write, read."""

    settings: SessionsSettings = field(kw_only=True)

    def login(self, *, other: bool = False) -> Answer:
        """Sign in, as the second user on request, and keep what the answer gives."""
        known = self.settings
        user, password = (known.other_user, known.other_password) if other else (known.user, known.password)
        answer = self.ask(known.login, body=known.login_body, values={"user": user, "password": password})
        if known.transport == "bearer" and answer.status < 400:
            self.credential = _token(answer, known.token)
        return answer

    def logout(self) -> Answer:
        """Sign out; cookies that the answer takes back are forgotten."""
        return self.ask(self.settings.logout)

    def whoami(self) -> Answer:
        """Ask who is signed in."""
        return self.ask(self.settings.whoami)

    def signed_in(self) -> bool:
        """Whether the service takes it for a user.

        Raises:
            TargetError: the answer says neither yes nor no: 429 or 5xx, or there was none.
        """
        answer = self.whoami()
        if answer.status == 429 or answer.status >= 500:
            raise TargetError(f"{self.settings.whoami} answers {answer.status}; see the log of the app")
        return answer.ok

    def write(self, key: str, value: str, *, hold: Callable[[], object] | None = None) -> Answer:
        """Put ``value`` under ``key`` into the session."""
        values = {"key": key, "value": value}
        return self.ask(self.settings.write, body=self.settings.write_body, values=values, hold=hold)

    def reads(self, key: str, value: str) -> bool:
        """Whether ``value`` is shown by the declared read."""
        answer = self.ask(self.settings.read, values={"key": key, "value": value})
        return answer.ok and value in answer.text


def _token(answer: Answer, path: str) -> str:
    """The token at ``path`` of a JSON answer.

    Raises:
        TargetError: there is none.
    """
    found: object = None
    with contextlib.suppress(ValueError):
        found = json.loads(answer.body)
        for name in path.split("."):
            found = found.get(name) if isinstance(found, dict) else None
    if not isinstance(found, str) or not found:
        raise TargetError(f"the login's answer has no {path}; name the token's place in sessions.token")
    return found
