"""Loading a locustfile the way ``locust -f`` does, with one-sentence errors."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import locust
from locust import User
from locust.argument_parser import get_parser
from locust.env import Environment
from locust.util.load_locustfile import load_locustfile

from tenfold.errors import ScenarioError

MAX_LOG_RECORDS = 200


def load(path: Path, *, target: str, users: int = 1) -> Any:
    """Load a locustfile into an environment, its host replaced by ``target``, and fire ``init``.

    Locust's own options come from ``locust.conf`` and ``LOCUST_`` variables as usual, so that tags and a
    locustfile's custom options work. A ``LoadTestShape`` is left out: its name is ``ignored_shape`` of the
    environment that is returned.

    Args:
        path: the locustfile.
        target: the URL that replaces scheme and address of every host; a path in a class's host stays.
        users: what ``runner.target_user_count`` and ``parsed_options.num_users`` say.

    Raises:
        ScenarioError: the file cannot be read, compiled or imported, or has no user class in it.
    """
    _compile(path)
    classes, shape = _import(path)
    environment = _environment(path, classes=classes, target=target)
    environment._filter_tasks_by_tags()
    environment.ignored_shape = shape
    for user_class in environment.user_classes:
        own = user_class.host or ""
        user_class.host = target.rstrip("/") + (urlsplit(own).path if "://" in own else "")
    runner = environment.create_local_runner()
    runner.target_user_count = environment.parsed_options.num_users = users
    locust.events.init.fire(environment=environment, runner=runner, web_ui=None)
    return environment


def _compile(path: Path) -> None:
    try:
        compile(path.read_bytes(), str(path), "exec", dont_inherit=True)
    except SyntaxError as error:
        raise ScenarioError(f"{path}:{error.lineno}: {error.msg}; correct the locustfile") from error
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{path} cannot be read: {error}") from error


def _import(path: Path) -> tuple[list[type[User]], str]:
    """Return the user classes, and the name of a load shape if there is one."""
    try:
        classes, shapes = load_locustfile(str(path.resolve()))
    except (Exception, SystemExit) as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(".py")
        ]
        mine = [frame for frame in frames if Path(frame.filename).name == path.name] or frames
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ScenarioError(
            f"{path}:{mine[-1].lineno}: {reason}; the locustfile cannot be imported"
        ) from error
    if not classes:
        raise ScenarioError(
            f"{path} has no user class; add one, for instance class Visitor(FastHttpUser) with a @task"
        )
    return list(classes.values()), next((type(shape).__name__ for shape in shapes), "")


def _environment(path: Path, *, classes: list[type[User]], target: str) -> Any:
    said: list[str] = []
    parser = get_parser()
    parser.error = lambda message: _exit(said, message)  # type: ignore[method-assign]
    try:
        options = parser.parse_args([])
        options.headless, options.host, options.locustfile = True, target, str(path)
        return Environment(
            user_classes=classes,
            events=locust.events,
            host=target,
            locustfile=path.name,
            parsed_locustfiles=[str(path)],
            parsed_options=options,
        )
    except SystemExit as error:
        raise ScenarioError(
            f"{path}: {' '.join(said) or 'Locust does not accept its options'}; "
            "set it in locust.conf beside the locustfile, or by the option's own variable"
        ) from error
    except ValueError as error:
        raise ScenarioError(f"{path}: {error}") from error


def _exit(said: list[str], message: str) -> NoReturn:
    said.append(message)
    raise SystemExit(2)


class RecordLimit(logging.Filter):
    """Passes the first records only: a service that fails a thousand times a second must not fill a disk."""

    def __init__(self, most: int = MAX_LOG_RECORDS) -> None:
        super().__init__()
        self._left = most

    def filter(self, record: logging.LogRecord) -> bool:
        self._left -= 1
        return self._left >= 0


def quiet_logging() -> None:
    """Log warnings and errors only, to stderr, bounded in number."""
    handler = logging.StreamHandler()
    handler.addFilter(RecordLimit())
    logging.basicConfig(level=logging.WARNING, handlers=[handler], format="%(name)s: %(message)s")
