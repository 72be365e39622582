"""Which hooks a process needs: those of the libraries that its app has imported.

None is imported here for that: order matters to some (gevent), and what an app does not import it does not
use. Each hook is installed once in a process and directs its records to the last recorder.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module

from tenfold.measure.probe.recorder import Recorder

# The module that has to be imported already → tenfold's module with its hooks, and the function there.
_HOOKS = {
    "django.core.handlers.base": ("django", "install"),
    "flask.signals": ("flask", "install"),
    "psycopg": ("psycopg", "install"),
    "asyncpg.connection": ("asyncpg", "install"),
    "http.client": ("http_calls", "install_http_client"),
    "httpcore": ("http_calls", "install_httpcore"),
    "aiohttp": ("http_calls", "install_aiohttp"),
}


def watch_libraries(recorder: Recorder) -> None:
    """Record what the imported libraries do; the app must not notice when one is unlike any known version.

    Call it again from time to time: some libraries are imported when they are first used.
    """
    for module, (hooks, name) in _HOOKS.items():
        if module in sys.modules and module not in recorder.watched:
            recorder.watched.add(module)
            install: Callable[[Recorder], None] = getattr(
                import_module(f"tenfold.measure.probe.{hooks}"), name
            )
            try:
                install(recorder)
            except (AttributeError, ImportError):
                continue
