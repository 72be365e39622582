"""Runs one of tenfold's modules in the service's own Python, where tenfold need not be installed.

    .venv/bin/python /…/tenfold/stack/launch.py app_process 127.0.0.1 8000

What is launched here needs Python 3.10 and its standard library, nothing else. This folder is no place to
import from: the service's own modules may have the names of those in it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path

_HERE = Path(__file__).resolve()
_PACKAGE = _HERE.parents[1]


def _make_importable() -> None:
    """Let ``import tenfold`` find this installation, unless the service's Python has one of its own.

    A process that a server spawns runs this module once more, by the name ``__mp_main__``.
    """
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE.parent]
    if "tenfold" in sys.modules or importlib.util.find_spec("tenfold") is not None:
        return
    spec = importlib.util.spec_from_file_location(
        "tenfold", _PACKAGE / "__init__.py", submodule_search_locations=[str(_PACKAGE)]
    )
    assert spec is not None and spec.loader is not None
    module = sys.modules["tenfold"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def main(name: str, *arguments: str) -> object:
    """Run ``tenfold.stack.<name>``.

    Raises:
        SystemExit: the service's Python has another version of tenfold installed.
    """
    from tenfold import __version__
    from tenfold.stack.import_string import exit_with_message

    here = (_PACKAGE / "__init__.py").read_text(encoding="utf-8")
    if f'"{__version__}"' not in here:
        exit_with_message(
            f"the service's Python ({sys.executable}) has tenfold {__version__}, another version than the "
            "one that starts it; install the same version in both"
        )
    return importlib.import_module(f"tenfold.stack.{name}").main(*arguments)


_make_importable()
if lent := os.environ.get("_TENFOLD_GRANIAN"):
    from tenfold.stack.app_servers import lend_granian

    lend_granian(lent)

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))  # type: ignore[arg-type] # what main() returns is an exit status or None
