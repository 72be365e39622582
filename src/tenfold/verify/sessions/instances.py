"""Checks of state that ties a user to one instance: sessions in its memory, files on its disk."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

from tenfold.settings import Settings
from tenfold.types import Finding, Server, Stack, Verdict
from tenfold.verify.kit.access_log import AccessLog
from tenfold.verify.kit.instances import address_of, app_servers, kill
from tenfold.verify.kit.scenario import has_scenario, send_light_load
from tenfold.verify.kit.session_user import SessionUser
from tenfold.verify.kit.user_agent import Answer
from tenfold.verify.runner import skip_undeclared
from tenfold.verify.sessions.local_files import (
    changed_files,
    changed_open_files,
    files_with,
    temporary_folder,
)
from tenfold.verify.sessions.target import SessionTarget, find_target

AFFINITY = "no affinity needed"
SURVIVAL = "sessions survive a kill"
LOCAL_FILES = "no files on local disk"

_REMEDY = "keep sessions where every instance finds them: Redis or the database, not a variable"
_ROUNDS = 40
_SHOWN = 3
_BACK_S = 1.5


# ------------------------------------------------------------------ affinity


def check_affinity(stack: Stack, settings: Settings) -> Finding:
    """Sign in at each instance, past nginx, and use the session at all others."""
    target = find_target(stack, settings.verify)
    faults: list[str] = []
    names = list(target.instances)
    for home in names:
        user = target.signed_in_user(target.instances[home])
        for other in names:
            if other != home and (fault := _difference(target, user.copy(), home, other)):
                faults.append(fault)
    pairs = len(names) * (len(names) - 1)
    numbers = {"instances": len(names), "pairs": pairs, "faults": len(faults)}
    if not pairs:
        return Finding(AFFINITY, "there is one instance", Verdict.SKIP, remedy="set stack.instances to 2")
    if faults:
        return Finding(AFFINITY, _listed(faults), Verdict.FAIL, numbers, _REMEDY)
    return Finding(AFFINITY, f"{len(names)} instances know each other's users", Verdict.PASS, numbers)


def _listed(faults: Sequence[str]) -> str:
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more


def _difference(target: SessionTarget, user: SessionUser, home: str, other: str) -> str:
    """The difference between the answers of two instances to a user of ``home``; empty without one."""
    known = target.settings
    there = user.copy(url=target.instances[other])
    first, second = user.copy().whoami(), there.copy().whoami()
    if not second.ok:
        return f"signed in at {home}, {other} answers {second.status}"
    # An answer that changes from one request to the next proves nothing.
    if user.copy().whoami().body == first.body != second.body == there.copy().whoami().body:
        return f"{home} and {other} answer differently{_different_keys(first, second)}"
    if known.session_write and known.session_read:
        key, value = f"k{secrets.token_hex(3)}", secrets.token_hex(8)
        here = user.copy()
        if here.write(key, value).ok and not here.copy(url=there.url).can_read(key, value):
            return f"what is written at {home} is not read at {other}"
    return ""


def _different_keys(first: Answer, second: Answer) -> str:
    """The keys that differ in two JSON objects; not the values, which are personal."""
    try:
        one, two = json.loads(first.body), json.loads(second.body)
    except ValueError:
        return ""
    if not isinstance(one, dict) or not isinstance(two, dict):
        return ""
    names = sorted(str(key) for key in one.keys() | two.keys() if one.get(key) != two.get(key))
    return f": {', '.join(names[:_SHOWN])}"


# ------------------------------------------------------------------ kill


def check_kill(stack: Stack, settings: Settings) -> Finding:
    """Kill each instance with -9 and start it again: a user has to stay signed in all the while."""
    target = find_target(stack, settings.verify)
    servers = app_servers(stack)
    faults: list[str] = []
    if target.url != stack.url:
        claim = "a user is known at one instance only, with all of them alive"
        return Finding(SURVIVAL, claim, Verdict.FAIL, {"kills": 0, "faults": 1}, _REMEDY)
    for server in servers:
        user = target.signed_in_user()
        faults += _faults_of_kill(stack, target, server, user)
        _wait_until_used(stack, target, server, within_s=settings.balancing.fail_timeout_s + _BACK_S)
    numbers = {"kills": len(servers), "faults": len(faults)}
    if faults:
        return Finding(SURVIVAL, _listed(faults), Verdict.FAIL, numbers, _REMEDY)
    claim = f"signed in through {len(servers)} kills, and at each instance that came back"
    return Finding(SURVIVAL, claim, Verdict.PASS, numbers)


def _faults_of_kill(stack: Stack, target: SessionTarget, server: Server, user: SessionUser) -> list[str]:
    value = secrets.token_hex(8)
    written = (
        bool(target.settings.session_write and target.settings.session_read) and user.write("kept", value).ok
    )
    kill(server)
    faults = []
    try:
        if not user.is_signed_in():
            faults.append(f"the kill of {server.name} signed a user out")
        elif written and not user.can_read("kept", value):
            faults.append(f"the kill of {server.name} took what a session held")
    finally:
        stack.restart(server)
    if not faults and not user.copy(url=server.url).is_signed_in():
        faults.append(f"{server.name} came back and does not know the user")
    return faults


def _wait_until_used(stack: Stack, target: SessionTarget, server: Server, *, within_s: float) -> None:
    """Wait until nginx sends requests to ``server`` again: after the next kill it may be the only one.

    A backup gets none while others run; this returns after ``within_s`` seconds then.
    """
    if stack.access_log is not None:
        AccessLog(stack.access_log).wait_until_used(
            address_of(server), target.new_user().whoami, within_s=within_s
        )


# ------------------------------------------------------------------ local files


def check_local_files(stack: Stack, settings: Settings) -> Finding:
    """Send requests, and the scenario's where there is one; look for files that they leave behind.

    In the app's folder, in folders that its variables name, among the files that its processes have open at
    the end, and in the temporary folder, where a file counts that holds something of the session.
    """
    undeclared = skip_undeclared(LOCAL_FILES, settings.verify, ("login", "whoami"))
    if undeclared and not has_scenario(settings):
        claim = f"{undeclared.claim}, and there is no scenario"
        return Finding(LOCAL_FILES, claim, Verdict.SKIP, remedy=undeclared.remedy)
    since_ns = time.time_ns()
    target = None if undeclared else find_target(stack, settings.verify)
    marks = _use_sessions(target) if target else []
    if has_scenario(settings):
        send_light_load(stack, settings)
    private = stack.probe_address.parent
    pids = [pid for server in app_servers(stack) for pid in server.pids()]
    files = changed_files(
        [stack.app_folder, settings.working_folder, *_named_folders(settings)], since_ns=since_ns
    )
    files |= changed_open_files(pids, since_ns=since_ns)
    temporary = changed_files([temporary_folder()], since_ns=since_ns, without=private)
    files |= set(files_with(marks, temporary))
    return _judge_files(sorted(file for file in files if not file.is_relative_to(private)), stack)


def _named_folders(settings: Settings) -> set[Path]:
    """The folders that the app's variables name, without that of Prometheus' multiprocess mode."""
    paths = {
        Path(value)
        for name, value in settings.service.environment.items()
        if value.startswith("/") and name.lower() != "prometheus_multiproc_dir"
    }
    return {path for path in paths if os.path.isdir(path) and path != temporary_folder()}


def _judge_files(files: Sequence[Path], stack: Stack) -> Finding:
    numbers = {"files": len(files)}
    if not files:
        return Finding(LOCAL_FILES, "requests left no file behind", Verdict.PASS, numbers)
    root = stack.app_folder
    paths = [str(file.relative_to(root)) if file.is_relative_to(root) else str(file) for file in files]
    remedy = "keep what a later request needs in the database, in Redis or in an object store"
    return Finding(LOCAL_FILES, f"requests wrote {_listed(paths)}", Verdict.FAIL, numbers, remedy)


def _use_sessions(target: SessionTarget) -> list[str]:
    """Use a session at every instance for a while; return its id and values, which a file could hold."""
    marks = []
    for url in target.instances.values() or [target.url]:
        user = target.signed_in_user(url)
        marks.append(target.session_id(user))
        for _ in range(_ROUNDS):
            user.whoami()
            if target.settings.session_write:
                marks.append(secrets.token_hex(8))
                user.write("kept", marks[-1])
    return marks
