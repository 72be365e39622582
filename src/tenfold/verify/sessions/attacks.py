"""Attacks on a service's sessions over HTTP: fixation, guessing, replay, and oversized values.

The checks know the service by its ``[verify]`` table alone. No finding shows a session id.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

from tenfold.errors import TargetError
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict
from tenfold.verify.kit.session_user import SessionUser
from tenfold.verify.sessions.id_entropy import ENOUGH_BITS, estimate, signature
from tenfold.verify.sessions.target import SessionTarget, find_target

FIXATION = "session fixation refused"
GUESSING = "session ids unguessable"
REPLAY = "session replay refused"
OVERSIZE = "oversize session refused"

_IDS = 12
_LONG_COOKIES = (6_000, 20_000)  # within nginx's buffers for headers, and beyond them
_SMALL = "kept"

# ------------------------------------------------------------------ fixation


def check_fixation(stack: Stack, settings: Settings) -> Finding:
    """Plant ids that an attacker chose or knew before the login: none may become a signed-in session."""
    target = find_target(stack, settings.verify)
    tried: dict[str, Callable[[SessionTarget], bool]] = {
        "an id of the attacker's own choice": _plant_made_up_id,
        "an id that was valid before": _plant_dead_id,
        "an id given out before the login": _plant_anonymous_id,
    }
    if target.settings.other_user:
        tried["the attacker's own session"] = _plant_own_session
    if target.settings.session_write and target.settings.session_read:
        tried["an id of the attacker's own choice, without a login"] = _plant_without_login
    adopted = [name for name, plant in tried.items() if plant(target)]
    numbers = {"tried": len(tried), "adopted": len(adopted)}
    if not adopted:
        return Finding(FIXATION, f"none of {len(tried)} planted ids was taken over", Verdict.PASS, numbers)
    remedy = "issue ids on the server alone, and a new one at every login; never write under a client's id"
    return Finding(FIXATION, f"taken over: {'; '.join(adopted)}", Verdict.FAIL, numbers, remedy)


def _plant(target: SessionTarget, identifier: str) -> bool:
    """Let a victim sign in with ``identifier`` in the browser; return whether that id is signed in then."""
    victim = target.user_with_id(identifier)
    victim.whoami()
    target.signed_in_user(browser=victim)
    return target.session_id(victim) == identifier or target.user_with_id(identifier).is_signed_in()


def lookalike(identifier: str) -> str:
    """An id of the same shape that the service has not issued."""
    letters = "0123456789" if identifier.isdigit() else "0123456789abcdef"
    return "".join(secrets.choice(letters) if letter.isalnum() else letter for letter in identifier)


def _plant_made_up_id(target: SessionTarget) -> bool:
    return _plant(target, lookalike(target.session_id(target.signed_in_user())))


def _plant_dead_id(target: SessionTarget) -> bool:
    if not target.settings.logout:
        return False
    gone = target.signed_in_user()
    identifier = target.session_id(gone)
    gone.sign_out()
    _wait_for_caches(target)
    # An id that the logout did not end fails the check of replay instead.
    return not target.user_with_id(identifier).is_signed_in() and _plant(target, identifier)


def _plant_anonymous_id(target: SessionTarget) -> bool:
    stranger = target.new_user()
    if target.settings.session_write:
        stranger.write(_SMALL, "0")
    stranger.whoami()
    identifier = target.session_id(stranger)
    return bool(identifier) and _plant(target, identifier)


def _plant_own_session(target: SessionTarget) -> bool:
    """Let the victim sign in in the attacker's browser, which has the attacker's session."""
    attacker = target.signed_in_user(as_other_user=True)
    own, identifier = attacker.whoami().body, target.session_id(attacker)
    victim = target.signed_in_user(browser=attacker.copy())
    seen = target.user_with_id(identifier).whoami()
    return seen.ok and seen.body == victim.whoami().body != own


def _plant_without_login(target: SessionTarget) -> bool:
    identifier, value = lookalike(target.session_id(target.signed_in_user())), secrets.token_hex(8)
    first = target.user_with_id(identifier)
    if not first.write(_SMALL, value).ok:
        return False  # strangers may not write
    return target.user_with_id(identifier).can_read(_SMALL, value)


# ------------------------------------------------------------------ guessing


def check_guessing(stack: Stack, settings: Settings) -> Finding:
    """Estimate the random bits of session ids from a dozen of them."""
    target = find_target(stack, settings.verify)
    ids = [target.session_id(target.signed_in_user()) for _ in range(_IDS)]
    if len(set(ids)) < len(ids) and all(signature(found) != found for found in ids):
        # A signed value of the same content in the same second is the same.
        ids = [_id_of_next_second(target) for _ in range(4)]
        if estimate(ids).bits < ENOUGH_BITS:  # one time in 24, four random ids are in order by chance
            ids += [_id_of_next_second(target) for _ in range(4)]
    found = estimate(ids)
    numbers = {"ids": len(ids), "bits": round(found.bits)}
    claim = f"at most {found.bits:.0f} random bits ({found.why})" if found.why else f"{found.bits:.0f} bits"
    if found.bits >= ENOUGH_BITS:
        return Finding(GUESSING, claim, Verdict.PASS, numbers)
    remedy = "take ids from secrets.token_urlsafe(32)"
    return Finding(GUESSING, f"{claim}; it takes 128", Verdict.FAIL, numbers, remedy)


def _id_of_next_second(target: SessionTarget) -> str:
    time.sleep(1.05)
    return target.session_id(target.signed_in_user())


# ------------------------------------------------------------------ replay


def _wait_for_caches(target: SessionTarget) -> None:
    time.sleep(target.settings.revocation_ms / 1000)


def check_replay(stack: Stack, settings: Settings, *, rounds: int = 3) -> Finding:
    """Use copies of a session after its logout, and after its id was replaced."""
    target = find_target(stack, settings.verify)
    kept = 0
    for _ in range(rounds):
        user = target.signed_in_user()
        copies = [user.copy(), target.user_with_id(target.session_id(user))]
        user.sign_out()
        _wait_for_caches(target)
        kept += any(copy.is_signed_in() for copy in copies for _ in range(max(1, len(target.instances))))
    replaced, outlived = _replace_id(target)
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


def _replace_id(target: SessionTarget) -> tuple[bool, bool]:
    """Sign in twice in one browser; return whether the id is new, and whether the old one still works.

    For cookies only: a second bearer token is a second device, and both may live.
    """
    if target.settings.transport == "bearer":
        return False, False
    user = target.signed_in_user()
    old = target.user_with_id(target.session_id(user))
    target.signed_in_user(browser=user)
    if target.session_id(user) == target.session_id(old):
        return False, False
    _wait_for_caches(target)
    return True, old.is_signed_in()


# ------------------------------------------------------------------ size


def check_oversize(stack: Stack, settings: Settings) -> Finding:
    """Write too large a value, and send odd ids: the answer has to be a 4xx, and the session stay intact."""
    target = find_target(stack, settings.verify)
    user = target.signed_in_user()
    size = target.settings.oversize_bytes
    status = _write_large(user.copy(), size)
    numbers = {"bytes": size, "status": status}
    broken = _cookie_problem(target)
    if problem := _size_problem(status, size) or _session_problem(user) or broken:
        remedy = "limit a session's size where it is written, and answer 413 to more"
        if problem == broken:
            remedy = "treat a cookie that cannot be read as no cookie"
        return Finding(OVERSIZE, problem, Verdict.FAIL, numbers, remedy)
    return Finding(OVERSIZE, f"{size:,} bytes are answered with {status}", Verdict.PASS, numbers)


def _write_large(user: SessionUser, size: int) -> int:
    """Write a value of ``size`` bytes; return the status, 0 when no client could read the answer."""
    try:
        return user.write("large", "x" * size).status
    except TargetError:
        return 0


def _size_problem(status: int, size: int) -> str:
    if 400 <= status < 500:
        return ""
    if not status:
        return f"a value of {size:,} bytes gets no answer that a client could read"
    what = "accepted" if status < 400 else "a server error"
    return f"a value of {size:,} bytes is answered with {status}: {what}"


def _session_problem(user: SessionUser) -> str:
    value = secrets.token_hex(8)
    if not user.is_signed_in():
        return "a value too large ends the session"
    answer = user.write(_SMALL, value)
    if not answer.ok or not user.can_read(_SMALL, value):
        return f"after a value too large the session takes nothing more ({answer.status})"
    return ""


def _cookie_problem(target: SessionTarget) -> str:
    """The first odd session id that is answered with a 5xx; empty without one."""
    odd = {f"an id of {length:,} bytes": "x" * length for length in _LONG_COOKIES}
    odd |= {"an id that is not text": "\udcff\udcfe", "an id of other signs": '"%00..//\\"'}
    for name, identifier in odd.items():
        if (status := target.user_with_id(identifier).whoami().status) >= 500:
            return f"{name} is answered with {status}"
    return ""
