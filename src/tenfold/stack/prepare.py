"""``[service] prepare``: what has to be done once before the app starts, as a command to run."""

from __future__ import annotations

import asyncio
import inspect
import shlex
import shutil
import sys
import traceback
from collections.abc import Awaitable, Mapping, Sequence
from pathlib import Path

from tenfold.errors import SettingsError
from tenfold.stack import targets


def command(prepare: str, folder: Path, environment: Mapping[str, str]) -> Sequence[str]:
    """The command that ``prepare`` stands for; a callable is run by this module in a process of its own.

    Raises:
        SettingsError: it names no module, or no program.
    """
    if targets.is_target(prepare):
        targets.check(prepare, folder, key="service.prepare")
        return [sys.executable, "-P", "-m", "tenfold.stack.prepare", prepare, str(folder)]
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
    call = targets.load(target, Path(folder))
    try:
        result = call()
        if inspect.isawaitable(result):
            asyncio.run(_finish(result))
    except Exception as error:
        traceback.print_exc()
        targets.leave(f"service.prepare: {target} failed with {type(error).__name__}: {error}")


async def _finish(result: Awaitable[object]) -> None:
    await result


if __name__ == "__main__":
    main(*sys.argv[1:])
