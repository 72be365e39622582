"""Import strings, ``package.module:attribute``: checked without importing, loaded in stack processes."""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

from tenfold.errors import SettingsError
from tenfold.stack.logs import MESSAGE_PREFIX

_IMPORT_STRING = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")


def is_import_string(text: str) -> bool:
    """Return whether ``text`` has the shape ``package.module:attribute``."""
    return _IMPORT_STRING.fullmatch(text) is not None


def check(target: str, folder: Path, *, key: str) -> None:
    """Refuse a target that cannot be loaded, as far as that shows without importing it.

    Args:
        target: the import string.
        folder: the app's folder, first on the path.
        key: the settings key that names the target, for the message.

    Raises:
        SettingsError: its shape is wrong, or its module does not exist.
    """
    if not is_import_string(target):
        raise SettingsError(f'{key}: {target!r} should look like "package.module:attribute"')
    if missing := missing_module(target, folder):
        raise SettingsError(_import_failure(target, f"No module named '{missing}'", folder))


def missing_module(target: str, folder: Path) -> str | None:
    """Return the part of ``target``'s module that does not exist for an app in ``folder``, or None.

    Nothing is imported: a typing mistake is found before any server is started. Modules that a meta path hook
    provides cannot be seen this way, so a missing submodule of such a package is not reported.
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


def load(target: str, folder: Path) -> Any:
    """Import ``target`` with ``folder`` first on the path; on failure :func:`exit_with_message`.

    For processes of the stack only. The traceback goes to the log, the message after it.
    """
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))
    module, _, attribute = target.partition(":")
    try:
        loaded = importlib.import_module(module)
        for name in attribute.split("."):
            loaded = getattr(loaded, name)
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        exit_with_message(_import_failure(target, f"{_describe(error)}{_location(error, folder)}", folder))
    return loaded


def exit_with_message(message: str) -> NoReturn:
    """Write the message that the stack will show, in one line, and end this process with status 3."""
    sys.stderr.write(f"{MESSAGE_PREFIX}{' '.join(message.split())}\n")
    sys.stderr.flush()
    raise SystemExit(3)


def _import_failure(target: str, why: str, folder: Path) -> str:
    module = target.partition(":")[0]
    return (
        f"cannot import {module}: {why}; it was looked for in {folder}: "
        "correct the name, install what is missing, or set [service] folder in tenfold.toml"
    )


def _describe(error: BaseException) -> str:
    if isinstance(error, ImportError | AttributeError):
        return str(error)
    return f"{type(error).__name__}: {error}"


def _location(error: BaseException, folder: Path) -> str:
    """Return the last line of the app's own code in the traceback of ``error``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if Path(frame.filename).is_relative_to(folder)]
    if isinstance(error, SyntaxError) and error.filename:
        return f" ({error.filename}:{error.lineno})"
    return f" ({Path(own[-1].filename).relative_to(folder)}:{own[-1].lineno})" if own else ""
