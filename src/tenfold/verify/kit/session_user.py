"""A user agent that signs in and uses its session, as ``[verify]`` declares."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field

from tenfold.errors import TargetError
from tenfold.settings.verify import VerifySettings
from tenfold.types import Stack
from tenfold.verify.kit.user_agent import Answer, UserAgent


@dataclass(slots=True)
class SessionUser(UserAgent):
    """A user agent that can sign in and out, write to its session and read from it."""

    settings: VerifySettings = field(kw_only=True)

    def sign_in(self, *, as_other_user: bool = False) -> Answer:
        """Send the login, as the second user on request, and keep the session that the answer gives."""
        known = self.settings
        user, password = (
            (known.other_user, known.other_password) if as_other_user else (known.user, known.password)
        )
        values = {"user": user, "password": password}
        answer = self.request(known.login, body=known.login_body, values=values)
        if known.transport == "bearer" and answer.status < 400:
            self.bearer_token = _token(answer, known.token)
        return answer

    def sign_out(self) -> Answer:
        """Send the logout; cookies that the answer deletes are dropped."""
        return self.request(self.settings.logout)

    def whoami(self) -> Answer:
        """Ask the service which user is signed in."""
        return self.request(self.settings.whoami)

    def is_signed_in(self) -> bool:
        """Return whether the service takes it for a signed-in user.

        Raises:
            TargetError: the answer is 429 or 5xx, or there is none.
        """
        answer = self.whoami()
        if answer.status == 429 or answer.status >= 500:
            raise TargetError(f"{self.settings.whoami} answers {answer.status}; see the log of the app")
        return answer.ok

    def write(self, key: str, value: str, *, at_half_body: Callable[[], object] | None = None) -> Answer:
        """Put ``value`` under ``key`` into the session."""
        known, values = self.settings, {"key": key, "value": value}
        return self.request(
            known.session_write, body=known.session_write_body, values=values, at_half_body=at_half_body
        )

    def can_read(self, key: str, value: str) -> bool:
        """Return whether the declared read of the session shows ``value``."""
        answer = self.request(self.settings.session_read, values={"key": key, "value": value})
        return answer.ok and value in answer.text


def user_of(stack: Stack, settings: VerifySettings) -> UserAgent:
    """A new client of ``stack``, signed in where a login is declared.

    Raises:
        TargetError: the login is refused.
    """
    user = SessionUser(stack.url, settings=settings)
    if settings.login:
        require_login(user.sign_in(), settings)
    return user


def require_login(answer: Answer, settings: VerifySettings) -> None:
    """Refuse a login that was not accepted.

    Raises:
        TargetError: the answer is a 4xx or 5xx.
    """
    if answer.status < 400:
        return
    remedy = "correct verify.login_body, verify.user and verify.password"
    if answer.status == 429:
        remedy = "let the stack's instances allow more logins"
    elif answer.status >= 500:
        remedy = "see the log of the app"
    raise TargetError(f"{settings.login} answers {answer.status}: {remedy}")


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
        raise TargetError(f"the login's answer has no {path}; name the token's place in verify.token")
    return found
