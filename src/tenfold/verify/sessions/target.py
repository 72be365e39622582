"""A service whose users can be signed in: its address, its instances, and its session cookie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from tenfold.errors import TargetError
from tenfold.settings.verify import VerifySettings
from tenfold.types import Stack
from tenfold.verify.kit.session_user import SessionUser, require_login


@dataclass(frozen=True, slots=True)
class SessionTarget:
    """Makes the users and attackers that a check needs.

    Attributes:
        url: nginx; one instance where they do not share their sessions.
        cookie: the name of the session's cookie; empty for bearer tokens.
        instances: addresses of the instances, past nginx, by name.
    """

    url: str
    settings: VerifySettings
    cookie: str
    instances: Mapping[str, str]

    @property
    def direct(self) -> str:
        """An instance past nginx, which would gather a whole request before it passes it on."""
        return next(iter(self.instances.values()), self.url)

    def new_user(self, url: str = "") -> SessionUser:
        """A client without a session."""
        return SessionUser(url or self.url, host=urlsplit(self.url).netloc, settings=self.settings)

    def signed_in_user(
        self, url: str = "", *, as_other_user: bool = False, browser: SessionUser | None = None
    ) -> SessionUser:
        """A client that has just signed in; ``browser`` is one with cookies that an attacker has set.

        Raises:
            TargetError: the login does not work.
        """
        user = browser or self.new_user(url)
        answer = user.sign_in(as_other_user=as_other_user)
        require_login(answer, self.settings)
        known = user.whoami()
        if not known.ok:
            raise TargetError(
                f"{self.settings.login} answers {answer.status}, yet {self.settings.whoami} answers "
                f"{known.status} right after it"
            )
        return user

    def session_id(self, user: SessionUser) -> str:
        """The session id that ``user`` sends; empty without one."""
        if self.settings.transport == "bearer":
            return user.bearer_token or ""
        return user.cookies.get(self.cookie, "")

    def user_with_id(self, identifier: str, url: str = "") -> SessionUser:
        """A client that has this session id and nothing else."""
        user = self.new_user(url)
        if self.settings.transport == "bearer":
            user.bearer_token = identifier
        elif identifier:
            user.cookies[self.cookie] = identifier
        return user


def find_target(stack: Stack, settings: VerifySettings) -> SessionTarget:
    """The target in ``stack``, once a login has worked and a client without a session was refused.

    Raises:
        TargetError: signing in does not work, or ``whoami`` answers 2xx without a session.
    """
    instances = {server.name: server.url for server in stack.servers if server.kind == "app"}
    target = SessionTarget(stack.url, settings, settings.cookie, instances)
    if target.new_user().is_signed_in():
        raise TargetError(
            f"{settings.whoami} answers 2xx to a stranger too; "
            "name a request in verify.whoami that only a signed-in user may send"
        )
    url, user = _sign_in_somewhere(target)
    cookie = "" if settings.transport == "bearer" else settings.cookie or _find_cookie(target, user)
    return SessionTarget(url, settings, cookie, instances)


def _sign_in_somewhere(target: SessionTarget) -> tuple[str, SessionUser]:
    """Sign in; return the address where the user stays signed in: nginx, or one instance.

    Where instances share no sessions, nginx finds the right one by chance; one instance does for most checks.

    Raises:
        TargetError: signing in works nowhere.
    """
    try:
        user = target.signed_in_user()
        if all(user.is_signed_in() for _ in range(2 * len(target.instances))):
            return target.url, user
    except TargetError:
        if len(target.instances) < 2:
            raise
    return target.direct, target.signed_in_user(target.direct)


def _find_cookie(target: SessionTarget, user: SessionUser) -> str:
    """The cookie without which ``user`` is not signed in.

    Raises:
        TargetError: there is no such cookie.
    """
    for name in sorted(user.cookies, key=lambda name: -len(user.cookies[name])):
        alone, without = user.copy(), user.copy()
        alone.cookies = {name: user.cookies[name]}
        del without.cookies[name]
        if alone.is_signed_in() or not without.is_signed_in():
            return name
    raise TargetError(
        f"{target.settings.login} set no cookie that makes a session; "
        'name it in verify.cookie, or set verify.transport = "bearer"'
    )
