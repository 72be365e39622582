"""Calibration: arrivals per second that one core of the generator sends to a server that does nothing."""

from __future__ import annotations

from array import array
from time import process_time
from typing import Any

import gevent
from gevent.pool import Group
from locust import FastHttpUser, HttpUser, User
from locust.event import EventHook

from tenfold.measure.load.arrivals import ArrivalLog
from tenfold.measure.load.locust.trial_run import TrialRun
from tenfold.measure.load.locust.user_pool import LOGINS_PER_S, UserPool

USERS = 16
BACKLOG = 100_000


def costliest_client(user_classes: list[Any]) -> str:
    """The costliest kind of client among the classes: "HttpUser", "FastHttpUser", or "User" for others."""
    for base in (HttpUser, FastHttpUser):
        if any(issubclass(one, base) for one in user_classes):
            return str(base.__name__)
    return str(User.__name__)


def measure_rate(environment: Any, *, client: str, url: str, seconds: float) -> float:
    """Arrivals per second of CPU time with this kind of client, each one GET of ``url``; 0 for "User".

    The number is an upper bound: what a locustfile does with the answers comes on top.
    """
    base = {"HttpUser": HttpUser, "FastHttpUser": FastHttpUser}.get(client)
    if base is None:
        return 0.0
    probe = type("Probe", (base,), {"host": url, "tasks": [lambda user: user.client.get("/")]})
    group = Group()
    users = UserPool(
        environment,
        group=group,
        user_classes=[probe],
        hook=EventHook(),
        max_users=USERS,
        spawn_rate=LOGINS_PER_S,
    )
    try:
        users.fill(USERS, timeout_s=5.0)
        return _rate(users, seconds)
    finally:
        users.classes[0].queue.clear()
        group.kill()


def _rate(users: UserPool, seconds: float) -> float:
    """Let the users work off a backlog: the same path as in a trial, without its pauses."""
    trial = TrialRun(ArrivalLog(array("d", bytes(8 * BACKLOG)), duration_s=1e9, slow_s=1e9))
    cpu_s = process_time()
    for arrival in range(BACKLOG):
        trial.arrivals.release(arrival)
        users.classes[0].offer(trial, arrival)
    gevent.sleep(seconds)
    cpu_s = process_time() - cpu_s
    return (BACKLOG - trial.arrivals.in_flight) / cpu_s if cpu_s else 0.0
