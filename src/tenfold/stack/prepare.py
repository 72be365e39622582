"""``[service] prepare``: the command that runs once before the app starts. As a module, it calls a callable.

python -P -m tenfold.stack.prepare shop.data:load /path/of/the/app
"""

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
from tenfold.stack import import_string


def prepare_command(prepare: str, folder: Path, environment: Mapping[str, str]) -> Sequence[str]:
    """Return the command for ``prepare``; a callable is called by this module in a process of its own.

    Raises:
        SettingsError: its module or program does not exist.
    """
    if import_string.is_import_string(prepare):
        import_string.check(prepare, folder, key="service.prepare")
        return [sys.executable, "-P", "-m", "tenfold.stack.prepare", prepare, str(folder)]
    try:
        words = shlex.split(prepare)
    except ValueError as error:
        raise SettingsError(f"service.prepare: {prepare!r} cannot be split into words ({error})") from error
    name = str(folder / words[0]) if "/" in words[0] else words[0]
    if program := shutil.which(name, path=environment.get("PATH")):
        return [program, *words[1:]]
    raise SettingsError(
        f'service.prepare: there is no program {words[0]}; name one, or a callable "package.module:name"'
    )


def main(target: str, folder: str) -> None:
    """Call ``target`` without arguments; wait for its result when it is awaitable."""
    call = import_string.load(target, Path(folder))
    try:
        result = call()
        if inspect.isawaitable(result):
            asyncio.run(_wait(result))
    except Exception as error:
        traceback.print_exc()
        import_string.exit_with_message(
            f"service.prepare: {target} failed with {type(error).__name__}: {error}"
        )


async def _wait(result: Awaitable[object]) -> None:
    await result


if __name__ == "__main__":
    main(*sys.argv[1:])
