"""How many arrivals a second one core of this generator can send, when nothing else is in the way."""

from __future__ import annotations

from array import array
from time import process_time
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser, HttpUser, User
from locust.event import EventHook

from tenfold.measure.load.arrivals import Ledger
from tenfold.measure.load.locust.trial_run import Book
from tenfold.measure.load.locust.user_pool import LOGINS_PER_S, Crew

USERS = 16
BACKLOG = 100_000


def client_of(user_classes: list[Any]) -> str:
    """The costliest kind of client among the classes: "HttpUser", "FastHttpUser", or "User" for others."""
    for base in (HttpUser, FastHttpUser):
        if any(issubclass(one, base) for one in user_classes):
            return str(base.__name__)
    return str(User.__name__)


def measure(environment: Any, *, client: str, url: str, seconds: float) -> float:
    """Arrivals per second of CPU time with this kind of client, each one GET of ``url``; 0 for "User".

    The number is an upper bound: what a locustfile does with the answers comes on top.
    """
    base = {"HttpUser": HttpUser, "FastHttpUser": FastHttpUser}.get(client)
    if base is None:
        return 0.0
    probe = type("Probe", (base,), {"host": url, "tasks": [lambda user: user.client.get("/")]})
    group = Group()
    crew = Crew(
        environment,
        group=group,
        user_classes=[probe],
        hook=EventHook(),
        max_users=USERS,
        spawn_rate=LOGINS_PER_S,
    )
    try:
        crew.fill(USERS, timeout_s=5.0)
        return _rate(crew, seconds)
    finally:
        crew.pools[0].queue.clear()
        group.kill()


def _rate(crew: Crew, seconds: float) -> float:
    """Let the users work off a backlog: the same path as in a trial, without its pauses."""
    book = Book(Ledger(array("d", bytes(8 * BACKLOG)), duration_s=1e9, slow_s=1e9))
    cpu_s = process_time()
    for arrival in range(BACKLOG):
        book.ledger.release(arrival)
        crew.pools[0].offer(book, arrival)
    gevent.sleep(seconds)
    cpu_s = process_time() - cpu_s
    return (BACKLOG - book.ledger.under_way) / cpu_s if cpu_s else 0.0
