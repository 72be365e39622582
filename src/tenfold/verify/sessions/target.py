"""Where the checks find a service's sessions: its front door, its instances, and a login that works."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tenfold.errors import TargetError
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.useragent import UserAgent
from tenfold.verify.sessions.visitor import Visitor

if TYPE_CHECKING:
    from tenfold.settings.verify import SessionsSettings

_EXAMPLES = {
    "login": '"POST /login"',
    "logout": '"POST /logout"',
    "whoami": '"GET /me", which answers 2xx to a signed-in user only',
    "write": '"PUT /cart/{key}"',
    "read": '"GET /cart"',
}


class NotDeclared(Exception):
    """Keys that a check needs are not set: it is skipped."""

    def __init__(self, keys: Sequence[str]) -> None:
        names = ", ".join(f"sessions.{key}" for key in keys)
        super().__init__(f"{names} {'is' if len(keys) == 1 else 'are'} not set")
        self.remedy = f"set sessions.{keys[0]}, for example {keys[0]} = {_EXAMPLES[keys[0]]}"


def skipped(check: str, missing: NotDeclared) -> Finding:
    """The finding of a check that cannot begin."""
    return Finding(check, str(missing), Verdict.SKIP, remedy=missing.remedy)


@dataclass(frozen=True, slots=True)
class Target:
    """A service whose users can be signed in.

    Attributes:
        url: the front door; one instance where they do not share their sessions.
        cookie: the name of its session's cookie; empty for bearer tokens.
        instances: its instances past the front door, by name; the front door alone where there are none.
    """

    url: str
    settings: SessionsSettings
    cookie: str
    instances: Mapping[str, str]

    @property
    def direct(self) -> str:
        """An instance past the front door: nothing there gathers a request before it is handed on."""
        return next(iter(self.instances.values()), self.url)

    def visitor(self, url: str = "") -> Visitor:
        """Somebody who comes for the first time."""
        return Visitor(url or self.url, host=urlsplit(self.url).netloc, settings=self.settings)

    def signed_in(self, url: str = "", *, other: bool = False, planted: Visitor | None = None) -> Visitor:
        """Somebody who has just signed in, ``planted`` with what somebody else put into the browser.

        Raises:
            TargetError: the login does not work.
        """
        visitor = planted or self.visitor(url)
        answer = visitor.login(other=other)
        if answer.status >= 400:
            raise TargetError(f"{self.settings.login} answers {answer.status}: {_look(answer.status)}")
        who = visitor.whoami()
        if not who.ok:
            raise TargetError(
                f"{self.settings.login} answers {answer.status}, yet {self.settings.whoami} answers "
                f"{who.status} right after it"
            )
        return visitor

    def id_of(self, visitor: Visitor) -> str:
        """The session id that ``visitor`` shows; empty without one."""
        if self.settings.transport == "bearer":
            return visitor.credential or ""
        return visitor.cookies.get(self.cookie, "")

    def holding(self, identifier: str, url: str = "") -> Visitor:
        """A stranger who knows nothing but this session id."""
        visitor = self.visitor(url)
        if self.settings.transport == "bearer":
            visitor.credential = identifier
        elif identifier:
            visitor.cookies[self.cookie] = identifier
        return visitor


def somebody(stack: Stack, settings: SessionsSettings) -> UserAgent:
    """Whom the checks of other patterns send: signed in where a login is declared, else a stranger.

    Raises:
        TargetError: the login does not work.
    """
    target = Target(stack.url, settings, settings.cookie, {})
    return target.signed_in() if settings.login and settings.whoami else target.visitor()


def _look(status: int) -> str:
    if status == 429:
        return "let the stack's instances allow more logins"
    if status >= 500:
        return "see the log of the app"
    return "correct sessions.login_body, sessions.user and sessions.password"


def reached(stack: Stack, settings: SessionsSettings, *keys: str) -> Target:
    """The target of ``stack``, once a login has worked and a stranger was refused.

    Args:
        keys: what else than ``login`` and ``whoami`` has to be declared.

    Raises:
        NotDeclared: some of it is not.
        TargetError: signing in does not work, or ``whoami`` is for everybody.
    """
    if missing := [key for key in ("login", "whoami", *keys) if not getattr(settings, key)]:
        raise NotDeclared(missing)
    instances = {server.name: server.url for server in stack.servers if server.kind == "app"}
    bare = Target(stack.url, settings, settings.cookie, instances)
    if bare.visitor().signed_in():
        raise TargetError(
            f"{settings.whoami} answers 2xx to a stranger too; "
            "name a request in sessions.whoami that only a signed-in user may send"
        )
    url, known = _entered(bare)
    cookie = "" if settings.transport == "bearer" else settings.cookie or _cookie_of(bare, known)
    return Target(url, settings, cookie, instances)


def _entered(target: Target) -> tuple[str, Visitor]:
    """Somebody who is signed in, and the address where they are known: the front door's, or one instance's.

    Where they share no sessions, the front door knows a user by chance; one instance does for most attacks.

    Raises:
        TargetError: signing in works nowhere.
    """
    try:
        user = target.signed_in()
        if all(user.signed_in() for _ in range(2 * len(target.instances))):
            return target.url, user
    except TargetError:
        if len(target.instances) < 2:
            raise
    return target.direct, target.signed_in(target.direct)


def _cookie_of(target: Target, visitor: Visitor) -> str:
    """The cookie without which ``visitor`` is a stranger.

    Raises:
        TargetError: there is no such cookie.
    """
    for name in sorted(visitor.cookies, key=lambda name: -len(visitor.cookies[name])):
        alone, without = visitor.copy(), visitor.copy()
        alone.cookies = {name: visitor.cookies[name]}
        del without.cookies[name]
        if alone.signed_in() or not without.signed_in():
            return name
    raise TargetError(
        f"{target.settings.login} set no cookie that makes a session; "
        'name it in sessions.cookie, or set sessions.transport = "bearer"'
    )


Attack = Callable[..., Finding]


def attack(check: str, *keys: str) -> Callable[[Callable[..., Finding]], Attack]:
    """Make a check of a function that gets a reached target; without its ``keys`` it is skipped."""

    def decorate(body: Callable[..., Finding]) -> Attack:
        @wraps(body)
        def run(stack: Stack, settings: SessionsSettings, **options: object) -> Finding:
            try:
                target = reached(stack, settings, *keys)
            except NotDeclared as missing:
                return skipped(check, missing)
            return body(stack, target, **options)

        return run

    return decorate
