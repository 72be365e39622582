"""Which hooks a process needs: those of the libraries that its app has imported.

None is imported here for that: order matters to some (gevent), and what an app does not import it does not
use. Each hook is installed once in a process and directs its records to the last recorder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from tenfold.measure.probe.recorder import Recorder

# The module that has to be imported already → tenfold's module with its hooks.
_HOOKS = {
    "django.core.handlers.base": "django",
    "flask.signals": "flask",
    "psycopg": "psycopg",
    "asyncpg.connection": "asyncpg",
}


def watch_libraries(recorder: Recorder) -> None:
    """Record what the imported libraries do; the app must not notice when one is unlike any known version."""
    for module, hooks in _HOOKS.items():
        if module in sys.modules:
            install: Callable[[Recorder], None] = import_module(f"tenfold.measure.probe.{hooks}").install
            try:
                install(recorder)
            except (AttributeError, ImportError):
                continue
