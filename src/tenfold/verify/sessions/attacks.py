"""Attacks on a service's sessions, over HTTP: each is tried on the running stack and says what came of it.

They know the service only by its ``[sessions]`` table. Nothing is guessed, and no id is ever shown.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from tenfold.errors import TargetError
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.sessions.id_entropy import ENOUGH_BITS, estimate, signature
from tenfold.verify.sessions.target import Target, attack
from tenfold.verify.sessions.visitor import Visitor

FIXATION = "session fixation refused"
GUESSING = "session ids unguessable"
REPLAY = "session replay refused"
OVERSIZE = "oversize session refused"

_IDS = 12
_LONG_COOKIES = (6_000, 20_000)  # within nginx's buffers for headers, and beyond them
_SMALL = "kept"

# ------------------------------------------------------------------ fixation


@attack(FIXATION)
def fixation(stack: Stack, target: Target) -> Finding:
    """Whether an id that somebody else chose, or knew before the login, is ever that of a signed-in user."""
    tried: dict[str, Callable[[Target], bool]] = {
        "an id of the attacker's own choice": _plants_a_made_up_id,
        "an id that was valid before": _plants_a_dead_id,
        "an id given out before the login": _plants_an_anonymous_id,
    }
    if target.settings.other_user:
        tried["the attacker's own session"] = _plants_own_session
    if target.settings.write and target.settings.read:
        tried["an id of the attacker's own choice, without a login"] = _is_adopted_unasked
    adopted = [name for name, adopts in tried.items() if adopts(target)]
    numbers = {"tried": len(tried), "adopted": len(adopted)}
    if not adopted:
        return Finding(FIXATION, f"none of {len(tried)} planted ids was taken over", Verdict.PASS, numbers)
    remedy = "issue ids on the server alone, and a new one at every login; never write under a client's id"
    return Finding(FIXATION, f"taken over: {'; '.join(adopted)}", Verdict.FAIL, numbers, remedy)


def _planted(target: Target, identifier: str) -> bool:
    """Whether a victim's login makes ``identifier`` a signed-in session."""
    victim = target.holding(identifier)
    victim.whoami()
    target.signed_in(planted=victim)
    return target.id_of(victim) == identifier or target.holding(identifier).signed_in()


def lookalike(identifier: str) -> str:
    """An id of the same shape that nobody issued."""
    letters = {True: "0123456789", False: "0123456789abcdef"}.get(identifier.isdigit(), "0123456789abcdef")
    return "".join(secrets.choice(letters) if letter.isalnum() else letter for letter in identifier)


def _plants_a_made_up_id(target: Target) -> bool:
    return _planted(target, lookalike(target.id_of(target.signed_in())))


def _plants_a_dead_id(target: Target) -> bool:
    if not target.settings.logout:
        return False
    gone = target.signed_in()
    identifier = target.id_of(gone)
    gone.logout()
    _wait_for_caches(target)
    # One that logging out did not end is the business of another check.
    return not target.holding(identifier).signed_in() and _planted(target, identifier)


def _plants_an_anonymous_id(target: Target) -> bool:
    stranger = target.visitor()
    if target.settings.write:
        stranger.write(_SMALL, "0")
    stranger.whoami()
    identifier = target.id_of(stranger)
    return bool(identifier) and _planted(target, identifier)


def _plants_own_session(target: Target) -> bool:
    """The attacker's browser, session and all, is where the victim signs in."""
    attacker = target.signed_in(other=True)
    own, identifier = attacker.whoami().body, target.id_of(attacker)
    victim = target.signed_in(planted=attacker.copy())
    seen = target.holding(identifier).whoami()
    return seen.ok and seen.body == victim.whoami().body != own


def _is_adopted_unasked(target: Target) -> bool:
    identifier, value = lookalike(target.id_of(target.signed_in())), secrets.token_hex(8)
    first = target.holding(identifier)
    if not first.write(_SMALL, value).ok:
        return False  # strangers may not write
    return target.holding(identifier).reads(_SMALL, value)


# ------------------------------------------------------------------ guessing


@attack(GUESSING)
def guessing(stack: Stack, target: Target) -> Finding:
    """Whether ids hold enough chance, as far as a dozen of them show."""
    ids = [target.id_of(target.signed_in()) for _ in range(_IDS)]
    if len(set(ids)) < len(ids) and all(signature(found) != found for found in ids):
        # A signed value of the same content in the same second is the same.
        ids = [_in_another_second(target) for _ in range(4)]
    found = estimate(ids)
    numbers = {"ids": len(ids), "bits": round(found.bits)}
    claim = f"at most {found.bits:.0f} random bits ({found.why})" if found.why else f"{found.bits:.0f} bits"
    if found.bits >= ENOUGH_BITS:
        return Finding(GUESSING, claim, Verdict.PASS, numbers)
    remedy = "take ids from secrets.token_urlsafe(32)"
    return Finding(GUESSING, f"{claim}; it takes 128", Verdict.FAIL, numbers, remedy)


