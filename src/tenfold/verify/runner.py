"""Run checks against a stack, one after the other; an exception fails the check that raised it."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tenfold.errors import SettingsError, TenfoldError
from tenfold.redaction import redact
from tenfold.settings import Settings
from tenfold.settings.verify import VerifySettings
from tenfold.types import Finding, Stack, Verdict

_LONGEST_MESSAGE = 300

# What a check may need, and the predicate that tells whether the settings have it.
NEEDS: Mapping[str, Callable[[Settings], bool]] = {
    "app": lambda settings: bool(settings.service.app),
    "database": lambda settings: settings.stack.database,
    "replicas": lambda settings: settings.stack.replicas > 0,
    "redis": lambda settings: settings.stack.redis,
    "nginx": lambda settings: settings.stack.nginx,
    "instances": lambda settings: settings.stack.instances > 1,
    "workers": lambda settings: bool(settings.tasks.app),
    "shards": lambda settings: settings.sharding.shards > 1,
}
_REMEDIES = {
    "app": "name the app in [service] app",
    "database": "set stack.database = true",
    "replicas": "set stack.replicas",
    "redis": "set stack.redis = true",
    "nginx": "set stack.nginx = true",
    "instances": "set stack.instances to 2 or more",
    "workers": "name the Celery app in [tasks] app",
    "shards": "set sharding.shards to 2 or more",
}


@dataclass(frozen=True, slots=True)
class Check:
    """A function that drives the stack and returns a finding, and what it needs to do so.

    A check is skipped, with a remedy, where the settings lack one of its needs or keys.

    Attributes:
        name: as ``tenfold verify`` prints it.
        pattern: the package that it is about.
        run: the function.
        needs: parts of the stack, keys of NEEDS.
        keys: keys of ``[verify]`` that have to be set.
        timeout_s: a check that takes longer fails.
    """

    name: str
    pattern: str
    run: Callable[[Stack, Settings], Finding]
    needs: frozenset[str] = frozenset()
    keys: tuple[str, ...] = ()
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        """Refuse unknown needs and keys."""
        if unknown := self.needs - NEEDS.keys():
            raise ValueError(f"check {self.name}: unknown needs {', '.join(sorted(unknown))}")
        if unknown := frozenset(self.keys) - VerifySettings.model_fields.keys():
            raise ValueError(f"check {self.name}: unknown keys {', '.join(sorted(unknown))}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A check, its finding, and its duration in seconds."""

    check: Check
    finding: Finding
    seconds: float


def select(checks: Sequence[Check], only: Sequence[str] = ()) -> tuple[Check, ...]:
    """The checks with one of these names or patterns; all of them when ``only`` is empty.

    Raises:
        SettingsError: a name is neither that of a check nor of a pattern.
    """
    known = {name for check in checks for name in (check.name, check.pattern)}
    for name in only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else "tenfold verify --list shows all"
            raise SettingsError(f"no check {name}; {hint}")
    return tuple(check for check in checks if not only or {check.name, check.pattern} & set(only))


def run(checks: Sequence[Check], stack: Stack, settings: Settings) -> Iterator[Outcome]:
    """Run one check after the other; yield each outcome as soon as it is known.

    An exception is a failure of that check alone. A check that takes longer than its ``timeout_s`` fails and
    is left behind in its thread, because Python cannot end one: it may disturb those that follow.
    """
    for check in checks:
        started = time.monotonic()
        finding = _skip(check, settings) or _run_in_thread(check, stack, settings)
        yield Outcome(check, finding, time.monotonic() - started)


def _skip(check: Check, settings: Settings) -> Finding | None:
    missing = [need for need in sorted(check.needs) if not NEEDS[need](settings)]
    if not missing:
        return skip_undeclared(check.name, settings.verify, check.keys)
    remedy = ", ".join(_REMEDIES[need] for need in missing)
    return Finding(check.name, f"needs {', '.join(missing)}", Verdict.SKIP, remedy=remedy)


def skip_undeclared(check: str, settings: VerifySettings, keys: Sequence[str]) -> Finding | None:
    """A SKIP finding that names the ``keys`` of ``[verify]`` that are not set; None when all are."""
    missing = [key for key in keys if not getattr(settings, key)]
    if not missing:
        return None
    names = " and ".join(f"verify.{key}" for key in missing)
    claim = f"{names} {'is' if len(missing) == 1 else 'are'} not set"
    example = (VerifySettings.model_fields[missing[0]].examples or [""])[0]
    remedy = f'set verify.{missing[0]}, for example {missing[0]} = "{example}"'
    return Finding(check, claim, Verdict.SKIP, remedy=remedy)


def _run_in_thread(check: Check, stack: Stack, settings: Settings) -> Finding:
    results: list[Finding] = []

    def work() -> None:
        results.append(_run_safely(check, stack, settings))

    thread = threading.Thread(target=work, name=f"check {check.name}", daemon=True)
    thread.start()
    thread.join(check.timeout_s)
    if results:
        return results[0]
    return Finding(check.name, f"did not end within {check.timeout_s:g} s", Verdict.FAIL)


def _run_safely(check: Check, stack: Stack, settings: Settings) -> Finding:
    try:
        finding: object = check.run(stack, settings)
    except TenfoldError as error:
        return Finding(check.name, _sentence(str(error)), Verdict.FAIL)
    except BaseException as error:  # SystemExit too: no check may end the runner
        what = f"raised {type(error).__name__}" + (f": {error}" if str(error) else "")
        return Finding(check.name, _sentence(what), Verdict.FAIL)
    if not isinstance(finding, Finding):
        return Finding(check.name, f"ended with {type(finding).__name__} in place of a finding", Verdict.FAIL)
    return finding


def _sentence(text: str) -> str:
    """One line of bounded length, and no passwords of database addresses in it."""
    flat = redact(" ".join(text.split()))
    return flat if len(flat) <= _LONGEST_MESSAGE else f"{flat[:_LONGEST_MESSAGE]}…"
