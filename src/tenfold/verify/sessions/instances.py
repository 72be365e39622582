"""Proof that no instance is missed: whatever a user needs, any has it, and nothing is on its own disk.

The attacks on sessions themselves are in ``attacks``, ``races`` and ``exposure``.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.kit.accesslog import AccessLog
from tenfold.verify.kit.instances import address_of, app_servers, kill
from tenfold.verify.kit.useragent import Answer
from tenfold.verify.sessions.local_files import (
    LINUX,
    Watch,
    changed,
    holding,
    snapshot,
    temporary,
    working_folders,
)
from tenfold.verify.sessions.target import NotDeclared, Target, attack, reached
from tenfold.verify.sessions.visitor import Visitor

if TYPE_CHECKING:
    from tenfold.settings.verify import SessionsSettings

AFFINITY = "no affinity needed"
SURVIVAL = "sessions survive a kill"
LOCAL_FILES = "no files on local disk"

_REMEDY = "keep sessions where every instance finds them: Redis or the database, not a variable"
_ROUNDS = 40
_SHOWN = 3
_BACK_S = 1.5


# ------------------------------------------------------------------ affinity


@attack(AFFINITY)
def affinity(stack: Stack, target: Target) -> Finding:
    """Whether whoever signs in at one instance is known at every other, and told the same."""
    faults: list[str] = []
    names = list(target.instances)
    for home in names:
        user = target.signed_in(target.instances[home])
        for other in names:
            if other != home and (fault := _differs(target, user.copy(), home, other)):
                faults.append(fault)
    pairs = len(names) * (len(names) - 1)
    numbers = {"instances": len(names), "pairs": pairs, "faults": len(faults)}
    if not pairs:
        return Finding(AFFINITY, "there is one instance", Verdict.SKIP, remedy="set stack.instances to 2")
    if faults:
        return Finding(AFFINITY, _named(faults), Verdict.FAIL, numbers, _REMEDY)
    return Finding(AFFINITY, f"{len(names)} instances know each other's users", Verdict.PASS, numbers)


def _named(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more


def _differs(target: Target, user: Visitor, home: str, other: str) -> str:
    """What ``other`` says to a user of ``home`` that ``home`` does not; empty when nothing."""
    known = target.settings
    there = user.copy(url=target.instances[other])
    first, second = user.copy().whoami(), there.copy().whoami()
    if not second.ok:
        return f"signed in at {home}, {other} answers {second.status}"
    # An answer that changes from one request to the next proves nothing.
    if user.copy().whoami().body == first.body != second.body == there.copy().whoami().body:
        return f"{home} and {other} answer differently{_where(first, second)}"
    if known.write and known.read:
        key, value = f"k{secrets.token_hex(3)}", secrets.token_hex(8)
        here = user.copy()
        if here.write(key, value).ok and not here.copy(url=there.url).reads(key, value):
            return f"what is written at {home} is not read at {other}"
    return ""


def _where(first: Answer, second: Answer) -> str:
    """The names of what differs in two JSON objects; never the values, which are a person's."""
    try:
        one, two = json.loads(first.body), json.loads(second.body)
    except ValueError:
        return ""
    if not isinstance(one, dict) or not isinstance(two, dict):
        return ""
    names = sorted(str(key) for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    return f": {', '.join(names[:_SHOWN])}"


# ------------------------------------------------------------------ kill


@attack(SURVIVAL)
def survival(stack: Stack, target: Target, *, away_s: float = 20.0) -> Finding:
    """Whether a user stays signed in while each instance in turn is killed with -9, and when it is back.

    Args:
        away_s: for how long the front door leaves an instance alone that failed, seconds.
    """
    servers = app_servers(stack)
    faults: list[str] = []
    if target.url != stack.url:
        claim = "a user is known at one instance only, with all of them alive"
        return Finding(SURVIVAL, claim, Verdict.FAIL, {"kills": 0, "faults": 1}, _REMEDY)
    for server in servers:
        user = target.signed_in()
        faults += _killed(stack, target, server, user)
        _let_in_again(stack, target, server, within_s=away_s + _BACK_S)
    numbers = {"kills": len(servers), "faults": len(faults)}
    if faults:
        return Finding(SURVIVAL, _named(faults), Verdict.FAIL, numbers, _REMEDY)
    claim = f"signed in through {len(servers)} kills, and at each instance that came back"
    return Finding(SURVIVAL, claim, Verdict.PASS, numbers)


def _killed(stack: Stack, target: Target, server: Server, user: Visitor) -> list[str]:
    value = secrets.token_hex(8)
    written = bool(target.settings.write and target.settings.read) and user.write("kept", value).ok
    kill(server)
    faults = []
    try:
        if not user.signed_in():
            faults.append(f"the kill of {server.name} signed a user out")
        elif written and not user.reads("kept", value):
            faults.append(f"the kill of {server.name} took what a session held")
    finally:
        stack.restart(server)
    if not faults and not user.copy(url=server.url).signed_in():
        faults.append(f"{server.name} came back and knows nobody")
    return faults


def _let_in_again(stack: Stack, target: Target, server: Server, *, within_s: float) -> None:
    """Wait until the front door sends to ``server`` again: the next kill would leave nobody otherwise.

    A backup gets nothing while others run; the time is over then.
    """
    if stack.access_log is not None:
        AccessLog(stack.access_log).answered_by(
            address_of(server), target.visitor().whoami, within_s=within_s
        )


# ------------------------------------------------------------------ local files


def local_files(
    stack: Stack, settings: SessionsSettings, *, scenario: Callable[[], object] | None = None
) -> Finding:
    """Whether requests leave files behind on an instance's own disk.

    Args:
        scenario: sends the requests of the declared scenario for a while; None without one.
    """
    try:
        target = reached(stack, settings)
    except NotDeclared as missing:
        if scenario is None:
            return Finding(
                LOCAL_FILES, f"{missing}, and there is no scenario", Verdict.SKIP, remedy=missing.remedy
            )
        target = None
    pids = [pid for server in app_servers(stack) for pid in server.pids()]
    folders = {stack.app_folder, *working_folders(pids)}
    private = stack.probe_address.parent
    before, temporary_before = snapshot(folders), snapshot([temporary()], passed=private)
    with Watch(pids, passed=[private]) as watch:
        marks = _visits(target) if target else []
        if scenario:
            scenario()
    marked = holding(changed(temporary_before, snapshot([temporary()], passed=private)), marks)
    files = {*changed(before, snapshot(folders)), *watch.written(), *marked}
    return _files_finding([file for file in sorted(files) if not file.is_relative_to(private)], stack, watch)


def _files_finding(files: Sequence[Path], stack: Stack, watch: Watch) -> Finding:
    numbers = {"files": len(files), "processes_watched": watch.processes}
    if files:
        root = stack.app_folder
        shown = [str(file.relative_to(root)) if file.is_relative_to(root) else str(file) for file in files]
        remedy = "keep what a later request needs in the database, in Redis or in an object store"
        return Finding(LOCAL_FILES, f"requests wrote {_named(shown)}", Verdict.FAIL, numbers, remedy)
    claim = "requests left no file behind"
    if not watch.processes:
        claim += "; only the app's folder could be seen" + ("" if LINUX else " on this system")
    return Finding(LOCAL_FILES, claim, Verdict.PASS, numbers)


def _visits(target: Target) -> list[str]:
    """One user at every instance for a while; returns what would give a file away that holds a session."""
    marks = []
    for url in target.instances.values() or [target.url]:
        user = target.signed_in(url)
        marks.append(target.id_of(user))
        for _ in range(_ROUNDS):
            user.whoami()
            if target.settings.write:
                marks.append(secrets.token_hex(8))
                user.write("kept", marks[-1])
    return marks
