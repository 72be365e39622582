"""Every check of sessions with the services on which it must fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tenfold.settings.verify import VerifySettings
from tenfold.verify.sessions import attacks, concurrency, instances, leaks
from tests.verify.services.own import Shop
from tests.verify.services.starlettes import signed_cookie, starsessions

DECLARED = VerifySettings(
    login="POST /login",
    user="alice",
    password="open sesame",
    other_user="bob",
    other_password="12345",
    logout="POST /logout",
    whoami="GET /me",
    session_write="PUT /cart/{key}",
    session_write_body='{"value": "{value}"}',
    session_read="GET /cart",
    write="POST /orders",
    read="GET /orders",
    oversize_bytes=65_536,
)
BEARER = DECLARED.model_copy(update={"transport": "bearer"})


def shop_with(*mistakes: str, **options: Any) -> Callable[[], Shop]:
    return lambda: Shop(mistakes=set(mistakes), **options)


def unshared() -> tuple[Shop, Shop]:
    return Shop(), Shop()


def shared(**options: Any) -> tuple[Shop, Shop]:
    store: dict[str, dict[str, Any]] = {}
    return Shop(store, name="1", **options), Shop(store, name="2", **options)


# check → (title; a service, or several instances; settings; a part of the claim)
FAILING: dict[str, list[tuple[str, Callable[[], Any], VerifySettings, str]]] = {
    attacks.FIXATION: [
        ("adopts", shop_with("adopts"), DECLARED, "own choice; an id that was valid before"),
        ("adopts a bearer token", shop_with("adopts", bearer=True), BEARER, "own choice"),
        ("keeps the id", shop_with("keeps-id", anonymous=True), DECLARED, "given out before the login"),
        ("keeps another's id", shop_with("keeps-id"), DECLARED, "attacker's own session"),
        ("adopts strangers", shop_with("adopts", anonymous=True), DECLARED, "without a login"),
        ("starsessions", starsessions, DECLARED, "own choice"),
    ],
    attacks.GUESSING: [
        ("counts", shop_with("sequential"), DECLARED, "greater than the one before"),
        ("counts tokens", shop_with("sequential", bearer=True), BEARER, "greater than the one before"),
    ],
    attacks.REPLAY: [
        ("logout is the browser's", shop_with("no-logout"), DECLARED, "after 3 of 3 logouts"),
        ("the same with tokens", shop_with("no-logout", bearer=True), BEARER, "after 3 of 3 logouts"),
        ("the replaced id lives", shop_with("keeps-old"), DECLARED, "replaced id still signs in"),
        ("a signed cookie", signed_cookie, DECLARED, "after 3 of 3 logouts"),
    ],
    concurrency.RESURRECTION: [
        ("late writes", shop_with("resurrects"), DECLARED, "came back after their logout"),
        ("starsessions", starsessions, DECLARED, "came back after their logout"),
    ],
    concurrency.LOST_UPDATE: [
        ("the whole is written", shop_with("writes-whole"), DECLARED, "are gone"),
        ("a signed cookie", signed_cookie, DECLARED, "are gone"),
        ("starsessions", starsessions, DECLARED, "are gone"),
    ],
    attacks.OVERSIZE: [
        ("no limit", shop_with("unlimited"), DECLARED, "accepted"),
        ("a server error", shop_with("breaks-when-large"), DECLARED, "a server error"),
        ("ends the session", shop_with("ends-when-large"), DECLARED, "ends the session"),
        ("chokes on cookies", shop_with("chokes-on-cookies"), DECLARED, "not text is answered with 500"),
        ("a signed cookie", signed_cookie, DECLARED, "no answer that a client could read"),
    ],
    leaks.ATTRIBUTES: [
        ("none at all", shop_with("bare-cookie"), DECLARED, "lacks HttpOnly, SameSite, Secure"),
    ],
    leaks.HIDDEN: [
        ("in an address", shop_with("redirects-with-id"), DECLARED, "the header Location"),
    ],
    instances.AFFINITY: [
        ("a dict in each", unshared, DECLARED, "signed in at app 1, app 2 answers 401"),
        ("another answer", lambda: shared(mistakes={"names-itself"}), DECLARED, "differently: instance"),
    ],
}
BODIES: dict[str, Callable[..., Any]] = {
    attacks.FIXATION: attacks.check_fixation,
    attacks.GUESSING: attacks.check_guessing,
    attacks.REPLAY: attacks.check_replay,
    concurrency.RESURRECTION: concurrency.check_resurrection,
    concurrency.LOST_UPDATE: concurrency.check_lost_update,
    attacks.OVERSIZE: attacks.check_oversize,
    leaks.ATTRIBUTES: leaks.check_cookie_attributes,
    leaks.HIDDEN: leaks.check_leaks,
    instances.AFFINITY: instances.check_affinity,
}
