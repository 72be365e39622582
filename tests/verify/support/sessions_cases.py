"""Every attack on sessions with a service that falls to it: what the tests of checks share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenfold.settings.verify import SessionsSettings
from tenfold.verify.sessions import attacks, concurrency, instances, leaks
from tests.verify.services.own import Shop
from tests.verify.services.starlettes import signed_cookie, starsessions

DECLARED = SessionsSettings(
    login="POST /login",
    user="alice",
    password="open sesame",
    other_user="bob",
    other_password="12345",
    logout="POST /logout",
    whoami="GET /me",
    write="PUT /cart/{key}",
    write_body='{"value": "{value}"}',
    read="GET /cart",
    oversize_bytes=65_536,
)
BEARER = DECLARED.model_copy(update={"transport": "bearer"})


def wrong(*mistakes: str, **options: Any) -> Callable[[], Shop]:
    return lambda: Shop(mistakes=set(mistakes), **options)


def unshared() -> tuple[Shop, Shop]:
    return Shop(), Shop()


def shared(**options: Any) -> tuple[Shop, Shop]:
    store: dict[str, dict[str, Any]] = {}
    return Shop(store, name="1", **options), Shop(store, name="2", **options)


# check → (a service, or several instances, that must fail; a part of the claim)
FALLEN: dict[str, list[tuple[str, Callable[[], Any], SessionsSettings, str]]] = {
    attacks.FIXATION: [
        ("adopts", wrong("adopts"), DECLARED, "own choice; an id that was valid before"),
        ("adopts a bearer token", wrong("adopts", bearer=True), BEARER, "own choice"),
        ("keeps the id", wrong("keeps-id", anonymous=True), DECLARED, "given out before the login"),
        ("keeps another's id", wrong("keeps-id"), DECLARED, "attacker's own session"),
        ("adopts strangers", wrong("adopts", anonymous=True), DECLARED, "without a login"),
        ("starsessions", starsessions, DECLARED, "own choice"),
    ],
    attacks.GUESSING: [
        ("counts", wrong("sequential"), DECLARED, "greater than the one before"),
        ("counts tokens", wrong("sequential", bearer=True), BEARER, "greater than the one before"),
    ],
    attacks.REPLAY: [
        ("logout is the browser's", wrong("no-logout"), DECLARED, "after 3 of 3 logouts"),
        ("the same with tokens", wrong("no-logout", bearer=True), BEARER, "after 3 of 3 logouts"),
        ("the replaced id lives", wrong("keeps-old"), DECLARED, "replaced id still signs in"),
        ("a signed cookie", signed_cookie, DECLARED, "after 3 of 3 logouts"),
    ],
    concurrency.RESURRECTION: [
        ("late writes", wrong("resurrects"), DECLARED, "came back after their logout"),
        ("starsessions", starsessions, DECLARED, "came back after their logout"),
    ],
    concurrency.LOST_UPDATE: [
        ("the whole is written", wrong("writes-whole"), DECLARED, "are gone"),
        ("a signed cookie", signed_cookie, DECLARED, "are gone"),
        ("starsessions", starsessions, DECLARED, "are gone"),
    ],
    attacks.OVERSIZE: [
        ("no limit", wrong("unlimited"), DECLARED, "accepted"),
        ("a server error", wrong("breaks-when-large"), DECLARED, "a server error"),
        ("ends the session", wrong("ends-when-large"), DECLARED, "ends the session"),
        ("chokes on cookies", wrong("chokes-on-cookies"), DECLARED, "not text is answered with 500"),
        ("a signed cookie", signed_cookie, DECLARED, "no answer that a client could read"),
    ],
    leaks.ATTRIBUTES: [
        ("none at all", wrong("bare-cookie"), DECLARED, "lacks HttpOnly, SameSite, Secure"),
    ],
    leaks.HIDDEN: [
        ("in an address", wrong("redirects-with-id"), DECLARED, "the header Location"),
    ],
    instances.AFFINITY: [
        ("a dict in each", unshared, DECLARED, "signed in at app 1, app 2 answers 401"),
        ("another answer", lambda: shared(mistakes={"names-itself"}), DECLARED, "differently: instance"),
    ],
}
BODIES: dict[str, Callable[..., Any]] = {
    attacks.FIXATION: attacks.fixation,
    attacks.GUESSING: attacks.guessing,
    attacks.REPLAY: attacks.replay,
    concurrency.RESURRECTION: concurrency.resurrection,
    concurrency.LOST_UPDATE: concurrency.lost_update,
    attacks.OVERSIZE: attacks.oversize,
    leaks.ATTRIBUTES: leaks.attributes,
    leaks.HIDDEN: leaks.hidden,
    instances.AFFINITY: instances.affinity,
}
