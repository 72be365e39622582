"""Runs checks against a stack, each on its own: what one of them breaks is its own failure."""

from __future__ import annotations

import difflib
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tenfold.errors import SettingsError, TenfoldError
from tenfold.settings import Settings
from tenfold.types import Finding, Stack, Verdict

_PASSWORD = re.compile(r"://([^:/\s]*):[^@\s]*@")
_LONGEST_MESSAGE = 300

# What a check may need, and whether these settings have it.
NEEDS: Mapping[str, Callable[[Settings], bool]] = {
    "app": lambda settings: bool(settings.service.app),
    "database": lambda settings: settings.stack.database,
    "replicas": lambda settings: settings.stack.replicas > 0,
    "redis": lambda settings: settings.stack.redis,
    "nginx": lambda settings: settings.stack.nginx,
    "instances": lambda settings: settings.stack.instances > 1,
}
_WAYS = {
    "app": "name the app in [service] app",
    "database": "set stack.database = true",
    "replicas": "set stack.replicas",
    "redis": "set stack.redis = true",
    "nginx": "set stack.nginx = true",
    "instances": "set stack.instances to 2 or more",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A function that drives the stack and ends with a finding, and what it needs to do so.

    ``needs`` are keys of NEEDS; a check whose needs are not declared in the settings is skipped, and says so.
    """

    name: str
    pattern: str
    run: Callable[[Stack, Settings], Finding]
    needs: frozenset[str] = frozenset()
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuses a need that nobody can look up."""
        if unknown := self.needs - NEEDS.keys():
            raise ValueError(f"check {self.name}: unknown needs {', '.join(sorted(unknown))}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A check, how it ended, and how long it took."""

    check: Check
    finding: Finding
    seconds: float


def select(checks: Sequence[Check], only: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks with one of these names, or of one of these patterns; all of them without any.

    Raises:
        SettingsError: a name that is neither.
    """
    known = {name for check in checks for name in (check.name, check.pattern)}
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "tenfold verify --list shows all"
            raise SettingsError(f"no check {name}; {hint}")
    return tuple(check for check in checks if not only or {check.name, check.pattern} & set(only))


def run(checks: Sequence[Check], stack: Stack, settings: Settings) -> Iterator[Outcome]:
    """Runs one check after the other and yields each outcome as soon as it is known.

    An exception is a failure of that check alone. A check that takes longer than its ``timeout_s`` fails and
    is left behind in its thread, because Python cannot end one: it may disturb those that follow.
    """
    for check in checks:
        started = time.monotonic()
        finding = _skipped(check, settings) or _finding(check, stack, settings)
        yield Outcome(check, finding, time.monotonic() - started)


def _skipped(check: Check, settings: Settings) -> Finding | None:
    missing = [need for need in sorted(check.needs) if not NEEDS[need](settings)]
    if not missing:
        return None
    ways = ", ".join(_WAYS[need] for need in missing)
    return Finding(check.name, f"needs {', '.join(missing)}", Verdict.SKIP, remedy=ways)


def _finding(check: Check, stack: Stack, settings: Settings) -> Finding:
    results: list[Finding] = []

    def work() -> None:
        results.append(_guarded(check, stack, settings))

    thread = threading.Thread(target=work, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(check.timeout_s)
    if results:
        return results[0]
    return Finding(check.name, f"did not end within {check.timeout_s:g} s", Verdict.FAIL)


def _guarded(check: Check, stack: Stack, settings: Settings) -> Finding:
    try:
        finding: object = check.run(stack, settings)
    except TenfoldError as error:
        return Finding(check.name, _sentence(str(error)), Verdict.FAIL)
    except BaseException as error:  # SystemExit too: nothing that a check does may end the runner
        what = f"raised {type(error).__name__}" + (f": {error}" if str(error) else "")
        return Finding(check.name, _sentence(what), Verdict.FAIL)
    if not isinstance(finding, Finding):
        return Finding(check.name, f"ended with {type(finding).__name__} in place of a finding", Verdict.FAIL)
    return finding


def _sentence(text: str) -> str:
    """One line of bounded length, and no passwords of database addresses in it."""
    flat = _PASSWORD.sub(r"://\1:***@", " ".join(text.split()))
    return flat if len(flat) <= _LONGEST_MESSAGE else f"{flat[:_LONGEST_MESSAGE]}…"
