"""``package.module:attribute``: looked up without running anything, and loaded in a process of its own."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import shlex
import shutil
import sys
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from tenfold.errors import SettingsError
from tenfold.stack.logs import SENTENCE

_SHAPE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_target(text: str) -> bool:
    """Whether ``text`` has the shape ``package.module:attribute``."""
    return _SHAPE.fullmatch(text) is not None


def missing_module(target: str, folder: Path) -> str | None:
    """The part of ``target``'s module that does not exist for an app in ``folder``; None when all is there.

    Nothing is imported: a typing mistake is found before any server is started. A module that makes others
    appear (a meta path hook) is beyond it, so a package's missing submodule is not held against the target.
    """
    top, *rest = target.partition(":")[0].split(".")
    if top in sys.builtin_module_names:
        return None
    spec = PathFinder.find_spec(top, [str(folder), *sys.path])
    name = top
    for part in rest:
        if spec is None or spec.submodule_search_locations is None:
            break
        name = f"{name}.{part}"
        spec = PathFinder.find_spec(name, list(spec.submodule_search_locations))
    return name if spec is None else None


def check(target: str, folder: Path, *, key: str) -> None:
    """Refuse a target that cannot be loaded, as far as one can tell without loading it.

    Raises:
        SettingsError: its shape is wrong, or its module does not exist.
    """
    if not is_target(target):
        raise SettingsError(f'{key}: {target!r} should look like "package.module:attribute"')
    if missing := missing_module(target, folder):
        raise SettingsError(cannot_import(target, f"No module named '{missing}'", folder))


def cannot_import(target: str, why: str, folder: Path) -> str:
    """The sentence about a target that does not load."""
    module = target.partition(":")[0]
    return (
        f"cannot import {module}: {why}; it was looked for in {folder}: "
        "correct the name, install what is missing, or set [service] folder in tenfold.toml"
    )


def load(target: str, folder: Path) -> Any:
    """Import ``target`` with ``folder`` first on the path; on failure say why in one line and exit with 3.

    For processes of the stack only. The traceback goes to the log, the sentence after it.
    """
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))
    module, _, attribute = target.partition(":")
    try:
        found = importlib.import_module(module)
        for name in attribute.split("."):
            found = getattr(found, name)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        leave(cannot_import(target, f"{_told(error)}{_where(error, folder)}", folder))
    return found


def leave(sentence: str) -> None:
    """Write the sentence that the stack will show, and end this process."""
    sys.stderr.write(f"{SENTENCE}{' '.join(sentence.split())}\n")
    sys.stderr.flush()
    raise SystemExit(3)


def _told(error: BaseException) -> str:
    if isinstance(error, ImportError | AttributeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _where(error: BaseException, folder: Path) -> str:
    """The last line of the app's own code on the way to ``error``."""
    frames: Sequence[traceback.FrameSummary] = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    return f" ({Path(own[-1].filename).relative_to(folder)}:{own[-1].lineno})" if own else ""


# ``[service] prepare``: what has to be done once before the app starts, as a command to run.
def command(prepare: str, folder: Path, environment: Mapping[str, str]) -> Sequence[str]:
    """The command that ``prepare`` stands for; a callable is run by this module in a process of its own.

    Raises:
        SettingsError: it names no module, or no program.
    """
    if is_target(prepare):
        check(prepare, folder, key="service.prepare")
        return [sys.executable, "-P", "-m", "tenfold.stack.targets", prepare, str(folder)]
    try:
        words = shlex.split(prepare)
    except ValueError as error:
        raise SettingsError(f"service.prepare: {prepare!r} cannot be split into words ({error})") from error
    if program := shutil.which(_relative_to(folder, words[0]), path=environment.get("PATH")):
        return [program, *words[1:]]
    raise SettingsError(
        f'service.prepare: there is no program {words[0]}; name one, or a callable "package.module:name"'
    )


def _relative_to(folder: Path, program: str) -> str:
    return str(folder / program) if "/" in program else program


def main(target: str, folder: str) -> None:
    """Call ``target`` without arguments; wait for it when it is asynchronous."""
    call = load(target, Path(folder))
    try:
        result = call()
        if inspect.isawaitable(result):
            asyncio.run(_finish(result))
    except Exception as error:
        traceback.print_exc()
        leave(f"service.prepare: {target} failed with {type(error).__name__}: {error}")


async def _finish(result: Awaitable[object]) -> None:
    await result


if __name__ == "__main__":
    main(*sys.argv[1:])
