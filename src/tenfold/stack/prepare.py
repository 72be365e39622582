"""``[service] prepare``: the command that runs once before the app starts. As a module, it calls a callable.

.venv/bin/python /…/tenfold/stack/launch.py prepare shop.data:load /path/of/the/app
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
from typing import TYPE_CHECKING

from tenfold.errors import SettingsError
from tenfold.stack import import_string

if TYPE_CHECKING:
    from tenfold.settings import Settings


def prepare_command(settings: Settings, environment: Mapping[str, str]) -> Sequence[str]:
    """Return the command for ``[service] prepare``; a callable is called by :func:`main` in its own process.

    Raises:
        SettingsError: its module or program does not exist.
    """
    from tenfold.stack.service_python import service_command, service_python, with_scripts_on_path

    prepare, folder, python = settings.service.prepare, settings.app_folder, service_python(settings)
    if import_string.is_import_string(prepare):
        if not settings.service.python:
            import_string.check(prepare, folder, key="service.prepare")
        return service_command(python, "prepare", prepare, str(folder))
    try:
        words = shlex.split(prepare)
    except ValueError as error:
        raise SettingsError(f"service.prepare: {prepare!r} cannot be split into words ({error})") from error
    name = str(settings.working_folder / words[0]) if "/" in words[0] else words[0]
    if program := shutil.which(name, path=with_scripts_on_path(environment, python)["PATH"]):
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
