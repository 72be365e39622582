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

_SAYS_MISSING = re.compile(
    r"missing|required|not set|be set|undefined|not found|not defined|no default|^Set the", re.I
)
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


def load(target: str, folder: Path, *, call: bool = False) -> Any:
    """Import ``target`` with ``folder`` first on the path; on failure :func:`exit_with_message`.

    For processes of the stack only. The traceback goes to the log, the message after it.

    Args:
        target: the import string.
        folder: the app's folder.
        call: the target is a factory, and what it returns is wanted.
    """
    if str(folder) not in sys.path[:1]:
        sys.path.insert(0, str(folder))
    module, _, attribute = target.partition(":")
    try:
        loaded: Any = importlib.import_module(module)
        for name in attribute.split("."):
            loaded = getattr(loaded, name)
        return loaded() if call else loaded
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        exit_with_message(_load_failure(target, error, folder))


def _load_failure(target: str, error: BaseException, folder: Path) -> str:
    why = f"{_describe(error)}{_location(error, folder)}"
    if missing := missing_settings(error):
        return (
            f"cannot import {target.partition(':')[0]}: {why}; the app lacks {missing}: "
            "set it in [service.environment] of tenfold.toml, or name a file with it in [service] env_file"
        )
    if isinstance(error, ModuleNotFoundError):
        return (
            f"cannot import {target.partition(':')[0]}: {why}; it was looked for in {folder}, and by "
            f"{sys.executable}: install what is missing there, name the service's own environment in "
            "[service] python, or set [service] folder in tenfold.toml"
        )
    if isinstance(error, ImportError | AttributeError):
        return _import_failure(target, why, folder)
    version = ".".join(map(str, sys.version_info[:2]))
    other = f"; if it needs another Python than {version}, name that in [service] python"
    return f"cannot import {target.partition(':')[0]}: {why}{other if isinstance(error, SyntaxError) else ''}"


def missing_settings(error: BaseException) -> str:
    """Return the names of the variables for want of which an app was not imported; empty for other errors.

    Of ``os.environ["NAME"]`` and pydantic's settings classes; of other libraries (Starlette's ``Config``,
    python-decouple, django-environ) and of the app's own checks by what they say.
    """
    frames = traceback.extract_tb(error.__traceback__)
    if isinstance(error, KeyError) and frames and frames[-1].filename.endswith(("os.py", "<frozen os>")):
        return str(error.args[0])
    kind = type(error).__name__
    if kind == "ValidationError" and callable(list_errors := getattr(error, "errors", None)):
        lost = [one for one in list_errors() if one.get("type") == "missing"]
        return ", ".join(str(one["loc"][0]).upper() for one in lost if one.get("loc"))
    names = re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\b[A-Z]{4,}\b", str(error))
    return str(names[0]) if names and _SAYS_MISSING.search(str(error)) else ""


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