def _in_another_second(target: Target) -> str:
    time.sleep(1.05)
    return target.id_of(target.signed_in())


# ------------------------------------------------------------------ replay


def _wait_for_caches(target: Target) -> None:
    time.sleep(target.settings.revocation_ms / 1000)


@attack(REPLAY, "logout")
def replay(stack: Stack, target: Target, *, rounds: int = 3) -> Finding:
    """Whether what was copied from a session works after its logout, or after its id was replaced."""
    kept = 0
    for _ in range(rounds):
        user = target.signed_in()
        copies = [user.copy(), target.holding(target.id_of(user))]
        user.logout()
        _wait_for_caches(target)
        kept += any(copy.signed_in() for copy in copies for _ in range(max(1, len(target.instances))))
    replaced, outlived = _replaced(target)
    numbers = {"rounds": rounds, "alive_after_logout": kept, "alive_after_replacement": int(outlived)}
    if kept:
        claim = f"after {kept} of {rounds} logouts the old id still signs in"
    elif outlived:
        claim = "after a second login the replaced id still signs in"
    else:
        also = ", and after it was replaced" if replaced else ""
        return Finding(REPLAY, f"dead after each of {rounds} logouts{also}", Verdict.PASS, numbers)
    remedy = (
        "keep sessions on the server and delete them there: a cookie with the session in it cannot be revoked"
    )
    return Finding(REPLAY, claim, Verdict.FAIL, numbers, remedy)


def _replaced(target: Target) -> tuple[bool, bool]:
    """Whether a second login in the same browser brings a new id, and whether the old one outlives it.

    For cookies only: a second bearer token is a second device, and both may live.
    """
    if target.settings.transport == "bearer":
        return False, False
    user = target.signed_in()
    old = target.holding(target.id_of(user))
    target.signed_in(planted=user)
    if target.id_of(user) == target.id_of(old):
        return False, False
    _wait_for_caches(target)
    return True, old.signed_in()


# ------------------------------------------------------------------ size


@attack(OVERSIZE, "write", "read")
def oversize(stack: Stack, target: Target) -> Finding:
    """Whether too much is refused with a 4xx, the session lives on, and no cookie leads to a 5xx."""
    user = target.signed_in()
    size = target.settings.oversize_bytes
    status = _status_of(user.copy(), size)
    numbers = {"bytes": size, "status": status}
    broken = _broken_by_cookies(target)
    if problem := _taken_badly(status, size) or _crippled(user) or broken:
        remedy = "limit a session's size where it is written, and answer 413 to more"
        if problem == broken:
            remedy = "treat a cookie that cannot be read as no cookie"
        return Finding(OVERSIZE, problem, Verdict.FAIL, numbers, remedy)
    return Finding(OVERSIZE, f"{size:,} bytes are answered with {status}", Verdict.PASS, numbers)


def _status_of(user: Visitor, size: int) -> int:
    """What a value of ``size`` bytes is answered with; 0 when no client could read the answer."""
    try:
        return user.write("large", "x" * size).status
    except TargetError:
        return 0


def _taken_badly(status: int, size: int) -> str:
    if 400 <= status < 500:
        return ""
    if not status:
        return f"a value of {size:,} bytes gets no answer that a client could read"
    what = "accepted" if status < 400 else "a server error"
    return f"a value of {size:,} bytes is answered with {status}: {what}"


def _crippled(user: Visitor) -> str:
    value = secrets.token_hex(8)
    if not user.signed_in():
        return "a value too large ends the session"
    answer = user.write(_SMALL, value)
    if not answer.ok or not user.reads(_SMALL, value):
        return f"after a value too large the session takes nothing more ({answer.status})"
    return ""


def _broken_by_cookies(target: Target) -> str:
    """The first session id, too long or unreadable, that is answered with a 5xx."""
    odd = {f"an id of {length:,} bytes": "x" * length for length in _LONG_COOKIES}
    odd |= {"an id that is not text": "\udcff\udcfe", "an id of other signs": '"%00..//\\"'}
    for name, identifier in odd.items():
        if (status := target.holding(identifier).whoami().status) >= 500:
            return f"{name} is answered with {status}"
    return ""
