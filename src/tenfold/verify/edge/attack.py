"""Attacks on caches in front of a service: what one user gets of another, and what a stranger can plant.

Each request has a query of its own, so that nothing real is poisoned and no earlier answer is met.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tenfold.errors import TargetError
from tenfold.requestline import RequestLine
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.session_user import SessionUser, require_login
from tenfold.verify.kit.user_agent import Answer, UserAgent

ATTACKED = "caches share nothing personal"

# Headers that apps and frameworks build answers of, and that caches do not keep apart.
UNKEYED = (
    "Forwarded",
    "X-Forwarded-Host",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Forwarded-Scheme",
    "X-Forwarded-Server",
    "X-Host",
    "X-HTTP-Method-Override",
    "X-Original-URL",
    "X-Rewrite-URL",
    "X-Variant",
)
# How a personal path is dressed up as a file that caches store; {} is the path without its first slash.
DECEPTIONS = (
    "/{}/x.css",
    "/{};x.css",
    "/{}%2Fx.css",
    "/{}%3Fx.css",
    "/{}%23x.css",
    "/{}%0Ax.css",
    "/static/..%2f{}",
    "/static/%2e%2e/{}",
    "//{}",
    "/%2F{}",
)


@dataclass(slots=True)
class Attack:
    """A service, two of its users and a stranger, and what was found.

    Attributes:
        url: the caches' address.
        pages: public paths.
        personal: paths whose answers differ by user.
    """

    url: str
    settings: VerifySettings
    pages: Sequence[str] = ()
    personal: Sequence[str] = ()
    problems: list[str] = field(default_factory=list)
    requests: int = 0

    def run(self) -> list[str]:
        """Attack; return what was found, a sentence each.

        Raises:
            TargetError: the service does not answer, or refuses the login.
        """
        stranger = UserAgent(self.url)
        for path in self.pages:
            self._poison(stranger, path)
            self._look_at_conditional(stranger, path)
        if self.settings.login:
            one, other = (self._sign_in(as_other_user=second) for second in (False, True))
            for path in (*self.personal, *self.pages):
                self._share(one, other, stranger, path)
            for path in self.personal:
                self._deceive(one, stranger, path)
        return self.problems

    def _sign_in(self, *, as_other_user: bool) -> SessionUser:
        user = SessionUser(self.url, settings=self.settings)
        require_login(user.sign_in(as_other_user=as_other_user), self.settings)
        return user

    def _get(self, user: UserAgent, target: str, **headers: str) -> Answer:
        self.requests += 1
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return user.request(f"GET {target}", headers=named)

    def _share(self, one: UserAgent, other: UserAgent, stranger: UserAgent, path: str) -> None:
        """Let one user ask, then the other and a stranger for the very same; each must get an own answer."""
        own = self._get(one, fresh(path))
        if not own.ok:
            return
        theirs = {
            name: self._get(who, fresh(path))
            for name, who in (("another user", other), ("a stranger", stranger))
        }
        target = fresh(path)
        first = self._get(one, target)
        for name, who in (("another user", other), ("a stranger", stranger)):
            got, alone = self._get(who, target), theirs[name]
            if _text(got) == _text(first) != _text(alone) and _is_steady(self._get, who, path, alone):
                self.problems.append(f"{name} gets the answer of the user who asked {path} first")
            if (given := {cookie.value for cookie in first.cookies}) and given & {
                cookie.value for cookie in got.cookies
            }:
                self.problems.append(f"{name} gets a cookie of the user who asked {path} first")

    def _poison(self, stranger: UserAgent, path: str) -> None:
        """Send a header that caches do not look at; the next one must get nothing of it."""
        for header in UNKEYED:
            word = f"tenfold{secrets.token_hex(6)}.example"
            target = fresh(path)
            value = f"host={word}" if header == "Forwarded" else word
            self._get(stranger, target, **{header: value})
            if _mentions(self._get(stranger, target), word):
                self.problems.append(f"a stranger's {header} is in the answer of {path} that others get")
        word = f"tenfold{secrets.token_hex(6)}.example"
        target = fresh(path)
        self._get(stranger, target, Host=word)
        if _mentions(self._get(stranger, target), word):
            self.problems.append(f"a stranger's Host is in the answer of {path} that others get")

    def _look_at_conditional(self, stranger: UserAgent, path: str) -> None:
        """Ask with the entity tag: a 304 says Vary and Cache-Control as the 200 does."""
        whole = self._get(stranger, path)
        if not (etag := whole.header("ETag")):
            return
        answer = self._get(stranger, path, If_None_Match=etag)
        if answer.status != 304:
            return
        for header in ("Vary", "Cache-Control"):
            if whole.header(header) and not answer.header(header):
                self.problems.append(f"the 304 of {path} lacks {header}, which its 200 has")

    def _deceive(self, one: UserAgent, stranger: UserAgent, path: str) -> None:
        """Let a user follow a link to a personal path that looks like a file; a stranger asks for it then."""
        plain = self._get(one, fresh(path))
        if not plain.ok or not plain.body:
            return
        for shape in DECEPTIONS:
            target = f"{shape.format(path.lstrip('/'))}?{secrets.token_hex(6)}"
            lured = self._get(one, target)
            if (
                lured.ok
                and _text(lured) == _text(plain)
                and _text(self._get(stranger, target)) == _text(plain)
            ):
                self.problems.append(f"a stranger gets a user's {path} by {shape.format(path.lstrip('/'))}")


def fresh(path: str) -> str:
    """The path with a query that is in no cache yet."""
    return f"{path}{'&' if '?' in path else '?'}tenfold={secrets.token_hex(6)}"


_OWN = re.compile(r"tenfold=?[0-9a-f]{12}")


def _text(answer: Answer) -> str:
    """The body, without the query that the service may show."""
    return _OWN.sub("", answer.text)


def _is_steady(get: Callable[..., Answer], who: UserAgent, path: str, before: Answer) -> bool:
    """Whether a user's own answer is the same each time: then an answer that differs is another's."""
    return _text(get(who, fresh(path))) == _text(before)


def _mentions(answer: Answer, word: str) -> bool:
    return word in answer.text or any(word in value for _, value in answer.headers)


def check_attacks(stack: Stack, settings: Settings) -> Finding:
    """Attack the front door with two users and a stranger."""
    known = settings.verify
    personal = [path_of(line) for line in (known.whoami, known.read) if line.startswith("GET ")]
    attack = Attack(stack.url, known, pages=known.pages, personal=personal)
    attack.run()
    return judge_attacks(attack.problems, requests=attack.requests)


def path_of(line: RequestLine) -> str:
    """The path of a request line."""
    return line.partition(" ")[2]


def judge_attacks(problems: Sequence[str], *, requests: int) -> Finding:
    """The finding about what attacks have found; pure."""
    numbers = {"requests": requests, "problems": len(problems)}
    if not requests:
        raise TargetError("nothing was attacked: set verify.pages to public paths")
    if not problems:
        return Finding(ATTACKED, f"{requests} requests found nothing", Verdict.PASS, numbers)
    more = f", and {len(problems) - 1} more: tenfold edge attack" if len(problems) > 1 else ""
    remedy = (
        "share only what a rule of [edge] calls public, and build answers of no header that is not in Vary"
    )
    return Finding(ATTACKED, f"{problems[0]}{more}", Verdict.FAIL, numbers, remedy)
